"""The modules of a converted network, compared with what they were at its conversion.

A conversion fixes what every module is. What it does *not* fix is read from the modules at every
call, for T = 0 and for the sweeps alike: parameters and buffers, the stride of a convolution, the
eps of a BatchNorm. Anything else that is changed later would be seen by one of them and not by the
other: another module in a place, a hook, a weight that is computed instead of kept, an attribute
that the Python code of a forward has read while it was traced. Such a change is refused.

The comparison costs a look at every module per call. It is fast because the live objects are kept
together with the values they had when they last passed (``_Cell``); only where one of them differs
the change is judged by the record. Each time it is, the record's ``version`` becomes another, so
that whoever depends on the modules (a proof of the network) need not look at them again.
"""

from __future__ import annotations

import copy
import dis
import functools
import itertools
import operator
import sys
import types
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn

from pursuitify.compiler.lowering.program import Program
from pursuitify.compiler.tracing.nodes import module_path
from pursuitify.compiler.tracing.type_questions import held_functions
from pursuitify.errors import ConversionError, Problem
from pursuitify.rules import Rule, default
from pursuitify.rules.registry import Call, static_parameters
from pursuitify.utils.patched_methods import function_behind, names_in

_HOOKS = {
    "forward hooks": "_forward_hooks",
    "forward pre-hooks": "_forward_pre_hooks",
    "backward hooks": "_backward_hooks",
    "backward pre-hooks": "_backward_pre_hooks",
}
#: Attributes that every module has, and what ``module.compile()`` leaves.
_COMMON = frozenset(vars(nn.Module())) | {"_compiled_call_impl"}
#: Attributes of leaves that decide how they are converted although no rule takes them.
_DECIDING = ("inplace",)
#: Attributes whose range is checked at every call, at T > 0 alone (``slope_checks``).
_RANGED = frozenset({"negative_slope"})
_FUNCTIONS = (types.FunctionType, types.BuiltinFunctionType, type)
_AGAIN = "Undo it, or make the change in the model and call pursuitify(model) again"
_UNHOOK = (
    "Remove the hook: what a module gives is in net.latents(x) and net.infer(x). Modules after the "
    "last activation may have hooks"
)
_SHARDED = "it is sharded on its own, and gathers its weights in its own forward alone"
_SHARD_ROOT = (
    "The sweeps read the weights of all modules at once: make the network again and shard it as a "
    "whole, with fully_shard(net)"
)


@dataclass(frozen=True, eq=False)
class _ModuleState:
    """One module as it was.

    Attributes:
        kind: Its type.
        attributes: What was read of it while it was converted; values that compare by contents.
        parameters: Names of its parameters.
        hooks: Its hooks by kind: functions, or the types of other callables.
        children: Names of its children where code runs through them; None elsewhere.
        patched: Names of methods that the instance has in place of its type's.
    """

    kind: type
    attributes: dict[str, Any]
    parameters: frozenset[str]
    hooks: dict[str, tuple[Any, ...]]
    children: tuple[str, ...] | None
    patched: frozenset[str]


@dataclass(eq=False, slots=True)
class _Cell:
    """A live module with what it was when it last passed; cheap to compare."""

    siblings: Mapping[str, nn.Module | None]
    name: str
    module: nn.Module
    kind: type
    state: dict[str, Any]
    size: int
    read: Callable[[Any], Any]
    values: Any
    own: Mapping[str, Any]
    names: frozenset[str]

    def holds(self) -> bool:
        """Whether nothing about the module differs."""
        return (
            self.siblings.get(self.name) is self.module
            and type(self.module) is self.kind
            and len(self.state) == self.size
            and self.read(self.state) == self.values
            and self.own.keys() == self.names
        )


