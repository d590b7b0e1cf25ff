"""Branches on sizes: which way to go while tracing, when no size is known.

``if x.dim() != 4: raise`` and its kin ask for a truth value that tracing does not have. The number
of dimensions is guessed from the operations before; what follows from an example input, or from
sizes being positive, is decided (``sizes.py``); any other condition is first taken to be false. If
the model's own code then fails, the last choice is turned round and the trace repeated.
Every choice is recorded in the graph as a guard, so that a wrong one is an error, never a result.
"""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from pursuitify.compiler.tracing import nodes
from pursuitify.compiler.tracing.sizes import Positive, UnknownError, World, agreed, reads, usual

#: What to do about a size that is not known.
EXAMPLE = (
    "Pass example_inputs=, a tensor or a tuple of the forward's arguments: branches then go as "
    "their sizes say"
)
#: How many times a model is traced before its branches are given up.
ATTEMPTS = 48

_SYMBOLS = {
    operator.eq: "==", operator.ne: "!=", operator.lt: "<", operator.le: "<=", operator.gt: ">",
    operator.ge: ">=", operator.add: "+", operator.sub: "-", operator.mul: "*",
    operator.floordiv: "//", operator.truediv: "/", operator.mod: "%", operator.and_: "and",
    operator.or_: "or",
}  # fmt: skip


@dataclass
class Choices:
    """The branches taken in one trace.

    Attributes:
        prefix: Values to use for the first choices, in order.
        taken: Every choice so far: its text, its value and the guess it started from.
        certain: Texts of those that are no guesses.
        impossible: Text of the first choice that no input agrees with, after those before it.
    """

    prefix: tuple[bool, ...] = ()
    taken: dict[str, tuple[bool, bool]] = field(default_factory=dict)
    certain: set[str] = field(default_factory=set)
    impossible: str = ""

    def choose(self, text: str, guess: bool, certain: bool = False) -> tuple[bool, bool]:
        """Return the value of a condition and whether it is asked for the first time.

        One that is certain is not turned round.
        """
        if text in self.taken:
            return self.taken[text][0], False
        position = len(self.taken)
        value = self.prefix[position] if position < len(self.prefix) else guess
        if certain:
            self.certain.add(text)
            value = guess
        self.taken[text] = (value, guess)
        return value, True

    def again(self) -> Choices:
        """Return choices that go the same way."""
        return Choices(tuple(value for value, _ in self.taken.values()))

    def restart(self) -> None:
        """Forget what was taken; the first choices are the same again."""
        self.taken, self.certain, self.impossible = {}, set(), ""

    def turned(self) -> Choices | None:
        """Return the choices with the last one turned round that was not yet; None if none is."""
        taken = list(self.taken.items())
        while taken:
            text, (value, guess) = taken.pop()
            if value == guess and text not in self.certain:
                return Choices((*(v for _, (v, _) in taken), not guess))
        return None


def text_of(value: Any) -> str:
    """Return an expression on sizes in words, for messages and to know it again."""
    if isinstance(value, (tuple, list)):
        return f"({', '.join(map(text_of, value))})"
    if isinstance(value, slice):
        ends = ["" if end is None else text_of(end) for end in (value.start, value.stop)]
        return ":".join([*ends, *([] if value.step is None else [text_of(value.step)])])
    if not isinstance(value, fx.Node):
        return repr(value)
    if not nodes.is_shape(value):
        return value.name
    arguments = [text_of(a) for a in value.args]
    if value.target is getattr:
        return f"{arguments[0]}.{value.args[1]}"
    if value.op == "call_method":
        return f"{arguments[0]}.{value.target}({', '.join(arguments[1:])})"
    if value.target is operator.getitem:
        return f"{arguments[0]}[{arguments[1]}]"
    if value.target in _SYMBOLS and len(arguments) == 2:
        return f"({arguments[0]} {_SYMBOLS[value.target]} {arguments[1]})"
    return f"{getattr(value.target, '__name__', value.target)}({', '.join(arguments)})"


def guess(node: fx.Node, root: nn.Module) -> bool | None:
    """Return the likely truth of a condition, by dimensions, channels, dtype and device."""
    try:
        return bool(_evaluate(node, root))
    except (UnknownError, *_FAILURES):
        return None


#: What an expression on values that do not fit raises.
_FAILURES = (TypeError, ValueError, ArithmeticError, LookupError, AttributeError)


