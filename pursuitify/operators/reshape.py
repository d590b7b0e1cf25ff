"""Maps that only move, cut, repeat or sum elements along whole dimensions."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pursuitify.operators.base import Chain, Identity, LinearMap
from pursuitify.operators.symbols import Symbols


def _pad_dim(x: Tensor, dim: int, low: int, high: int) -> Tensor:
    return F.pad(x, [0, 0] * (x.dim() - 1 - dim % x.dim()) + [low, high])


@dataclass(frozen=True, eq=False)
class Reshape(LinearMap):
    """A change of shape; both shapes are full ones, batch included."""

    in_shape: tuple[int, ...]
    out_shape: tuple[int, ...]

    def apply(self, x: Tensor) -> Tensor:
        """Return ``x`` in the output's shape."""
        return x.reshape(self.out_shape)

    def adjoint(self, y: Tensor) -> Tensor:
        """Return ``y`` in the input's shape."""
        return y.reshape(self.in_shape)

    def moves_batch(self, batch: int) -> bool:
        """Whether an entry of dimension 0 holds parts of several samples."""
        return not self.out_shape or self.out_shape[0] % batch != 0

    def norm_bound(self) -> float:
        """Return 1."""
        return 1.0

    def after(self, first: LinearMap) -> LinearMap | None:
        """Merge two reshapes."""
        if not isinstance(first, Reshape):
            return None
        if first.in_shape == self.out_shape:
            return Identity()
        return Reshape(first.in_shape, self.out_shape)


@dataclass(frozen=True, eq=False)
class Permute(LinearMap):
    """A permutation of the dimensions, as ``Tensor.permute`` takes it."""

    dims: tuple[int, ...]

    def apply(self, x: Tensor) -> Tensor:
        """Return ``x`` permuted."""
        return x.permute(self.dims)

    def adjoint(self, y: Tensor) -> Tensor:
        """Return ``y`` permuted back."""
        order = [d % len(self.dims) for d in self.dims]
        return y.permute([order.index(i) for i in range(len(order))])

    def moves_batch(self, batch: int) -> bool:
        """Whether dimension 0 does not stay."""
        return self.dims[0] % len(self.dims) != 0

    def norm_bound(self) -> float:
        """Return 1."""
        return 1.0


@dataclass(frozen=True, eq=False)
class Place(LinearMap):
    """Zero-padding into a slot of a larger dimension: one input of a concatenation.

    Attributes:
        dim: The dimension.
        start: Where the slot starts.
        length: Its length: the input's size.
        total: The output's size.
    """

    dim: int
    start: int
    length: int
    total: int

    def apply(self, x: Tensor) -> Tensor:
        """Return ``x`` between zeros."""
        return _pad_dim(x, self.dim, self.start, self.total - self.start - self.length)

    def adjoint(self, y: Tensor) -> Tensor:
        """Return the slot of ``y``."""
        return y.narrow(self.dim, self.start, self.length)

    def moves_batch(self, batch: int) -> bool:
        """Whether the dimension is the first."""
        return self.dim == 0

    def norm_bound(self) -> float:
        """Return 1."""
        return 1.0


@dataclass(frozen=True, eq=False)
class Narrow(LinearMap):
    """A slot of a dimension: the adjoint of ``Place``.

    Attributes:
        dim: The dimension.
        start: Where the slot starts.
        length: Its length: the output's size.
        total: The input's size.
    """

    dim: int
    start: int
    length: int
    total: int

    def apply(self, x: Tensor) -> Tensor:
        """Return the slot of ``x``."""
        return x.narrow(self.dim, self.start, self.length)

    def adjoint(self, y: Tensor) -> Tensor:
        """Return ``y`` between zeros."""
        return _pad_dim(y, self.dim, self.start, self.total - self.start - self.length)

    def moves_batch(self, batch: int) -> bool:
        """Whether the dimension is the first."""
        return self.dim == 0

    def norm_bound(self) -> float:
        """Return 1."""
        return 1.0

    def after(self, first: LinearMap) -> LinearMap | None:
        """Cancel the placement into the same slot."""
        if isinstance(first, Place) and (first.dim, first.start, first.length, first.total) == (
            self.dim,
            self.start,
            self.length,
            self.total,
        ):
            return Identity()
        return None


