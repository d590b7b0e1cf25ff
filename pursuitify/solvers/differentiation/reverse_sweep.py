"""The adjoint of one sweep, written by hand: from the latents before and after it, backwards.

With K = K_j the column of latent j (``column_products.py``) and p = K Delta, Delta the last change,
the update of latent j is

    v = w + alpha Delta,   s = K^T (r + alpha p) + lam,   z = v - gamma s,
    w' = prox(z),          delta = w' - w,                r' = r + K delta.

Everything in it but prox is linear, so that going backwards needs no stored residual: K delta is
computed once more (its derivative is needed anyway) and taken back from r'. Nor is the slope
computed again where the activation can name a z with the same w' and the same slope there
(``Activation.preimage``): s = (v - z) / gamma wherever prox has a slope at all. With bars for
cotangents, in the order of the code:

    delta_bar = K^T (r'_bar + p_bar) + alpha_next v_bar_next,   w'_bar += delta_bar,
    z_bar = prox'(z) w'_bar,   s_bar = -gamma z_bar,   q = K s_bar,
    r_bar = r'_bar + q,        p_bar of the sweep before = alpha q,
    w_bar = z_bar - delta_bar, alpha_bar = <z_bar, Delta> + <q, p>,   gamma_bar = -<z_bar, s>,

and whatever K holds receives <r'_bar + p_bar, K delta> and <q, r + alpha p>. Five applications of
each weighted operator, where plain unrolling has four and its two of the forward pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pursuitify.dictionary.readers import Target
from pursuitify.dictionary.structured import StructuredDictionary
from pursuitify.operators.activations import Activation
from pursuitify.solvers.differentiation.column_products import (
    Cotangents,
    Image,
    Residuals,
    derivatives,
    image,
    plus,
)
from pursuitify.solvers.differentiation.tensor_uses import Held


@dataclass(eq=False)
class Reverse:
    """A pursuit run backwards: where it stands, and the cotangents so far.

    Attributes:
        dictionary: What the sweeps read, with leaves of its own where a derivative is wanted.
        tensors: The dictionary's tensors.
        held: Per latent what its update holds.
        steps: gamma_j per latent.
        extrapolation: alpha_j per latent, or None.
        r: The residuals where the run stands; the lists are this object's own.
        w_bar: Per latent its cotangent.
        r_bar: Cotangents of ``r``.
        tensor_bars: Cotangents of ``tensors``.
        step_bars: Cotangents of ``steps``.
        extrapolation_bars: Cotangents of ``extrapolation``.
        change_bar: Per latent, the cotangent of the sweep's change, from the sweep after it.
        image_bar: Likewise of the column times that change.
        kept: Per latent, that change and its image, with the graph between them.
    """

    dictionary: StructuredDictionary
    tensors: list[Tensor]
    held: Sequence[Held]
    steps: Sequence[Tensor]
    extrapolation: Sequence[Tensor] | None
    r: Residuals
    w_bar: list[Tensor | None]
    r_bar: Cotangents
    tensor_bars: list[Tensor | None]
    step_bars: list[Tensor | None]
    extrapolation_bars: list[Tensor | None]
    change_bar: list[Tensor | None]
    image_bar: list[Image | None]
    kept: list[tuple[Tensor, Image] | None]

    def add(self, indices: Sequence[int], bars: Sequence[Tensor | None]) -> None:
        """Add to the cotangents of some tensors."""
        for index, bar in zip(indices, bars, strict=True):
            self.tensor_bars[index] = plus(self.tensor_bars[index], bar)


def undo(
    run: Reverse,
    after: Sequence[Tensor],
    before: Sequence[Tensor],
    earlier: Sequence[Tensor] | None,
    last: bool,
) -> None:
    """Go back one sweep.

    Args:
        run: The run; stands after the sweep, and then before it.
        after: The latents after the sweep.
        before: The latents before it.
        earlier: The latents one sweep earlier still, or None where the sweep did not extrapolate.
        last: Whether no sweep followed.
    """
    for j in reversed(range(len(after))):
        kept = run.kept[j]
        change, moved = kept or _moved(run, j, after[j], before[j], own=not last)
        run.kept[j] = None
        moved.take_back(run.r, j)
        change_bar = plus(run.change_bar[j], _through_change(run, j, change, moved))
        run.change_bar[j] = run.image_bar[j] = None
        total = plus(run.w_bar[j], change_bar)
        del kept, change, moved
        if earlier is not None:
            run.kept[j] = _moved(run, j, before[j], earlier[j], own=True)
        if total is None:
            continue
        slid = _through_step(run, j, total, after[j], before[j])
        run.w_bar[j] = slid if change_bar is None else slid - change_bar


def _moved(run: Reverse, j: int, after: Tensor, before: Tensor, own: bool) -> tuple[Tensor, Image]:
    """Return a change of latent j and its image, with the graph between them."""
    change = after - before
    with torch.enable_grad():
        change.requires_grad_()
        return change, image(run.dictionary, j, change, own)


def _through_change(run: Reverse, j: int, change: Tensor, moved: Image) -> Tensor | None:
    """Return the cotangent of the change from what its image did."""
    bars = moved.seen_cotangents(run.r_bar, j)
    more = run.image_bar[j]
    if more is not None:
        bars = [plus(bar, term) for bar, term in zip(bars, more.tensors(), strict=True)]
    indices = run.held[j].column
    inputs = [change, *(run.tensors[i] for i in indices)]
    first, *rest = derivatives(moved.tensors(), inputs, bars)
    run.add(indices, rest)
    return first


def _through_step(run: Reverse, j: int, total: Tensor, after: Tensor, before: Tensor) -> Tensor:
    """Return the cotangent of the latent before the step, as the step's start alone gives it.

    The latent enters its change, too, as minus the value before: ``undo`` subtracts that part.
    """
    step, activation = run.steps[j], run.dictionary.rows[j].activation
    kept, alpha = run.kept[j], None if run.extrapolation is None else run.extrapolation[j]
    v, seen = before, None
    if kept is not None and alpha is not None:
        v = before + alpha * kept[0].detach()
    z = activation.preimage(after, step)
    if z is None:
        z = v - step * _slope(run, j)
    z_bar = _through_prox(run, j, activation, z, total)
    spent = ((z - v) * z_bar).sum_to_size(step.shape) / step
    run.step_bars[j] = plus(run.step_bars[j], spent)
    slope_bar = -step * z_bar
    held = run.held[j]
    if held.threshold is not None:
        shape = run.tensors[held.threshold].shape
        run.add([held.threshold], [slope_bar.sum_to_size(shape)])
    with torch.enable_grad():
        pulled = image(run.dictionary, j, slope_bar)
    if held.column:
        seen = pulled.seen(run.r, j)
        if kept is not None and alpha is not None:
            seen = [a + alpha * p for a, p in zip(seen, kept[1].tensors(), strict=True)]
        inputs = [run.tensors[i] for i in held.column]
        run.add(held.column, derivatives(pulled.tensors(), inputs, seen))
    pulled = pulled.changed(Tensor.detach)
    pulled.pull(run.r_bar, j)
    if kept is not None and alpha is not None:
        products = zip(pulled.tensors(), kept[1].tensors(), strict=True)
        bar = (z_bar * kept[0]).sum() + sum((q * p).sum() for q, p in products)
        run.extrapolation_bars[j] = plus(run.extrapolation_bars[j], bar)
        run.change_bar[j] = alpha * z_bar
        run.image_bar[j] = pulled.changed(alpha.mul)
    return z_bar


def _through_prox(run: Reverse, j: int, activation: Activation, z: Tensor, total: Tensor) -> Tensor:
    """Return the cotangent of z, and add what the step and the activation receive."""
    step, indices = run.steps[j], run.held[j].prox
    with torch.enable_grad():
        z, step = z.detach().requires_grad_(), step.detach().requires_grad_()
        out = activation.prox(z, step)
    inputs = [z, step, *(run.tensors[i] for i in indices)]
    z_bar, step_bar, *rest = derivatives([out], inputs, [total])
    run.step_bars[j] = plus(run.step_bars[j], step_bar)
    run.add(indices, rest)
    return torch.zeros_like(z) if z_bar is None else z_bar


def _slope(run: Reverse, j: int) -> Tensor:
    """Return the slope (18) where the update took it."""
    row, kept = run.dictionary.rows[j], run.kept[j]
    parts, read = tuple(run.r[j]), {}
    if kept is not None and run.extrapolation is not None:
        alpha = run.extrapolation[j]
        parts = tuple(p + alpha * q for p, q in zip(parts, kept[1].own, strict=True))
        read = {target: alpha * value for target, value in kept[1].read.items()}

    def part(target: Target) -> Tensor:
        value = run.r[target[0]][target[1]]
        return value - read[target] if target in read else value

    slope = row.slope(parts)
    for term in run.dictionary.branches[j].terms(part):
        slope = slope - term
    return slope
