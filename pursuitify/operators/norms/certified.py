"""Certified, tight and differentiable upper bounds of the norm of convolutions and matrices.

How a bound is made (see ``symbol.py`` for the reductions and the sampling theorem):

1. a grid of frequencies: few samples for images of any size, or all those of a torus that holds the
   image at hand, half of them by symmetry;
2. the Hermitian Gram symbol G(theta) there, on the smaller channel side: from lag matrices, which
   are a few real matmuls, or one by one where frequencies are few;
3. a Lanczos estimate of the largest eigenvalue, then a *certificate*: ``mu I - G(theta)`` has a
   Cholesky factor at every sample, hence mu is above every eigenvalue. A frequency that refuses
   raises the estimate and is tested again;
4. the sampling theorem turns the largest sample into the supremum over all frequencies; on a torus
   there are no others.

Why not Gram iteration (Delattre et al.), which is certified too: each squaring costs a matrix
product at every frequency of a grid as large as the image, and the bound closes on the norm only
as rank ** (1 / 2 ** t). A Cholesky factor costs a sixth of such a product, one is enough, the
result is within a stated slack of the norm whatever the spectrum is, and the grid is never larger
than one that depends on the taps alone: the cost does not grow with the image.

Rounding: the certificate is computed in the weight's own precision (at least float32) on a kernel
scaled to unit maximum, and mu carries a relative margin of ``8 n eps``, n the Gram's dimension,
which is well above the rounding of these products (their errors grow like sqrt(n)).

The derivative treats the maximiser (theta*, u) as fixed, which is exact where it is unique.
"""

from __future__ import annotations

import functools
import itertools
import math
import threading
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pursuitify.operators.norms.fingerprint import kernel_contents
from pursuitify.operators.norms.symbol import (
    Reach,
    few,
    frequencies,
    gram_matrices,
    half_grid,
    hermitian_parts,
    lag_matrices,
    polyphase,
    symbol_at,
)
from pursuitify.utils.autocast import exact_products
from pursuitify.utils.func_transforms import active

_CHUNK_BYTES = 32 * 2**20
_TIGHT = 1e-3
#: Lanczos steps that find at which frequencies an eigenvalue is large, and how large it is there.
_FIRST_STEPS = 10
_LANCZOS_STEPS = 10
_INVERSE_STEPS = 12
_SMALL = 8


def working(weight: Tensor) -> Tensor:
    """Return the weight in a precision that linear algebra supports."""
    return weight if weight.dtype in (torch.float32, torch.float64) else weight.float()


