"""Fully connected layer: a matrix on the last dimension; one matrix for each sample."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pursuitify.operators.base import FilterBank, LinearMap, along, piece
from pursuitify.operators.norms.certified import dense_norm_bound
from pursuitify.operators.reshape import Place
from pursuitify.operators.symbols import Symbols


@dataclass(frozen=True, eq=False)
class Dense(LinearMap):
    """x @ W^T on the last dimension.

    Attributes:
        weight: Matrix (out, in).
        dims: Number of dimensions of the input, batch included; 0 where it is unknown, and then
            a placement is absorbed only if it names the last dimension as -1.
    """

    weight: Tensor
    dims: int = 0

    def apply(self, x: Tensor) -> Tensor:
        """Return x W^T."""
        return F.linear(x, self.weight)

    def adjoint(self, y: Tensor) -> Tensor:
        """Return y W."""
        return F.linear(y, self.weight.mT)

    def norm_bound(self) -> Tensor:
        """Return the certified bound of the matrix."""
        return dense_norm_bound(self.weight)

    def scaled(self, scale: Tensor) -> Dense:
        """Return the map with its output features scaled by ``scale`` (out,)."""
        return dataclasses.replace(self, weight=self.weight * scale.reshape(-1, 1))

    def narrow_input(self, start: int, length: int) -> Dense:
        """Return the map restricted to a slot of input features."""
        return dataclasses.replace(self, weight=piece(self.weight, 1, start, length))

    def after(self, first: LinearMap) -> LinearMap | None:
        """Absorb a placement into a slot of features."""
        if isinstance(first, Place) and first.dim in (-1, self.dims - 1 if self.dims else -1):
            return self.narrow_input(first.start, first.length)
        return None

    def filter_bank(self) -> FilterBank:
        """Return the matrix, which has no spatial dims."""
        return FilterBank(self.weight, (), (), 1)

    def rescaled(self, factor: Tensor) -> Dense | None:
        """Return the map with a factor per output feature in its matrix."""
        scale = along(factor, -1, self.weight.shape[0], factor.dim())
        return None if scale is None else self.scaled(scale)

    def pattern(self) -> Dense:
        """Return the matrix of ones."""
        return dataclasses.replace(self, weight=torch.ones_like(self.weight))

    def symbol(self, into: Symbols) -> None:
        """Say: a matrix."""
        into.dense(self.weight)


@dataclass(frozen=True, eq=False)
class SampleMatrices(LinearMap):
    """Matrices of each sample, times its own columns.

    Attributes:
        weight: Matrices (batch, groups, out, in), which are computed from the samples.
    """

    weight: Tensor

    def apply(self, x: Tensor) -> Tensor:
        """Return the matrices times ``x`` (batch, groups, in, columns)."""
        return self.weight @ x

    def adjoint(self, y: Tensor) -> Tensor:
        """Return the transposed matrices times ``y``."""
        return self.weight.mT @ y

    def norm_bound(self) -> Tensor:
        """Return a bound per sample, (batch, 1, 1, 1).

        It is the largest over the groups of the root of the largest row sum times the largest
        column sum of sizes, or of the Frobenius norm where that is less.
        """
        sizes = self.weight.abs()
        sums = sizes.sum(-1).amax(-1) * sizes.sum(-2).amax(-1)
        least = torch.minimum(sums.sqrt(), sizes.square().sum((-2, -1)).sqrt())
        return least.amax(1).reshape(-1, 1, 1, 1)

    def symbol(self, into: Symbols) -> None:
        """Refuse: the matrices are those of one batch."""
        into.refused("a product with matrices that depend on the input")
