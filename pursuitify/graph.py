"""Latents, rows and layout: the dependency graph of MATH section 1.

Compile time only. ``build`` cuts the classified graph into latents and gives each its row of the
global dictionary, as sums of *paths* (chains of one-operand maps from a latent) into *slots*
(the parts of a row that ends in a concat).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import networkx as nx
from torch import fx, nn

from pursuitify.classify import AFFINE_LIKE, Site, Sites, Value
from pursuitify.errors import ConversionError, InternalError, Problem
from pursuitify.trace import describe, module_path

Layout = Literal["auto", "decoder", "encoder"]
Step = tuple[fx.Node, int]
#: Per latent the (row, slot, paths) that read it.
Readers = tuple[tuple[tuple[int, int, tuple[int, ...]], ...], ...]


@dataclass(frozen=True)
class Path:
    """One path of an expression tree: a chain of maps from a leaf.

    Attributes:
        leaf: The latent's node, or the input's placeholder.
        steps: (node, operand) pairs, the one next to the leaf first.
    """

    leaf: fx.Node
    steps: tuple[Step, ...]


@dataclass(frozen=True)
class Slot:
    """One independent part of a row: a sum of paths.

    Attributes:
        paths: Its paths; none where the slot holds a constant.
        places: The concats, innermost first, that put the slot in its place.
    """

    paths: tuple[Path, ...]
    places: tuple[Step, ...] = ()


@dataclass(frozen=True)
class Row:
    """One latent and its row of the dictionary, r_j = B_j w_j - u_j (16).

    Attributes:
        index: Position in topological order.
        name: The latent's name: that of its node.
        node: The node whose value the latent is.
        top: The node of the pre-activation.
        signal: The node whose linear part is u_j: the weighted operator's operand in a decoder
            row, the pre-activation in an encoder row.
        layout: ``decoder`` (B_j is the adjoint of the weighted operator) or ``encoder`` (B_j = I).
        diagonal: Nodes of the operator on the diagonal, the weighted one first; empty if encoder.
        slots: The parts of u_j, in order.
        post: Channelwise nodes between the concat and the signal, the one next to it first.
        identity: Whether it is an identity latent (MATH section 1, cases 2 and 3).
        source: Path of the module the latent comes from.
    """

    index: int
    name: str
    node: fx.Node
    top: fx.Node
    signal: fx.Node
    layout: Literal["decoder", "encoder"]
    diagonal: tuple[fx.Node, ...]
    slots: tuple[Slot, ...]
    post: tuple[fx.Node, ...]
    identity: bool
    source: str

    @property
    def paths(self) -> Iterator[tuple[int, int, Path]]:
        """Yield (slot, position in the slot, path)."""
        for s, slot in enumerate(self.slots):
            for p, path in enumerate(slot.paths):
                yield s, p, path


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


def transparent(site: Site) -> bool:
    """Whether the node is a parameter-free unary map, inlined into every reader."""
    if site.value is not Value.AFFINE or site.unary is None or site.rule is None:
        return False
    if site.rule.kind == "linear":
        return True
    constants = [o for o in site.call.operands if o is not site.unary] if site.call else []
    return site.rule.kind in {"product", "join"} and not any(_parameter(c) for c in constants)


def _parameter(operand: object) -> bool:
    """Whether a constant operand is, or comes from, a tensor the model holds."""
    if not isinstance(operand, fx.Node):
        return False
    return operand.op == "get_attr" or any(n.op == "get_attr" for n in operand.all_input_nodes)


def _consumers(node: fx.Node, sites: Sites) -> list[fx.Node | None]:
    """What reads a value, through transparent chains; None stands for the head."""
    found: list[fx.Node | None] = []
    for user in node.users:
        if user.op == "output":
            found.append(None)
            continue
        site = sites[user]
        count = site.operands.count(node)
        if count == 0 or site.value is Value.FROZEN:
            if site.value is Value.OTHER:
                found.append(None)
        elif transparent(site):
            found.extend(_consumers(user, sites))
        else:
            found.extend([user] * count)
    return found


def find_cuts(graph: fx.Graph, sites: Sites) -> set[fx.Node]:
    """Return the nodes that become identity latents (MATH section 1, cases 2 and 3)."""
    leads: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        for user in node.users:
            if user.op == "output" or node not in sites[user].operands:
                continue
            if sites[user].value is Value.LATENT or user in leads:
                leads.add(node)
    cuts: set[fx.Node] = set()
    weighted: dict[fx.Node, bool] = {}
    joins: dict[fx.Node, int] = {}
    for node, site in sites.items():
        if site.value is not Value.AFFINE or site.rule is None:
            continue
        operands = [o for o in site.operands if o is not None]
        kind = site.rule.kind
        weighted[node] = kind == "weighted" or any(weighted.get(o, False) for o in operands)
        joins[node] = max(joins.get(o, 0) for o in operands) + (len(operands) > 1)
        if transparent(site):
            continue
        readers = _consumers(node, sites)
        feeds = any(r is not None and _is_weighted(sites[r]) for r in readers)
        shared = len(readers) > 1 and any(
            r is not None and (sites[r].value is Value.LATENT or r in leads) for r in readers
        )
        if (weighted[node] and feeds) or (shared and (weighted[node] or joins[node] > 1)):
            cuts.add(node)
            weighted[node], joins[node] = False, 0
    return cuts


def _is_weighted(site: Site) -> bool:
    return site.rule is not None and site.rule.kind == "weighted" and site.value is Value.AFFINE


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
    decodable = bool(diagonal) and _is_weighted(sites[diagonal[0]])
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


def needed_operations(rows: Iterable[Row]) -> dict[fx.Node, None]:
    """Return every node of the rows that must be bound, each once."""
    nodes: dict[fx.Node, None] = {}
    for row in rows:
        for slot in row.slots:
            nodes |= dict.fromkeys(n for path in slot.paths for n, _ in path.steps)
            nodes |= dict.fromkeys(n for n, _ in slot.places)
        nodes |= dict.fromkeys((*row.post, *row.diagonal))
    return nodes


def readers_of(rows: Sequence[Row]) -> Readers:
    """Return per latent the (row, slot, paths) that read it."""
    index = {row.node: row.index for row in rows}
    found: list[dict[tuple[int, int], list[int]]] = [{} for _ in rows]
    for row in rows:
        for s, p, path in row.paths:
            if path.leaf in index:
                found[index[path.leaf]].setdefault((row.index, s), []).append(p)
    return tuple(tuple((i, s, tuple(p)) for (i, s), p in d.items()) for d in found)


def edge_kind(path: Path, sites: Sites) -> str:
    """Return ``weighted``, ``diagonal``, ``linear`` or ``identity``: the strongest on the path."""
    kinds = {rule.kind for n, _ in path.steps if (rule := sites[n].rule) is not None}
    if "weighted" in kinds:
        return "weighted"
    if kinds & {"diagonal", "product"}:
        return "diagonal"
    joins_only = kinds <= {"join"}
    return "identity" if joins_only else "linear"


def to_networkx(rows: Sequence[Row], sites: Sites, root: nn.Module) -> nx.DiGraph[str]:
    """Return the dependency graph; the input is the node ``input``."""
    graph: nx.DiGraph[str] = nx.DiGraph()
    inputs = [n for n, s in sites.items() if s.value is Value.INPUT]
    names = {n: "input" if len(inputs) == 1 else n.name for n in inputs}
    for node in inputs:
        graph.add_node(names[node], index=-1, activation="input", layout=None, source="")
    for row in rows:
        names[row.node] = row.name
        activation = "identity" if row.identity else describe(row.node, root)
        graph.add_node(
            row.name, index=row.index, activation=activation, layout=row.layout, source=row.source
        )
    for row in rows:
        for _, _, path in row.paths:
            ends = (names[path.leaf], row.name)
            kind = edge_kind(path, sites)
            if graph.has_edge(*ends):
                graph.edges[ends]["paths"] += 1
                graph.edges[ends]["kind"] = f"{graph.edges[ends]['kind']}+{kind}"
            else:
                graph.add_edge(*ends, kind=kind, paths=1)
    return graph


def check_complete(graph: fx.Graph, sites: Sites, rows: Sequence[Row]) -> None:
    """Prove that every affine node of the graph stands in a row or in the head.

    Raises:
        InternalError: If one was dropped.
    """
    covered = {row.node for row in rows} | set(needed_operations(rows))
    feeds: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        for user in node.users:
            if user.op == "output":
                continue
            site = sites[user]
            if node in site.operands and (site.value is Value.LATENT or user in feeds):
                feeds.add(node)
    missing = [
        n.name for n in feeds if sites[n].value in AFFINE_LIKE - {Value.INPUT} and n not in covered
    ]
    if missing:
        raise InternalError(f"these nodes lead to a latent and stand in no row: {missing}")
