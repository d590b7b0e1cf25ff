"""Average pooling over disjoint blocks, global pooling included: native and cheap both ways."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pursuitify.operators.base import Factor, LinearMap, channels_inside
from pursuitify.operators.symbols import Symbols


def _pool_volumes(x: Tensor, kernel: tuple[int, ...]) -> Tensor:
    """Return the mean of each block of a volume; torch's avg_pool3d has no half precision."""
    if x.dtype not in (torch.float16, torch.bfloat16):
        return F.avg_pool3d(x, kernel)
    count = [n // k for n, k in zip(x.shape[2:], kernel, strict=True)]
    for dim, (n, k) in enumerate(zip(count, kernel, strict=True), 2):
        x = x.narrow(dim, 0, n * k)
    return F.adaptive_avg_pool3d(x, (count[0], count[1], count[2]))


_POOL: dict[int, Callable[..., Tensor]] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: _pool_volumes}


@dataclass(frozen=True, eq=False)
class BlockMean(LinearMap):
    """The mean over disjoint blocks of the spatial dims, times a constant.

    Attributes:
        kernel: Block size per spatial dim.
        size: Spatial size of the input; what is left over at the end is dropped.
        factor: Constant factor (for ``divisor_override``).
    """

    kernel: tuple[int, ...]
    size: tuple[int, ...]
    factor: float = 1.0

    def apply(self, x: Tensor) -> Tensor:
        """Return the mean of each block of ``x`` (batch, channels, *size)."""
        if self.kernel == self.size:
            out = x.mean(tuple(range(2, 2 + len(self.size))), keepdim=True)
        else:
            out = _POOL[len(self.kernel)](x, self.kernel)
        return out if self.factor == 1 else out * self.factor

    def adjoint(self, y: Tensor) -> Tensor:
        """Return ``y`` repeated over each block."""
        y = y * (self.factor / math.prod(self.kernel))
        if self.kernel == self.size:
            return y.expand(*y.shape[:2], *self.size)
        inside = channels_inside(y)
        spread = y.movedim(1, -1) if inside else y
        first = 1 if inside else 2
        coarse, fine = list(spread.shape), list(spread.shape)
        rest: list[int] = []
        for i, (k, n) in reversed(list(enumerate(zip(self.kernel, self.size, strict=True)))):
            dim = first + i
            spread = spread.unsqueeze(dim + 1)
            coarse[dim : dim + 1] = [coarse[dim], k]
            fine[dim] *= k
            rest += [0, n - fine[dim]]
        spread = spread.expand(coarse).reshape(fine)
        spread = spread.movedim(-1, 1) if inside else spread
        return F.pad(spread, rest) if any(rest) else spread

    def add_adjoint(self, total: Tensor, y: Tensor, factor: Factor) -> Tensor:
        """Return ``total + factor A^T y``, added to ``total`` block by block."""
        y = y * (self.factor / math.prod(self.kernel)) * factor
        blocks = total.movedim(1, -1)
        spread = y.movedim(1, -1)
        for i, k in reversed(list(enumerate(self.kernel))):
            dim = 1 + i
            blocks = torch.unflatten(blocks.narrow(dim, 0, k * y.shape[2 + i]), dim, (-1, k))
            spread = spread.unsqueeze(dim + 1)
        blocks.add_(spread)
        return total

    def norm_bound(self) -> float:
        """Return factor / sqrt(block size): rows are orthogonal."""
        return abs(self.factor) / math.sqrt(math.prod(self.kernel))

    def narrow(self, dim: int, start: int, length: int) -> BlockMean:
        """Return the map itself: it treats channels alike."""
        if dim not in (0, 1):
            raise NotImplementedError(f"BlockMean mixes the slots of dimension {dim}")
        return self

    def symbol(self, into: Symbols) -> None:
        """Say: a mean over blocks, or over the whole dim."""
        along = [
            into.total(n, 1 / n) if k == n and n > 1 else into.window(n, n // k, k, k, mean=1 / k)
            for n, k in zip(self.size, self.kernel, strict=True)
        ]
        into.channelwise(along, self.factor)
