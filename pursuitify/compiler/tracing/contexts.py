"""Contexts of the forward's operations: no_grad, inference mode, autocast, custom Functions.

torch.fx records operations and forgets what they ran under. Here that is read off torch's own state
whenever a node is made: nothing of torch is replaced, so any way of entering a context is seen.
"""

from __future__ import annotations

import contextlib
import dis
import functools
import inspect
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import CodeType, FrameType, TracebackType
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.autograd import Function
from torch.autograd.function import FunctionCtx
from torch.utils.checkpoint import CheckpointFunction

from pursuitify.compiler.tracing import guards
from pursuitify.compiler.tracing import nodes as pieces
from pursuitify.compiler.tracing.nodes import describe, is_inplace, module_path
from pursuitify.errors import Problem
from pursuitify.rules import split_ops
from pursuitify.rules.functions import Applied, applied
from pursuitify.utils import frames

_DEVICES = ("cpu", "cuda", "mps", "xpu")


@dataclass(eq=False)
class _FunctionCall:
    """The nodes that were made inside one call of a custom Function.

    Attributes:
        function: The Function; None where it could not be told which.
        args: What it was called with; None where that could not be told.
        frame: The call of its ``forward``; None where that had returned.
        nodes: The nodes, in order.
    """

    function: type[Function] | None
    args: tuple[Any, ...] | None
    frame: FrameType | None
    nodes: list[fx.Node]

    @property
    def name(self) -> str:
        """Name of the Function."""
        return "apply" if self.function is None else self.function.__name__


def _forwards() -> dict[CodeType, type[Function]]:
    """Return every custom Function there is, by the code of its ``forward``.

    ``Function.apply`` is no Python code, so a call of it shows as a call of that ``forward``.
    """
    found: dict[CodeType, type[Function]] = {}
    stack = [Function]
    while stack:
        function = stack.pop()
        stack += function.__subclasses__()
        code = getattr(function.forward, "__code__", None)
        if isinstance(code, CodeType) and "forward" in vars(function):
            found[code] = function
    found.pop(Function.forward.__code__, None)
    return found


def function_of(trace: TracebackType | None) -> type[Function] | None:
    """Return the custom Function inside whose ``forward`` an error was raised, or None."""
    forwards = _forwards()
    while trace is not None:
        if trace.tb_frame.f_code in forwards:
            return forwards[trace.tb_frame.f_code]
        trace = trace.tb_next
    return None


def any_of_a_user() -> bool:
    """Return whether there is a custom Function that is neither torch's nor ours."""
    ours = {"torch", __name__.partition(".")[0]}
    return any(str(f.__module__).partition(".")[0] not in ours for f in _forwards().values())


def _spread(values: Iterable[Any]) -> Iterator[Any]:
    """Yield what stands in tuples, as the arguments of a forward with ``*args`` do."""
    for value in values:
        if isinstance(value, tuple):
            yield from value


def _has_derivative(value: Any) -> bool:
    """Whether torch gives a result of a custom Function the Function's derivative."""
    if issubclass(type(value), fx.Proxy) or not isinstance(value, Tensor):
        return False
    return value.is_floating_point() or value.is_complex()


def _arguments(frame: FrameType) -> tuple[Any, ...] | None:
    """Return what a Function was called with, from the frame of its ``forward`` at its first node.

    None where the forward had put something else into its arguments by then.
    """
    code = frame.f_code
    names = code.co_varnames[: code.co_argcount + bool(code.co_flags & inspect.CO_VARARGS)]
    for step in dis.get_instructions(code):
        changes = step.opname.startswith(("STORE_FAST", "DELETE_FAST", "STORE_DEREF"))
        if changes and step.argval in names and step.offset < frame.f_lasti:
            return None
    values = frame.f_locals
    args = tuple(values[name] for name in names[: code.co_argcount])
    if code.co_flags & inspect.CO_VARARGS:
        args += tuple(values[names[-1]])
    return args[1:] if args and isinstance(args[0], FunctionCtx) else args


