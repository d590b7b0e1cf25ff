"""The rows of the dictionary as compile time describes them (mathematics.md, section 1).

A row holds names and positions, no nodes of torch.fx: code that runs at every call reads nothing
but tuples of strings and numbers, which torch.compile takes as constants. ``Program.nodes`` leads
from a name back to its node.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

Layout = Literal["auto", "decoder", "encoder"]
#: The name of an operation and the position of one of its operands.
Use = tuple[str, int]
#: Per latent the (row, slot, paths) that read it.
Readers = tuple[tuple[tuple[int, int, tuple[int, ...]], ...], ...]


@dataclass(frozen=True)
class Path:
    """One path of an expression tree: a chain of operations from a leaf.

    Attributes:
        leaf: Index of the latent, or -1 - i for the i-th input.
        uses: The operations, the one next to the leaf first.
    """

    leaf: int
    uses: tuple[Use, ...]


@dataclass(frozen=True)
class Slot:
    """One independent part of a row: a sum of paths.

    Attributes:
        paths: Its paths; none where the slot holds a constant.
        places: The concats, innermost first, that put the slot in its place.
    """

    paths: tuple[Path, ...]
    places: tuple[Use, ...] = ()


@dataclass(frozen=True)
class Tree:
    """An expression tree without its leaves: it is walked for the offset of its value.

    Attributes:
        name: The operation at the root.
        operands: By position, the trees of the operands that are no leaves.
    """

    name: str
    operands: tuple[tuple[int, Tree], ...]


@dataclass(frozen=True)
class Row:
    """One latent and its row of the dictionary, r_j = B_j w_j - u_j (16).

    Attributes:
        index: Position in topological order.
        name: The latent's name: that of its node.
        layout: ``decoder`` (B_j is the adjoint of the weighted operator) or ``encoder`` (B_j = I).
        diagonal: The operations of the diagonal operator, the weighted one first; empty if encoder.
        slots: The parts of u_j, in order.
        post: Channelwise operations between the concat and u_j, the one next to it first.
        preactivation: Name of the value that the activation takes.
        u: Name of the value whose linear part is u_j: the weighted operator's operand in a decoder
            row, the pre-activation in an encoder row.
        preactivation_tree: The tree of the pre-activation; None where it is a leaf.
        u_tree: The tree of u_j likewise.
        identity: Whether it is an identity latent (section 1, cases 2 and 3).
        source: Path of the module the latent comes from.
    """

    index: int
    name: str
    layout: Literal["decoder", "encoder"]
    diagonal: tuple[Use, ...]
    slots: tuple[Slot, ...]
    post: tuple[Use, ...]
    preactivation: str
    u: str
    preactivation_tree: Tree | None
    u_tree: Tree | None
    identity: bool
    source: str

    @property
    def encoder(self) -> bool:
        """Whether B_j is the identity."""
        return self.layout == "encoder"

    @property
    def paths(self) -> Iterator[tuple[int, int, Path]]:
        """Yield (slot, position in the slot, path)."""
        for s, slot in enumerate(self.slots):
            for p, path in enumerate(slot.paths):
                yield s, p, path

    @property
    def operations(self) -> Iterator[str]:
        """Yield the names of the row's operations; one may come several times."""
        for slot in self.slots:
            for path in slot.paths:
                yield from (name for name, _ in path.uses)
            yield from (name for name, _ in slot.places)
        yield from (name for name, _ in (*self.post, *self.diagonal))


def needed_operations(rows: Iterable[Row]) -> dict[str, None]:
    """Return the name of every operation of the rows, each once."""
    return dict.fromkeys(name for row in rows for name in row.operations)


def readers_of(rows: Sequence[Row]) -> Readers:
    """Return per latent the (row, slot, paths) that read it."""
    found: list[dict[tuple[int, int], list[int]]] = [{} for _ in rows]
    for row in rows:
        for s, p, path in row.paths:
            if path.leaf >= 0:
                found[path.leaf].setdefault((row.index, s), []).append(p)
    return tuple(tuple((i, s, tuple(p)) for (i, s), p in d.items()) for d in found)