@dataclass(frozen=True, eq=False)
class Slice(LinearMap):
    """A strided slice ``x[start:stop:step]`` of a dimension of size ``total``."""

    dim: int
    start: int
    stop: int
    step: int
    total: int

    def apply(self, x: Tensor) -> Tensor:
        """Return the slice of ``x``."""
        keep = (*[slice(None)] * (self.dim % x.dim()), slice(self.start, self.stop, self.step))
        return x[keep]

    def adjoint(self, y: Tensor) -> Tensor:
        """Return ``y`` spread over zeros."""
        dim, start = self.dim % y.dim(), slice(self.start, self.stop, 1).indices(self.total)[0]
        spread = y.unsqueeze(dim + 1)
        spread = _pad_dim(spread, dim + 1, 0, self.step - 1).flatten(dim, dim + 1)
        return _pad_dim(spread, dim, start, self.total - start - spread.shape[dim])

    def moves_batch(self, batch: int) -> bool:
        """Whether the dimension is the first."""
        return self.dim == 0

    def norm_bound(self) -> float:
        """Return 1."""
        return 1.0


@dataclass(frozen=True, eq=False)
class Roll(LinearMap):
    """Elements shifted along dimensions; those that leave at one end come in at the other.

    Attributes:
        shifts: How far, per entry of ``dims``.
        dims: The dimensions.
    """

    shifts: tuple[int, ...]
    dims: tuple[int, ...]

    def apply(self, x: Tensor) -> Tensor:
        """Return ``x`` rolled."""
        return torch.roll(x, self.shifts, self.dims)

    def adjoint(self, y: Tensor) -> Tensor:
        """Return ``y`` rolled back."""
        return torch.roll(y, tuple(-s for s in self.shifts), self.dims)

    def moves_batch(self, batch: int) -> bool:
        """Whether dimension 0 is rolled."""
        return 0 in self.dims

    def norm_bound(self) -> float:
        """Return 1."""
        return 1.0


@dataclass(frozen=True, eq=False)
class CumulativeSum(LinearMap):
    """The sums of the first entries of a dimension: of one, of two, of all.

    Attributes:
        dim: The dimension.
        size: Its size.
    """

    dim: int
    size: int

    def apply(self, x: Tensor) -> Tensor:
        """Return ``x.cumsum(dim)``."""
        return x.cumsum(self.dim)

    def adjoint(self, y: Tensor) -> Tensor:
        """Return the sums of the last entries."""
        return y.flip(self.dim).cumsum(self.dim).flip(self.dim)

    def moves_batch(self, batch: int) -> bool:
        """Whether the dimension is the first."""
        return self.dim == 0

    def norm_bound(self) -> float:
        """Return the norm, 1 / (2 sin(pi / (4 n + 2))) for n entries, rounded up.

        The inverse of A A^T is the second difference with one free end, whose eigenvalues are
        4 sin^2((2 k - 1) pi / (4 n + 2)).
        """
        return (1 + 1e-12) / (2 * math.sin(math.pi / (4 * self.size + 2)))

    def symbol(self, into: Symbols) -> None:
        """Refuse: an output reads more entries than a window holds."""
        into.refused("a cumulative sum")


@dataclass(frozen=True, eq=False)
class ZeroPad(LinearMap):
    """Zero padding in the order ``F.pad`` takes it; negative pads crop.

    Attributes:
        pads: The pads.
        first: Whether they reach dimension 0.
    """

    pads: tuple[int, ...]
    first: bool = False

    def apply(self, x: Tensor) -> Tensor:
        """Return ``x`` padded."""
        return F.pad(x, self.pads)

    def adjoint(self, y: Tensor) -> Tensor:
        """Return ``y`` cropped."""
        return F.pad(y, [-p for p in self.pads])

    def moves_batch(self, batch: int) -> bool:
        """Whether entries of dimension 0 are added or dropped."""
        return self.first

    def norm_bound(self) -> float:
        """Return 1."""
        return 1.0

    def narrow(self, dim: int, start: int, length: int) -> ZeroPad:
        """Return the padding itself: it treats channels alike."""
        if dim not in (0, 1):
            raise NotImplementedError(f"ZeroPad mixes the slots of dimension {dim}")
        return self