def _named_in(frame: FrameType | None) -> type[Function] | None:
    """Return the one custom Function that the code of a frame names, or None."""
    if frame is None:
        return None
    values = {**frame.f_globals, **frame.f_locals}
    named = [values.get(name) for name in (*frame.f_code.co_names, *frame.f_locals)]
    found = {a.function for a in map(applied, named) if isinstance(a, Applied)}
    return found.pop() if len(found) == 1 else None


def _is_torch(frame: FrameType) -> bool:
    name = str(frame.f_globals.get("__name__"))
    return name.split(".")[0] in {"torch", __name__.split(".")[0]}


def _depth() -> int:
    """Return how many autocast contexts are open, disabled ones included."""
    depth = torch.autocast_increment_nesting() - 1
    torch.autocast_decrement_nesting()
    return depth


def _casts() -> bool:
    return any(torch.is_autocast_enabled(device) for device in _devices())


def _devices() -> list[str]:
    return [d for d in _DEVICES if torch.amp.is_autocast_available(d)]


@contextlib.contextmanager
def plain() -> Iterator[None]:
    """Trace as if nothing surrounded the conversion: with derivatives and without autocast."""
    with contextlib.ExitStack() as stack:
        for device in _devices():
            stack.enter_context(torch.autocast(device, enabled=False))
        stack.enter_context(torch.enable_grad())
        yield


