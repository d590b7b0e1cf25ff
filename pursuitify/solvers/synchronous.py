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

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from pursuitify.bind import Parts
from pursuitify.dictionary import StructuredDictionary
from pursuitify.feedback import PartOf
from pursuitify.steps import Norms, chain_norm, fit

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


def signal_of(dictionary: StructuredDictionary) -> list[Parts]:
    """Return y = P x, in slots."""
    rows = []
    for row in dictionary.rows:
        parts = []
        for paths, like in zip(row.slots, row.signal, strict=True):
            total = torch.zeros_like(like)
            for path in paths:
                if path.leaf < 0:
                    total = total + path.apply(dictionary.inputs[-1 - path.leaf])
            parts.append(total)
        rows.append(tuple(parts))
    return rows


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


def step_sizes(dictionary: StructuredDictionary, norms: Norms) -> list[Tensor]:
    """Return g = 1 / L once per latent, L >= ||B||^2; the trained beta_j are not used.

    Args:
        dictionary: The bound dictionary.
        norms: Norm bounds.
    """
    like = dictionary.inputs[0]
    total = operator_bound(dictionary, norms).square()
    step = (1.0 / torch.where(total > 0, total, torch.ones_like(total))).to(like.dtype)
    return [fit(step, shape) for shape in dictionary.shapes]


def operator_bound(dictionary: StructuredDictionary, norms: Norms) -> Tensor:
    """Return an upper bound of ||B||: the norm of the matrix of its blocks' norm bounds.

    It is one number, or one per sample where frozen values differ between samples. Computed in
    float64 and raised by more than the rounding of a singular value.
    """
    blocks, _ = block_norms(dictionary, norms)
    slack = 1.0 + 16 * blocks.shape[-1] * torch.finfo(blocks.dtype).eps
    norm: Tensor = torch.linalg.matrix_norm(blocks, 2)
    return slack * norm


def block_norms(dictionary: StructuredDictionary, norms: Norms) -> tuple[Tensor, Tensor]:
    """Return bounds of the blocks' norms, rows by latents (l, l), and of P's, rows (l,).

    Both have the batch in front where frozen values differ between samples. The paths of one slot
    add up; the slots of a row are orthogonal.
    """
    norm_of = norms.recall(dictionary)
    like = dictionary.inputs[0]
    count, samples = len(dictionary.rows), dictionary.samples
    squares: dict[tuple[int, int], Tensor | float] = {}
    for i, row in enumerate(dictionary.rows):
        for s, paths in enumerate(row.slots):
            sums: dict[int, Tensor | float] = {}
            for p, path in enumerate(paths):
                norm = chain_norm(norm_of, f"{row.name}.{s}.{p}", path.maps, samples)
                column = path.leaf if path.leaf >= 0 else count - 1 - path.leaf
                sums[column] = sums.get(column, 0.0) + norm
            for column, norm in sums.items():
                squares[i, column] = squares.get((i, column), 0.0) + norm * norm
        own: Tensor | float = 1.0
        if row.diagonal is not None:
            own = chain_norm(norm_of, f"{row.name}.diagonal", row.diagonal.maps, samples)
        squares[i, i] = own * own
    values = [torch.as_tensor(v, device=like.device).double() for v in squares.values()]
    batched = next((v for v in values if v.dim() > 0), values[0])
    stacked = torch.stack([v.expand_as(batched) for v in values], -1)
    # The root has no derivative at zero: keep it away from blocks that vanish.
    stacked = torch.where(stacked > 0, torch.where(stacked > 0, stacked, 1.0).sqrt(), 0.0)
    rows, columns = zip(*squares, strict=True)
    whole = stacked.new_zeros(*batched.shape, count, count + len(dictionary.inputs))
    whole[..., rows, columns] = stacked
    return whole[..., :count], torch.linalg.vector_norm(whole[..., count:], dim=-1)


def lipschitz_in_x(step: float, reach: float, direct: float, count: int) -> float:
    """Return a Lipschitz constant of x -> w^T: min over s of sqrt((s a)^2 + (T - s) c).

    a = g ||B^T P|| bounds each of the first s sweeps, c = g ||P||^2 each of the others.

    Args:
        step: g, at most 1 / ||B||^2.
        reach: A bound of ||B^T P||.
        direct: A bound of ||P||.
        count: T.
    """
    a, c = step * reach, step * direct**2
    return math.sqrt(min((s * a) ** 2 + (count - s) * c for s in range(count + 1)))