@dataclass(frozen=True, eq=False)
class Expand(LinearMap):
    """Broadcasting from one full shape to another."""

    in_shape: tuple[int, ...]
    out_shape: tuple[int, ...]

    def apply(self, x: Tensor) -> Tensor:
        """Return ``x`` broadcast."""
        return x.expand(self.out_shape)

    def adjoint(self, y: Tensor) -> Tensor:
        """Return ``y`` summed over what was repeated."""
        return y.sum_to_size(self.in_shape)

    def moves_batch(self, batch: int) -> bool:
        """Whether dimension 0 is made of copies."""
        return self.in_shape[0] != self.out_shape[0] or len(self.in_shape) != len(self.out_shape)

    def norm_bound(self) -> float:
        """Return the square root of the number of copies."""
        return math.sqrt(math.prod(self.out_shape) / math.prod(self.in_shape))


@dataclass(frozen=True, eq=False)
class Reduce(LinearMap):
    """The sum or the mean over whole dimensions.

    Attributes:
        in_shape: The input's full shape.
        dims: The dimensions to reduce.
        keepdim: Whether they stay, of size 1.
        mean: Mean instead of sum.
    """

    in_shape: tuple[int, ...]
    dims: tuple[int, ...]
    keepdim: bool = False
    mean: bool = False

    def _count(self) -> int:
        return math.prod([self.in_shape[d] for d in self.dims])

    def apply(self, x: Tensor) -> Tensor:
        """Return the sum or the mean of ``x``."""
        if self.mean:
            return x.mean(self.dims, keepdim=self.keepdim)
        return torch.sum(x, self.dims, keepdim=self.keepdim)

    def adjoint(self, y: Tensor) -> Tensor:
        """Return ``y`` repeated."""
        if self.mean:
            y = y / self._count()
        reduced = {d % len(self.in_shape) for d in self.dims}
        kept = [1 if i in reduced else n for i, n in enumerate(self.in_shape)]
        return y.reshape(kept).expand(self.in_shape)

    def moves_batch(self, batch: int) -> bool:
        """Whether dimension 0 is added up."""
        return 0 in {d % len(self.in_shape) for d in self.dims}

    def after(self, first: LinearMap) -> LinearMap | None:
        """Add up the slot of a placement alone, and what a permutation moves where it was.

        So the sum of what was stacked is a sum of the parts, and one over time, moved first, leaves
        the samples where they are.
        """
        dims = sorted(d % len(self.in_shape) for d in self.dims)
        if isinstance(first, Place) and first.dim in dims:
            return self._of_slot(first, dims)
        if isinstance(first, Permute) and not self.keepdim:
            order = [d % len(first.dims) for d in first.dims]
            kept = [d for i, d in enumerate(order) if i not in dims]
            if kept == sorted(kept):
                shape = [0] * len(order)
                for size, d in zip(self.in_shape, order, strict=True):
                    shape[d] = size
                inner = tuple(sorted(order[i] for i in dims))
                return Reduce(tuple(shape), inner, False, self.mean)
        return None

    def _of_slot(self, slot: Place, dims: list[int]) -> LinearMap:
        from pursuitify.operators.scale import Scale  # reads this module

        shape = list(self.in_shape)
        shape[slot.dim] = slot.length
        total: LinearMap = Reduce(tuple(shape), tuple(dims), self.keepdim, self.mean)
        if all(shape[d] == 1 for d in dims):
            kept = [
                1 if d in dims else n for d, n in enumerate(shape) if self.keepdim or d not in dims
            ]
            total = Reshape(tuple(shape), tuple(kept))
        return Chain((total, Scale(slot.length / slot.total))) if self.mean else total

    def norm_bound(self) -> float:
        """Return sqrt(n) for a sum over n elements, 1 / sqrt(n) for their mean."""
        return math.sqrt(self._count()) ** (-1 if self.mean else 1)

    def symbol(self, into: Symbols) -> None:
        """Say: a total along each spatial dim."""
        dims = {d % len(self.in_shape) for d in self.dims}
        if dims != set(range(2, len(self.in_shape))):
            into.refused("a reduction over channels or over part of the positions")
        into.channelwise([into.total(n, 1 / n if self.mean else 1.0) for n in self.in_shape[2:]])
