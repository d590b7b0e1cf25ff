"""The adjoint of a map as a map: what a transposed convolution is."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from pursuitify.maps.base import LinearMap


@dataclass(frozen=True, eq=False)
class Adjoint(LinearMap):
    """The adjoint of ``inner``: apply and adjoint exchanged, the same norm.

    Attributes:
        inner: The map to turn around.
    """

    inner: LinearMap

    def apply(self, x: Tensor) -> Tensor:
        """Return the inner map's adjoint of ``x``."""
        return self.inner.adjoint(x)

    def adjoint(self, y: Tensor) -> Tensor:
        """Return the inner map of ``y``."""
        return self.inner.apply(y)

    def norm_bound(self) -> Tensor | float:
        """Return the inner map's bound."""
        return self.inner.norm_bound()

    def moves_batch(self, batch: int) -> bool:
        """Whether the inner map does."""
        return self.inner.moves_batch(batch)

    def narrow(self, dim: int, start: int, length: int) -> Adjoint:
        """Return the adjoint of the inner map's slot."""
        return Adjoint(self.inner.narrow(dim, start, length))
