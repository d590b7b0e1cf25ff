"""The completeness check: every node of the traced graph has exactly one place.

Independent of how rows are built: it walks the classified graph on its own and compares.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import fx

from pursuitify.compiler.graph.classify import Sites, Value, leading_to
from pursuitify.compiler.graph.rows import Row, needed_operations
from pursuitify.errors import InternalError


def check_complete(graph: fx.Graph, sites: Sites, rows: Sequence[Row]) -> None:
    """Prove that every node of the graph stands in a row, is frozen or fixed, or in the head.

    Each row's expression tree is walked again from its latent down to other latents: the nodes
    met must be those of the row, and as many paths must lead through them.

    Raises:
        InternalError: If a node was dropped, or a row holds one that is not its own.
    """
    nodes = {node.name: node for node in graph.nodes}
    latents = {nodes[row.name] for row in rows}
    leaves = latents | {n for n, s in sites.items() if s.value is Value.INPUT}
    missing = [n.name for n, s in sites.items() if s.value is Value.LATENT and n not in latents]
    if missing:
        raise InternalError(f"these activations have no row: {missing}")
    for row in rows:
        _check_row(row, nodes, sites, leaves)
    places = account(graph, sites, rows)
    lost = [n.name for n in graph.nodes if n not in places]
    if lost:
        raise InternalError(
            f"these nodes stand in no row, are not frozen and not in the head: {lost}"
        )


def _check_row(row: Row, nodes: Mapping[str, fx.Node], sites: Sites, leaves: set[fx.Node]) -> None:
    """Compare a row with its expression tree, walked anew."""
    inner = leaves - {nodes[row.name]} if row.identity else leaves
    expected: set[fx.Node] = set()
    count: dict[fx.Node, int] = {}

    def walk(node: fx.Node) -> int:
        if node in inner:
            return 1
        if node not in count:
            expected.add(node)
            count[node] = sum(walk(o) for o in sites[node].operands if o is not None)
        return count[node]

    paths = walk(nodes[row.preactivation])
    held = {nodes[name] for name in row.operations}
    total = sum(1 for _ in row.paths)
    if held != expected or total != paths:
        names = sorted(n.name for n in held ^ expected)
        raise InternalError(
            f"row {row.name!r} and its expression tree differ by {names}: "
            f"{total} paths in the row, {paths} in the tree"
        )


def account(graph: fx.Graph, sites: Sites, rows: Sequence[Row]) -> dict[fx.Node, str]:
    """Return the place of every node that has one.

    ``row`` (an activation, or an operation of a row), ``input``, ``constant``, ``frozen``, ``head``
    (leads to the output or to nothing at all, and to no latent but through frozen values) or
    ``output``.
    """
    nodes = {node.name: node for node in graph.nodes}
    latents = {nodes[row.name] for row in rows}
    rowwise = {nodes[name] for name in needed_operations(rows)}
    leads = leading_to(latents.union(n for n, s in sites.items() if s.value is Value.LATENT), sites)
    places: dict[fx.Node, str] = {}
    for node in graph.nodes:
        if node.op == "output":
            places[node] = "output"
        elif node in latents or node in rowwise:
            places[node] = "row"
        elif sites[node].role:
            places[node] = sites[node].role
        elif node not in leads:
            places[node] = "head"
    return places
