"""Conditions on sizes: what is known of them when no size is, and what an example says.

Three sources, from the surest down. An example input: the graph so far is run on tensors without
content ("meta" tensors) of its sizes. That sizes are positive: a condition that has one value at
every tried assignment of positive sizes, the numbers it compares with among them, is decided.
What inputs usually look like: an inequality that has one value for images of 32 to 224 pixels.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import itertools
import math
import operator
import random
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import CodeType, MappingProxyType
from typing import Any

import torch
from torch import Tensor, fx, nn

from pursuitify.compiler.tracing import guards, nodes

_INEQUALITIES = {operator.lt, operator.le, operator.gt, operator.ge}
#: Sizes of usual images, and batches; of sequences the first of each pair.
_USUAL = ((2, 32, 32), (4, 64, 64), (1, 224, 224), (3, 96, 96), (8, 128, 160))
_FAILURES = (RuntimeError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError)


class UnknownError(Exception):
    """A value does not follow from what is known."""


def reads(node: fx.Node) -> Iterator[fx.Node]:
    """Return the nodes of a condition on sizes, itself first, down to the tensors it reads."""
    return nodes.upstream([node], lambda n: n.all_input_nodes if nodes.is_shape(n) else ())


def evaluate(
    value: Any,
    shape_of: Callable[[fx.Node], Sequence[int]],
    others: Mapping[str, Any] = MappingProxyType({}),
) -> Any:
    """Return an expression on sizes, given the shapes of the tensors it reads.

    Args:
        value: The expression.
        shape_of: Returns the shape of a tensor.
        others: What else is known of every tensor, by the name of the attribute or method.

    Raises:
        UnknownError: If it reads something else of them.
    """
    if isinstance(value, slice):
        ends = (value.start, value.stop, value.step)
        return slice(*(evaluate(v, shape_of, others) for v in ends))
    if isinstance(value, (tuple, list)):
        return tuple(evaluate(v, shape_of, others) for v in value)
    if not isinstance(value, fx.Node):
        return value
    if not nodes.is_shape(value):
        raise UnknownError
    first = value.args[0] if value.args else None
    if isinstance(first, fx.Node) and not nodes.is_shape(first):
        name = value.args[1] if value.target is getattr else value.target
        sizes = torch.Size(shape_of(first))
        if name in {"size", "shape"}:
            index = [*value.args[1:], *value.kwargs.values()] if name == "size" else []
            return sizes[evaluate(index[0], shape_of, others)] if index else sizes
        if name in {"numel", "nelement"}:
            return math.prod(sizes)
        if str(name) in others:
            return others[str(name)]
        raise UnknownError
    if value.target is getattr and value.args[1] in {"type", "index"} and others:
        return getattr(evaluate(first, shape_of, others), str(value.args[1]))
    if value.op != "call_function" or value.target is getattr or value.kwargs:
        raise UnknownError
    function: Callable[..., Any] = value.target  # type: ignore[assignment]
    return function(*(evaluate(a, shape_of, others) for a in value.args))


@dataclass(frozen=True)
class TrialAnswers:
    """One answer to what Python asks of a size without an operation: its hash, its text.

    Attributes:
        sizes: The last sizes of every tensor, the first of them for those before. One alone is
            tried as its number of dimensions as well.
        dtype: The dtype of every tensor.
        device: The device of every tensor.
    """

    sizes: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    def value(self, node: fx.Node, rank: int | None) -> Any:
        """Return the value of a size, a dtype or a device.

        Args:
            node: The node that holds it.
            rank: The number of dimensions of the tensors, if that is known.

        Raises:
            UnknownError: If it does not follow.
        """
        rank = rank or max(4, len(self.sizes))
        shape = torch.Size(((self.sizes[0],) * rank + self.sizes)[-rank:])
        count = self.sizes[0] if len(self.sizes) == 1 else rank
        others = {
            **dict.fromkeys(("dim", "ndimension", "ndim"), count),
            "dtype": self.dtype,
            "device": self.device,
            "is_cuda": self.device.type == "cuda",
        }
        try:
            return evaluate(node, lambda _tensor: shape, others)
        except _FAILURES as error:
            raise UnknownError from error


@dataclass
class Answers:
    """These answers stand for values of which Python asks the hash or the text.

    Attributes:
        trial: The values to answer with; None for hashes and texts that no value has.
        fixed: Whether to answer with the true values, and to guard them.
        asked: Whether anything was asked.
        text: What tensors have as their text; empty for one that no tensor has.
        written: Whether the text of a tensor was asked for.
        met: Whether a size was looked up where a number stands that is equal to it in the trial.
        among_numbers: Whether a size that is not known was looked up in a container that holds
            numbers, or tuples of them.
        among_unseen: Whether one was looked up in a container that is not seen, or its text may be
            read, see ``bytecode.is_only_shown``.
        compared: Where the code, outside trials, compares a size by ``==``: code and offset.
    """

    trial: TrialAnswers | None = None
    fixed: bool = False
    asked: bool = False
    met: bool = False
    text: str = ""
    written: bool = False
    among_numbers: bool = False
    among_unseen: bool = False
    compared: set[tuple[CodeType, int]] = field(default_factory=set)


#: Sizes to try in every case: all alike, all different, and those of images.
_IMAGES = [(8,), (2, 3, 5, 7), (2, 3, 32, 32), (4, 8, 16, 24), (1, 3, 224, 224), (2, 64, 8, 8)]
#: How often a forward is traced to see whether it depends on what it asks.
_TRIALS = 24
_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.uint8)
_DEVICES = tuple(map(torch.device, ("cpu", "cuda", "cuda:0", "mps")))


def trials(numbers: Sequence[tuple[int, ...]], computed: bool) -> list[TrialAnswers]:
    """Return answers to try.

    Args:
        numbers: Numbers that the code of a forward mentions, to be tried among the sizes.
        computed: Whether that code computes what it looks sizes up among: then there are more.
    """
    tried = [*dict.fromkeys(numbers)][:_TRIALS] + _IMAGES
    tried += [(size,) for size in _SMALL] if computed else []
    dtypes, devices = itertools.cycle(_DTYPES), itertools.cycle(_DEVICES)
    return [TrialAnswers(sizes, next(dtypes), next(devices)) for sizes in tried]


Rank = Callable[[fx.Node], int | None]


#: A text that has what the texts of tensors may have in them.
TEXT = (
    "tensor([[1., -2.5000e-01, 0.], [nan, inf, -inf]], device='cuda:0', size=(2, 3), "
    "dtype=torch.float64, grad_fn=<AddBackward0>, requires_grad=True)"
)


class Positive:
    """Conditions at assignments of positive sizes, beside the choices made so far.

    Args:
        rank: Returns the likely number of dimensions of a tensor, or None.
    """

    def __init__(self, rank: Rank) -> None:
        # Asked at every assignment, and found by walking back through the graph.
        self._rank: Rank = functools.cache(rank)
        self._truths: dict[tuple[fx.Node, int, Any], bool | None] = {}
        self._made: dict[fx.Node, list[tuple[fx.Node, bool]]] = {}

    def decide(self, node: fx.Node) -> tuple[bool | None, bool]:
        """Return the value that a condition has at every assignment, and whether that is sure.

        It is not where the condition has that value only beside the choices made before. The
        value is None where there are both, or where the condition reads more than sizes.
        """
        sizes = _pool(_numbers(node))
        truths = {self._truth(node, k, size) for k, size in enumerate(sizes)}
        if None in truths:
            return None, False
        if len(truths) == 1:
            return truths.pop(), _comparable(node)
        tensors = _tensors(node)
        beside = self._beside(node, self._made.get(tensors[0], [])) if len(tensors) == 1 else set()
        return (beside.pop(), False) if len(beside) == 1 else (None, False)

    def choose(self, node: fx.Node, value: bool) -> bool:
        """Note a choice; return whether some sizes agree with it and those before, on one tensor.

        True also where that cannot be told.
        """
        tensors = _tensors(node)
        if len(tensors) != 1 or self._truth(node, 0, 2) is None:
            return True
        made = self._made.setdefault(tensors[0], [])
        agree = value in self._beside(node, made)
        made.append((node, value))
        return agree

    def _beside(self, node: fx.Node, made: Sequence[tuple[fx.Node, bool]]) -> set[bool | None]:
        """Return the values of a condition at the assignments that agree with choices."""
        sizes = _pool(_numbers(node).union(*(_numbers(other) for other, _ in made)))
        return {
            self._truth(node, k, size)
            for k, size in enumerate(sizes)
            if all(self._truth(other, k, size) is value for other, value in made)
        }

    def _truth(self, node: fx.Node, k: int, size: int | tuple[int, ...]) -> bool | None:
        """Return a condition at the k-th assignment: one size, or drawn ones; None if unknown."""
        key = node, k, size
        if key not in self._truths:
            self._truths[key] = self._found(node, k, size)
        return self._truths[key]

    def _found(self, node: fx.Node, k: int, size: int | tuple[int, ...]) -> bool | None:
        def shape(tensor: fx.Node) -> tuple[int, ...]:
            rank = self._rank(tensor) or 6
            if isinstance(size, int):
                return (size,) * rank
            # Half of the dimensions get a size that a condition mentions: otherwise a batch of one
            # beside a width that is not one would hardly be drawn.
            draw = random.Random(f"{tensor.name} {k}")
            return tuple(draw.choice(draw.choice((size, _SMALL))) for _ in range(rank))

        try:
            return bool(evaluate(node, shape))
        except (UnknownError, *_FAILURES):
            return None


#: Sizes to try.
_SMALL = (*range(1, 65), 96, 97, 127, 128, 224, 255, 256, 299, 300, 512, 1024, 4096)
_MIXED = 256


def _pool(numbers: set[int]) -> list[int | tuple[int, ...]]:
    """Return the sizes to try, one for all dimensions; a tuple where they are drawn one by one.

    The numbers that conditions mention, and those beside them, are among the sizes, and are the
    tuple.
    """
    near = {n + d for n in numbers for d in (-1, 0, 1) if n + d > 0}
    mentioned = tuple(sorted(near | {1, 2, 3}))
    return [*[mentioned] * _MIXED, *_SMALL, *sorted(near - set(_SMALL))]


def _tensors(node: fx.Node) -> list[fx.Node]:
    return [n for n in reads(node) if not nodes.is_shape(n)]


def _numbers(node: fx.Node) -> set[int]:
    """Return the whole numbers that a condition mentions."""
    found: set[int] = set()
    for part in reads(node):
        if nodes.is_shape(part):
            found.update(a for a in part.args if isinstance(a, int) and not isinstance(a, bool))
    return found


def _comparable(node: fx.Node) -> bool:
    """Whether trying finds every value there is: equality with another size may be missed."""
    return node.target in _INEQUALITIES or any(isinstance(a, (int, float)) for a in node.args)


class World:
    """Values of a traced graph for one choice of inputs, on tensors without content.

    Attributes:
        held: The tensors that stand for the parameters and buffers, by the ``id`` of the original.
        inputs: Those that stand for the inputs, in order.
    """

    def __init__(
        self,
        root: nn.Module,
        tensors: Mapping[str, Tensor],
        inputs: Sequence[Any],
        given: bool,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Begin with the inputs, by position; if not given but guessed, defaults come first.

        ``tensors`` are the parameters and buffers as they were before the forward ran: after
        ``self.seen += 1`` the module holds the traced value in the place of the buffer, and an
        operation on that would be recorded, not run. Floating-point tensors are taken to have
        ``dtype``, if one is given.
        """
        self._root, self._tensors, self._dtype = root, tensors, dtype
        self._waiting, self._given = list(inputs), given
        self._values: dict[fx.Node, Any] = {}
        self._modules: dict[str, nn.Module] = {}
        self.held: dict[int, Any] = {}
        self.inputs: list[Any] = []

    def value(self, node: fx.Node) -> Any:
        """Return the value of a node; runs what was traced since the last question.

        Raises:
            UnknownError: If it does not follow, for instance from an operation that reads values.
        """
        with torch.no_grad(), on_meta():
            self._run_all(node.graph)
        found = self._values[node]
        if found is UnknownError:
            raise UnknownError
        return found

    def follows(self, graph: fx.Graph) -> bool:
        """Run a whole graph; return whether every value is known and every guard of it holds."""
        with on_meta():
            self._run_all(graph)
        values = [(node.target, self._values[node]) for node in graph.nodes]
        return not any(
            value is UnknownError or (target is guards.assume and value is not True)
            for target, value in values
        )

    def _run_all(self, graph: fx.Graph) -> None:
        for node in list(graph.nodes):
            if node not in self._values:
                try:
                    self._values[node] = self._run(node)
                except Exception:  # modules, wrapped functions and assertions raise what they like
                    self._values[node] = UnknownError

    def _run(self, node: fx.Node) -> Any:
        if node.op == "placeholder":
            if node.args and not (self._given and self._waiting):
                return node.args[0]
            if not self._waiting:
                return UnknownError
            self.inputs.append(bare(self._waiting.pop(0), self._dtype))
            return self.inputs[-1]
        if node.op == "get_attr":
            held = self._tensors.get(str(node.target))
            found = operator.attrgetter(str(node.target))(self._root) if held is None else held
            if isinstance(found, fx.Proxy):
                raise UnknownError
            return self._stand_in(found)
        if node.op == "output":
            return None
        if any(self._values[n] is UnknownError for n in node.all_input_nodes):
            raise UnknownError
        args, kwargs = fx.map_arg((node.args, node.kwargs), self._values.__getitem__)
        if node.target is guards.assume:
            return bool(args[0]) is args[1]
        if node.op == "call_module":
            return self._module(str(node.target))(*args, **kwargs)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        return node.target(*args, **kwargs)  # type: ignore[operator]

    def _module(self, path: str) -> nn.Module:
        if path not in self._modules:
            module = self._root.get_submodule(path)
            tensors = [*module.parameters(), *module.buffers()]
            copies = {id(t): self._stand_in(t) for t in tensors}
            self._modules[path] = copy.deepcopy(module, copies)
        return self._modules[path]

    def _stand_in(self, value: Any) -> Any:
        """Return what stands for a value of the model; always the same for the same tensor."""
        if not isinstance(value, Tensor):
            return value
        if id(value) not in self.held:
            self.held[id(value)] = bare(value, self._dtype)
        return self.held[id(value)]


