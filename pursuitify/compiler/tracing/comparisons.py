"""Two traces of one model: whether they are the same, and one name for what both do."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, fx
from torch.fx.node import map_aggregate

from pursuitify.compiler.tracing.nodes import module_path


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
        if arguments != others and map_aggregate(arguments, _named) != map_aggregate(
            others, _named
        ):
            return False
    return True


def _named(argument: Any) -> Any:
    """Return an argument, NaN by name: it is not equal to itself."""
    return "nan" if isinstance(argument, float) and argument != argument else argument


def _same_constant(a: Tensor, b: Tensor) -> bool:
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
