"""The norm that a convolution with random weights would have: a scale for steps, no bound.

The symbol of a convolution is a matrix per frequency. Where its entries are independent, of
variance v, and it has m rows and n columns, its norm is about sqrt(v) (sqrt(m) + sqrt(n))
(Marchenko and Pastur). One pass over the weights gives v. A kernel whose filters are alike has a
larger norm, by up to sqrt(min(m, n)) / 2, so that nothing may rest on this number being a bound.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pursuitify.operators.norms.certified import working


def typical_norm(
    weight: Tensor, stride: Sequence[int], dilation: Sequence[int], groups: int
) -> Tensor:
    """Return the norm, 0-dim, of a random convolution or matrix of the same energy.

    Args:
        weight: Kernel (c_out, c_in / groups, *k), or a matrix (out, in).
        stride: Stride per spatial dim.
        dilation: Dilation per spatial dim; the symbol's entries have the same energy at any.
        groups: Number of groups; the one of the largest energy counts.
    """
    taps = weight.shape[2:]
    # A stride of s puts s residue classes of positions side by side, where taps reach them.
    phases = math.prod([min(size, step) for size, step in zip(taps, stride, strict=True)])
    rows, columns = weight.shape[0] // groups, weight.shape[1] * phases
    kernel = working(weight)
    # Squares of small weights vanish and those of large ones overflow. Powers of two round nothing.
    peak = kernel.detach().abs().amax()
    peak = torch.where(peak > 0, peak, torch.ones_like(peak)).log2().floor().exp2()
    energy = (kernel / peak).reshape(groups, -1).square().sum(1).amax()
    # v is the energy over rows and columns: the taps of a phase add up to one entry.
    value = energy * (math.sqrt(rows) + math.sqrt(columns)) ** 2 / (rows * columns)
    # The root has no derivative at zero.
    positive = torch.where(value > 0, value, torch.ones_like(value))
    return peak * torch.where(value > 0, positive.sqrt(), torch.zeros_like(value))
