"""Latents, rows and layout: the dependency graph of mathematics.md, section 1.

Compile time only. ``build`` cuts the classified graph into latents and gives each its row of the
global dictionary, as sums of *paths* (chains of one-operand maps from a latent) into *slots*
(the parts of a row that ends in a concat).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import fx, nn

from pursuitify.compiler.graph.classify import Site, Sites, Value, inputs_of
from pursuitify.compiler.graph.identity_latents import find_cuts, is_weighted
from pursuitify.compiler.graph.rows import Layout, Path, Row, Slot, Tree, Use
from pursuitify.compiler.tracing.nodes import describe, module_path
from pursuitify.errors import ConversionError, InternalError, Problem

#: Index of every latent, and -1 - i for the i-th input.
Leaves = Mapping[fx.Node, int]


def build(graph: fx.Graph, root: nn.Module, sites: Sites, layout: Layout) -> tuple[Row, ...]:
    """Cut the graph into latents and rows.

    Raises:
        ConversionError: If ``layout="decoder"`` and a row has no decoder form.
    """
    cuts = find_cuts(sites)
    latents = [n for n, s in sites.items() if s.value is Value.LATENT or n in cuts]
    known = {n: -1 - i for i, n in enumerate(inputs_of(sites)) if sites[n].value is Value.INPUT}
    leaves = known | {n: i for i, n in enumerate(latents)}
    rows = tuple(_row(i, n, sites, leaves, cuts, layout) for i, n in enumerate(latents))
    if layout == "decoder":
        refused = [
            Problem(
                r.name,
                describe(latents[r.index], root),
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
    leaves: Leaves,
    cuts: set[fx.Node],
    layout: Layout,
) -> Row:
    identity = node in cuts
    # The activation's operand; an identity latent is its own pre-activation.
    before = node if identity else sites[node].unary
    if before is None:
        raise InternalError(f"the activation {node} has no operand")
    inner = {n: i for n, i in leaves.items() if not (identity and n is node)}
    diagonal: list[fx.Node] = []
    u = before
    while u not in inner and sites[u].unary is not None:
        site = sites[u]
        assert site.rule is not None
        diagonal.insert(0, u)
        u = _operand(site)
        if site.rule.kind == "weighted":
            break
        if not (site.rule.elementwise or site.rule.kind in {"diagonal", "join"}):
            break
    decodable = bool(diagonal) and is_weighted(sites[diagonal[0]])
    if decodable and layout == "encoder":
        slots, _ = _slots(u, sites, inner)
        decodable = any(path.leaf < 0 for slot in slots for path in slot.paths)
    if not decodable:
        diagonal, u = [], before
    slots, post = _slots(u, sites, inner)
    return Row(
        index=index,
        name=node.name,
        layout="decoder" if decodable else "encoder",
        diagonal=tuple(_use(n, sites) for n in diagonal),
        slots=slots,
        post=tuple(_use(n, sites) for n in post),
        preactivation=before.name,
        u=u.name,
        preactivation_tree=_tree(before, sites, inner),
        u_tree=_tree(u, sites, inner),
        identity=identity,
        source=module_path(node),
    )


def _use(node: fx.Node, sites: Sites) -> Use:
    """Return the use of a node with one affine operand."""
    return node.name, next(i for i, o in enumerate(sites[node].operands) if o is not None)


def _tree(node: fx.Node, sites: Sites, leaves: Leaves) -> Tree | None:
    if node in leaves:
        return None
    below = ((k, _tree(o, sites, leaves)) for k, o in enumerate(sites[node].operands) if o)
    return Tree(node.name, tuple((k, o) for k, o in below if o is not None))


def _operand(site: Site) -> fx.Node:
    operand = site.unary
    if operand is None:
        raise InternalError(f"{site.node} was taken for unary and is not")
    return operand


def _slots(
    u: fx.Node, sites: Sites, leaves: Leaves
) -> tuple[tuple[Slot, ...], tuple[fx.Node, ...]]:
    """Split u_j at the concat it ends in, if channelwise maps alone come after."""
    post: list[fx.Node] = []
    node = u
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
    return (Slot(tuple(_paths(u, (), sites, leaves))),), ()


def _concat_dim(site: Site) -> int | None:
    """The dimension a node concatenates along, where it is a concat along a known one."""
    if site.rule is None or site.call is None or not site.rule.concat:
        return None
    dim = site.call.parameters.get("dim", 0)
    return dim if isinstance(dim, int) else None


def _cat_slots(
    node: fx.Node, dim: int, outer: tuple[Use, ...], sites: Sites, leaves: Leaves
) -> Iterator[Slot]:
    for k, operand in enumerate(sites[node].operands):
        places = ((node.name, k), *outer)
        if operand is None:
            yield Slot((), places)
        elif operand not in leaves and _concat_dim(sites[operand]) == dim:
            yield from _cat_slots(operand, dim, places, sites, leaves)
        else:
            yield Slot(tuple(_paths(operand, (), sites, leaves)), places)


def _paths(node: fx.Node, uses: tuple[Use, ...], sites: Sites, leaves: Leaves) -> Iterator[Path]:
    if node in leaves:
        yield Path(leaves[node], uses)
        return
    for k, operand in enumerate(sites[node].operands):
        if operand is not None:
            yield from _paths(operand, ((node.name, k), *uses), sites, leaves)