@contextlib.contextmanager
def on_meta() -> Iterator[None]:
    """Make new tensors without content, and no warnings.

    What a forward makes anew has no content then, so no random number is drawn: putting a state
    back would let another thread draw its numbers twice.
    """
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def bare(value: Any, dtype: torch.dtype | None = None) -> Any:
    """Return a tensor without its content; anything else as it is.

    Args:
        value: What to take the content of.
        dtype: The dtype that floating-point tensors get; their own by default.
    """
    if not isinstance(value, Tensor):
        return value
    made = value.detach().to("meta", dtype if value.is_floating_point() else None)
    return nn.Parameter(made, value.requires_grad) if isinstance(value, nn.Parameter) else made


def usual(rank: int, channels: int | None, dtype: torch.dtype) -> list[Tensor]:
    """Return inputs of usual sizes, without content, for a network on tensors of one rank."""
    found = []
    for batch, *sizes in _USUAL:
        inner = (*sizes, *sizes)[: rank - 2] if rank > 2 else ()
        shape = (batch, channels or 3, *inner) if rank > 1 else (batch,)
        found.append(torch.empty(shape, dtype=dtype, device="meta"))
    return found


def agreed(node: fx.Node, worlds: Sequence[World]) -> bool | None:
    """Return the value that a comparison has in every world that knows it; None otherwise.

    It is an inequality, or asks whether sizes of two tensors that come of inputs are equal: usual
    sizes do not say which number a size is equal to.
    """
    tensors = set(_tensors(node))
    between = len(tensors) > 1 and all(map(nodes.reads_input, tensors))
    equality = node.target in {operator.eq, operator.ne} and between
    if node.target not in _INEQUALITIES and not equality:
        return None
    found = set()
    for world in worlds:
        try:
            found.add(bool(world.value(node)))
        except (UnknownError, *_FAILURES):
            continue
    return found.pop() if len(found) == 1 else None
