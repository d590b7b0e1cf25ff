"""The matrix symbol of a convolution: reduction to stride one, lag matrices, sampling grids.

A convolution with zero padding on a finite image is a compression of the bi-infinite one, whose
norm is ``sup_theta ||f(theta)||``, f the matrix symbol. Three exact reductions come first:

* *Dilation.* Only ``stride / gcd(stride, dilation)`` matters. With g the gcd, the kernel reads
  every g-th input only; what is left of stride and dilation is coprime, so the dilated taps visit
  the phases of the stride in another order, each delayed as a whole. Order and delay are unitary.
* *Stride.* The phases of the input become input channels (polyphase form), with fewer taps.
* *Groups* are independent kernels: a batch dimension.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def polyphase(
    weight: Tensor, stride: Sequence[int], dilation: Sequence[int], groups: int
) -> Tensor:
    """Return the stride-one, dilation-one kernel of the same norm.

    Args:
        weight: Kernel (c_out, c_in / groups, *k); with no spatial dims, a plain matrix.
        stride: Stride per spatial dim.
        dilation: Dilation per spatial dim.
        groups: Number of groups.

    Returns:
        Tensor (groups, rows, columns, *taps) with rows >= columns: the smaller channel side last.
    """
    kernel = weight.reshape(groups, -1, *weight.shape[1:])
    for i, (step, spread) in enumerate(zip(stride, dilation, strict=True)):
        phases = step // math.gcd(step, spread)
        if phases == 1:
            continue
        dim, size = 3 + i, kernel.shape[3 + i]
        taps = -(-size // phases)
        tail = [0, 0] * (kernel.dim() - dim - 1) + [0, taps * phases - size]
        split = (*kernel.shape[:dim], taps, phases, *kernel.shape[dim + 1 :])
        kernel = F.pad(kernel, tail).reshape(split)
        kernel = kernel.narrow(dim + 1, 0, min(phases, size)).movedim(dim + 1, 3).flatten(2, 3)
    return kernel.transpose(1, 2) if kernel.shape[1] < kernel.shape[2] else kernel


def sampling(taps: tuple[int, ...], slack: float) -> tuple[tuple[int, ...], float]:
    """Choose a frequency grid and the factor from samples to supremum.

    p(theta) = u* G(theta) u is a non-negative trigonometric polynomial of degree d_i = taps_i - 1.
    If its samples on n_i > 2 d_i equispaced points per dim lie in [0, M], those of p - M / 2 lie in
    [-M/2, M/2]; Ehlich and Zeller's bound, dim by dim, gives |p - M/2| <= (M/2) / prod cos(pi d_i /
    n_i) everywhere. So sup p <= M (1 + 1 / prod cos) / 2. Using p >= 0 halves the overshoot.

    Args:
        taps: Taps per dim.
        slack: Largest relative overshoot of the norm (the square root) to allow.

    Returns:
        The grid sizes, and the factor on the norm, in [1, 1 + slack].
    """
    degrees = [t - 1 for t in taps]
    active = sum(d > 0 for d in degrees)
    if not active:
        return (1,) * len(taps), 1.0
    target = 1 / (2 * (1 + slack) ** 2 - 1)
    angle = math.acos(target ** (1 / active))
    grid = [max(2 * d + 1, math.ceil(math.pi * d / angle)) if d else 1 for d in degrees]

    def cosines(sizes: Sequence[int]) -> float:
        return math.prod([math.cos(math.pi * d / n) for d, n in zip(degrees, sizes, strict=True)])

    for i, d in enumerate(degrees):  # spend what rounding up left over
        smaller = [*grid[:i], grid[i] - 1, *grid[i + 1 :]]
        if grid[i] - 1 > 2 * d > 0 and cosines(smaller) >= target:
            grid = smaller
    return tuple(grid), math.sqrt((1 + 1 / cosines(grid)) / 2)


@functools.lru_cache(maxsize=256)
def _half_grid(grid: tuple[int, ...]) -> tuple[tuple[float, ...], ...]:
    """Return one angle vector of each pair +-theta of the grid."""
    half = []
    for point in itertools.product(*(range(n) for n in grid)):
        mirror = tuple(-p % n for p, n in zip(point, grid, strict=True))
        if point <= mirror:
            half.append(tuple(2 * math.pi * p / n for p, n in zip(point, grid, strict=True)))
    return tuple(half)


def half_grid(grid: Sequence[int], like: Tensor) -> Tensor:
    """Return half the grid's angles (frequencies, dims); the rest are complex conjugates."""
    half = _half_grid(tuple(grid))
    return torch.tensor(half, dtype=like.dtype, device=like.device).reshape(len(half), len(grid))


