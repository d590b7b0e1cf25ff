"""The threat model: the ball around each input, met with [0, 1], in the input's own floats.

Every point a ball hands out is inside it as computed in those floats, rounding included, so an
evaluation that measures the perturbation afterwards never finds it a hair too large.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from pursuitify.errors import InputError, InternalError

# Share of an l2 radius given up to the rounding of a norm over many pixels.
_L2_SLACK = 1e-5


class Ball(ABC):
    """The points within ``eps`` of each input, in [0, 1]."""

    def __init__(self, x: Tensor, eps: float) -> None:
        """Keep the centres ``x`` (batch first) and the radius."""
        self.x = x
        self.eps = _round_down(eps, x.dtype)

    def at(self, index: Tensor) -> Ball:
        """Return the ball around the inputs at ``index`` alone."""
        return type(self)(self.x[index], self.eps)

    def check(self, points: Tensor) -> Tensor:
        """Return ``points`` after verifying each: in the ball, in [0, 1], nothing but numbers."""
        inside = self.distance(points) <= self.eps
        inside &= ((points >= 0) & (points <= 1)).flatten(1).all(1)
        if not inside.all():
            raise InternalError(f"{int((~inside).sum())} perturbed inputs lie outside the ball")
        return points

    def admit(self, points: Tensor) -> Tensor:
        """Return points that another made; what only rounding moved out is moved back in.

        Raises:
            InputError: If more than rounding did, or a point is not finite.
        """
        nearest = self.project(points)
        far = ~((nearest - points).abs() <= 1e-5 * (1 + self.eps)).flatten(1).all(1)
        if far.any():
            reach = float(self.distance(points)[far].max())
            raise InputError(
                f"it broke the threat model: {int(far.sum())} of {len(points)} points lie outside "
                f"the ball or [0, 1] (up to {reach:.4g} from their inputs, where {self.eps:.4g} is "
                "allowed)"
            )
        return self.check(nearest)

    @abstractmethod
    def distance(self, points: Tensor) -> Tensor:
        """Return how far each point is from its centre."""

    @abstractmethod
    def project(self, points: Tensor) -> Tensor:
        """Return the points moved into the ball and [0, 1]."""

    @abstractmethod
    def draw(self, generator: torch.Generator | None) -> Tensor:
        """Return one random point per input."""

    @abstractmethod
    def direction(self, gradient: Tensor) -> Tensor:
        """Return the unit direction in which the loss rises fastest."""


class LinfBall(Ball):
    """Each pixel moves by at most ``eps``."""

    def __init__(self, x: Tensor, eps: float) -> None:
        """Round the box inward once; every projection is then a clamp."""
        super().__init__(x, eps)
        reach = torch.full_like(x, self.eps)
        self.low = add_inward(x, -reach).clamp(min=0)
        self.high = add_inward(x, reach).clamp(max=1)

    def distance(self, points: Tensor) -> Tensor:
        """Return the largest change of a pixel."""
        return (points - self.x).abs().flatten(1).amax(1)

    def project(self, points: Tensor) -> Tensor:
        """Clamp to the box."""
        return torch.clamp(points, self.low, self.high)

    def draw(self, generator: torch.Generator | None) -> Tensor:
        """Draw uniformly from the cube, then project."""
        unit = torch.empty_like(self.x).uniform_(-1, 1, generator=generator)
        return self.project(self.x + self.eps * unit)

    def direction(self, gradient: Tensor) -> Tensor:
        """Return the sign."""
        return gradient.sign()


class L2Ball(Ball):
    """Each input moves by at most ``eps`` in Euclidean length."""

    def distance(self, points: Tensor) -> Tensor:
        """Return the length of the change."""
        return _length(points - self.x).flatten()

    def project(self, points: Tensor) -> Tensor:
        """Clamp to [0, 1], which never lengthens the change, then shorten it where needed."""
        change = points.clamp(0, 1) - self.x
        limit = self.eps * (1 - _L2_SLACK)
        length = _length(change)
        return add_inward(self.x, change * torch.where(length > limit, limit / length, 1.0))

    def draw(self, generator: torch.Generator | None) -> Tensor:
        """Draw uniformly from the sphere's inside, then project."""
        unit = self.direction(torch.empty_like(self.x).normal_(generator=generator))
        radius = torch.empty_like(_length(unit)).uniform_(0, 1, generator=generator)
        return self.project(self.x + self.eps * radius ** (1 / self.x[0].numel()) * unit)

    def direction(self, gradient: Tensor) -> Tensor:
        """Return the gradient at unit length; zero stays zero."""
        # Scaling by the largest entry first keeps the squares of tiny gradients above underflow.
        peak = gradient.abs().flatten(1).amax(1).view(-1, *[1] * (gradient.ndim - 1))
        scaled = gradient / torch.where(peak > 0, peak, 1.0)
        return scaled / _length(scaled).clamp(min=1)


BALLS: dict[str, type[Ball]] = {"linf": LinfBall, "l2": L2Ball}


def add_inward(x: Tensor, change: Tensor) -> Tensor:
    """Return ``x + change`` rounded toward ``x``, so that no step gains length by rounding."""
    total = x + change
    moved = total - x
    error = (x - (total - moved)) + (change - moved)  # Knuth's TwoSum: total + error is exact
    overshot = (error * change.sign()) < 0
    return torch.where(overshot, torch.nextafter(total, x), total)


def _length(change: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(change.flatten(1), dim=1)
    return norms.view(-1, *[1] * (change.ndim - 1))


def _round_down(value: float, dtype: torch.dtype) -> float:
    rounded = torch.tensor(value, dtype=dtype)
    if rounded.item() > value:
        rounded = torch.nextafter(rounded, rounded.new_tensor(-math.inf))
    return float(rounded.item())
