"""Norm estimates for training: warm-started power iteration, no host synchronisation.

While the weights move at every step, a certified bound per step is more than is needed. The power
iteration runs on a small torus with the same frequencies as the certified bound (the kernel in
polyphase form, so a step costs one small convolution and one adjoint), each group on its own, and
carries its vector from call to call. It approaches the largest sample from below; the sampling
factor and ``ESTIMATE_MARGIN`` cover the rest. It is an estimate, not a certificate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from pursuitify.operators.norms.certified import working
from pursuitify.operators.norms.symbol import polyphase, sampling

ESTIMATE_MARGIN = 1.05
COLD_STEPS = 30

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

    Returns:
        The estimate (0-dim, differentiable in ``weight``) and the state for the next call.
    """
    kernel = polyphase(working(weight), stride, dilation, groups)
    taps = tuple(kernel.shape[3:])
    grid, factor = sampling(taps, slack)
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

    right = unit(_noise(shape, fixed) if state is None else state.to(fixed))
    for _ in range(COLD_STEPS if state is None else steps):
        left = unit(product(fixed, right))
        right = unit(product(flipped, left, low=True))
    last = product(kernel, right)  # the only one with a derivative
    value = (unit(last.detach()) * last).sum(inner).amax()
    return value * (factor * ESTIMATE_MARGIN), right


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