class Watch:
    """Notes under what each node of one trace is made; begins inside ``plain``.

    Attributes:
        calls: How often each module whose forward is traced was called, by path.
    """

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self._inference = torch.is_inference_mode_enabled()
        self._autocast = _depth()
        self._groups: list[_FunctionCall] = []
        self._modes: list[bool] = []
        self._constants: dict[type[Function], None] = {}

    @functools.cached_property
    def _forwards(self) -> dict[CodeType, type[Function]]:
        return _forwards()

    @contextlib.contextmanager
    def constants(self) -> Iterator[None]:
        """Watch for custom Functions that return a new tensor, made of no traced value.

        torch gives it the Function's derivative; here it is a constant, which has none. No node
        tells of such a call, so every call of Python is watched, which makes tracing several times
        slower. ``any_of_a_user`` tells whether there is such a Function at all.
        """
        with frames.noted(self._see):
            yield

    def _see(self, frame: FrameType, event: str, arg: Any) -> None:
        code = frame.f_code
        if event.startswith("c_"):
            owner = getattr(arg, "__self__", None)
            if isinstance(owner, type) and issubclass(owner, Function) and arg.__name__ == "apply":
                if event == "c_call":  # the forward itself runs without derivatives
                    self._modes.append(torch.is_grad_enabled())
                else:
                    self._modes.pop()
        elif event == "return" and code in self._forwards and self._modes and self._modes[-1]:
            made = arg if isinstance(arg, (tuple, list)) else (arg,)
            values = [*frame.f_locals.values(), *_spread(frame.f_locals.values())]
            contexts = [value for value in values if issubclass(type(value), FunctionCtx)]
            exempt = [getattr(context, "non_differentiable", None) or () for context in contexts]
            free = {id(value) for held in exempt for value in held}
            constant = [v for v in made if _has_derivative(v) and id(v) not in free]
            if constant and any(issubclass(type(v), fx.Proxy) for v in values):
                self._constants[self._forwards[code]] = None

    def note(self, node: fx.Node) -> None:
        """Note what surrounds a node that was just made."""
        if node.op in {"placeholder", "get_attr", "output"}:
            return
        if _casts():
            node.meta["under"] = "autocast"
        elif torch.is_inference_mode_enabled() and not self._inference:
            node.meta["under"] = "inference_mode"
        elif _depth() > self._autocast:
            node.meta["fenced"] = True
        group = self._group(node)
        if group is not None:
            group.nodes.append(node)
        elif not torch.is_grad_enabled():
            node.meta["still"] = True

    def _group(self, node: fx.Node) -> _FunctionCall | None:
        """Return the call of a custom Function that a new node belongs to, or None."""
        outer: FrameType | None = None
        frame: FrameType | None = sys._getframe(2)
        while frame is not None:  # the outermost: one Function may apply another
            outer = frame if frame.f_code in self._forwards else outer
            frame = frame.f_back
        if outer is not None:
            # The frames are held, so that none is taken for another that came after it.
            known = next((g for g in self._groups if g.frame is outer), None)
            if known is None:
                known = _FunctionCall(self._forwards[outer.f_code], _arguments(outer), outer, [])
                self._groups.append(known)
            return known
        if node.target == "view_as" and len(set(node.args)) == 1 and not torch.is_grad_enabled():
            # A forward that returns its own argument: torch takes this view after it.
            caller: FrameType | None = sys._getframe(2)
            while caller is not None and _is_torch(caller):
                caller = caller.f_back
            group = _FunctionCall(_named_in(caller), None, None, [])
            self._groups.append(group)
            return group
        return None

    def fold(self, graph: fx.Graph, known: Sequence[Applied]) -> None:
        """Make one operation of each call of a custom Function that is known, having a rule."""
        for group in self._groups:
            results = [n for n in group.nodes if any(u not in group.nodes for u in n.users)]
            if group.function is None or group.args is None or len(results) != 1:
                continue
            called = Applied(group.function)
            if called not in known:
                continue
            with graph.inserting_before(group.nodes[0]):
                args = tuple(a.node if isinstance(a, fx.Proxy) else a for a in group.args)
                call = graph.call_function(called, args)
            call.meta = dict(results[0].meta)
            results[0].replace_all_uses_with(call)
            for node in reversed(group.nodes):
                graph.erase_node(node)
            group.nodes.clear()

    def problems(self, graph: fx.Graph, root: nn.Module) -> list[Problem]:
        """Return what cannot be kept, each region once, in graph order."""
        order = {node: i for i, node in enumerate(graph.nodes)}
        found = [
            (order[group.nodes[0]], _lost_function(group)) for group in self._groups if group.nodes
        ]
        inside = {node for group in self._groups for node in group.nodes}
        region: list[fx.Node] = []
        for node in [n for n in order if n not in inside and not pieces.is_shape(n)]:
            kind = node.meta.get("under")
            if region and region[0].meta["under"] != kind:
                found.append((order[region[0]], _lost_context(region, root)))
                region = []
            if kind is not None:
                region.append(node)
            if "still" in node.meta and _writes_outside(node, root):
                found.append((order[node], _lost_write(node, root)))
        return [problem for _, problem in sorted(found, key=lambda pair: pair[0])]

    def lost_constants(self) -> list[Problem]:
        """Return what ``constants`` has found, a problem for each Function."""
        return [_lost_constant(function) for function in self._constants]


def _writes_outside(node: fx.Node, root: nn.Module) -> bool:
    first = node.args[0] if node.args else None
    if not (isinstance(first, fx.Node) and is_inplace(node, root)):
        return False
    return "still" not in first.meta and first.op != "get_attr" and not pieces.is_shape(first)


