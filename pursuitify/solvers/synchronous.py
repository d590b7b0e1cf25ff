"""Synchronous pursuit: all latents at once, from zero, one step size (Jacobi, no extrapolation).

    w^0 = 0,   w^{t+1} = prox_{g f}( w^t - g (B^T (B w^t - y(x)) + lam) ),   g <= 1 / ||B||^2

This is proximal gradient descent on the whole F, so F never rises, and its answer is stable in
the input whatever the depth. Let y(x) = P x (P holds the rows that read the input), and let
d^t be how far w^t moves when x moves by e. With evaluation-mode BatchNorm and no value that is
frozen from data, B, lam and P are the same at both inputs, and d^0 = 0. Two bounds hold.

*Linear.* w -> prox(w - g B^T B w + const) is nonexpansive, so |d^{t+1}| <= |d^t| + g |B^T P e|,
hence |d^T| <= T g ||B^T P|| |e|. The blocks of B^T P are those of the latents that share a row
with the input: in a chain B_1 alone, and T g ||B_1|| is the bound.

*Square root.* prox of a convex function is firmly nonexpansive: with S = I - g B^T B, 0 <= S <= I,

    |d^{t+1}|^2 <= <d^{t+1}, S d^t + g B^T P e>
                <= 1/2 <d^{t+1}, S d^{t+1}> + 1/2 <d^t, S d^t> + g <B d^{t+1}, P e>

Writing S out and g <B d, P e> <= g/2 |B d|^2 + g/2 |P e|^2, the terms in B d^{t+1} cancel:

    |d^{t+1}|^2 <= |d^t|^2 - g |B d^t|^2 + g |P e|^2,   hence   |d^T|^2 <= T g ||P||^2 |e|^2.

The first s sweeps may be bounded by the first, the rest by the second: see ``lipschitz_in_x``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from pursuitify.dictionary.bound_rows import Parts
from pursuitify.dictionary.readers import PartOf
from pursuitify.dictionary.structured import StructuredDictionary, signal_of

Latents = list[Tensor]


def zero(dictionary: StructuredDictionary) -> Latents:
    """Return w^0 = 0."""
    like = dictionary.inputs[0]
    return [like.new_zeros(shape) for shape in dictionary.shapes]


def synchronous(
    dictionary: StructuredDictionary, steps: Sequence[Tensor], count: int
) -> Iterator[Latents]:
    """Yield the latents after each of ``count`` synchronous sweeps from zero.

    Args:
        dictionary: The bound dictionary.
        steps: The step size, once per latent; see ``step_sizes``.
        count: T, the number of sweeps.
    """
    for before in moves(dictionary, steps, count):
        w = close(dictionary, before, steps)
        yield w


def moves(
    dictionary: StructuredDictionary, steps: Sequence[Tensor], count: int
) -> Iterator[Latents]:
    """Yield w - g (B^T (B w - y) + lam) of each sweep: what the proximal operators are given."""
    w = zero(dictionary)
    signal = signal_of(dictionary)
    for t in range(count):
        before = move(dictionary, w, signal, steps, first=t == 0)
        yield before
        w = close(dictionary, before, steps)


def move(
    dictionary: StructuredDictionary,
    w: Latents,
    signal: Sequence[Parts],
    steps: Sequence[Tensor],
    first: bool,
) -> Latents:
    """Return w - g (B^T (B w - y) + lam); ``first`` says that w is zero."""
    residual = _residual(dictionary, None if first else w, signal)
    moved = []
    for j, row in enumerate(dictionary.rows):
        slope = row.slope(residual[j])
        for term in dictionary.branches[j].terms(_reader(residual)):
            slope = slope - term
        moved.append(torch.addcmul(w[j], slope, steps[j], value=-1.0))
    return moved


def close(dictionary: StructuredDictionary, moved: Latents, steps: Sequence[Tensor]) -> Latents:
    """Return prox of every latent."""
    return [
        row.activation.prox(v, step)
        for row, v, step in zip(dictionary.rows, moved, steps, strict=True)
    ]


def _reader(residual: Sequence[Parts]) -> PartOf:
    return lambda at: residual[at[0]][at[1]]


def _residual(
    dictionary: StructuredDictionary, w: Latents | None, signal: Sequence[Parts]
) -> list[Parts]:
    """Return B w - y, in slots; ``w=None`` is zero."""
    if w is None:
        return [tuple(-part for part in parts) for parts in signal]
    rows = [
        [own - part for own, part in zip(row.decode(w[j]), signal[j], strict=True)]
        for j, row in enumerate(dictionary.rows)
    ]
    for j, branch in enumerate(dictionary.branches):
        for (i, s), product in branch.products(w[j]):
            rows[i][s] = rows[i][s] - product
    return [tuple(parts) for parts in rows]
