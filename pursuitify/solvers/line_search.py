"""Exact line search and spectral steps: the parts of adaptive steps (mathematics.md, section 5).

For a latent w with slope g (18), thresholds included, a step s > 0 gives the direction

    delta = prox_{s f}(w - s g) - w,

along which F falls at first, whatever s is. With K the latent's column of the dictionary, F at
w + theta delta is at most the parabola with the slope -fall and the curvature ||K delta||^2,

    fall = -( <g, delta> + f(w + delta) - f(w) ) >= ||delta||^2 / s,

because f is convex. Its minimiser on [0, 1] is the share theta of delta that is taken, so that F
never rises. K delta are the products that the residuals need anyway. The next step is spectral:
three times the inverse of the curvature met along delta, 3 ||delta||^2 / ||K delta||^2, never
less than 3 / L.

All sums are per sample, so that a sample's answer does not depend on the others in its batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pursuitify.dictionary.norm_bounds import fit
from pursuitify.operators.activations import Activation

#: The first step, relative to the estimate of 1 / L.
FIRST = 4.0
#: A spectral step, relative to the inverse of the curvature met last.
LENGTH = 3.0
#: The longest step, relative to the estimate of 1 / L.
LONGEST = 50.0


@dataclass(frozen=True)
class LineSearch:
    """The line search of one run.

    Attributes:
        parts: The number of equal parts of dimension 0 that have steps of their own: the samples,
            or 1 where dimension 0 does not hold sample after sample.
        scale: Factor on every step.
    """

    parts: int
    scale: float = 1.0

    def first(self, estimate: Tensor, shape: torch.Size) -> Tensor:
        """Return the first step of a latent, shape (shape[0], 1, ...); a tensor of its own.

        Args:
            estimate: About 1 / L, times ``scale``; broadcasts against the latent.
            shape: The latent's shape.
        """
        return FIRST * estimate * estimate.new_ones(shape[0], *[1] * (len(shape) - 1))

    def squares(self, value: Tensor) -> Tensor:
        """Return the squared norm by part, shape (parts,)."""
        value = _wide(value)
        if value.requires_grad or torch.compiler.is_compiling():
            return self._sums(value.square())  # a norm's derivative at zero has no derivative
        if value.dim() == 1:
            return self._sums(value.square())
        norms = torch.linalg.vector_norm(value, dim=tuple(range(1, value.dim())))
        return self._sums(norms.square())

    def weighted_squares(self, value: Tensor, weights: Tensor, dim: int) -> Tensor:
        """Return the squared norm by part with a weight per index of ``dim``, without derivative.

        Args:
            value: A tensor.
            weights: As many as ``value`` has along ``dim``.
            dim: A dimension that is not 0.
        """
        value, weights = _wide(value), _wide(weights).flatten()
        rest = [n for n in range(1, value.dim()) if n != dim]
        norms = torch.linalg.vector_norm(value, dim=rest) if rest else value.abs()
        return self._sums(norms.square() @ weights)

    def fall(
        self, activation: Activation, w: Tensor, new: Tensor, slope: Tensor, delta: Tensor
    ) -> Tensor:
        """Return how fast F falls at first along ``delta`` by part, shape (parts,).

        Args:
            activation: The latent's activation.
            w: The latent.
            new: ``w + delta``, in the penalty's domain.
            slope: The slope (18) at ``w``, thresholds included.
            delta: The direction.
        """
        terms = _wide(slope) * _wide(delta)
        if not activation.indicator:
            terms = terms + (activation.penalty(_wide(new)) - activation.penalty(_wide(w)))
        return -self._sums(terms)

    def fall_along(
        self, activation: Activation, w: Tensor, new: Tensor, down: Tensor, delta: Tensor
    ) -> Tensor:
        """Return the same, given ``down``, minus the slope; overwrites ``down``."""
        if down.dtype is not _wide(down).dtype or not activation.indicator:
            return self.fall(activation, w, new, -down, delta)
        return self._sums(down.mul_(delta))

    def share(self, fall: Tensor, curvature: Tensor) -> Tensor:
        """Return theta by part, in [0, 1]; NaN where the curvature is out of range.

        Without curvature F is linear along delta: all of delta is taken where F falls, which is
        nowhere if delta is zero.

        Args:
            fall: What ``fall`` gives.
            curvature: ||K delta||^2 by part.
        """
        curved = curvature > 0
        ratio = fall / torch.where(curved, curvature, 1.0)
        theta = torch.where(curved, ratio.clamp(0.0, 1.0), (fall > 0).to(fall.dtype))
        # Zero where it is finite, else NaN; a constant NaN would differ from itself where
        # torch.compile looks for a sweep that it has compiled before.
        return theta + 0.0 * curvature

    def next_step(
        self, step: Tensor, estimate: Tensor, square: Tensor, curvature: Tensor, shape: torch.Size
    ) -> Tensor:
        """Return the step of the next sweep, shaped as ``step``; ``step`` where nothing was met.

        Args:
            step: The step of this sweep.
            estimate: As in ``first``.
            square: ||delta||^2 by part.
            curvature: ||K delta||^2 by part.
            shape: The latent's shape.
        """
        curved = curvature > 0
        spectral = LENGTH * self.scale * square / torch.where(curved, curvature, 1.0)
        found = fit(spectral.to(step.dtype), shape)
        held = torch.minimum(torch.maximum(found, estimate), LONGEST * estimate)
        return torch.where(fit(curved, shape), held, step)

    def _sums(self, terms: Tensor) -> Tensor:
        if terms.dim() > 1:
            terms = terms.sum(tuple(range(1, terms.dim())))
        return terms if terms.shape[0] == self.parts else terms.reshape(self.parts, -1).sum(1)


def _wide(value: Tensor) -> Tensor:
    """Return a tensor whose squares can be added up: 16 bits are too few for that."""
    return value if value.dtype in (torch.float32, torch.float64) else value.float()