@dataclass(eq=False)
class Unchanged:
    """The record of a network's modules, per mode.

    Attributes:
        parts: Per mode the modules by path. Data alone, so that it is copied and pickled with the
            network and goes on to know what the conversion saw.
        root: Names of the source's own attributes that its code reads. The network has none of
            them: one that is set on it later would be read by nothing.
    """

    parts: dict[bool, dict[str, _ModuleState]]
    root: frozenset[str] = frozenset()
    _cells: dict[bool, list[_Cell]] = field(default_factory=dict)
    _blocks: dict[bool, list[tuple[str, nn.Module]]] = field(default_factory=dict)
    _versions: dict[bool, int] = field(default_factory=dict)
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    def __reduce__(self) -> tuple[type[Unchanged], tuple[Any, ...]]:
        """Leave references to the live modules out of copies and pickles."""
        return Unchanged, (self.parts, self.root)

    @classmethod
    def of(
        cls, network: nn.Module, programs: Mapping[bool, Program], model: nn.Module
    ) -> Unchanged:
        """Record the modules that a network's programs run.

        Args:
            network: The network, with the model's children.
            programs: Its programs by mode.
            model: The model it was made of.
        """
        parts = {mode: dict(_described(network, p)) for mode, p in programs.items()}
        # The network's own attributes may have names that the model's have, too: what the model's
        # code read there is fixed, and nothing in the network stands for it.
        return cls(parts, frozenset(_read_of_root(model)) - vars(network).keys())

    def check(self, network: nn.Module, training: bool, program: Program) -> None:
        """Compare the network with the record.

        Args:
            network: The network.
            training: Its mode.
            program: The program of that mode.

        Raises:
            ConversionError: If a module was changed in a way that T = 0 and the sweeps would not
                follow alike; lists all such modules.
        """
        cells = self._cells.get(training)
        try:
            plain = self.root.isdisjoint(vars(network)) if self.root else True
            if plain and cells is not None and all(cell.holds() for cell in cells):
                return
        except KeyError:  # an attribute was deleted
            pass
        found = [*_set_on_root(self.root, network)]
        found += _problems(self.parts[training], network, program)
        if found:
            raise ConversionError(
                f"the network is not the one that was converted: {len(found)} change(s) that "
                "pursuit cannot follow",
                found,
            )
        # The version first: who passes by the new cells must not find the version of the old ones.
        self._versions[training] = next(self._numbers)
        parts = self.parts[training]
        free = _free_of_hooks(parts, program)
        self._cells[training] = [*_cells(parts, network, free)]
        self._blocks[training] = [(path, network.get_submodule(path)) for path in sorted(free)]

    def hooked(self, training: bool) -> tuple[str, ...]:
        """Return the paths of the blocks that have forward hooks now; after ``check``."""
        return tuple(path for path, block in self._blocks.get(training, ()) if block._forward_hooks)

    def version(self, training: bool) -> int:
        """Return a number that is another one after every change that ``check`` let pass.

        It counts within this object alone; -1 before the first check in that mode.
        """
        return self._versions.get(training, -1)


def _free_of_hooks(parts: Mapping[str, _ModuleState], program: Program) -> set[str]:
    """Return the blocks that may be given forward hooks: those that had none while traced."""
    return {path for path in program.blocks if path in parts and not _hooks_of(parts[path])}


def _hooks_of(part: _ModuleState) -> tuple[Any, ...]:
    return part.hooks.get("forward hooks", ())


def _read_of_root(model: nn.Module) -> Iterator[str]:
    """Yield the names of a model's own plain attributes that its code mentions.

    Its code is that of its class, the functions that it holds, and functions that these name: they
    may be given the model.
    """
    code: list[types.FunctionType] = list(held_functions(list(vars(model).values())))
    for kind in type(model).__mro__:
        if kind is nn.Module:
            break
        for member in vars(kind).values():
            function = function_behind(member)
            if function is not None and function.__name__ != "__init__":
                code.append(function)
    mentioned: set[str] = set()
    for function in code:
        names = set(names_in(function.__code__))
        helpers = held_functions([function.__globals__.get(name) for name in names])
        mentioned.update(names, *(names_in(helper.__code__) for helper in helpers))
    yield from (name for name in vars(model) if name in mentioned and name not in _COMMON)


def _set_on_root(names: frozenset[str], network: nn.Module) -> Iterator[Problem]:
    """Yield a problem for every attribute of the source that was set on the network."""
    for name in sorted(names & vars(network).keys()):
        yield Problem(
            name,
            type(network).__name__,
            "",
            f"its attribute {name!r} was set after the conversion; the model's forward read the "
            "model's own while it was traced, and what it read is fixed",
            _AGAIN,
        )


def _leaves(program: Program) -> dict[str, tuple[Rule | None, bool]]:
    """Return the modules called as one node: their rule, and whether sweeps use more than a call.

    What stands after the last activations, or is frozen, is called as it is at any T.
    """
    bound = {*program.names, *(row.name for row in program.rows)}
    found: dict[str, tuple[Rule | None, bool]] = {}
    for node in program.graph.nodes:
        if node.op == "call_module":
            path = str(node.target)
            before = found.get(path, (None, False))[1]
            found[path] = program.sites[node].rule, before or node.name in bound
    return found


