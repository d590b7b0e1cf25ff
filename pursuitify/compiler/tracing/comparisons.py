"""Two traces of one model, or a trace and its model: whether they do the same.

Names that two traces give to what both do are made the same here as well.
"""

from __future__ import annotations

import contextlib
import difflib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, UntypedStorage, fx, nn
from torch.fx.node import map_aggregate

from pursuitify.compiler.tracing import guards
from pursuitify.compiler.tracing.nodes import is_shape, module_path
from pursuitify.compiler.tracing.sizes import UnknownError, World, bare, on_meta
from pursuitify.utils import torch_internals


def same_graph(
    first: fx.Graph,
    second: fx.Graph,
    constants: tuple[Mapping[str, Tensor], Mapping[str, Tensor]] = ({}, {}),
) -> bool:
    """Whether two traces of one model do the same, node for node.

    Args:
        first: A graph.
        second: Another.
        constants: The tensors that either graph reads by a name of its own; they are compared.
    """
    if len(first.nodes) != len(second.nodes):
        return False
    twin: dict[fx.Node, fx.Node] = {}
    for a, b in zip(first.nodes, second.nodes, strict=True):
        if a.op == b.op == "get_attr" and a.target in constants[0] and b.target in constants[1]:
            if not _same_constant(constants[0][str(a.target)], constants[1][str(b.target)]):
                return False
        elif (a.op, a.target) != (b.op, b.target):
            return False
        twin[a] = b
        mapped: Callable[[fx.Node], fx.Node] = twin.__getitem__
        arguments, others = fx.map_arg((a.args, a.kwargs), mapped), (b.args, b.kwargs)
        if torch_internals.is_assertion(a.target):  # whose text may name a size, and is no value
            arguments, others = (arguments[0][:1], others[0][:1])
        if arguments != others and map_aggregate(arguments, _named) != map_aggregate(
            others, _named
        ):
            return False
    return True


def same_on(
    value_of: Callable[[fx.Node], Any],
    graphs: tuple[fx.Graph, fx.Graph],
    constants: tuple[Mapping[str, Tensor], Mapping[str, Tensor]],
) -> bool:
    """Whether two traces of one model do the same to tensors where sizes have certain values.

    Where these are not known, they must do the same, node for node.

    Args:
        value_of: Returns the value of a node that is a size, or raises ``UnknownError``.
        graphs: The two graphs.
        constants: The tensors that either reads by a name of its own; they are compared.
    """
    first, second = graphs
    try:
        mine, theirs = (
            list(_operations(graph, value_of, own))
            for graph, own in zip(graphs, constants, strict=True)
        )
    except UnknownError:
        return same_graph(first, second, constants)
    return len(mine) == len(theirs) and all(
        a[:-1] == b[:-1] and (a[-1] is b[-1] or _same_constant(a[-1], b[-1]))
        for a, b in zip(mine, theirs, strict=True)
    )


def _operations(
    graph: fx.Graph, value_of: Callable[[fx.Node], Any], constants: Mapping[str, Tensor]
) -> Iterator[tuple[Any, ...]]:
    """Yield the operations on tensors with their arguments; last, a constant's own value."""
    numbers: dict[fx.Node, str] = {}

    def known(node: fx.Node) -> Any:
        return f"%{numbers[node]}" if node in numbers else value_of(node)

    for node in graph.nodes:
        if is_shape(node) or node.target is guards.assume:
            continue
        args = node.args[:1] if torch_internals.is_assertion(node.target) else node.args
        constant = constants.get(str(node.target)) if node.op == "get_attr" else None
        target = node.target if constant is None else "constant"
        words = map_aggregate(fx.map_arg((args, node.kwargs), known), repr)
        yield node.op, target, words, constant
        numbers[node] = str(len(numbers))


def _named(argument: Any) -> Any:
    """Return an argument, NaN by name: it is not equal to itself."""
    return "nan" if isinstance(argument, float) and argument != argument else argument


def _same_constant(a: Tensor | None, b: Tensor | None) -> bool:
    if a is None or b is None:
        return a is b
    if a.shape != b.shape or a.dtype != b.dtype or a.device != b.device:
        return False
    return a.is_meta or bool(((a == b) | ((a != a) & (b != b))).all())


