"""Indexing as a map: basic, by given indices, and by windows."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pursuitify.operators.base import LinearMap
from pursuitify.operators.max_pool import cover
from pursuitify.operators.symbols import Symbols


@dataclass(frozen=True, eq=False)
class Index(LinearMap):
    """``x[index]`` of integers, slices, None and Ellipsis: every element is read at most once.

    Attributes:
        index: What stands between the brackets: no tensors, no lists.
        in_shape: The input's full shape.
    """

    index: Any
    in_shape: tuple[int, ...]

    def apply(self, x: Tensor) -> Tensor:
        """Return ``x[index]``."""
        return x[self.index]

    def adjoint(self, y: Tensor) -> Tensor:
        """Return ``y`` put back between zeros."""
        zeros = y.new_zeros(self.in_shape)
        zeros[self.index] = y
        return zeros

    def norm_bound(self) -> float:
        """Return 1."""
        return 1.0

    def moves_batch(self, batch: int) -> bool:
        """Whether the index says anything of dimension 0."""
        first = self.index[0] if isinstance(self.index, tuple) else self.index
        if first is Ellipsis:
            return len(self.index) > len(self.in_shape) if isinstance(self.index, tuple) else False
        return not (isinstance(first, slice) and first == slice(None))


@dataclass(frozen=True, eq=False)
class Pick(LinearMap):
    """Entries of one dimension by constant indices; one may be picked many times or never.

    Attributes:
        dim: The dimension.
        index: Which entries, (number,), integers from 0 on.
        size: The dimension's size in the input.
    """

    dim: int
    index: Tensor
    size: int

    def apply(self, x: Tensor) -> Tensor:
        """Return ``x.index_select(dim, index)``."""
        return x.index_select(self.dim, self.index)

    def adjoint(self, y: Tensor) -> Tensor:
        """Return ``y`` put back, summed where an entry was picked many times."""
        shape = list(y.shape)
        shape[self.dim] = self.size
        return y.new_zeros(shape).index_add(self.dim, self.index, y)

    def norm_bound(self) -> Tensor:
        """Return the norm: the root of how often the commonest entry is picked."""
        counts = self.index.new_zeros(self.size).index_add(0, self.index, self.index * 0 + 1)
        return counts.amax().double().sqrt()

    def moves_batch(self, batch: int) -> bool:
        """Whether the dimension is the first."""
        return self.dim == 0


@dataclass(frozen=True, eq=False)
class Gather(LinearMap):
    """Entries along one dimension by given indices, others at every place; its adjoint adds up.

    Attributes:
        dim: The dimension.
        index: Which entries, as ``torch.gather`` takes it: of the output's shape, and from 0 on.
        in_shape: The input's full shape.
    """

    dim: int
    index: Tensor
    in_shape: tuple[int, ...]

    def apply(self, x: Tensor) -> Tensor:
        """Return ``x.gather(dim, index)``."""
        return x.gather(self.dim, self.index)

    def adjoint(self, y: Tensor) -> Tensor:
        """Return ``y`` put back, summed where an entry is read at several places."""
        return y.new_zeros(self.in_shape).scatter_add(self.dim, self.index, y)

    def norm_bound(self) -> Tensor:
        """Return the norm of each sample: the root of how often its commonest entry is read."""
        ones = torch.ones_like(self.index, dtype=torch.float64)
        counts = ones.new_zeros(self.in_shape).scatter_add(self.dim, self.index, ones)
        if self.moves_batch(self.in_shape[0]):
            return counts.amax().sqrt()
        return counts.flatten(1).amax(1).sqrt().reshape(-1, *[1] * (len(self.in_shape) - 1))

    def moves_batch(self, batch: int) -> bool:
        """Whether the dimension is the first, or some samples are left out."""
        return self.dim == 0 or self.index.shape[0] != self.in_shape[0]

    def symbol(self, into: Symbols) -> None:
        """Refuse: another entry is read at every place."""
        into.refused("a gather, which reads other entries at every place")


@dataclass(frozen=True, eq=False)
class SparseMatrix(LinearMap):
    """A sparse matrix along one dimension.

    Attributes:
        dim: The dimension.
        rows: Row of each entry, (number,): where it stands in the output.
        columns: Column of each entry: where it stands in the input.
        values: The entries; those of one place are added up.
        shape: Size of the dimension in the output and in the input.
    """

    dim: int
    rows: Tensor
    columns: Tensor
    values: Tensor
    shape: tuple[int, int]

    def apply(self, x: Tensor) -> Tensor:
        """Return the matrix times ``x``."""
        return self._multiply(x, self.columns, self.rows, self.shape[0])

    def adjoint(self, y: Tensor) -> Tensor:
        """Return the transposed matrix times ``y``."""
        return self._multiply(y, self.rows, self.columns, self.shape[1])

    def _multiply(self, x: Tensor, read: Tensor, written: Tensor, size: int) -> Tensor:
        values = self.values.reshape(-1, *[1] * (x.dim() - 1 - self.dim))
        terms = x.index_select(self.dim, read) * values
        shape = (*x.shape[: self.dim], size, *x.shape[self.dim + 1 :])
        return terms.new_zeros(shape).index_add(self.dim, written, terms)

    def norm_bound(self) -> Tensor:
        """Return the root of the product of the largest row sum and column sum of sizes."""
        sizes = self.values.abs().double()
        sums = [
            sizes.new_zeros(n).index_add(0, places, sizes).amax()
            for n, places in zip(self.shape, (self.rows, self.columns), strict=True)
        ]
        return (sums[0] * sums[1]).sqrt()

    def moves_batch(self, batch: int) -> bool:
        """Whether the dimension is the first."""
        return self.dim == 0

    def symbol(self, into: Symbols) -> None:
        """Refuse: every output reads entries of its own."""
        into.refused("a sparse matrix")


@dataclass(frozen=True, eq=False)
class Unfold(LinearMap):
    """Windows of images side by side, as ``F.unfold`` gives them; its adjoint is ``F.fold``.

    Attributes:
        size: Height and width of the images.
        kernel: Height and width of a window.
        dilation: Steps from element to element.
        padding: Zeros on both sides.
        stride: Steps from window to window.
    """

    size: tuple[int, int]
    kernel: tuple[int, int]
    dilation: tuple[int, int]
    padding: tuple[int, int]
    stride: tuple[int, int]

    def apply(self, x: Tensor) -> Tensor:
        """Return the windows (batch, channels * elements, windows) of ``x``."""
        return F.unfold(x, self.kernel, self.dilation, self.padding, self.stride)

    def adjoint(self, y: Tensor) -> Tensor:
        """Return the windows added up where they overlap."""
        return F.fold(y, self.size, self.kernel, self.dilation, self.padding, self.stride)

    def norm_bound(self) -> float:
        """Return the root of how many windows can hold one element."""
        return math.sqrt(cover(self.kernel, self.stride, self.dilation))
