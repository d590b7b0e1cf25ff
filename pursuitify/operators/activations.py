"""Activations as proximal operators (mathematics.md, section 3; the paper's equation (2)).

``prox(v, step)`` is the proximal operator of ``step * f``; at step 1 it is the activation itself,
which is why the feed-forward pass is one proximal step from zero.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


class Activation(ABC):
    """A separable convex penalty f with a closed proximal operator."""

    #: Whether F needs <lam, w> with w >= 0 for the thresholds to be an l1 penalty.
    sparse: bool = True

    @property
    def nonnegative(self) -> bool:
        """Whether f keeps w >= 0, and ``prox`` is zero wherever what it is given is below zero."""
        return False

    @property
    def indicator(self) -> bool:
        """Whether f is zero wherever it is finite, so that no step within its domain changes it."""
        return False

    @abstractmethod
    def __call__(self, z: Tensor) -> Tensor:
        """Return the activation of the pre-activation ``z`` (never in place)."""

    @abstractmethod
    def prox(self, v: Tensor, step: Tensor | float) -> Tensor:
        """Return argmin_w f(w) + ||w - v||^2 / (2 step), elementwise."""

    def prox_(self, v: Tensor, step: Tensor | float) -> Tensor:
        """Return the same as ``prox``; may overwrite ``v``."""
        return self.prox(v, step)

    def preimage(self, w: Tensor, step: Tensor | float) -> Tensor | None:
        """Return a v with ``prox(v, step) = w`` and prox's own slope wherever that is not zero.

        ``w`` is a value of the proximal operator. None where no such v can be named.
        """
        return None

    @abstractmethod
    def penalty(self, w: Tensor) -> Tensor:
        """Return f(w) elementwise; infinite outside the domain."""


def _indicator(w: Tensor, feasible: Tensor) -> Tensor:
    return torch.zeros_like(w).masked_fill(~feasible, torch.inf)


@dataclass(frozen=True)
class Linear(Activation):
    """f = 0: what an identity latent has."""

    sparse = False

    @property
    def indicator(self) -> bool:
        """True; not for a subclass that brings a penalty of its own and does not say so."""
        return type(self).penalty is Linear.penalty

    def __call__(self, z: Tensor) -> Tensor:
        """Return ``z``."""
        return z

    def prox(self, v: Tensor, step: Tensor | float) -> Tensor:
        """Return ``v``."""
        return v

    def preimage(self, w: Tensor, step: Tensor | float) -> Tensor:
        """Return ``w``."""
        return w

    def penalty(self, w: Tensor) -> Tensor:
        """Return zeros."""
        return torch.zeros_like(w)


@dataclass(frozen=True)
class ReLU(Activation):
    """f is the indicator of w >= 0."""

    @property
    def nonnegative(self) -> bool:
        """True; not for a subclass that brings a ``prox`` of its own and does not say so."""
        return type(self).prox is ReLU.prox

    @property
    def indicator(self) -> bool:
        """True; as for ``Linear``."""
        return type(self).penalty is ReLU.penalty

    def __call__(self, z: Tensor) -> Tensor:
        """Return max(z, 0)."""
        return F.relu(z)

    def prox(self, v: Tensor, step: Tensor | float) -> Tensor:
        """Return max(v, 0)."""
        return F.relu(v)

    def prox_(self, v: Tensor, step: Tensor | float) -> Tensor:
        """Return max(v, 0), in place."""
        return v.relu_()

    def preimage(self, w: Tensor, step: Tensor | float) -> Tensor:
        """Return ``w``."""
        return w

    def penalty(self, w: Tensor) -> Tensor:
        """Return 0 where w >= 0, infinity elsewhere."""
        return _indicator(w, w >= 0)


@dataclass(frozen=True)
class Clip(Activation):
    """Hardtanh and ReLU6: f is the indicator of low <= w <= high."""

    low: float
    high: float

    @property
    def nonnegative(self) -> bool:
        """Whether it clips at zero from below; as for ReLU, of this ``prox`` alone."""
        return self.low == 0 and type(self).prox is Clip.prox

    @property
    def indicator(self) -> bool:
        """True; as for ``Linear``."""
        return type(self).penalty is Clip.penalty

    def __call__(self, z: Tensor) -> Tensor:
        """Return ``z`` clipped to [low, high]."""
        return F.hardtanh(z, self.low, self.high)

    def prox(self, v: Tensor, step: Tensor | float) -> Tensor:
        """Return ``v`` clipped to [low, high]."""
        return F.hardtanh(v, self.low, self.high)

    def prox_(self, v: Tensor, step: Tensor | float) -> Tensor:
        """Return ``v`` clipped to [low, high], in place."""
        return v.clamp_(self.low, self.high)

    def preimage(self, w: Tensor, step: Tensor | float) -> Tensor:
        """Return ``w``."""
        return w

    def penalty(self, w: Tensor) -> Tensor:
        """Return 0 where low <= w <= high, infinity elsewhere."""
        return _indicator(w, (w >= self.low) & (w <= self.high))


@dataclass(frozen=True, eq=False)
class LeakyReLU(Activation):
    """f(w) = (1/a - 1) w^2 / 2 for w < 0, with 0 < a <= 1; PReLU where ``slope`` is a tensor.

    Attributes:
        slope: a, a float or a tensor that broadcasts against the latent.
    """

    slope: Tensor | float

    def __call__(self, z: Tensor) -> Tensor:
        """Return z where z >= 0, a z elsewhere."""
        return torch.where(z >= 0, z, self.slope * z)

    def prox(self, v: Tensor, step: Tensor | float) -> Tensor:
        """Return v where v >= 0, v / (1 + step (1/a - 1)) elsewhere."""
        return torch.where(v >= 0, v, v / (1.0 + step * (1.0 / self.slope - 1.0)))

    def preimage(self, w: Tensor, step: Tensor | float) -> Tensor:
        """Return w where w >= 0, w (1 + step (1/a - 1)) elsewhere."""
        return torch.where(w >= 0, w, w * (1.0 + step * (1.0 / self.slope - 1.0)))

    def penalty(self, w: Tensor) -> Tensor:
        """Return (1/a - 1) w^2 / 2 where w < 0, 0 elsewhere."""
        return torch.where(w < 0, 0.5 * (1.0 / self.slope - 1.0) * w * w, torch.zeros_like(w))


@dataclass(frozen=True)
class SoftThreshold(Activation):
    """Softshrink: f(w) = bound |w|, whose proximal operator moves every entry towards zero.

    Attributes:
        bound: The threshold at step 1, at least 0.
    """

    bound: float
    sparse = False  # lam adds to a penalty that is even: it may have either sign

    def __call__(self, z: Tensor) -> Tensor:
        """Return sign(z) max(|z| - bound, 0)."""
        return F.softshrink(z, self.bound)

    def prox(self, v: Tensor, step: Tensor | float) -> Tensor:
        """Return sign(v) max(|v| - step * bound, 0)."""
        reach = step * self.bound
        return v - v.clamp(-reach, reach)  # type: ignore[arg-type]

    def preimage(self, w: Tensor, step: Tensor | float) -> Tensor:
        """Return w + step * bound * sign(w)."""
        return w + step * self.bound * w.sign()

    def penalty(self, w: Tensor) -> Tensor:
        """Return bound |w|."""
        return self.bound * w.abs()