def align(graph: fx.Graph, reference: fx.Graph) -> None:
    """Give the nodes of ``graph`` the names their twins have in ``reference``.

    Twins are the same operation of the same module on the same values. Nodes that have none, as
    where the modes differ before them, are matched in order; what is still left over gets a name
    that the reference does not use.
    """
    nodes, others = list(graph.nodes), list(reference.nodes)
    known: dict[object, int] = {}
    names: dict[fx.Node, str] = {}
    by_flow = {key: other for other, key in _flow(others, known).items()}
    for node, key in _flow(nodes, known).items():
        if key in by_flow:
            names[node] = by_flow.pop(key).name
    given = set(names.values())
    rest, left = [n for n in nodes if n not in names], [o for o in others if o.name not in given]
    tokens = [_token(n) for n in rest], [_token(n) for n in left]
    matcher = difflib.SequenceMatcher(None, *tokens, autojunk=False)
    for a, b, size in matcher.get_matching_blocks():
        names |= {rest[a + i]: left[b + i].name for i in range(size)}
    taken = {node.name for node in others}
    for node in nodes:
        if node not in names:
            names[node] = _fresh(node.name, taken)
            taken.add(names[node])
    for node, name in names.items():
        node.name = name


def _flow(nodes: list[fx.Node], known: dict[object, int]) -> dict[fx.Node, tuple[int, int]]:
    """Number every node by what it computes from what, and by how often that stood before."""
    numbers: dict[fx.Node, int] = {}
    seen: dict[int, int] = {}
    keys: dict[fx.Node, tuple[int, int]] = {}
    for node in nodes:
        arguments = fx.map_arg((node.args, node.kwargs), lambda n: f"%{numbers[n]}")
        text = repr(map_aggregate(arguments, lambda a: None if isinstance(a, bool) else a))
        key = (*_token(node), text)
        numbers[node] = known.setdefault(key, len(known))
        seen[numbers[node]] = seen.get(numbers[node], 0) + 1
        keys[node] = (numbers[node], seen[numbers[node]])
    return keys


def _token(node: fx.Node) -> tuple[str, str, object]:
    return module_path(node), node.op, node.target


def _fresh(name: str, taken: set[str]) -> str:
    stem, number, candidate = name, 0, name
    while candidate in taken:
        number += 1
        candidate = f"{stem}_{number}"
    return candidate


#: An operation and its arguments, in words.
_Step = tuple[str, Any]


#: What autograd does beside the operations, by whether it records derivatives.
_BOOKKEEPING = {"aten.detach.default", "aten.alias.default"}


