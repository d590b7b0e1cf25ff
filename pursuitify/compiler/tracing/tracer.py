"""The tracer: torch.fx's, with what it would fix or get wrong recorded instead."""

from __future__ import annotations

import contextlib
import operator
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from types import FrameType, FunctionType
from typing import Any

import numpy as np
import torch
from torch import fx, nn
from torch.nn.utils import parametrize

from pursuitify import errors
from pursuitify.compiler.bytecode import is_only_shown, looked_up_in
from pursuitify.compiler.tracing import (
    contexts,
    guards,
    hidden_state,
    nodes,
    size_branches,
    type_questions,
)
from pursuitify.compiler.tracing.contexts import Watch
from pursuitify.compiler.tracing.proxies import (
    Factories,
    TracedSizes,
    TracedTensor,
    Unnamed,
)
from pursuitify.compiler.tracing.size_branches import EXAMPLE, Choices, Judge
from pursuitify.compiler.tracing.sizes import Answers, UnknownError, reads
from pursuitify.rules import preprocessing, split_ops
from pursuitify.rules.functions import Applied
from pursuitify.utils import option_checks, patched_methods, torch_internals

LeafModule = type[nn.Module] | str
#: What is not traced into: module types, paths of modules, functions of a user's rules.
Leaf = LeafModule | Callable[..., Any]


#: Methods and functions that a forward calls for derivatives, or for what happens to them.
_ASKS_AUTOGRAD = {
    "backward", "retain_grad", "register_hook", "register_post_accumulate_grad_hook",
    torch.autograd.grad, torch.autograd.backward,
}  # fmt: skip

#: Why a forward is refused that transforms functions, and what to do.
TRANSFORMED = (
    "it uses a transform of torch.func (vmap, grad, jvp) or forward-mode derivatives, which ask in "
    "C++ for what a traced value does not have. Write the operations for the whole batch, or mark "
    "the module with leaf_modules=[...] and give it a rule with rules={...}"
)


def _tensors_of(module: nn.Module) -> dict[str, Any]:
    """Return the tensors that a module holds itself, by name."""
    return {**vars(module).get("_parameters", {}), **vars(module).get("_buffers", {})}


def _writes_out(node: fx.Node) -> bool:
    """Whether a function that a node calls has a tensor, or several, as its ``out``."""
    out = node.kwargs.get("out")
    written = out if isinstance(out, (tuple, list)) else (out,)
    return any(isinstance(tensor, fx.Node) for tensor in written)


def _is_read(value: Any, path: str) -> bool:
    """Whether a value is the proxy of the tensor at a path."""
    return isinstance(value, fx.Proxy) and (value.node.op, value.node.target) == ("get_attr", path)


