"""The adjoint of a strided convolution onto few channels, by phases.

The usual transposed convolution spends its vector lanes on output channels. Where there are only
a few (the stem of a network: three) most of a lane is idle: measured at 64 -> 3 channels, 7x7,
stride 2, it takes four to five times the forward convolution. Writing the output as its phases
modulo the stride turns it into one ordinary convolution onto c_in * prod(stride) channels on the
coarse grid, followed by an interleaving: twice as fast.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch.nn.functional as F
from torch import Tensor

from pursuitify.operators.base import channels_inside

_CONV: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def phase_kernel(weight: Tensor, stride: Sequence[int], shift: Sequence[int]) -> Tensor:
    """Return the kernel (c_in * prod(stride), c_out, *taps) that computes every phase at once.

    Args:
        weight: Kernel (c_out, c_in, *k) of the strided convolution.
        stride: Its stride per spatial dim.
        shift: Zeros before the first tap per spatial dim, so that phase 0 comes first.
    """
    dims = len(stride)
    sizes = weight.shape[2:]
    taps = [-(-(k + e) // s) for k, e, s in zip(sizes, shift, stride, strict=True)]
    ends = [(e, t * s - k - e) for t, s, k, e in zip(taps, stride, sizes, shift, strict=True)]
    kernel = F.pad(weight, [n for end in reversed(ends) for n in end])
    split = list(itertools.chain.from_iterable(zip(taps, stride, strict=True)))
    kernel = kernel.reshape(*weight.shape[:2], *split)
    phases = [3 + 2 * i for i in range(dims)]
    blocks = [2 + 2 * i for i in range(dims)]
    kernel = kernel.permute(*phases, 1, 0, *blocks).flip(tuple(range(2 + dims, 2 + 2 * dims)))
    return kernel.flatten(0, dims)


def phase_adjoint(
    y: Tensor, weight: Tensor, stride: Sequence[int], low: Sequence[int], size: Sequence[int]
) -> Tensor:
    """Return the adjoint of a strided convolution at ``y``, in y's memory format.

    Args:
        y: Values on the output side (batch, c_out, *out).
        weight: Kernel (c_out, c_in, *k).
        stride: Stride per spatial dim.
        low: Zero padding at the low end per spatial dim; negative crops.
        size: Spatial size of the input.
    """
    dims, inputs = len(stride), weight.shape[1]
    shift = [-p % s for p, s in zip(low, stride, strict=True)]
    kernel = phase_kernel(weight, stride, shift)
    grid = [-(-n // s) for n, s in zip(size, stride, strict=True)]
    pads = []
    for i in range(dims):
        taps = kernel.shape[2 + i]
        before = taps - 1 - (low[i] + shift[i]) // stride[i]
        pads.append((before, grid[i] - y.shape[2 + i] - before + taps - 1))
    # More padding than asked for costs nothing, a padded copy of y would: the surplus is cut off.
    native = [max(0, *pair) for pair in pads]
    coarse = _CONV[dims](y, kernel, padding=native)
    for i, (before, _) in enumerate(pads):
        coarse = coarse.narrow(2 + i, native[i] - before, grid[i])
    fine = coarse.reshape(y.shape[0], *stride, inputs, *grid)
    order = list(itertools.chain.from_iterable((2 + dims + i, 1 + i) for i in range(dims)))
    spread = [n * s for n, s in zip(grid, stride, strict=True)]
    if channels_inside(y):
        fine = fine.permute(0, *order, 1 + dims).reshape(y.shape[0], *spread, inputs)
        fine = fine.movedim(-1, 1)
    else:
        fine = fine.permute(0, 1 + dims, *order).reshape(y.shape[0], inputs, *spread)
    crop = [v for n, f in zip(reversed(size), reversed(spread), strict=True) for v in (0, n - f)]
    return F.pad(fine, crop) if any(crop) else fine