def keep(graph: fx.Graph, root: nn.Module) -> None:
    """Write into a graph what is kept: where derivatives end, and where autocast must be off.

    A value made without derivatives is read by everything else through ``split_ops.detached``, and
    so is a parameter that is written into without them: torch lets no one write into it otherwise.
    """
    for node in list(graph.nodes):
        first = node.args[0] if node.args else None
        writes = "still" in node.meta and isinstance(first, fx.Node) and first.op == "get_attr"
        if writes and is_inplace(node, root):
            with graph.inserting_before(node):
                free = graph.call_function(split_ops.detached, (first,))
            free.meta = dict(node.meta)
            node.replace_input_with(first, free)
        if "still" in node.meta and not pieces.is_shape(node):
            users = [u for u in node.users if "still" not in u.meta and not pieces.is_shape(u)]
            if users:
                with graph.inserting_after(node):
                    cut = graph.call_function(split_ops.detached, (node,))
                cut.meta = {k: v for k, v in node.meta.items() if k != "split"}
                for user in users:
                    user.replace_input_with(node, cut)
    fences: dict[str, fx.Node] = {}
    for node in graph.nodes:
        if "fenced" in node.meta and not pieces.is_shape(node):
            fences.setdefault(module_path(node), node)
    for path, node in fences.items():
        with graph.inserting_before(node):
            guard = graph.call_function(guards.no_autocast, (path,))
        guard.meta = {"nn_module_stack": node.meta.get("nn_module_stack")}


#: What to do about a custom Function whose call cannot be recorded as one node.
MODULE_OF_ITS_OWN = (
    "Call it in the forward of a module of its own, name that in leaf_modules=[...] and "
    "give it a rule: rules={TheModule: pursuitify.rules.linear(...), .activation(...) or "
    ".frozen()}"
)


def _lost_function(group: _FunctionCall) -> Problem:
    node, name = group.nodes[0], group.name
    hint = (
        f"Give it a rule: rules={{{name}: pursuitify.rules.linear(...), .activation(...) or "
        f".frozen()}}, with the Function itself as the key"
    )
    if group.args is None:
        hint = MODULE_OF_ITS_OWN
    if group.function is CheckpointFunction:
        return Problem(
            node.name, "checkpoint", module_path(node),
            "reentrant checkpointing gives no derivatives where no input asks for one, which the "
            "conversion would not know",
            "Call checkpoint(..., use_reentrant=False), or switch checkpointing off: the network's "
            "own setting memory='recompute' saves more",
        )  # fmt: skip
    return Problem(
        node.name, name, module_path(node),
        "it is a torch.autograd.Function, whose own derivative the conversion would lose",
        hint,
    )  # fmt: skip


def _lost_constant(function: type[Function]) -> Problem:
    return Problem(
        "apply", function.__name__, "",
        "it is a torch.autograd.Function that returns a new tensor, made of none of its arguments, "
        "whose own derivative the conversion would lose",
        MODULE_OF_ITS_OWN + ". If it has no derivative, call ctx.mark_non_differentiable in it, or "
        "call it under torch.no_grad()",
    )  # fmt: skip


_HINTS: dict[str, Callable[[str], str]] = {
    "autocast": lambda where: (
        f"Take torch.autocast out of {where}, and put it around the network: with "
        "torch.autocast(...): net(x)"
    ),
    "inference_mode": lambda where: (
        f"Use torch.no_grad() in {where}, which is kept, or put inference_mode around the network"
    ),
}


def _lost_context(region: Sequence[fx.Node], root: nn.Module) -> Problem:
    """Return the problem of nodes that follow each other in one context."""
    node, kind = region[0], region[0].meta["under"]
    path = min(map(_caller, region), key=len)
    where = f"the forward of '{path}'" if path else "the forward"
    return Problem(
        node.name, describe(node, root), path,
        f"it runs under torch.{kind} inside {where}, which the conversion would lose",
        _HINTS[kind](where),
    )  # fmt: skip


def _caller(node: fx.Node) -> str:
    """Return the path of the module in whose forward a node stands."""
    paths = [path for path, _ in (node.meta.get("nn_module_stack") or {}).values()]
    inner = paths[:-1] if node.op == "call_module" else paths
    return str(inner[-1]) if inner else ""


def _lost_write(node: fx.Node, root: nn.Module) -> Problem:
    return Problem(
        node.name, describe(node, root), module_path(node),
        f"it writes under no_grad into {node.args[0]}, a value that has derivatives: its value "
        "changes and its derivative does not",
        "Write into a copy (x.clone()), or use the out-of-place form",
    )  # fmt: skip
