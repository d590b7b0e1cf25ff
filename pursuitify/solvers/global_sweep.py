"""One sweep of global pursuit (Algorithm 2): every latent once, in order.

Every residual is kept up to date by the change of each latent, so that a sweep applies each
weighted operator once forward and once adjoint; with extrapolation the last change's products are
kept and reused, because they are linear. What only a next sweep would read is not computed in the
last one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from pursuitify.dictionary.bound_rows import Parts
from pursuitify.dictionary.readers import PartOf, Target
from pursuitify.dictionary.structured import StructuredDictionary
from pursuitify.solvers.proximal_step import proximal_step


@dataclass(eq=False)
class SweepState:
    """The state that one sweep hands to the next.

    Attributes:
        w: The latents.
        r: Per row its residual, in slots, at ``w``.
        keep: Whether a later sweep extrapolates; only then the rest is filled.
        change: Per latent its last change.
        own: Per latent the product of its row's diagonal block with the last change, in slots.
        read: Per latent, by slot, the product of the last change in the slots that read it.
    """

    w: list[Tensor]
    r: list[list[Tensor]]
    keep: bool
    change: list[Tensor]
    own: list[Parts]
    read: list[dict[Target, Tensor]]


def begin(dictionary: StructuredDictionary, start: Sequence[Tensor], keep: bool) -> SweepState:
    """Return the state at the feed-forward latents."""
    r = [
        [b - u for b, u in zip(row.decode(w), row.u, strict=True)]
        for row, w in zip(dictionary.rows, start, strict=True)
    ]
    return SweepState(list(start), r, keep, [], [], [])


def sweep(
    dictionary: StructuredDictionary,
    state: SweepState,
    steps: Sequence[Tensor],
    extrapolation: Sequence[Tensor] | None,
    *,
    last: bool,
    inplace: bool = False,
) -> SweepState:
    """Update every latent once, in order (Gauss-Seidel).

    Args:
        dictionary: The bound dictionary.
        state: The state before; overwritten if ``inplace``.
        steps: gamma_j per latent.
        extrapolation: alpha_j per latent; None in the first sweep, or for none.
        last: Whether no sweep follows: what only it would read is not computed.
        inplace: Do the elementwise work in place.
    """
    w, r = list(state.w), [list(parts) for parts in state.r]
    after = SweepState(w, r, state.keep, [], [], [])
    for j, row in enumerate(dictionary.rows):
        branch = dictionary.branches[j]
        v, parts, part = w[j], tuple(r[j]), _reader(r)
        if extrapolation is not None:
            alpha = extrapolation[j]
            v = v + alpha * state.change[j]
            parts = tuple(p + alpha * q for p, q in zip(parts, state.own[j], strict=True))
            part = _reader(r, alpha, state.read[j])
        slope = row.slope(parts)
        slope = branch.add_terms(slope, part, -1.0) if inplace else branch.minus_terms(slope, part)
        new = proximal_step(row, v, slope, steps[j], inplace)
        delta = new - w[j]
        w[j] = new
        products: dict[Target, Tensor] = {}
        for target, product in branch.products(delta):
            i, s = target
            r[i][s] = r[i][s].sub_(product) if inplace else r[i][s] - product
            if state.keep:
                products[target] = product + products[target] if target in products else product
        if last:
            continue
        own = row.decode(delta)
        r[j] = [p.add_(q) if inplace else p + q for p, q in zip(r[j], own, strict=True)]
        if state.keep:
            after.change.append(delta)
            after.own.append(own)
            after.read.append(products)
    return after


def _reader(
    r: list[list[Tensor]], alpha: Tensor | None = None, read: Mapping[Target, Tensor] | None = None
) -> PartOf:
    """Return how to look a residual up, at the extrapolated latent where ``alpha`` is given."""

    def part(target: Target) -> Tensor:
        value = r[target[0]][target[1]]
        return value if alpha is None or read is None else value - alpha * read[target]

    return part
