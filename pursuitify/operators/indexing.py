"""Basic indexing (integers, slices, None, Ellipsis) as a map."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pursuitify.operators.base import LinearMap


@dataclass(frozen=True, eq=False)
class Index(LinearMap):
    """``x[index]``, which reads every element at most once.

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