class _Record:
    """Notes the operations that read an input, a parameter, a buffer or what came of these.

    A tensor is known by its storage, which is kept, so that no other gets its identity.

    Attributes:
        steps: The operations in order.
    """

    def __init__(self, named: Callable[[], Iterable[tuple[str, Any]]]) -> None:
        """Begin; ``named`` returns the inputs, parameters and buffers that there are so far."""
        self.steps: list[_Step] = []
        self._named = named
        self._names: dict[UntypedStorage, str] = {}
        self._loose: dict[UntypedStorage, str] = {}

    def run(self, operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an operation, for ``watch_operations``, and note it."""
        operands = _tensors((args, list(kwargs.values())))
        live = str(operation) not in _BOOKKEEPING and any(map(self._is_named, operands))
        words = [self._word(tensor) for tensor in operands] if live else []
        result = operation(*args, **kwargs)
        if live:
            for number, made in enumerate(_tensors(result)):
                self._names.setdefault(made.untyped_storage(), f"{len(self.steps)}.{number}")
            plain = map_aggregate((args, kwargs), lambda a: "" if isinstance(a, Tensor) else str(a))
            self.steps.append((str(operation), (plain, words)))
        return result

    def _is_named(self, value: Tensor) -> bool:
        storage = value.untyped_storage()
        if storage not in self._names and storage not in self._loose:
            for name, tensor in self._named():
                if isinstance(tensor, Tensor):
                    self._names.setdefault(tensor.untyped_storage(), name)
        return storage in self._names

    def _word(self, value: Tensor) -> str:
        """Return a tensor in words; one that came of nothing named by the order of its first use.

        How often the forward, or the trace, has made it anew on the way does not count.
        """
        storage = value.untyped_storage()
        if not self._is_named(value):
            self._loose.setdefault(storage, f"constant {len(self._loose)}")
        word = self._names.get(storage) or self._loose[storage]
        return f"{word} {list(value.shape)} {value.stride()} {value.storage_offset()} {value.dtype}"


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, (tuple, list)):
        return [tensor for part in value for tensor in _tensors(part)]
    return [value] if isinstance(value, Tensor) else []


class Rerun:
    """A model on tensors without content, to compare what it does with what was traced.

    A traced value is no tensor and no number, and Python can ask about that without an operation
    that a trace would hold: ``x.dtype is torch.float32``, ``hasattr(x, "node")``,
    ``isinstance(x.size(0), Sized)``. So the model itself runs, and so does its trace, on inputs
    that were given, or on usual ones.

    Args:
        root: What was traced.
        tensors: Its parameters and buffers as they were before that, by path.
        build: Returns the model as it was before, with the tensors that a dict has at its paths.
        inputs: Choices of inputs, of which the first is used that both take.
        given: Whether they are the user's own, or guessed.
    """

    def __init__(
        self,
        root: nn.Module,
        tensors: Mapping[str, Tensor],
        build: Callable[[dict[str, Any]], nn.Module],
        inputs: Sequence[Sequence[Any]],
        given: bool,
    ) -> None:
        self._root, self._tensors, self._build = root, tensors, build
        self._inputs, self._given = inputs, given

    def difference(
        self,
        graph: fx.Graph,
        dtypes: Sequence[torch.dtype | None],
        derivatives: Sequence[bool] = (True,),
    ) -> str:
        """Return where the model first does something else than its trace; empty if nowhere.

        Inputs of which a guard of the trace does not hold, or on which one of the two needs values
        that are not there, tell nothing.

        Args:
            graph: The trace.
            dtypes: What floating-point tensors are taken to be, in turn; None for what they are.
            derivatives: Whether derivatives are recorded, in turn.
        """
        for dtype, recorded in itertools.product(dtypes, derivatives):
            with torch.set_grad_enabled(recorded):
                found = self._first(graph, dtype)
            if found:
                under = "" if recorded else ", under torch.no_grad(),"
                return f"{found[0]}{under} {found[1]}"
        return ""

    def _first(self, graph: fx.Graph, dtype: torch.dtype | None) -> tuple[str, str] | None:
        for inputs in self._inputs:
            traced = self._trace_steps(graph, inputs, dtype)
            steps = None if traced is None else self._model_steps(inputs, dtype)
            if traced is None or steps is None:
                continue
            for ours, theirs in itertools.zip_longest(traced, steps):
                if ours != theirs:
                    mine = ", ".join(
                        f"{dtype or x.dtype} {list(x.shape)}"
                        for x in inputs
                        if isinstance(x, Tensor)
                    )
                    other = ours and theirs and ours[0] == theirs[0]
                    mine_is = "on other operands" if other else f"where its trace {_said(ours)}"
                    said = f"the model {_said(theirs)}, {mine_is}"
                    return f"on a tensor {mine}", said
            return None
        return None

    def _trace_steps(
        self, graph: fx.Graph, inputs: Sequence[Any], dtype: torch.dtype | None
    ) -> list[_Step] | None:
        world = World(self._root, self._tensors, inputs, self._given, dtype)

        def named() -> Iterator[tuple[str, Any]]:
            yield from ((f"input {i}", tensor) for i, tensor in enumerate(world.inputs))
            for path, tensor in self._tensors.items():
                yield path, world.held.get(id(tensor))

        record = _Record(named)
        with torch_internals.watch_operations(record.run):
            return record.steps if world.follows(graph) else None

    def _model_steps(self, inputs: Sequence[Any], dtype: torch.dtype | None) -> list[_Step] | None:
        # What a forward makes anew stands on the CPU, unless it meets a tensor without content.
        for place in (contextlib.nullcontext, on_meta):
            made = {id(tensor): bare(tensor, dtype) for tensor in self._tensors.values()}
            held = {path: made[id(tensor)] for path, tensor in self._tensors.items()}
            mine = [bare(x, dtype) for x in inputs]
            named = {**{f"input {i}": x for i, x in enumerate(mine)}, **held}
            record = _Record(named.items)
            model = self._build(held)
            try:
                with torch_internals.watch_operations(record.run), place():
                    model(*mine)
            except Exception:  # whatever a model raises on inputs that are not its own
                continue
            return record.steps
        return None


def _said(step: _Step | None) -> str:
    return "does nothing more" if step is None else f"calls {step[0]}"
