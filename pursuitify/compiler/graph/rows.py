"""The records of the dependency graph: paths, slots and rows (MATH section 1)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import fx

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