def _start(size: int, like: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(size, generator=generator, dtype=torch.float64).to(like)


def lanczos(gram: Tensor, start: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Return the largest Ritz value and its vector, for each Hermitian matrix of a batch.

    Conjugates are formed, not left to torch's lazy ``conj()``: compiled code calls its operators
    where elementwise functions do not see the lazy ones.

    Args:
        gram: Positive semidefinite matrices (batch, n, n).
        start: Start vectors (batch, n, 1), not zero.
        steps: Dimension of the Krylov space.

    Returns:
        Rayleigh quotients (batch,), each a lower bound, and unit vectors (batch, n, 1).
    """
    tiny = torch.finfo(start.real.dtype).tiny
    count = min(steps, gram.shape[-1])
    rows = start.new_zeros(len(start), count, start.shape[1])  # the basis, and its conjugate
    turned, images = torch.zeros_like(rows), torch.zeros_like(rows)
    vector = start
    for i in range(count):
        vector = vector / torch.linalg.vector_norm(vector, dim=1, keepdim=True).clamp_min(tiny)
        image = gram @ vector
        rows[:, i], images[:, i] = vector[..., 0], image[..., 0]
        turned[:, i] = torch.conj_physical(vector)[..., 0]
        if i + 1 < count:
            known, dual = rows[:, : i + 1].mT, turned[:, : i + 1]
            vector = image - known @ (dual @ image)
            vector = vector - known @ (dual @ vector)
    basis, image = rows.mT, images.mT
    projected = turned @ image
    projected = (projected + torch.conj_physical(projected).mT) / 2
    weights = torch.linalg.eigh(projected)[1][..., -1:]
    vector, image = basis @ weights, image @ weights
    scale = (vector.abs() ** 2).sum((1, 2)).clamp_min(tiny)
    value = (torch.conj_physical(vector) * image).real.sum((1, 2)) / scale
    return value, vector / scale.sqrt()[:, None, None]


class _NormSearch:
    """The largest eigenvalue met so far, where it was met, and the certified level above it."""

    def __init__(self, like: Tensor) -> None:
        self.level = 0.0
        self.value = -1.0
        self.where = torch.zeros((), dtype=torch.int64, device=like.device)
        self.vector = like
        self.gram = like

    def offer(self, values: Tensor, vectors: Tensor, gram: Tensor, where: Tensor) -> None:
        """Keep the best of a batch if it is better; ``where`` holds flat (group, frequency)."""
        best = int(values.argmax())
        if float(values[best]) > self.value:
            self.value = float(values[best])
            self.vector, self.gram, self.where = vectors[best], gram[best], where[best]

    def certify(self, gram: Tensor, start: Tensor, where: Tensor, margin: float) -> None:
        """Raise the level until it is certified for every matrix of the batch."""
        values, vectors = lanczos(gram, start, _FIRST_STEPS)
        top = values.topk(min(4, len(values))).indices
        self.offer(*lanczos(gram[top], vectors[top], _LANCZOS_STEPS), gram[top], where[top])
        growth = _TIGHT
        self.level = max(self.level, self.value * (1 + growth))
        while True:
            shifted = -gram
            shifted.diagonal(dim1=-2, dim2=-1).add_(self.level)
            failed = torch.linalg.cholesky_ex(shifted).info.ne(0).nonzero()[:, 0]
            if not len(failed):
                break
            gram, vectors, where = gram[failed], vectors[failed], where[failed]
            values, vectors = lanczos(gram, vectors, _LANCZOS_STEPS)
            self.offer(values, vectors, gram, where)
            growth *= 2
            self.level = max(self.level * (1 + growth / 4), self.value * (1 + _TIGHT))
        self.level = max(self.level, self.value * (1 + margin))

    def exact(self, gram: Tensor, where: Tensor, margin: float) -> None:
        """Use a full decomposition, for small matrices."""
        if gram.shape[-1] == 1:
            values, vectors = gram[:, 0, 0].real, torch.ones_like(gram)
        else:
            spectrum, basis = torch.linalg.eigh(gram)
            values, vectors = spectrum[:, -1], basis[..., -1:]
        self.offer(values, vectors, gram, where)
        self.level = max(self.level, self.value * (1 + margin))

    def refine(self) -> None:
        """Sharpen the maximiser by inverse iteration below the certified level."""
        size = self.gram.shape[-1]
        eye = torch.eye(size, dtype=self.gram.dtype, device=self.gram.device)
        factor, info = torch.linalg.cholesky_ex(self.level * eye - self.gram)
        if int(info):
            return
        for _ in range(_INVERSE_STEPS):
            self.vector = torch.cholesky_solve(self.vector, factor)
            self.vector = self.vector / self.vector.norm()


@torch.library.custom_op("pursuitify::largest_sample", mutates_args=())
def largest_sample(
    weight: Tensor,
    stride: list[int],
    dilation: list[int],
    groups: int,
    grid: list[int],
    window: list[int],
    derived: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Bound the largest eigenvalue of the Gram symbol over a frequency grid.

    An operator of its own so that a compiled or exported forward pass can hold it whole. It takes
    the weight as it is: were the kernel reduced outside, compilers would lay the weight out for
    that, and copy it for every convolution.

    Args:
        weight: Kernel (c_out, c_in / groups, *k).
        stride: Stride per spatial dim.
        dilation: Dilation per spatial dim.
        groups: Number of groups.
        grid: Sample points per dim.
        window: First tap and number of taps per spatial dim, one after the other, or empty.
        derived: Whether the vector is to be as exact as a derivative needs it.

    Returns:
        The square root of the certified level (0-dim), and where it was met: group (0-dim, int64),
        angles (dims,) and vector (2, columns), real and imaginary part, ``columns`` being those of
        the reduced kernel (see ``polyphase``).
    """
    key = (*stride, *dilation, groups, *grid, *window, kernel_contents([weight]))
    found = _KNOWN.get((derived, key))
    if found is None and not derived:
        found = _KNOWN.get((True, key))
    if found is None:
        kernel = polyphase(working(weight), stride, dilation, groups, _pairs(window))
        with exact_products():
            found = _largest_sample(kernel.contiguous(), grid, derived)
        with _LOCK:
            if len(_KNOWN) >= _KEPT:
                _KNOWN.pop(next(iter(_KNOWN)))
            _KNOWN[derived, key] = found
    level, group, theta, pair = (value.clone() for value in found)
    return level, group, theta, pair


def _pairs(window: Sequence[int]) -> list[tuple[int, int]]:
    return list(zip(window[::2], window[1::2], strict=True))


#: Kernels met lately, by contents and reduction: what ``largest_sample`` returned for them.
_KNOWN: dict[object, tuple[Tensor, Tensor, Tensor, Tensor]] = {}
_KEPT = 2048
#: Held where an entry is added: a thread must not find the dictionary changed under its iterator.
_LOCK = threading.Lock()


def _largest_sample(
    kernel: Tensor, grid: list[int], derived: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    groups, _, columns = kernel.shape[:3]
    peak = float(kernel.abs().amax())
    group = torch.zeros((), dtype=torch.int64, device=kernel.device)
    theta, pair = kernel.new_zeros(len(grid)), kernel.new_zeros(2, columns)
    if not math.isfinite(peak) or peak == 0:
        return kernel.new_tensor(0.0 if peak == 0 else math.nan), group, theta, pair
    kernel = kernel / peak
    angles, real = half_grid(grid, kernel)
    margin = 8 * columns * torch.finfo(kernel.dtype).eps
    search = _NormSearch(kernel)
    grams = _grams(kernel, len(angles), real)
    size = max(1, _CHUNK_BYTES // (groups * columns**2 * kernel.element_size() * 2))
    firsts = [*range(0, real, size), *range(real, len(angles), size)]
    for first, last in zip(firsts, [*firsts[1:], len(angles)], strict=True):
        gram = grams(angles[first:last], first < real).reshape(-1, columns, columns)
        frequency = torch.arange(first, last, device=kernel.device)
        group = torch.arange(groups, device=kernel.device)[:, None]
        where = (group * len(angles) + frequency).flatten()
        if columns <= _SMALL:
            search.exact(gram, where, margin)
        else:
            start = _start(columns, gram)[None, :, None].expand(len(gram), -1, -1)
            search.certify(gram, start, where, margin)
    if derived and columns > _SMALL:
        search.refine()
    group, theta = search.where // len(angles), angles[search.where % len(angles)].clone()
    vector = search.vector[:, 0]
    pair = torch.stack([vector.real, vector.imag if vector.is_complex() else 0 * vector])
    return kernel.new_tensor(math.sqrt(search.level) * peak), group, theta, pair


def _grams(kernel: Tensor, count: int, real: int) -> Callable[[Tensor, bool], Tensor]:
    """Return a function of frequencies that returns the Gram symbol there, the cheaper way.

    Args:
        kernel: Reduced kernel.
        count: At how many frequencies it will be asked for.
        real: At how many of them the symbol is real.
    """
    if few(kernel, count, real):
        return functools.partial(gram_matrices, kernel)
    index, lags = lag_matrices(kernel)
    symmetric, skew = hermitian_parts(lags)

    def combined(angles: Tensor, is_real: bool) -> Tensor:
        phase = angles @ index.T
        gram = phase.cos() @ symmetric
        return gram if is_real else torch.complex(gram, phase.sin() @ skew)

    return combined


@largest_sample.register_fake
def _(
    weight: Tensor,
    stride: list[int],
    dilation: list[int],
    groups: int,
    grid: list[int],
    window: list[int],
    derived: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    kernel = polyphase(working(weight), stride, dilation, groups, _pairs(window))
    return (
        kernel.new_empty(()),
        kernel.new_empty((), dtype=torch.int64),
        kernel.new_empty(len(grid)),
        kernel.new_empty(2, kernel.shape[2]),
    )


def conv_norm_bound(
    weight: Tensor,
    stride: Sequence[int],
    dilation: Sequence[int],
    groups: int = 1,
    slack: float = 0.06,
    reaches: Sequence[Reach] | None = None,
) -> Tensor:
    """Return a certified upper bound of the norm of a convolution.

    Args:
        weight: Kernel (c_out, c_in / groups, *k).
        stride: Stride per spatial dim.
        dilation: Dilation per spatial dim.
        groups: Number of groups.
        slack: Largest relative overshoot spent on sampling the frequencies; the grid, and the
            cost, grow as it shrinks.
        reaches: What the image at hand uses of the kernel, per spatial dim; the bound holds for
            images of its size. None for a bound that holds for images of every size.

    Returns:
        A 0-dim tensor, differentiable in ``weight``: 0 for a zero kernel, NaN for a non-finite one.
        Half-precision weights give float32, where rounding cannot push it below the norm.
    """
    grid, factor, window = frequencies(weight, stride, dilation, slack, reaches)
    derived = (weight.requires_grad and torch.is_grad_enabled()) or active()
    level, group, theta, pair = largest_sample(
        weight.detach(),
        list(stride),
        list(dilation),
        groups,
        list(grid),
        [*itertools.chain.from_iterable(window)],
        derived,
    )
    bound: Tensor = level * factor
    if not derived:
        return bound
    kernel = polyphase(working(weight), stride, dilation, groups, window)
    real, imag = symbol_at(kernel.index_select(0, group.reshape(1))[0], theta)
    tiny = torch.finfo(kernel.dtype).tiny
    scale = bound.clamp_min(tiny)
    power = ((real @ pair[0] - imag @ pair[1]) / scale).square().sum()
    power = power + ((real @ pair[1] + imag @ pair[0]) / scale).square().sum()
    sigma = power.clamp_min(tiny).sqrt()
    # The bound itself, to the last bit, so that a pass that records derivatives takes the very
    # steps of one that does not; sigma brings the derivative alone.
    value: Tensor = bound + (sigma - sigma.detach()) * (bound / sigma).detach()
    return value


def dense_norm_bound(weight: Tensor) -> Tensor:
    """Return a certified upper bound of the norm of a matrix, differentiable in it.

    Args:
        weight: Matrix (out, in).
    """
    return conv_norm_bound(weight, (), ())
