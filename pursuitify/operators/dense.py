"""Fully connected layer: a matrix on the last dimension."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from pursuitify.operators.base import (
    Adjoint,
    LinearMap,
    piece,
)
from pursuitify.operators.conv import Conv
from pursuitify.operators.norms.certified import dense_norm_bound
from pursuitify.operators.reshape import (
    Place,
)


def is_weighted(linear: LinearMap) -> bool:
    """Whether a map holds weights, so that its norm is worth keeping."""
    return isinstance(linear.inner if isinstance(linear, Adjoint) else linear, (Conv, Dense))


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
