"""Global pursuit with adaptive steps where no derivative is recorded: elementwise work in place.

The values are those of ``adaptive_sweep.sweep`` up to rounding. Minus the slope of a latent is
summed up in one tensor, to which packed convolutions add their products themselves; products of a
direction are scaled into the residuals in one pass each. A row's slots are views of one tensor.
Rows that scale one concat keep one copy of that concat, not a residual each (``shared_concats``):
what a direction does to all of them is one weighted norm, and one change of the concat.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from pursuitify.dictionary.bound_rows import BoundRow
from pursuitify.dictionary.norm_bounds import fit
from pursuitify.dictionary.readers import Branch, PartOf, Target
from pursuitify.dictionary.structured import StructuredDictionary
from pursuitify.operators.onednn_conv import PackedConv
from pursuitify.solvers.inplace.descend import Spares
from pursuitify.solvers.inplace.shared_concats import DIM, shared
from pursuitify.solvers.line_search import LineSearch


def descend(
    dictionary: StructuredDictionary,
    start: Sequence[Tensor],
    estimates: Sequence[Tensor],
    search: LineSearch,
    count: int,
    observed: bool,
) -> Iterator[list[Tensor]]:
    """Yield the latents after each sweep; see ``GlobalPursuit.sweeps``.

    Args:
        dictionary: The bound dictionary; its kernels may be packed for steps of 1, and products
            that are kept.
        start: The feed-forward latents.
        estimates: About 1 / L_j per latent, times the scale of all steps.
        search: The line search.
        count: T, the number of sweeps.
        observed: Whether the caller keeps what a sweep yields after the next one.
    """
    spares, w, concats = Spares(), list(start), shared(dictionary, start)
    steps = [search.first(e, v.shape) for e, v in zip(estimates, start, strict=True)]
    full: list[Tensor] = []
    slots: list[list[Tensor]] = []
    for j, (row, latent) in enumerate(zip(dictionary.rows, start, strict=True)):
        if j in concats.runs:
            full.append(concats.view(concats.runs[j], latent.shape[DIM]))
            slots.append([])
        else:
            full.append(row.product(latent) - row.join(row.u))
            slots.append(list(row.split(full[j])))
    rows = len(full)
    branches = [concats.branch(branch, rows) for branch in dictionary.branches]
    slots += [list(concat.parts) for concat in concats.concats]

    def part(target: Target) -> Tensor:
        i, s = target
        return slots[i][s] if i < rows else concats.concats[i - rows].slope(s, w)

    for t in range(count):
        last, recycle = t == count - 1, t > 0 and not observed
        for j, (row, branch) in enumerate(zip(dictionary.rows, branches, strict=True)):
            old, step, run = w[j], steps[j], concats.runs.get(j)
            if run is not None:
                down = _from_concat(row, full[j], run.factor, old, spares.take(old))
                down = branch.add_terms(down, part, 1.0)
            else:
                down = _minus_slope(row, branch, full[j], part, spares.take(old))
            new = torch.addcmul(old, down, step, out=spares.take(old))
            new = row.activation.prox_(new, step)
            delta = torch.sub(new, old, out=spares.take(old))
            square = search.squares(delta)
            fall = search.fall_along(row.activation, old, new, down, delta)
            spares.give(down)
            own = delta if row.diagonal is None else row.diagonal.adjoint(delta)
            curvature = square.clone() if own is delta else search.squares(own)
            read = branch.products_by_target(delta)
            for (i, s), product in read.items():
                if i >= rows:
                    weights = concats.concats[i - rows].squares[s]
                    curvature += search.weighted_squares(product, weights, DIM)
                else:
                    curvature += square if product is delta else search.squares(product)
            theta = search.share(fall, curvature).to(old.dtype)
            for (i, s), product in read.items():
                slots[i][s].addcmul_(product, fit(theta, product.shape), value=-1.0)
            if not last:
                if run is None:
                    full[j].addcmul_(own, fit(theta, own.shape))
                steps[j] = search.next_step(step, estimates[j], square, curvature, old.shape)
            into = old if recycle else new
            w[j] = torch.lerp(old, new, fit(theta, old.shape), out=into)
            spares.give(delta)
            if recycle:
                spares.give(new)
        yield list(w)


def _from_concat(row: BoundRow, held: Tensor, factor: Tensor, w: Tensor, into: Tensor) -> Tensor:
    """Return -(w_j - s_j c_j - o_j + lam_j) of a row that scales a concat, in ``into``.

    o_j is the offset that stands in the row's signal, if any.

    Args:
        row: The row.
        held: -c_j.
        factor: s_j.
        w: The latent.
        into: Memory for the result.
    """
    if row.threshold is None:
        value = torch.mul(held, -factor, out=into)
    else:
        value = torch.addcmul(-row.threshold, held, factor, value=-1.0, out=into)
    if row.offset is not None:
        value = value.add_(row.offset)
    return value.sub_(w)


def _minus_slope(row: BoundRow, branch: Branch, r: Tensor, part: PartOf, into: Tensor) -> Tensor:
    """Return -(B_j^T r_j + lam_j) + sum_i B_ij r_i, minus the slope (18), in ``into``.

    Args:
        row: The latent's row.
        branch: Its readers.
        r: The row's residual, in one piece.
        part: The readers' residuals, by slot.
        into: Memory for the result.
    """
    targets = branch.targets
    if row.diagonal is None:
        value = torch.sub(part(targets[0]), r, out=into) if targets else torch.neg(r, out=into)
    elif targets:
        value = into.copy_(part(targets[0]))
    else:
        value = into.zero_()
    value = Branch(targets[1:], branch.through).add_terms(value, part, 1.0)
    maps = () if row.diagonal is None else row.diagonal.maps
    if len(maps) == 1 and isinstance(maps[0], PackedConv):
        bias = None if row.threshold is None else maps[0].inner.as_bias(row.threshold)
        if bias is not None or row.threshold is None:
            return maps[0].direct.add(value, r, None if bias is None else -bias)
    if row.diagonal is not None:
        return value.sub_(row.slope_at(r))
    return value if row.threshold is None else value.sub_(row.threshold)