def _entered(program: Program, leaves: Mapping[str, object]) -> set[str]:
    """Return the paths of the modules whose forward was traced, and of all that hold a module."""
    paths = {*leaves, *map(module_path, program.graph.nodes)}
    paths |= {path for node in program.graph.nodes for path in _stack(node)}
    attributes = (str(n.target) for n in program.graph.nodes if n.op == "get_attr")
    paths |= {name.rpartition(".")[0] for name in attributes}
    pieces = [path.split(".") for path in paths if path]
    above = {".".join(parts[:i]) for parts in pieces for i in range(1, len(parts) + 1)}
    return above - set(leaves)


def _stack(node: fx.Node) -> Iterator[str]:
    for path, _ in (node.meta.get("nn_module_stack") or {}).values():
        yield str(path)


def _described(network: nn.Module, program: Program) -> Iterator[tuple[str, _ModuleState]]:
    leaves = _leaves(program)
    for path, (rule, bound) in leaves.items():
        yield path, _describe(network.get_submodule(path), rule, bound)
    for path in sorted(_entered(program, leaves)):
        module = _module(network, path)
        if module is not None:
            yield path, _describe(module)


def _module(network: nn.Module, path: str) -> nn.Module | None:
    """Return the module at a path, or None where there is none (now)."""
    found: nn.Module | None = network
    for name in path.split("."):
        found = None if found is None else found._modules.get(name)
    return found


def _describe(
    module: nn.Module, rule: Rule | None = None, bound: bool | None = None
) -> _ModuleState:
    """Describe a module.

    Args:
        module: The module.
        rule: The rule of a leaf, if it has one.
        bound: Whether sweeps take more from a leaf than a call; None for a module that is no leaf.
    """
    state = vars(module)
    if bound is None:
        written = _written(type(module).forward)
        names = [name for name in state if name not in _COMMON and name not in written]
    elif bound:
        names = [n for n in (*(rule.parameters if rule else ()), *_DECIDING) if n in state]
    else:
        names = []
    values = {name: state[name] for name in dict.fromkeys(names)}
    attributes = {n: copy.deepcopy(v) for n, v in values.items() if _compares(v)}
    if bound is False:
        return _ModuleState(type(module), attributes, frozenset(), {}, None, frozenset())
    iterable = bound is None and hasattr(module, "__len__")
    own = [n for n, v in state.items() if n not in _COMMON and callable(v)]
    return _ModuleState(
        kind=type(module),
        attributes=attributes,
        parameters=frozenset(module._parameters),
        hooks={k: tuple(map(_known, state.get(n, {}).values())) for k, n in _HOOKS.items()},
        children=tuple(module._modules) if iterable else None,
        patched=frozenset(n for n in own if _is_method(module, n)),
    )


@functools.lru_cache(maxsize=1024)
def _written(forward: Callable[..., Any]) -> frozenset[str]:
    """Return the attributes that a forward assigns itself: state of a call, like a counter."""
    code = getattr(forward, "__code__", None)
    steps = () if code is None else dis.get_instructions(code)
    return frozenset(step.argval for step in steps if step.opname == "STORE_ATTR")


def _is_method(module: nn.Module, name: str) -> bool:
    return callable(getattr(type(module), name, None))


def _known(hook: object) -> object:
    """Return what a hook is known by: it stays the same when the network is copied."""
    return hook if isinstance(hook, _FUNCTIONS) else type(hook)


def _compares(value: object) -> bool:
    """Whether a value compares by what it holds, before and after a copy."""
    if isinstance(value, (list, tuple, set, frozenset)):
        return all(map(_compares, value))
    if isinstance(value, dict):
        return all(map(_compares, (*value, *value.values())))
    plain = (bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size)
    return value is None or isinstance(value, (*plain, *_FUNCTIONS))


def _problems(
    parts: Mapping[str, _ModuleState], network: nn.Module, program: Program
) -> Iterator[Problem]:
    leaves = _leaves(program)
    free = _free_of_hooks(parts, program)
    gone: list[str] = []
    for path, part in sorted(parts.items()):
        if any(path.startswith(f"{before}.") for before in gone):
            continue
        module = _module(network, path)
        rule, bound = leaves.get(path, (None, None))
        reason = _reason(part, module, rule, bound, path in free)
        if reason:
            hint = _unhook(free) if "hooks" in reason else _AGAIN
            hint = _SHARD_ROOT if reason == _SHARDED else hint
            yield Problem(path, part.kind.__name__, path, reason, hint)
            if module is None or type(module) is not part.kind:
                gone.append(path)


def _unhook(free: Collection[str]) -> str:
    """Return what to do about a hook, with the blocks that may have forward hooks."""
    named = sorted(free, key=lambda path: (path.count("."), path))
    more = f" and {len(named) - 6} more" if len(named) > 6 else ""
    return (
        f"{_UNHOOK}, and {', '.join(map(repr, named[:6]))}{more} forward hooks" if free else _UNHOOK
    )


