"""The matrix symbol of a convolution: reduction to stride one, lag matrices, frequency grids.

A convolution with zero padding on a finite image is a compression of the bi-infinite one, whose
norm is ``sup_theta ||f(theta)||``, f the matrix symbol: a bound for images of any size. On an image
of a known size it is a compression of the circular one on a torus, too, as soon as the torus is so
large that nothing wraps around (``Reach``); there ``theta`` takes finitely many values, which are
few where the image is small, and the largest of them needs no sampling theorem.

Three exact reductions come first:

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
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Reach(NamedTuple):
    """This record says what a convolution uses of its kernel on an image, along one dim.

    Attributes:
        first: The first tap that meets the image.
        taps: Number of taps, from there, that meet it.
        frequencies: Number of equispaced frequencies theta = 2 pi j / frequencies of the reduced
            kernel (see ``polyphase``) on a torus that the convolution is a compression of.
    """

    first: int
    taps: int
    frequencies: int

    @classmethod
    def of(
        cls, size: int, taps: int, stride: int, padding: tuple[int, int], dilation: int
    ) -> Reach:
        """Return that of a convolution (mathematics.md, section 5).

        Output o reads input i by the tap a with dilation * a = x, where x = i - stride * o + low
        runs over an interval. Taps outside of it read padding alone. On a torus of N positions x
        and x + N are one: no wrong tap is met if N is larger than the distance of every x from
        every tap. (Outputs or inputs that become one there meet no tap: their rows or columns are
        zero.) N is a multiple of the stride; and of the dilation's own factors, because a dilated
        convolution falls into separate ones on the residue classes of positions.

        Args:
            size: Size of the image.
            taps: Taps of the kernel.
            stride: The stride.
            padding: Zeros at the low and the high end; negative ones crop.
            dilation: The dilation.
        """
        low, high = padding
        outputs = max(1, (size + low + high - dilation * (taps - 1) - 1) // stride + 1)
        least, most = low - stride * (outputs - 1), size - 1 + low  # of x
        first = min(max(0, -(-least // dilation)), taps - 1)
        last = max(first, min(most // dilation, taps - 1))
        positions = 1 + max(dilation * last - least, most - dilation * first, 0)
        step = dilation // math.gcd(stride, dilation)
        return cls(first, last - first + 1, -(-positions // (stride * step)))


def polyphase(
    weight: Tensor,
    stride: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    window: Sequence[tuple[int, int]] = (),
) -> Tensor:
    """Return the stride-one, dilation-one kernel of the same norm.

    Args:
        weight: Kernel (c_out, c_in / groups, *k); with no spatial dims, a plain matrix.
        stride: Stride per spatial dim.
        dilation: Dilation per spatial dim.
        groups: Number of groups.
        window: First tap and number of taps per spatial dim; the others count as zero. Empty for
            all taps.

    Returns:
        Tensor (groups, rows, columns, *taps) with rows >= columns: the smaller channel side last.
    """
    for i, (first, taps) in enumerate(window):
        if taps < weight.shape[2 + i]:
            weight = weight.narrow(2 + i, first, taps)
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


class Frequencies(NamedTuple):
    """This record says where a reduced symbol is looked at, and what its largest value bounds.

    Attributes:
        grid: Number of equispaced frequencies per dim.
        factor: Factor, at least 1, from the norm at the largest of them to a bound.
        window: First tap and number of taps that are used per dim; empty for all.
    """

    grid: tuple[int, ...]
    factor: float
    window: tuple[tuple[int, int], ...]

    @property
    def label(self) -> str:
        """The grid and the window, as text: equal where a vector on the torus means the same."""
        return ",".join(
            f"{n}:{first}+{taps}" for n, (first, taps) in zip(self.grid, self.window, strict=True)
        )


def frequencies(
    weight: Tensor,
    stride: Sequence[int],
    dilation: Sequence[int],
    slack: float = 0.06,
    reaches: Sequence[Reach] | None = None,
) -> Frequencies:
    """Choose the frequencies at which the symbol is looked at: as few as a bound needs.

    Along a dim where the image has few frequencies these are taken, all of them; along the others
    the symbol is sampled. Both may be mixed: at fixed frequencies of the first kind it is a
    trigonometric polynomial along the others.

    Args:
        weight: Kernel (c_out, c_in / groups, *k).
        stride: Stride per spatial dim.
        dilation: Dilation per spatial dim.
        slack: Largest relative overshoot spent on sampling.
        reaches: What the image at hand uses of the kernel; None for a bound that holds for images
            of every size.
    """

    def reduced(taps: Sequence[int]) -> list[int]:
        phases = [s // math.gcd(s, d) for s, d in zip(stride, dilation, strict=True)]
        return [-(-t // p) for t, p in zip(taps, phases, strict=True)]

    if reaches is None:
        return Frequencies(*sampling(tuple(reduced(weight.shape[2:])), slack), ())
    window = tuple((r.first, r.taps) for r in reaches)
    taps = reduced([r.taps for r in reaches])
    grid, factor = sampling(tuple(taps), slack)
    held: set[int] = set()
    while few := {i for i, r in enumerate(reaches) if r.frequencies <= grid[i]} - held:
        held |= few  # fewer dims are left to sample, which need fewer samples each
        grid, factor = sampling(tuple(1 if i in held else t for i, t in enumerate(taps)), slack)
        grid = tuple(r.frequencies if i in held else grid[i] for i, r in enumerate(reaches))
    return Frequencies(grid, factor, window)


@functools.lru_cache(maxsize=256)
def _half_grid(grid: tuple[int, ...]) -> tuple[tuple[tuple[float, ...], ...], int]:
    """Return one angle vector of each pair +-theta of the grid, and how many are their own pair."""
    real: list[tuple[float, ...]] = []
    half: list[tuple[float, ...]] = []
    for point in itertools.product(*(range(n) for n in grid)):
        mirror = tuple(-p % n for p, n in zip(point, grid, strict=True))
        if point <= mirror:
            theta = tuple(2 * math.pi * p / n for p, n in zip(point, grid, strict=True))
            (real if point == mirror else half).append(theta)
    return (*real, *half), len(real)


def half_grid(grid: Sequence[int], like: Tensor) -> tuple[Tensor, int]:
    """Return half the grid's angles (frequencies, dims); the rest are complex conjugates.

    Returns:
        The angles, and how many of them come first where the symbol is real.
    """
    half, real = _half_grid(tuple(grid))
    angles = torch.tensor(half, dtype=like.dtype, device=like.device)
    return angles.reshape(len(half), len(grid)), real


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


def few(kernel: Tensor, count: int, real: int) -> bool:
    """Return whether Gram matrices one by one cost less than all lag matrices.

    A complex Gram matrix takes three real products, a real one takes one, and the lag matrices take
    one per pair of taps.

    Args:
        kernel: Reduced kernel.
        count: Number of frequencies.
        real: At how many of them the symbol is real.
    """
    taps = math.prod(kernel.shape[3:])
    return real + 3 * (count - real) < taps * (taps + 1) / 2


def gram_matrices(kernel: Tensor, angles: Tensor, real: bool) -> Tensor:
    """Return the Gram matrices f* f of the symbol at some frequencies, without lag matrices.

    Args:
        kernel: Reduced kernel (groups, rows, columns, *taps).
        angles: Frequencies (count, dims).
        real: Whether the symbol is real there; so are the Gram matrices then.

    Returns:
        Matrices (groups, count, columns, columns).
    """
    groups, rows, columns, *taps = kernel.shape
    positions = torch.cartesian_prod(*[torch.arange(t) for t in taps]).reshape(-1, len(taps))
    phase = angles @ positions.to(angles).mT
    flat = kernel.permute(0, *range(3, kernel.dim()), 1, 2).reshape(groups, -1, rows * columns)
    shape = (groups, len(angles), rows, columns)
    cosine = (phase.cos() @ flat).reshape(shape)
    if real:
        return cosine.mT @ cosine
    sine = (phase.sin() @ flat).reshape(shape)
    mixed = cosine.mT @ sine
    return torch.complex(cosine.mT @ cosine + sine.mT @ sine, mixed - mixed.mT)


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
