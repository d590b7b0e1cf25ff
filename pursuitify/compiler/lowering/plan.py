"""A row without its graph: names and positions only, what run time reads.

Nodes of torch.fx stay behind at compile time: code that runs on every call looks at nothing but
tuples of names and numbers, which torch.compile takes as constants.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import fx

from pursuitify.compiler.graph.classify import Sites
from pursuitify.compiler.graph.rows import Row

#: An operation's name and the position of one operand.
Use = tuple[str, int]


@dataclass(frozen=True)
class PathPlan:
    """One path: the index of its leaf (-1 - i for the i-th input) and its chain of uses."""

    leaf: int
    uses: tuple[Use, ...]


@dataclass(frozen=True)
class SlotPlan:
    """One slot: its paths, and the concats that place it, innermost first."""

    paths: tuple[PathPlan, ...]
    places: tuple[Use, ...]


@dataclass(frozen=True)
class OffsetPlan:
    """An operation of an expression tree and the operations its operands come from."""

    name: str
    operands: tuple[tuple[int, OffsetPlan], ...]


@dataclass(frozen=True)
class RowPlan:
    """One row; the attributes are those of ``graph.Row``, by name.

    Attributes:
        name: The latent's name.
        encoder: Whether B_j is the identity.
        diagonal: The uses that make up the diagonal operator, the weighted one first.
        slots: The parts of u_j.
        post: Uses between the concat and the signal.
        top: The tree of the pre-activation, for its offset; None where it is a leaf.
        signal: The tree of u_j likewise.
    """

    name: str
    encoder: bool
    diagonal: tuple[Use, ...]
    slots: tuple[SlotPlan, ...]
    post: tuple[Use, ...]
    top: OffsetPlan | None
    signal: OffsetPlan | None


def plan_row(row: Row, sites: Sites, leaves: Mapping[fx.Node, int]) -> RowPlan:
    """Write down a row.

    Args:
        row: The row.
        sites: The classified nodes.
        leaves: Index of every latent, and -1 - i for the i-th input.
    """

    def use(node: fx.Node) -> Use:
        operands = sites[node].operands
        return node.name, next(i for i, o in enumerate(operands) if o is not None)

    def tree(node: fx.Node) -> OffsetPlan | None:
        if node in leaves and node is not row.node:
            return None
        below = ((k, tree(o)) for k, o in enumerate(sites[node].operands) if o is not None)
        return OffsetPlan(node.name, tuple((k, o) for k, o in below if o is not None))

    slots = tuple(
        SlotPlan(
            tuple(
                PathPlan(leaves[path.leaf], tuple((n.name, k) for n, k in path.steps))
                for path in slot.paths
            ),
            tuple((n.name, k) for n, k in slot.places),
        )
        for slot in row.slots
    )
    return RowPlan(
        name=row.name,
        encoder=row.layout == "encoder",
        diagonal=tuple(use(n) for n in row.diagonal),
        slots=slots,
        post=tuple(use(n) for n in row.post),
        top=tree(row.top),
        signal=tree(row.signal),
    )
