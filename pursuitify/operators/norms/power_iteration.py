"""Norm estimates for training: warm-started power iteration.

While the weights move at every step, a certified bound per step is more than is needed. The power
iteration runs on a small torus with the same frequencies as the certified bound (the kernel in
polyphase form, so a step costs one small convolution and one adjoint), each group on its own, and
carries its vector from call to call. It approaches the largest sample from below; the sampling
factor and ``ESTIMATE_MARGIN`` cover the rest. It is an estimate, not a certificate.

A vector that was found for other weights says little. Two things keep that from making an estimate
too small, and with it a step too long:

* Some noise is added to the vector at every call. A direction that the vector has lost, or a kernel
  that was zero once, is found again.
* With the vector two random sums along every row of the kernel are kept, so a call knows how far
  the kernel has moved since the last one, up to its scale. Where it jumped, the iteration starts
  cold; or, where no value may be read (on an accelerator, in compiled code), an upper bound stands
  in for the estimate until the iteration has had as many steps as a cold start has.

In training mode BatchNorm's scales move the kernels from batch to batch, so a jump is measured
against the moves of the last calls; half the kernel always is one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from pursuitify.operators.norms.certified import working
from pursuitify.operators.norms.symbol import Reach, frequencies, polyphase

ESTIMATE_MARGIN = 1.05
COLD_STEPS = 30
#: Noise added to the vector at every call, relative.
_FRESH = 1e-3
#: A move is a jump where it is this often as far as the last ones were; held to the range below,
#: relative to the kernel's Frobenius norm.
_UNUSUAL = 3.0
_JUMP = (0.02, 0.5)

_CONV: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def _noise(shape: Sequence[int], like: Tensor) -> Tensor:
    """Return deterministic noise in [-1, 1): an integer hash, so that it compiles everywhere."""
    bits = torch.arange(1, math.prod(shape) + 1, device=like.device) * 2654435761 % 2**32
    for _ in range(2):
        bits = (bits ^ (bits >> 15)) * 739_982_445 % 2**32
    return ((bits ^ (bits >> 12)).to(like.dtype) / 2**31 - 1).reshape(tuple(shape))


def _circular(kernel: Tensor, x: Tensor, low: bool) -> Tensor:
    """Correlate on the torus: kernel (groups, rows, columns, *taps), x (groups, columns, *grid)."""
    groups, taps = kernel.shape[0], kernel.shape[3:]
    pads = [p for t in reversed(taps) for p in ((t - 1, 0) if low else (0, t - 1))]
    padded = F.pad(x.flatten(0, 1)[None], pads, mode="circular")
    out = _CONV[len(taps)](padded, kernel.flatten(0, 1), groups=groups)
    return out.reshape(groups, -1, *out.shape[2:])


def conv_norm_estimate(
    weight: Tensor,
    stride: Sequence[int],
    dilation: Sequence[int],
    groups: int = 1,
    state: Tensor | None = None,
    steps: int = 1,
    slack: float = 0.06,
    reaches: Sequence[Reach] | None = None,
) -> tuple[Tensor, Tensor]:
    """Estimate the norm of a convolution, with a margin, by warm-started power iteration.

    Args:
        weight: Kernel (c_out, c_in / groups, *k).
        stride: Stride per spatial dim.
        dilation: Dilation per spatial dim.
        groups: Number of groups.
        state: What the last call returned, or None for a cold start of ``COLD_STEPS`` steps.
        steps: Power steps from a warm state.
        slack: Largest relative overshoot spent on sampling the frequencies.
        reaches: What the image at hand uses of the kernel, as ``conv_norm_bound`` takes it.

    Returns:
        The estimate (0-dim, differentiable in ``weight``) and the state for the next call, a vector
        of opaque numbers. The state of a kernel of another size is no state. With ``reaches`` a
        state is for images of the same ones.
    """
    grid, factor, window = frequencies(weight, stride, dilation, slack, reaches)
    raw = polyphase(working(weight), stride, dilation, groups, window)
    # Squares of small weights vanish and those of large ones overflow: all runs on a scaled kernel.
    peak = raw.detach().abs().amax()
    peak = torch.where(peak > 0, peak, torch.ones_like(peak))
    kernel = raw / peak
    taps = tuple(kernel.shape[3:])
    fixed = kernel.detach()
    shape = (kernel.shape[0], kernel.shape[2], *grid) if taps else (1, kernel.shape[2], 1)
    flipped = fixed.transpose(1, 2)
    if taps:
        flipped = flipped.flip(tuple(range(3, fixed.dim()))).contiguous()
    inner = tuple(range(1, len(shape)))
    tiny = torch.finfo(fixed.dtype).tiny ** 0.5

    def product(matrix: Tensor, x: Tensor, low: bool = False) -> Tensor:
        if math.prod(grid) > 1:
            return _circular(matrix, x, low)
        flat = matrix.reshape(matrix.shape[:3])
        return (flat @ x.flatten(2)).reshape(x.shape[0], -1, *x.shape[2:])

    def unit(x: Tensor) -> Tensor:
        return x / x.square().sum(inner, keepdim=True).sqrt().clamp_min(tiny)

    rows = fixed.reshape(kernel.shape[0] * kernel.shape[1], -1)
    sums = (rows @ _noise((rows.shape[1], 2), fixed)).flatten()
    noise = unit(_noise(shape, fixed))
    size = math.prod(shape)
    # How many steps the vector has had since the kernel last jumped, and how far it moves.
    steps_had, usual = fixed.new_full((), COLD_STEPS), fixed.new_zeros(())
    cold = state is None or state.numel() != size + sums.numel() + 2
    if state is not None and not cold:
        parts = [size, sums.numel(), 1, 1]
        vector, before, had, usual = torch.split(state.to(fixed), parts)
        moved = (sums - before).norm() / sums.norm().clamp_min(tiny)
        limit = (_UNUSUAL * usual[0]).clamp(*_JUMP)
        jumped = ~(moved <= limit)
        usual = ((usual[0] + moved) / 2).nan_to_num(0.0)
        cold = _readable(jumped) and bool(jumped)
        had = torch.where(jumped, torch.zeros_like(had[0]), had[0])
        steps_had = steps_had if cold else (had + steps).clamp_max(COLD_STEPS)
        right = unit(unit(vector.reshape(shape).nan_to_num(0.0)) + _FRESH * noise)
    if cold:
        right, steps = noise, COLD_STEPS
    if fixed.is_meta:  # No values are sought: the second step shows what each later one allocates.
        steps = min(steps, 2)
    for _ in range(steps):
        left = unit(product(fixed, right))
        right = unit(product(flipped, left, low=True))
    last = product(kernel, right)  # the only one with a derivative
    value = (unit(last.detach()) * last).sum(inner).amax() * (factor * ESTIMATE_MARGIN)
    if not _readable(value):
        value = torch.where(steps_had < COLD_STEPS, _bound(kernel, tiny), value)
    kept = [right.flatten(), sums, steps_had.reshape(1), usual.reshape(1)]
    return value * peak, torch.cat(kept).detach()


def _readable(value: Tensor) -> bool:
    """Whether a number may be read: nothing is traced, and no device has to be waited for."""
    traced = torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[no-untyped-call, attr-defined]
    return not traced and value.device.type == "cpu"


def _bound(kernel: Tensor, tiny: float) -> Tensor:
    """Return an upper bound of a reduced kernel's norm that costs one pass over it.

    The symbol is a sum over the taps of their matrices times phases, and the norm of a matrix is at
    most its Frobenius norm.
    """
    squares = kernel.flatten(3).square() if kernel.dim() > 3 else kernel.square()[..., None]
    return squares.sum((1, 2)).clamp_min(tiny**2).sqrt().sum(1).amax()


def dense_norm_estimate(
    weight: Tensor, state: Tensor | None = None, steps: int = 1
) -> tuple[Tensor, Tensor]:
    """Estimate the norm of a matrix, with a margin, by warm-started power iteration.

    Args:
        weight: Matrix (out, in).
        state: What the last call returned, or None for a cold start.
        steps: Power steps from a warm state.

    Returns:
        The estimate (0-dim, differentiable in ``weight``) and the state for the next call.
    """
    return conv_norm_estimate(weight, (), (), state=state, steps=steps)
