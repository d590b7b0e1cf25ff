"""Diagonal scale: frozen BatchNorm factors, gates, masks, constants."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pursuitify.operators.base import Factor, LinearMap, accumulate, piece
from pursuitify.operators.symbols import Symbols


@dataclass(frozen=True, eq=False)
class Scale(LinearMap):
    """Multiplication by a factor that broadcasts over the input.

    Attributes:
        factor: A number, a 0-dim tensor, or a tensor with as many dims as the input, each of its
            size or 1; the input's shape is the output's.
        per_sample: Whether the factor was computed from the input (a gate, a mask). It stays a map
            of its own then, also where the batch holds one sample and it could be folded into a
            kernel: bounds, and so steps, do not depend on who else is in the batch.
    """

    factor: Tensor | float
    per_sample: bool = False
    broadcasts = True

    def apply(self, x: Tensor) -> Tensor:
        """Return factor * x."""
        return x * self.factor

    def adjoint(self, y: Tensor) -> Tensor:
        """Return factor * y."""
        return y * self.factor

    def add_apply(self, total: Tensor, x: Tensor, factor: Factor) -> Tensor:
        """Return ``total + factor * self.factor * x``, in one pass; overwrites ``total``."""
        return accumulate(total, x, self.factor * factor)

    def add_adjoint(self, total: Tensor, y: Tensor, factor: Factor) -> Tensor:
        """Return ``total + factor * self.factor * y``, in one pass; overwrites ``total``."""
        return self.add_apply(total, y, factor)

    def norm_bound(self) -> Tensor | float:
        """Return max |factor|: per sample, (batch, 1, ..., 1), where the factor has a batch."""
        factor = self.factor
        if not isinstance(factor, Tensor):
            return abs(float(factor))
        if factor.dim() == 0 or factor.shape[0] == 1:
            return factor.abs().amax()
        if factor.dim() == 1:
            return factor.abs()
        return factor.abs().amax(tuple(range(1, factor.dim())), keepdim=True)

    def narrow(self, dim: int, start: int, length: int) -> Scale:
        """Return the scale of one slot."""
        factor = self.factor
        if not isinstance(factor, Tensor) or factor.dim() == 0 or factor.shape[dim] == 1:
            return self
        return Scale(piece(factor, dim, start, length), self.per_sample)

    def after(self, first: LinearMap) -> LinearMap | None:
        """Merge with a scale; fold a scale per channel into the weights before it."""
        if isinstance(first, Scale):
            return Scale(self.factor * first.factor, self.per_sample or first.per_sample)
        if self.per_sample or not isinstance(self.factor, Tensor):
            return None
        return first.rescaled(self.factor)

    def pattern(self) -> Scale:
        """Return the scale by ones."""
        factor = self.factor
        ones = torch.ones_like(factor) if isinstance(factor, Tensor) else 1.0
        return Scale(ones, self.per_sample)

    def symbol(self, into: Symbols) -> None:
        """Say: a factor."""
        into.scaled(self.factor)
