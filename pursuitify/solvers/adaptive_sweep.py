"""One sweep of global pursuit with adaptive steps: line search and spectral steps.

The order of the updates and the residuals are those of ``global_sweep``; every latent takes the
share of its proximal step that the line search finds (``line_search.py``). The products of the
whole step are scaled by that share, so each weighted operator is applied once forward and once
adjoint here, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pursuitify.dictionary.norm_bounds import fit
from pursuitify.dictionary.structured import StructuredDictionary
from pursuitify.solvers.global_sweep import begin as begin_fixed
from pursuitify.solvers.line_search import LineSearch
from pursuitify.solvers.proximal_step import proximal_step


@dataclass(eq=False)
class AdaptiveState:
    """The state that one sweep hands to the next.

    Attributes:
        w: The latents.
        r: Per row its residual, in slots, at ``w``.
        steps: Per latent its next step, shape (size of dimension 0, 1, ...).
    """

    w: list[Tensor]
    r: list[list[Tensor]]
    steps: list[Tensor]


def begin(
    dictionary: StructuredDictionary,
    start: Sequence[Tensor],
    estimates: Sequence[Tensor],
    search: LineSearch,
) -> AdaptiveState:
    """Return the state at the feed-forward latents.

    Args:
        dictionary: The bound dictionary.
        start: The feed-forward latents.
        estimates: About 1 / L_j per latent, times the scale of all steps.
        search: The line search.
    """
    state = begin_fixed(dictionary, start, keep=False)
    steps = [search.first(e, w.shape) for e, w in zip(estimates, start, strict=True)]
    return AdaptiveState(state.w, state.r, steps)


def sweep(
    dictionary: StructuredDictionary,
    state: AdaptiveState,
    estimates: Sequence[Tensor],
    search: LineSearch,
    *,
    last: bool,
) -> AdaptiveState:
    """Update every latent once, in order (Gauss-Seidel).

    Args:
        dictionary: The bound dictionary.
        state: The state before.
        estimates: As ``begin`` takes them.
        search: The line search.
        last: Whether no sweep follows: what only it would read is not computed.
    """
    w, r, steps = list(state.w), [list(parts) for parts in state.r], list(state.steps)
    for j, row in enumerate(dictionary.rows):
        branch, old, step = dictionary.branches[j], w[j], steps[j]
        slope = row.slope(tuple(r[j]))
        slope = branch.minus_terms(slope, lambda at: r[at[0]][at[1]])
        new = proximal_step(row, old, slope, step, inplace=False)
        delta = new - old
        own, read = row.decode(delta), branch.products_by_target(delta)
        square = search.squares(delta)
        curvature = torch.zeros_like(square)
        for product in (*own, *read.values()):
            curvature = curvature + (square if product is delta else search.squares(product))
        theta = search.share(search.fall(row.activation, old, new, slope, delta), curvature)
        # The interpolation stays between both ends, rounding included: nothing leaves the domain.
        w[j] = torch.lerp(old.to(new.dtype), new, fit(theta.to(new.dtype), new.shape))
        for (i, s), product in read.items():
            r[i][s] = r[i][s] - fit(theta.to(product.dtype), product.shape) * product
        if last:
            continue
        r[j] = [
            part + fit(theta.to(product.dtype), product.shape) * product
            for part, product in zip(r[j], own, strict=True)
        ]
        steps[j] = search.next_step(step, estimates[j], square, curvature, old.shape)
    return AdaptiveState(w, r, steps)
