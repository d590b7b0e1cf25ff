"""Elements moved by fixed indices: max pooling with its switches frozen, and its inverse."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pursuitify.operators.base import Factor, LinearMap, channels_inside, piece
from pursuitify.operators.symbols import Symbols


def cover(kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]) -> int:
    """Return how many pooling windows can hold one element.

    The windows that hold it see it at taps congruent modulo stride / gcd(stride, dilation).
    """
    windows = zip(kernel, stride, dilation, strict=True)
    return math.prod([-(-k // (s // math.gcd(s, d))) for k, s, d in windows])


def adaptive_cover(size: Sequence[int], output_size: Sequence[int]) -> int:
    """Return how many windows of adaptive pooling can hold one element."""
    counts = []
    for n, o in zip(size, output_size, strict=True):
        windows = [(i * n // o, -(-(i + 1) * n // o)) for i in range(o)]
        counts.append(max(sum(a <= e < b for a, b in windows) for e in range(n)))
    return math.prod(counts)


@dataclass(frozen=True)
class Windows:
    """The windows that a selection chooses from, per spatial dim, as ``F.max_poolNd`` takes them.

    Attributes:
        kernel: Elements per window.
        stride: Step from window to window.
        padding: Elements before the image; never chosen.
        dilation: Step from element to element.
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Select(LinearMap):
    """Gather from the flattened spatial dims, channel by channel, in the indices' memory format.

    Attributes:
        indices: Indices (batch, channels, *out) into the flattened spatial input, as
            ``F.max_poolNd(..., return_indices=True)`` gives them.
        size: Spatial size of the input.
        cover: Certified maximum number of outputs that read one element, see ``cover``.
        windows: What each output may select, where that is regular; None where it is not.
    """

    indices: Tensor
    size: tuple[int, ...]
    cover: int
    windows: Windows | None = None

    def apply(self, x: Tensor) -> Tensor:
        """Return the selected elements of ``x`` (batch, channels, *size)."""
        if channels_inside(self.indices):
            index = self.indices.movedim(1, -1)
            flat = x.movedim(1, -1).flatten(1, -2)
            return flat.gather(1, index.flatten(1, -2)).reshape(index.shape).movedim(-1, 1)
        return x.flatten(2).gather(2, self.indices.flatten(2)).reshape(self.indices.shape)

    def apply_into(self, into: Tensor, x: Tensor) -> Tensor:
        """Return the selected elements, in ``into``."""
        out, index, flat, dim = self._flat(into, x)
        if out.data_ptr() != into.data_ptr():
            return self.apply(x)
        torch.gather(flat, dim, index, out=out)
        return into

    def adjoint(self, y: Tensor) -> Tensor:
        """Return ``y`` scattered back, summed where outputs read the same element."""
        batch, channels = y.shape[:2]
        count = math.prod(self.size)
        if channels_inside(self.indices):
            index = self.indices.movedim(1, -1).flatten(1, -2)
            flat = y.movedim(1, -1).flatten(1, -2)
            spread = self._scatter(y.new_zeros(batch, count, channels), 1, index, flat)
            return spread.reshape(batch, *self.size, channels).movedim(-1, 1)
        zeros = y.new_zeros(batch, channels, count)
        spread = self._scatter(zeros, 2, self.indices.flatten(2), y.flatten(2))
        return spread.reshape(batch, channels, *self.size)

    def minus_adjoint(self, total: Tensor, y: Tensor) -> Tensor:
        """Return ``total - A^T y``, scattered into a copy of ``total``."""
        if total.dtype != y.dtype:  # autocast: sums promote, scatters do not
            return super().minus_adjoint(total, y)
        flat, index, values, dim = self._flat(total, y)
        flat = flat.scatter_add(dim, index, values.neg())
        if dim == 1:
            return flat.reshape(total.shape[0], *self.size, total.shape[1]).movedim(-1, 1)
        return flat.reshape(total.shape)

    def add_adjoint(self, total: Tensor, y: Tensor, factor: Factor) -> Tensor:
        """Return ``total + factor A^T y``, scattered into ``total``: no dense zeros are made."""
        scaled = y if isinstance(factor, float) and factor == 1 else y * factor
        flat, index, values, dim = self._flat(total, scaled)
        if flat.data_ptr() != total.data_ptr():
            return super().add_adjoint(total, y, factor)
        flat.scatter_add_(dim, index, values)
        return total

    def _flat(self, total: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor, int]:
        """Return total, indices and y with the spatial dims flattened, and where these then are.

        Channels come last where those of total and indices do.
        """
        if channels_inside(self.indices) and channels_inside(total):
            moved = (t.movedim(1, -1).flatten(1, -2) for t in (total, self.indices, y))
            return *moved, 1  # type: ignore[return-value]
        return total.flatten(2), self.indices.flatten(2), y.flatten(2), 2

    def _scatter(self, zeros: Tensor, dim: int, index: Tensor, values: Tensor) -> Tensor:
        if self.cover == 1:
            return zeros.scatter(dim, index, values)
        return zeros.scatter_add(dim, index, values)

    def norm_bound(self) -> float:
        """Return sqrt(cover): A^T A is diagonal and counts the readers of each element."""
        return math.sqrt(self.cover)

    def narrow(self, dim: int, start: int, length: int) -> Select:
        """Return the selection on a slot of channels."""
        if dim != 1:
            raise NotImplementedError(f"Select mixes the slots of dimension {dim}")
        return dataclasses.replace(self, indices=piece(self.indices, 1, start, length))

    def symbol(self, into: Symbols) -> None:
        """Say: a choice per window."""
        into.selected(self)


@dataclass(frozen=True, eq=False)
class Unpool(LinearMap):
    """Elements put at given places of a larger image, channel by channel; zeros elsewhere.

    Attributes:
        indices: Places (batch, channels, *in) in the flattened spatial output, as
            ``F.max_unpoolNd`` takes them.
        size: Spatial size of the output.
        kept: Which elements are kept, of the shape of ``indices``: of several that have one place
            at most one.
    """

    indices: Tensor
    size: tuple[int, ...]
    kept: Tensor

    def apply(self, x: Tensor) -> Tensor:
        """Return ``x`` (batch, channels, *in) at its places."""
        batch, channels = x.shape[:2]
        zeros = x.new_zeros(batch, channels, math.prod(self.size))
        spread = zeros.scatter_add(2, self.indices.flatten(2), (x * self.kept).flatten(2))
        return spread.reshape(batch, channels, *self.size)

    def adjoint(self, y: Tensor) -> Tensor:
        """Return what stands at the places of ``y``."""
        found = y.flatten(2).gather(2, self.indices.flatten(2))
        return found.reshape(self.indices.shape) * self.kept

    def norm_bound(self) -> float:
        """Return 1: every place takes one element, and every element has one place."""
        return 1.0

    def narrow(self, dim: int, start: int, length: int) -> Unpool:
        """Return the map on a slot of channels."""
        if dim != 1:
            raise NotImplementedError(f"Unpool mixes the slots of dimension {dim}")
        indices, kept = (piece(t, 1, start, length) for t in (self.indices, self.kept))
        return dataclasses.replace(self, indices=indices, kept=kept)

    def symbol(self, into: Symbols) -> None:
        """Refuse: the places are those of one batch."""
        into.refused("a max-unpooling, whose places depend on the input")