def _product(left: Tensor, right: Tensor, blocks: int) -> Tensor:
    """Return left^T right; if it is symmetric, in column blocks of its lower triangle."""
    if blocks == 1:
        return left.mT @ right
    total = left.new_zeros(left.shape[0], left.shape[-1], left.shape[-1])
    step = -(-left.shape[-1] // blocks)
    for start in range(0, left.shape[-1], step):
        total[..., start:, start : start + step] = (
            left[..., start:].mT @ right[..., start : start + step]
        )
    return total.tril() + total.tril(-1).mT


def lag_matrices(kernel: Tensor) -> tuple[Tensor, Tensor]:
    """Return the lags k and the matrices G_k = sum_a K_a^T K_{a+k} of the Gram symbol.

    Only half the lags are kept (G_{-k} = G_k^T), the zero lag first.

    Args:
        kernel: Reduced kernel (groups, rows, columns, *taps).

    Returns:
        Lags (lags, dims) and matrices (groups, lags, columns, columns).
    """
    groups, _, columns, *taps = kernel.shape
    stacked = kernel.permute(0, *range(3, kernel.dim()), 1, 2).contiguous()
    zero = (0,) * len(taps)
    lags = [k for k in itertools.product(*(range(1 - t, t) for t in taps)) if k >= zero]
    matrices = []
    for lag in lags:
        left = right = stacked
        for i, (k, t) in enumerate(zip(lag, taps, strict=True)):
            left = left.narrow(1 + i, max(0, -k), t - abs(k))
            right = right.narrow(1 + i, max(0, k), t - abs(k))
        left = left.reshape(groups, -1, columns)
        right = right.reshape(groups, -1, columns)
        blocks = -(-columns // 1024) * 2 if lag == zero and columns > 1024 else 1
        matrices.append(_product(left, right, blocks))
    index = torch.tensor(lags, dtype=kernel.dtype, device=kernel.device)
    return index.reshape(len(lags), len(taps)), torch.stack(matrices, 1)


def hermitian_parts(lags: Tensor) -> tuple[Tensor, Tensor]:
    """Return the symmetric and skew lag matrices, flattened: the symbol's real and imaginary parts.

    G(theta) = sum_k cos(k theta) S_k + i sin(k theta) D_k with S_k = G_k + G_k^T (G_0 for k = 0)
    and D_k = G_k - G_k^T.
    """
    symmetric = torch.cat([lags[:, :1], lags[:, 1:] + lags[:, 1:].mT], 1)
    return symmetric.flatten(2), (lags - lags.mT).flatten(2)


def symbol_at(kernel: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
    """Return the real and imaginary part of f(theta) = sum_a K_a exp(i a theta).

    Args:
        kernel: Kernel (rows, columns, *taps).
        theta: Angles (dims,).
    """
    phase = torch.zeros((), dtype=kernel.dtype, device=kernel.device)
    for i, taps in enumerate(kernel.shape[2:]):
        steps = torch.arange(taps, dtype=kernel.dtype, device=kernel.device) * theta[i]
        phase = phase[..., None] + steps
    flat, phase = kernel.flatten(2) if kernel.dim() > 2 else kernel[..., None], phase.reshape(-1)
    return (flat * phase.cos()).sum(-1), (flat * phase.sin()).sum(-1)