class Judge:
    """Decides the branches of one trace, as far as they can be.

    Args:
        root: The module that is traced.
        example: The example inputs, by position; empty for none.
    """

    def __init__(self, root: nn.Module, example: Sequence[Any] = ()) -> None:
        self._root, self._example = root, tuple(example)
        self._tensors: dict[str, Tensor] = {
            **dict(root.named_parameters(remove_duplicate=False)),
            **dict(root.named_buffers(remove_duplicate=False)),
        }
        self._positive = Positive(self.rank)
        self._worlds: list[World] | None = None

    def decide(self, node: fx.Node) -> tuple[bool, bool]:
        """Return the value of a condition on sizes, and whether it is more than a guess."""
        movable = any(n.target is getattr and n.args[1] in _PLACES for n in reads(node))
        if self._example and not movable:
            try:
                return bool(self._imagined()[0].value(node)), True
            except UnknownError:
                pass
        value = guess(node, self._root)
        if value is not None:
            return value, False
        value, sure = self._positive.decide(node)
        if value is None and not self._example and not movable:
            value = agreed(node, self._imagined())
        return bool(value), sure

    def known(self, node: fx.Node) -> Any:
        """Return a size, dtype or device as the example has it, or as the model fixes it.

        Raises:
            UnknownError: If neither says it.
        """
        movable = any(n.target is getattr and n.args[1] in _PLACES for n in reads(node))
        if self._example and not movable:
            with contextlib.suppress(UnknownError):
                return self._imagined()[0].value(node)
        try:
            return _evaluate(node, self._root)
        except _FAILURES as error:
            raise UnknownError from error

    def rank(self, node: fx.Node) -> int | None:
        """Return the number of dimensions of a tensor: the example's, or the likely one."""
        if self._example:
            try:
                return int(self._imagined()[0].value(node).dim())
            except (UnknownError, AttributeError):
                pass
        return rank(node, self._root)

    def choose(self, node: fx.Node, value: bool) -> bool:
        """Note a choice; return whether some sizes agree with it and those before."""
        return self._positive.choose(node, value)

    def _imagined(self) -> list[World]:
        if self._worlds is None and self._example:
            self._worlds = [World(self._root, self._tensors, self._example, given=True)]
        elif self._worlds is None:
            inputs = usual_inputs(self._root)
            self._worlds = [World(self._root, self._tensors, [x] * 8, given=False) for x in inputs]
        return self._worlds


#: Attributes that say where a tensor is, which an example without content does not know.
_PLACES = {"device", "is_cuda", "requires_grad", "layout"}


#: What a parameter or buffer says of itself, whatever the input.
_KEPT = {"device", "is_cuda", "requires_grad", "dtype"}


def usual_inputs(root: nn.Module) -> list[Tensor]:
    """Return inputs that a network with these modules may usually get."""
    start = fx.Graph().placeholder("input")
    try:
        channels: int | None = _extent(start, 1, root)
    except UnknownError:
        channels = None
    dtypes = (p.dtype for p in root.parameters() if p.is_floating_point())
    return usual(rank(start, root) or 4, channels, next(dtypes, torch.float32))


def _evaluate(value: Any, root: nn.Module) -> Any:
    if isinstance(value, (tuple, list)):
        return type(value)(_evaluate(v, root) for v in value)
    if not isinstance(value, fx.Node):
        return value
    if value.target in {"dim", "ndimension"} or (
        value.target is getattr and value.args[1] == "ndim"
    ):
        found = rank(value.all_input_nodes[0], root)
        if found is None:
            raise UnknownError
        return found
    owner = value.args[0] if value.args else None
    asks = value.target is getattr and value.args[1] in _KEPT
    if asks and isinstance(owner, fx.Node) and owner.op == "get_attr":
        return getattr(_held(owner, root), str(value.args[1]))
    if value.target is getattr and value.args[1] in {"dtype", "device", "is_cuda"}:
        like = next((p for p in root.parameters() if p.is_floating_point()), torch.empty(()))
        return getattr(like, str(value.args[1]))
    if value.target is getattr and value.args[1] == "layout":
        return torch.strided
    if value.target is getattr and isinstance(owner, fx.Node) and nodes.is_shape(owner):
        return getattr(_evaluate(owner, root), str(value.args[1]))
    if value.target in nodes.DTYPE_FUNCTIONS or value.target in nodes.DTYPE_KINDS:
        found = getattr(torch, str(getattr(value.target, "__name__", value.target)))
        return found(*(_sample(a, root) for a in value.args))
    if value.target in {"size", operator.getitem} and len(value.args) == 2:
        whole, index = value.args
        if isinstance(whole, fx.Node) and isinstance(index, int) and not value.kwargs:
            tensor = whole if value.target == "size" else whole.all_input_nodes[0]
            return _extent(tensor, index, root)
    if value.op == "call_function" and nodes.is_shape(value) and value.target is not getattr:
        function: Callable[..., Any] = value.target  # type: ignore[assignment]
        return function(*(_evaluate(a, root) for a in value.args))
    raise UnknownError


