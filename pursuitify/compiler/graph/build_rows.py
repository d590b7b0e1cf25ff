"""Latents, rows and layout: the dependency graph of MATH section 1.

Compile time only. ``build`` cuts the classified graph into latents and gives each its row of the
global dictionary, as sums of *paths* (chains of one-operand maps from a latent) into *slots*
(the parts of a row that ends in a concat).
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import fx, nn

from pursuitify.compiler.graph.classify import Site, Sites, Value
from pursuitify.compiler.graph.completeness import check_complete
from pursuitify.compiler.graph.dependency_graph import edge_kind, to_networkx
from pursuitify.compiler.graph.identity_latents import find_cuts, is_weighted
from pursuitify.compiler.graph.rows import (
    Layout,
    Path,
    Readers,
    Row,
    Slot,
    Step,
    needed_operations,
    readers_of,
)
from pursuitify.compiler.tracing.nodes import describe, module_path
from pursuitify.errors import ConversionError, InternalError, Problem

__all__ = [
    "Layout",
    "Path",
    "Readers",
    "Row",
    "Slot",
    "build",
    "check_complete",
    "edge_kind",
    "find_cuts",
    "needed_operations",
    "readers_of",
    "to_networkx",
]


def build(graph: fx.Graph, root: nn.Module, sites: Sites, layout: Layout) -> tuple[Row, ...]:
    """Cut the graph into latents and rows.

    Raises:
        ConversionError: If ``layout="decoder"`` and a row has no decoder form.
    """
    cuts = find_cuts(graph, sites)
    latents = [n for n, s in sites.items() if s.value is Value.LATENT or n in cuts]
    leaves = set(latents) | {n for n, s in sites.items() if s.value is Value.INPUT}
    rows = tuple(_row(i, n, sites, leaves, cuts, layout) for i, n in enumerate(latents))
    if layout == "decoder":
        refused = [
            Problem(
                r.name,
                describe(r.node, root),
                r.source,
                "its row does not end in its weighted operator, so it has no decoder form",
                "Use layout='auto'",
            )
            for r in rows
            if r.layout == "encoder"
        ]
        if refused:
            raise ConversionError("layout='decoder' is not possible for every row:", refused)
    return rows


def _row(
    index: int,
    node: fx.Node,
    sites: Sites,
    leaves: set[fx.Node],
    cuts: set[fx.Node],
    layout: Layout,
) -> Row:
    identity = node in cuts
    top = node if identity else sites[node].unary
    if top is None:
        raise InternalError(f"the activation {node} has no operand")
    inner = leaves - {node} if identity else leaves
    diagonal: list[fx.Node] = []
    signal = top
    while signal not in inner and sites[signal].unary is not None:
        site = sites[signal]
        assert site.rule is not None
        diagonal.insert(0, signal)
        signal = _operand(site)
        if site.rule.kind == "weighted":
            break
        if not (site.rule.elementwise or site.rule.kind in {"diagonal", "join"}):
            break
    decodable = bool(diagonal) and is_weighted(sites[diagonal[0]])
    if decodable and layout == "encoder":
        slots, _ = _slots(signal, sites, inner)
        decodable = any(sites[p.leaf].value is Value.INPUT for s in slots for p in s.paths)
    if not decodable:
        diagonal, signal = [], top
    slots, post = _slots(signal, sites, inner)
    return Row(
        index=index,
        name=node.name,
        node=node,
        top=top,
        signal=signal,
        layout="decoder" if decodable else "encoder",
        diagonal=tuple(diagonal),
        slots=slots,
        post=post,
        identity=identity,
        source=module_path(node),
    )


def _operand(site: Site) -> fx.Node:
    operand = site.unary
    if operand is None:
        raise InternalError(f"{site.node} was taken for unary and is not")
    return operand


def _slots(
    signal: fx.Node, sites: Sites, leaves: set[fx.Node]
) -> tuple[tuple[Slot, ...], tuple[fx.Node, ...]]:
    """Split u_j at the concat it ends in, if channelwise maps alone come after."""
    post: list[fx.Node] = []
    node = signal
    while node not in leaves:
        site = sites[node]
        assert site.rule is not None
        dim = _concat_dim(site)
        if dim is not None and (dim == 1 or not post):
            return tuple(_cat_slots(node, dim, (), sites, leaves)), tuple(post)
        if not site.rule.channelwise or site.unary is None:
            break
        post.insert(0, node)
        node = site.unary
    return (Slot(tuple(_paths(signal, (), sites, leaves))),), ()


def _concat_dim(site: Site) -> int | None:
    """The dimension a node concatenates along, where it is a concat along a known one."""
    if site.rule is None or site.call is None or site.rule.name != "cat":
        return None
    dim = site.call.parameters.get("dim", 0)
    return dim if isinstance(dim, int) else None


def _cat_slots(
    node: fx.Node, dim: int, outer: tuple[Step, ...], sites: Sites, leaves: set[fx.Node]
) -> Iterator[Slot]:
    for k, operand in enumerate(sites[node].operands):
        places = ((node, k), *outer)
        if operand is None:
            yield Slot((), places)
        elif operand not in leaves and _concat_dim(sites[operand]) == dim:
            yield from _cat_slots(operand, dim, places, sites, leaves)
        else:
            yield Slot(tuple(_paths(operand, (), sites, leaves)), places)


def _paths(
    node: fx.Node, steps: tuple[Step, ...], sites: Sites, leaves: set[fx.Node]
) -> Iterator[Path]:
    if node in leaves:
        yield Path(node, steps)
        return
    for k, operand in enumerate(sites[node].operands):
        if operand is not None:
            yield from _paths(operand, ((node, k), *steps), sites, leaves)