class Tracer(fx.Tracer):
    """fx's tracer, with these changes.

    Buffers are proxied, so that counters and running statistics stay in the graph instead of
    being baked in; augmented assignment is recorded as in place (see ``proxies``); branches on
    sizes are chosen and guarded; parametrised modules are entered, so that a parametrisation runs
    where and as often as in the source, and so are modules whose methods were replaced; the
    user's ``leaf_modules`` and torchvision's transforms are not.

    Attributes:
        choices: The branches taken so far.
        functions: The custom autograd Functions that have a rule.
        watch: What the nodes were made under.
        unseen: What was handed to C++ past torch.fx; empty if nothing was.
        answers: What stands for sizes where Python asks for their hash or their text.
        is_over: Whether the trace has ended.
        factories: What sees the calls that make a new tensor of traced sizes.
    """

    proxy_buffer_attributes = True

    def __init__(
        self,
        leaves: Iterable[Leaf],
        choices: Choices,
        example: tuple[Any, ...] = (),
        every_call: bool = False,
        answers: Answers | None = None,
    ) -> None:
        leaves = tuple(leaves)
        functions = tuple(f for f in leaves if callable(f) and not isinstance(f, type))
        super().__init__(autowrap_functions=functions)
        self._leaves = tuple(m for m in leaves if isinstance(m, (str, type)))
        self.functions = tuple(f for f in leaves if isinstance(f, Applied))
        self.choices = choices
        self._example = example
        self._every_call = every_call
        self._judging = False
        self._thread = threading.get_ident()
        self._tensors: dict[nn.Module, dict[str, Any]] = {}
        self._settings: dict[nn.Module, dict[str, Any]] = {}
        self._called: dict[nn.Module, str] = {}
        self._methods: dict[type[nn.Module], dict[str, FunctionType]] = {}
        self.watch = Watch()
        self.unseen = ""
        self.answers = Answers() if answers is None else answers
        self.is_over = False
        self._transforms = False
        self.factories = Factories(self)

    def trace(self, root: Any, concrete_args: dict[str, Any] | None = None) -> fx.Graph:
        """Trace as if nothing surrounded the conversion, and watch what the forward opens."""
        with contexts.plain():
            self.watch, self._judge = Watch(), Judge(root, self._example)
            self._tensors = {m: _tensors_of(m) for m in root.modules()}
            self._settings = {m: hidden_state.settings(m) for m in root.modules()}
            watching = self.watch.constants() if self._every_call else contextlib.nullcontext()
            self.factories = Factories(self)
            self._transforms = torch_internals.transform_is_active()
            try:
                with watching, self.factories:
                    graph = super().trace(root, concrete_args)
                self.factories.check()
            finally:
                self.is_over = True
            for module, path in self._called.items():  # what is set after the call is for the next
                self._check_settings(module, path)
            return graph

    def _check_settings(self, module: nn.Module, path: str) -> None:
        """Refuse a module that is one node, where the forward sets its mode or its attributes."""
        for inner, part in module.named_modules(prefix=path):
            before = self._settings.get(part)
            changed = [] if before is None else hidden_state.changed_settings(part, before)
            if changed == ["training"]:
                raise errors.TraceError(
                    f"the forward puts '{inner}' into another mode (eval() or train()), which the "
                    "conversion would lose: do that in the model's own train(), which is kept"
                )
            if changed:
                raise errors.TraceError(
                    f"the forward sets {', '.join(changed)} of '{inner}', a "
                    f"{type(part).__name__}, which the conversion would lose: set it in __init__"
                )

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        """Note what surrounds every node."""
        node = super().create_node(*args, **kwargs)
        if node.op != "placeholder" and node.target in _ASKS_AUTOGRAD:
            name = getattr(node.target, "__name__", node.target)
            self.graph.erase_node(node)
            raise errors.TraceError(
                f"the forward calls {name} itself, which asks for the derivatives of a graph that "
                "the network does not have: take them outside the forward, of the network's output "
                "or of what net.infer(x) gives"
            )
        if not self._transforms and torch_internals.transform_is_active():
            # What it made would be computed without the transform, which the graph does not open.
            self.graph.erase_node(node)
            raise errors.TraceError(TRANSFORMED)
        if node.op == "call_function" and _writes_out(node):
            name = getattr(node.target, "__name__", node.target)
            self.graph.erase_node(node)
            raise errors.TraceError(
                f"the forward lets {name} write into a tensor (out=), which the conversion would "
                "lose: use the value that the function returns"
            )
        self.watch.note(node)
        return node

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether to keep the module as one node."""
        for leaf in self._leaves:
            if leaf == module_qualified_name if isinstance(leaf, str) else isinstance(m, leaf):
                return True
        kind = type(m)
        if kind not in self._methods:  # the code of a class stays as it is while a model is traced
            self._methods[kind] = patched_methods.reached(kind)
        if parametrize.is_parametrized(m) or patched_methods.is_patched(m, self._methods[kind]):
            return False
        if preprocessing.is_transform(m):
            return True
        return super().is_leaf_module(m, module_qualified_name)

    def create_args_for_root(
        self, root_fn: Any, is_module: bool, concrete_args: Any = None
    ) -> tuple[Any, list[Any]]:
        """Trace ``*args`` and ``**kwargs`` of the forward as empty, as defaults are at theirs."""
        forward, args = super().create_args_for_root(root_fn, is_module, concrete_args)
        for i, arg in enumerate(args):
            if not isinstance(arg, fx.Proxy):
                continue
            name = str(arg.node.target)
            if arg.node.op == "placeholder" and name.startswith("*"):
                self.graph.erase_node(arg.node)
                args[i] = {} if name.startswith("**") else ()
        return forward, args

    def path_of_module(self, mod: nn.Module) -> str:
        """Return a module's path; say what is wrong with one that the model does not hold."""
        try:
            return str(super().path_of_module(mod))
        except NameError as error:
            raise errors.TraceError(_stray(mod, self.root)) from error

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """Return our own kind of proxy, which is a tensor where the value is one."""
        several = split_ops.splitter_of(node) is not None or split_ops.is_pair(node, self.root)
        tensor = not nodes.is_shape(node) and not several
        return TracedTensor(node, self) if tensor else TracedSizes(node, self)

    def type_of(self, value: fx.Proxy) -> type | None:
        """Return the type of a value that is no tensor when the model runs; None if unknown."""
        several = split_ops.splitter_of(value.node) is not None
        if several or split_ops.is_pair(value.node, self.root):
            return tuple
        return nodes.type_of(value.node) if nodes.is_shape(value.node) else None

    def create_arg(self, a: Any) -> Any:
        """Know a proxy although it is a tensor, and keep an OrderedDict one."""
        if isinstance(a, fx.Proxy):
            if a.tracer is not self:
                raise errors.TraceError(
                    f"the forward reads '{a.node.name}', which it kept of an earlier call"
                )
            self._check_version(a)
            return a.node
        if isinstance(a, np.generic):  # a number of NumPy's, where torch takes Python's
            return a.item()
        if isinstance(a, type(torch.FloatTensor)):  # a type of old, as in x.type(torch.FloatTensor)
            return torch.typename(a)
        if isinstance(a, torch.Generator):
            raise errors.TraceError(
                "the forward hands a torch.Generator to an operation, whose state the network "
                "would not share with the model: draw from the global generator, without "
                "generator="
            )
        if type(a) is OrderedDict:  # torch.fx would make a plain dict of it
            made = self.create_proxy("call_function", OrderedDict, (list(a.items()),), {})
            return made.node
        return super().create_arg(a)

    def _check_version(self, value: fx.Proxy) -> None:
        """Refuse a tensor that a custom Function has marked as written into.

        A Function that returns its own argument makes no operation. But ``mark_dirty`` counts a
        write into it, and nothing else can: all other writes are recorded, and run nothing.
        """
        if isinstance(value, TracedTensor) and torch_internals.version_of(value) > 0:
            raise errors.TraceError(
                f"a torch.autograd.Function calls mark_dirty on '{value.node.name}': its own "
                "derivative would be lost. Call it in the forward of a module of its own, name "
                "that in leaf_modules=[...] and give it a rule"
            )

    def to_bool(self, obj: fx.Proxy) -> bool:
        """Choose a branch on sizes and guard it; values of tensors stay refused."""
        if not nodes.is_shape(obj.node):
            return super().to_bool(obj)
        text = size_branches.text_of(obj.node)
        guess, certain = self._ask(self._judge.decide, obj.node)
        value, new = self.choices.choose(text, guess, certain)
        if new:
            fits = self._ask(self._judge.choose, obj.node, value)
            if not fits and not self._example:  # the example is an input that fits
                self.choices.impossible = self.choices.impossible or text
            self.create_proxy("call_function", guards.assume, (obj, value, text), {})
        return value

    def note_lookup(self, obj: fx.Proxy, frame: FrameType) -> None:
        """Note what a size is looked up in, before its value is asked for.

        Args:
            obj: The size.
            frame: The frame whose code has it hashed.
        """
        answers = self.answers
        if self.is_over or answers.fixed or answers.trial is not None:
            return
        if self._is_of_few(obj):
            return
        container = looked_up_in(frame)
        kind = next((k for k in type_questions.KEYED if issubclass(type(container), k)), None)
        if kind is not None:
            keys = [*kind.__iter__(container)]
            answers.among_numbers = answers.among_numbers or any(map(_is_number, keys))
        elif container is not None:
            answers.among_unseen = True

    def _is_of_few(self, obj: fx.Proxy) -> bool:
        """Whether a traced value is one of few, which are all tried."""
        return self.type_of(obj) in (torch.dtype, torch.device, torch.layout, str, bool)

    def hash_of(self, obj: fx.Proxy) -> int:
        """Return the hash of a traced value: a size, or the identity of anything else."""
        value = self._answer(obj)
        return object.__hash__(obj) if value is _NOTHING else hash(value)

    def text_of(self, obj: fx.Proxy, frame: FrameType) -> Any:
        """Return what has the text of a traced value: a size, or an ``Unnamed``.

        A text that is only shown, as that of an assertion is, decides nothing. Any other of a
        number may: what the code makes of it is not seen, and no trial stands for all numbers.

        Args:
            obj: The value.
            frame: The frame whose code takes the text.
        """
        value: Any = _NOTHING
        if not self.is_over and not is_only_shown(frame):
            guessing = self.answers.trial is None and not self.answers.fixed
            if guessing and nodes.is_shape(obj.node) and not self._is_of_few(obj):
                self.answers.among_unseen = True
            value = self._answer(obj)
        return Unnamed(f"Proxy({obj.node.name})") if value is _NOTHING else value

    def text_of_tensor(self, obj: fx.Proxy) -> str:
        """Return what stands for the text of a traced tensor, and note that it was asked for."""
        self.answers.written = True
        return self.answers.text or f"Proxy({obj.node.name})"

    def equal_in_trial(self, obj: fx.Proxy, other: Any) -> bool | None:
        """Return whether a size that is looked up is equal to another value in the trial.

        If that is a number, ``answers.met`` is set. None if it is not known.
        """
        value = self._answer(obj)
        if isinstance(other, fx.Proxy):
            other, met = self._answer(other), False
        else:
            met = True
        if value is _NOTHING or other is _NOTHING:
            return None
        equal = bool(value == other)
        self.answers.met = self.answers.met or (met and equal)
        return equal

    def _answer(self, obj: fx.Proxy) -> Any:
        """Return what stands for a size, a dtype or a device; ``_NOTHING`` for nothing.

        Raises:
            TraceError: If it is to be the true value, and that is not known.
        """
        node = obj.node
        if self.is_over or not nodes.is_shape(node):
            return _NOTHING
        self.answers.asked = True
        if self.answers.trial is not None:
            tensors = [n for n in reads(node) if not nodes.is_shape(n)]
            with contextlib.suppress(UnknownError):
                rank = self._ask(self._judge.rank, tensors[0]) if tensors else None
                return self.answers.trial.value(node, rank)
        if not self.answers.fixed:
            return _NOTHING
        text = size_branches.text_of(node)
        return self._fixed(
            obj,
            f"what the forward does may depend on how it looks up `{text}` in a dict or a set, or "
            "on its text (str(n), an f-string), and its value is not known",
            "or ask by == or by `in` a tuple, (8, 16), which is guarded",
        )

    def number_of(self, obj: fx.Proxy) -> Any:
        """Return the value of a traced size, which is guarded: Python wants the number itself.

        Raises:
            TraceError: If it is not known.
            TypeError: If the value is no number.
        """
        kind = None if self.is_over else self.type_of(obj)
        if kind not in (int, float):
            raise TypeError(f"'{obj.node.name}', a traced value, is no number")
        text = size_branches.text_of(obj.node)
        return self._fixed(
            obj,
            f"the forward needs `{text}` as a number (in range(n), as an index of a list, in "
            "NumPy), and its value is not known",
            "or write the operation for the whole tensor",
        )

    def _fixed(self, obj: fx.Proxy, unknown: str, otherwise: str) -> Any:
        """Return a value as the example has it or the model fixes it, and guard it.

        Args:
            obj: The size, dtype or device.
            unknown: The reason of a refusal where it is not known.
            otherwise: What may be done beside passing an example.

        Raises:
            TraceError: If it is not known.
        """
        try:
            value = self._ask(self._judge.known, obj.node)
        except UnknownError as error:
            reason = f"{unknown}: {EXAMPLE}, and the network refuses others; {otherwise}"
            self.unseen = reason  # NumPy hides what is raised while it makes a number
            raise errors.TraceError(reason) from error
        equal = self.create_proxy("call_function", operator.eq, (obj, value), {})
        text = size_branches.text_of(equal.node)
        agrees, new = self.choices.choose(text, True, certain=True)
        if new:
            self.create_proxy("call_function", guards.assume, (equal, True, text), {})
        if not agrees:  # the branch before is one that no input takes that has this value
            raise errors.TraceError(f"`{text}` was taken to be False, and is used as if it held")
        return value

    @property
    def is_aside(self) -> bool:
        """Whether a module runs as it is, whatever torch.fx has put in the place of its call.

        torch.fx replaces ``nn.Module.__call__`` and ``__getattr__`` for all threads. What another
        thread runs meanwhile, be it the model that is traced, is no part of the trace.
        """
        return self._judging or threading.get_ident() != self._thread

    def _ask(self, question: Callable[..., Any], *args: Any) -> Any:
        """Answer with the hooks of torch.fx out of the way: modules run, attributes are plain."""
        self._judging = True
        try:
            return question(*args)
        finally:
            self._judging = False

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: Any
    ) -> Any:
        """Record or enter a module; see ``is_aside``."""
        if self.is_aside or self._is_made_in_forward(m):
            return forward(*args, **kwargs)
        path = self.path_of_module(m)
        leaf = self.is_leaf_module(m, path)
        if leaf:
            for inner, part in m.named_modules(prefix=path):
                own = self._tensors.get(part, {})
                held = _tensors_of(part).items()
                if not all(own.get(k) is t or _is_read(t, f"{inner}.{k}") for k, t in held):
                    raise errors.TraceError(
                        f"the forward runs '{path}' with other tensors than its own, as "
                        "torch.func.functional_call does, which the conversion would lose: call "
                        "the function (F.linear, F.conv2d, ...) with them"
                    )
            self._check_settings(m, path)
            self._called[m] = path
        elif isinstance(m, torch.jit.ScriptModule):
            raise errors.TraceError(
                f"module '{path}' is scripted and holds no Python code to trace: put the Python "
                "module it was made of in its place"
            )
        elif option_checks.wraps(m) == "._orig_mod":
            raise errors.TraceError(
                f"module '{path}' was made by torch.compile: put the module that it holds as "
                "._orig_mod in its place, and compile the converted network"
            )
        value = super().call_module(m, forward, args, kwargs)
        if not leaf:
            self.watch.calls[path] += 1
            last = next(iter(reversed(self.graph.nodes)))  # nothing has written into its value yet
            if isinstance(value, TracedTensor) and value.node is last:
                nodes.note_return(last, path)
        return value

    def _is_made_in_forward(self, module: nn.Module) -> bool:
        """Whether to enter a layer that is no submodule: ``nn.ReLU()(x)``, or one in a plain list.

        It has no tensors but those of the model's own layers in it, and what it does is what its
        code says. One with a mode of its own, dropout, does not follow the model's.
        """
        loose = [part for part in module.modules() if part not in self._settings]
        leaves = tuple(leaf for leaf in self._leaves if isinstance(leaf, type))
        return (
            module in loose
            and not any(
                isinstance(part, leaves) or preprocessing.is_transform(part) for part in loose
            )
            and not any(t is not None for part in loose for t in _tensors_of(part).values())
            and not any(isinstance(part, _DROPOUTS) for part in loose)
        )

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, fx.Proxy]) -> Any:
        """Return a proxy of a parameter or buffer; see ``is_aside``."""
        if self.is_aside:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def length(self, obj: fx.Proxy) -> int | None:
        """Return the number of sizes a tensor has, or a slice of them, guarded; None for else.

        Or the number of pieces of a split, where it is written in the model.
        """
        node, part = obj.node, slice(None)
        pieces = self._pieces(node)
        if pieces is not None:
            return pieces
        key = node.args[1] if node.target is operator.getitem else None
        if isinstance(key, slice):
            if len(node.all_input_nodes) > 1:  # its ends are sizes themselves
                return None
            node, part = node.all_input_nodes[0], key
        whole = node.op == "call_method" and node.target == "size" and len(node.args) == 1
        if not (whole or (node.target is getattr and node.args[1] == "shape")):
            return None
        tensor = fx.Proxy(node.all_input_nodes[0], self)
        count: int | None = self._ask(self._judge.rank, tensor.node)
        compare: Callable[[Any, Any], bool] = operator.eq
        if count is None:  # of x.shape[-2:] and x.shape[:2] it is enough that there are so many
            last = isinstance(part.start, int) and part.start < 0 and part.stop is None
            first = isinstance(part.stop, int) and part.stop > 0 and part.start in {None, 0}
            if part.step is not None or not (last or first):
                return None
            compare, count = operator.ge, -part.start if last else part.stop
        known = self.create_proxy("call_function", compare, (tensor.dim(), count), {})
        text = f"{size_branches.text_of(known.node)}"
        if self.choices.choose(text, True, certain=bool(self._example))[1]:
            self.create_proxy("call_function", guards.assume, (known, True, text), {})
        return len(range(count)[part])

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        """Iterate over the pieces of a split, where their number is known."""
        count = self.length(obj)
        if count is None and nodes.is_shape(obj.node):
            raise errors.TraceError(
                f"the forward goes through `{size_branches.text_of(obj.node)}`, and how many sizes "
                f"that are is not known. {EXAMPLE}; or name the sizes one by one: x.shape[-1]"
            )
        if count is not None:
            pieces: Any = obj
            return (pieces[i] for i in range(count))
        try:
            return super().iter(obj)
        except fx.proxy.TraceError as error:
            if split_ops.splitter_of(obj.node) is None:
                raise
            raise _unknown_pieces(obj) from error

    def create_proxy(
        self,
        kind: str,
        target: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        name: str | None = None,
        type_expr: Any | None = None,
        proxy_factory_fn: Callable[[fx.Node], fx.Proxy] | None = None,
    ) -> fx.Proxy:
        """Hand the pieces of a split to a function of several tensors one by one."""
        if target in _OF_SEVERAL and args and isinstance(args[0], TracedSizes):
            count = self.length(args[0])
            if count is not None:
                args = (tuple(args[0][i] for i in range(count)), *args[1:])
            elif split_ops.splitter_of(args[0].node) is not None:
                raise _unknown_pieces(args[0])
        return super().create_proxy(kind, target, args, kwargs, name, type_expr, proxy_factory_fn)

    def _pieces(self, node: fx.Node) -> int | None:
        """Return the number of tensors that a node returns; None where it is not known.

        It is written in the model, or it follows from a size, which is guarded then.
        """
        if split_ops.is_pair(node, self.root):
            return 2
        splitter = split_ops.splitter_of(node)
        if splitter is None:
            return None
        cut, dim = split_ops.cut_of(node)
        if isinstance(cut, (tuple, list)):
            return len(cut) + (splitter is split_ops.tensor_split_piece)
        if splitter in (split_ops.chunk_piece, split_ops.tensor_split_piece):
            return cut if isinstance(cut, int) else None
        if isinstance(cut, fx.Node) and nodes.is_shape(cut):
            try:
                self._ask(self._judge.known, cut)
            except UnknownError:
                return None
            cut = int(self.number_of(TracedSizes(cut, self)))
        if not (isinstance(dim, int) and isinstance(cut, (int, type(None)))):
            return None
        size = fx.Proxy(node.all_input_nodes[0], self).size(dim)
        try:
            self._ask(self._judge.known, size.node)
        except UnknownError:
            self.graph.erase_node(size.node)
            return None
        return -(-int(self.number_of(size)) // (cut or 1))


def _unknown_pieces(several: fx.Proxy) -> errors.TraceError:
    return errors.TraceError(
        f"the forward goes through the pieces of '{several.node.name}', whose number is not known: "
        f"{EXAMPLE}, and the network refuses others; or write the number into the forward "
        "(x.chunk(n, dim))"
    )


#: Functions of a sequence of tensors.
_OF_SEVERAL = {
    torch.cat, torch.concat, torch.concatenate, torch.stack, torch.hstack, torch.vstack,
    torch.dstack, torch.column_stack,
}  # fmt: skip


def _is_number(key: Any) -> bool:
    """Whether a key may be equal to a size, or to several."""
    if issubclass(type(key), fx.Proxy):
        return False
    return isinstance(key, (int, float)) or (isinstance(key, tuple) and any(map(_is_number, key)))


#: Nothing stands for a traced value.
_NOTHING = object()
_DROPOUTS = (
    nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout,
)  # fmt: skip


def _stray(module: nn.Module, root: nn.Module) -> str:
    """Say where a module that is called, but is no submodule, comes from."""
    name = type(module).__name__
    return _kept_outside(module, root) or (
        f"it calls a {name} that is no submodule of the model: make it once, in __init__ "
        f"(self.name = nn.{name}(...)), and call self.name(x) in the forward"
    )


def _kept_outside(module: nn.Module, root: nn.Module) -> str | None:
    """Say where a model holds a module that is no submodule of it; None if it does nowhere."""
    name = type(module).__name__
    for path, holder in root.named_modules():
        for attribute, value in vars(holder).items():
            inner = vars(value) if hasattr(value, "__dict__") else {}
            if not isinstance(value, nn.Module) and any(
                isinstance(held, (list, tuple)) and any(i is module for i in held)
                for held in inner.values()
            ):
                return (
                    f"it calls a {name} that '{path}.{attribute}' holds, a {type(value).__name__}, "
                    "which is no module (torchvision's transforms.Compose is such a list): make it "
                    f"self.{attribute} = nn.Sequential(...)"
                ).replace("'.", "'")
            if attribute == "_modules" and any(i is module for i in value.values()):
                return (
                    f"it calls a {name} that the forward itself registers in '{path}' "
                    "(register_module, add_module, self.name = ...): make it once, in __init__"
                ).replace(" in ''", "")
            if not isinstance(value, nn.Module) and any(i is module for i in _listed(value)):
                kind = type(value).__name__
                proper = "nn.ModuleDict" if isinstance(value, dict) else "nn.ModuleList"
                where = f"{path}.{attribute}".lstrip(".")
                mode = "train() and eval() do not reach it"
                weights = "its weights are in neither parameters() nor state_dict()"
                lost = mode if isinstance(module, _DROPOUTS) else weights
                return (
                    f"it calls a {name} that '{where}', a plain {kind}, holds: torch does not see "
                    f"it, so {lost}. Make it self.{attribute} = {proper}(...)"
                )
    return None


def _listed(value: Any) -> Iterator[Any]:
    """Yield what plain containers hold, at any depth."""
    seen: set[int] = set()
    stack = [value]
    while stack:
        held = stack.pop()
        if isinstance(held, (list, tuple, dict, set)) and id(held) not in seen:
            seen.add(id(held))
            stack += held.values() if isinstance(held, dict) else held
        else:
            yield held