def _sample(value: Any, root: nn.Module) -> Any:
    """Return a tensor of the dtype that one which a node holds is likely to have; else its value.

    Raises:
        UnknownError: If the node holds neither an input nor what is computed of one.
    """
    if not isinstance(value, fx.Node) or nodes.is_shape(value):
        return _evaluate(value, root)
    if value.op == "get_attr":
        return _held(value, root)
    like = next((p for p in root.parameters() if p.is_floating_point()), torch.empty(()))
    return torch.empty((1,), dtype=like.dtype, device="meta")


def _held(node: fx.Node, root: nn.Module) -> Any:
    """Return what the model holds where a node reads an attribute.

    Raises:
        UnknownError: If the forward has put a traced value there: what is asked of that would be
            recorded in the graph, not answered.
    """
    value = operator.attrgetter(str(node.target))(root)
    if isinstance(value, fx.Proxy):
        raise UnknownError
    return value


def _extent(node: fx.Node, index: int, root: nn.Module) -> int:
    """Return a size that the modules before, or right after, an input fix: that of channels."""
    module = nodes.module_of(node, root)
    if index == 1 and isinstance(module, nn.modules.conv._ConvNd):
        return module.out_channels
    if index in {1, -1} and isinstance(module, nn.Linear):
        return module.out_features
    if index == 1 and isinstance(module, nn.modules.batchnorm._BatchNorm):
        return module.num_features
    if index == 1 and node.op == "placeholder":
        for layer in root.modules():
            if isinstance(layer, (nn.Linear, nn.modules.conv._ConvNd)):
                return layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels
    name = type(module).__name__ if module is not None else getattr(node.target, "__name__", "")
    same = ("relu", "pool", "dropout", "identity", "batch_norm", "act")
    if index == 1 and node.all_input_nodes and any(part in name.lower() for part in same):
        return _extent(node.all_input_nodes[0], index, root)
    raise UnknownError


def rank(node: fx.Node, root: nn.Module) -> int | None:
    """Return the likely number of dimensions of a tensor, the batch included."""
    target, name = node.target, getattr(node.target, "__name__", str(node.target))
    if node.op == "placeholder":
        kinds = (type(m).__name__ for m in root.modules())
        return next((r for kind in kinds if "Conv" in kind and (r := _digits(kind))), 2)
    if node.op == "get_attr":
        try:
            value = _held(node, root)
        except UnknownError:
            return None
        return value.dim() if isinstance(value, Tensor) else None
    if node.op == "call_module":
        name = type(root.get_submodule(str(target))).__name__
    known = _digits(name)
    if known and name != "BatchNorm1d":
        return known
    first = node.all_input_nodes[0] if node.all_input_nodes else None
    inner = None if first is None or nodes.is_shape(first) else rank(first, root)
    if name in {"flatten", "Flatten"}:
        full = node.op == "call_module" or node.args[1:] == (1,) or node.kwargs == {"start_dim": 1}
        return 2 if full else None
    if name in {"view", "reshape"}:
        sizes = node.args[1:]
        return len(sizes[0]) if sizes and isinstance(sizes[0], (tuple, list)) else len(sizes)
    if name in {"mean", "sum"} and inner is not None:
        dims = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
        count = (
            1 if isinstance(dims, int) else len(dims) if isinstance(dims, (tuple, list)) else None
        )
        kept = node.kwargs.get("keepdim", False) or (len(node.args) > 2 and node.args[2])
        return inner if kept else None if count is None else inner - count
    if name in {"unsqueeze", "stack"}:
        return None if inner is None else inner + 1
    if name == "getitem" and inner is not None and isinstance(node.args[1], tuple):
        keys = [key for key in node.args[1] if key is not Ellipsis and not isinstance(key, slice)]
        plain = all(key is None or type(key) is int for key in keys)
        return inner + sum(1 if key is None else -1 for key in keys) if plain else None
    if name in {"squeeze", "getitem", "select", "unflatten", "unbind"}:
        return None
    return inner


def _digits(name: str) -> int | None:
    return {"1d": 3, "2d": 4, "3d": 5}.get(name[-2:])