def _reason(
    part: _ModuleState,
    module: nn.Module | None,
    rule: Rule | None,
    bound: bool | None,
    free: bool = False,
) -> str:
    """Return why a module is not what it was, or nothing.

    Args:
        part: What it was.
        module: What stands in its place now.
        rule: The rule of a leaf, if it has one.
        bound: As for ``_describe``.
        free: Whether it may be given forward hooks.
    """
    if module is None:
        return "the module was removed after the conversion"
    if _is_sharded(module):
        return _SHARDED
    if type(module) is not part.kind:
        same = bound is not None and rule is not None and default().of_module(module) is rule
        if not same:
            return f"it was a {part.kind.__name__} when converted, and is a {_name(module)} now"
    now = _describe(module, rule, bound)
    for name in sorted(now.patched - part.patched):
        return f"its method {name} was replaced after the conversion"
    missing = sorted(part.parameters - now.parameters)
    if missing:
        return (
            f"its {missing[0]} was a parameter when converted, and is computed now (pruning and "
            "torch.nn.utils.weight_norm do that) or gone"
        )
    for kind, hooks in now.hooks.items():
        if hooks != part.hooks[kind] and not (free and kind == "forward hooks"):
            return f"its {kind} are others than when it was converted"
    if now.children != part.children:
        return f"it held {part.children} when converted, and holds {now.children} now"
    changed = [n for n in part.attributes if now.attributes.get(n, _MISSING) != part.attributes[n]]
    return _judged(part, now, module, rule, changed)


def _is_sharded(module: nn.Module) -> bool:
    """Whether ``fully_shard`` was called on the module; nobody calls what was not imported."""
    fsdp = sys.modules.get("torch.distributed.fsdp")
    return fsdp is not None and isinstance(module, fsdp.FSDPModule)


_MISSING = object()


def _judged(
    part: _ModuleState, now: _ModuleState, module: nn.Module, rule: Rule | None, changed: list[str]
) -> str:
    """Return why changed attributes cannot be followed, or nothing.

    Of a leaf they can where its rule reads them at every call and still accepts them.
    """
    for name in changed:
        was = part.attributes[name]
        said = f"its attribute {name} was {was!r} when converted, and is "
        said += f"{now.attributes[name]!r} now" if name in now.attributes else "another now"
        if rule is None or name in _DECIDING:
            return said
        if name in _RANGED:
            continue
        if name in {"padding", "padding_mode"} and _pads_otherwise(module):
            return f"{said}, while its forward pads as it did when it was made"
        refusal = rule.check(**_static(rule, module)) if rule.check else None
        if refusal:
            return f"{said}: {refusal}"
    return ""


def _pads_otherwise(module: nn.Module) -> bool:
    """Whether a convolution that does not pad with zeros pads by other sizes than it says.

    It keeps them in an attribute of its own, which is made once.
    """
    pads, padding = getattr(module, "_reversed_padding_repeated_twice", None), module.padding
    if pads is None or module.padding_mode == "zeros" or not isinstance(padding, tuple):
        return False
    return list(pads) != [size for size in reversed(padding) for _ in range(2)]


def _static(rule: Rule, module: nn.Module) -> dict[str, Any]:
    return static_parameters(rule, Call((), False, {}), module)


def _name(module: nn.Module) -> str:
    return type(module).__name__


def _cells(
    parts: Mapping[str, _ModuleState], network: nn.Module, free: Collection[str]
) -> Iterator[_Cell]:
    for path, part in parts.items():
        above, _, name = path.rpartition(".")
        owner = _module(network, above) if above else network
        module = _module(network, path)
        assert owner is not None
        assert module is not None
        state = vars(module)
        names = [n for n in part.attributes if n in state]
        hooks = [n for n in _HOOKS.values() if n in state] if part.hooks else []
        if path in free:
            hooks.remove(_HOOKS["forward hooks"])
        children = ["_modules"] if part.children is not None else []
        keys = [*names, *hooks, *children]
        read = operator.itemgetter(*keys) if keys else _nothing
        yield _Cell(
            owner._modules, name, module, type(module), state, len(state), read,
            _held(read(state)), module._parameters, frozenset(module._parameters),
        )  # fmt: skip


def _nothing(_state: Any) -> None:
    return None


def _held(values: Any) -> Any:
    """Return copies of what may be written into, as compared later."""
    if isinstance(values, tuple):
        return tuple(map(_held, values))
    if isinstance(values, list):
        return copy.deepcopy(values)
    return copy.copy(values) if isinstance(values, (dict, set)) else values
