"""Activations as proximal operators (mathematics.md, section 3; the paper's equation (2)).

``prox(v, step)`` is the proximal operator of ``step * f``; at step 1 it is the activation itself,
which is why the feed-forward pass is one proximal step from zero.

Every activation phi with slopes in [0, 1] is the proximal operator of a convex penalty f with
f'(w) = phi^-1(w) - w. With another step g the proximal operator is w = phi(z), where z solves

    h(z) = g z + (1 - g) phi(z) = v.

The slope of h lies between g and 1, so z is unique, and it lies between u and u / g with
u = v - (1 - g) phi(0). Where no closed form is known (``Smooth``) it is found by Newton steps that
stay in there; h is convex or concave there, so they converge from any start.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

#: Newton steps that are taken without derivatives; from every start they reach rounding.
_STEPS = 9
#: Newton steps after them, through which first and second derivatives are those of the root.
_RECORDED_STEPS = 2


class Activation(ABC):
    """A separable convex penalty f with its proximal operator."""

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

    def weighted(self, weight: Tensor) -> Activation:
        """Return the activation whose penalty is ``weight * f``; weights are positive.

        Args:
            weight: Broadcasts against the latent.
        """
        return self if self.indicator else Weighted(self, weight)


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


class Smooth(Activation):
    """An activation given by its value, its slope, its penalty and a start of Newton's method."""

    sparse = False  # entries are never held at zero: a threshold may have either sign

    @abstractmethod
    def slope(self, z: Tensor) -> Tensor:
        """Return phi'(z)."""

    @abstractmethod
    def start(self, v: Tensor, step: Tensor) -> Tensor:
        """Return where Newton's method begins: near z where phi'(z) is above the step."""

    @property
    def at_zero(self) -> float:
        """phi(0)."""
        return 0.0

    def root(self, v: Tensor, step: Tensor) -> Tensor:
        """Return z with ``step * z + (1 - step) * phi(z) = v``, differentiable twice."""
        with torch.no_grad():
            u = v - (1 - step) * self.at_zero
            low, high = torch.minimum(u, u / step), torch.maximum(u, u / step)
            z = torch.clamp(self.start(v, step), low, high)
            for _ in range(_STEPS):
                z = torch.clamp(self._newton(z, v, step), low, high)
        for _ in range(_RECORDED_STEPS):
            z = self._newton(z, v, step)
        return z

    def _newton(self, z: Tensor, v: Tensor, step: Tensor) -> Tensor:
        excess = step * z + (1 - step) * self(z) - v
        return z - excess / (step + (1 - step) * self.slope(z))

    def prox(self, v: Tensor, step: Tensor | float) -> Tensor:
        """Return phi(z) at the root z; computed in single precision at least."""
        wide = v if v.dtype is torch.float64 else v.float()
        g = step.to(wide.dtype) if isinstance(step, Tensor) else wide.new_full((), step)
        return self(self.root(wide, g)).to(v.dtype)


def _outside(f: Tensor, outside: Tensor) -> Tensor:
    return f.masked_fill(outside, torch.inf)


@dataclass(frozen=True)
class Tanh(Smooth):
    """f(w) = ((1 + w) log(1 + w) + (1 - w) log(1 - w) - w^2) / 2 for |w| <= 1."""

    def __call__(self, z: Tensor) -> Tensor:
        """Return tanh(z)."""
        return torch.tanh(z)

    def slope(self, z: Tensor) -> Tensor:
        """Return 1 - tanh(z)^2."""
        w = torch.tanh(z)
        return (1 - w) * (1 + w)

    def start(self, v: Tensor, step: Tensor) -> Tensor:
        """Return atanh(v), cut where the slope is the step."""
        edge = (1 - step).clamp(0, 1 - torch.finfo(v.dtype).eps).sqrt()
        return torch.atanh(torch.clamp(v, -edge, edge))

    def penalty(self, w: Tensor) -> Tensor:
        """Return f(w); log 2 - 1/2 at the border, infinity beyond."""
        entropy = torch.special.xlog1py(1 + w, w) + torch.special.xlog1py(1 - w, -w)
        return _outside(0.5 * (entropy - w * w), w.abs() > 1)


@dataclass(frozen=True)
class Sigmoid(Smooth):
    """f(w) = w log w + (1 - w) log(1 - w) - w^2 / 2 for 0 <= w <= 1."""

    @property
    def at_zero(self) -> float:
        """1/2."""
        return 0.5

    def __call__(self, z: Tensor) -> Tensor:
        """Return 1 / (1 + exp(-z))."""
        return torch.sigmoid(z)

    def slope(self, z: Tensor) -> Tensor:
        """Return phi(z) phi(-z)."""
        return torch.sigmoid(z) * torch.sigmoid(-z)

    def start(self, v: Tensor, step: Tensor) -> Tensor:
        """Return logit(v), cut where the slope is the step."""
        edge = 2 * step / (1 + (1 - 4 * step).clamp_min(0).sqrt())
        edge = edge.clamp(torch.finfo(v.dtype).eps, 0.5)
        return torch.logit(torch.clamp(v, edge, 1 - edge))

    def penalty(self, w: Tensor) -> Tensor:
        """Return f(w), which may be negative; infinity outside [0, 1]."""
        entropy = torch.special.xlogy(w, w) + torch.special.xlog1py(1 - w, -w)
        return _outside(entropy - 0.5 * w * w, (w < 0) | (w > 1))


@dataclass(frozen=True)
class ELU(Smooth):
    """phi(z) = a (exp(z / s) - 1) for z < 0 and z elsewhere; ELU where s = 1, CELU where s = a.

    f(w) = s ((a + w) log(1 + w / a) - w) - w^2 / 2 for -a <= w < 0, and 0 for w >= 0.

    Attributes:
        alpha: a, above 0.
        scale: s, at least a.
    """

    alpha: float
    scale: float

    def __call__(self, z: Tensor) -> Tensor:
        """Return phi(z)."""
        if self.scale == 1:
            return F.elu(z, self.alpha)
        return F.celu(z, self.alpha)

    def slope(self, z: Tensor) -> Tensor:
        """Return (a / s) exp(z / s) for z < 0, and 1 elsewhere."""
        below = self.alpha / self.scale * torch.exp(z.clamp_max(0) / self.scale)
        return torch.where(z < 0, below, torch.ones_like(z))

    def start(self, v: Tensor, step: Tensor) -> Tensor:
        """Return phi^-1(v), cut where the slope is the step."""
        least = (step * (self.scale / self.alpha)).clamp_max(1)
        inverse = self.scale * torch.log(torch.maximum(1 + v.clamp_max(0) / self.alpha, least))
        return torch.where(v < 0, inverse, v)

    def penalty(self, w: Tensor) -> Tensor:
        """Return f(w); infinity below -a, but for what bfloat16 may round it to."""
        ratio = (w.clamp_max(0) / self.alpha).clamp_min(-1)
        entropy = self.alpha * torch.special.xlog1py(1 + ratio, ratio)
        below = w.clamp_max(0)
        f = self.scale * (entropy - below) - 0.5 * below * below
        return _outside(f, w < -self.alpha * (1 + 2**-7))


@dataclass(frozen=True)
class Softplus(Smooth):
    """phi(z) = log(1 + exp(beta z)) / beta; LogSigmoid is -phi(-z) with beta = 1.

    f(w) = (Li_2(exp(-beta w)) - pi^2 / 6) / beta^2 for w >= 0.

    Attributes:
        beta: Above 0.
        threshold: Where beta z is above it, torch returns z.
        mirrored: Whether it is -phi(-z).
    """

    beta: float = 1.0
    threshold: float = 20.0
    mirrored: bool = False

    @property
    def at_zero(self) -> float:
        """log(2) / beta, or its negative."""
        value = math.log(2) / self.beta
        return -value if self.mirrored else value

    def __call__(self, z: Tensor) -> Tensor:
        """Return phi(z)."""
        return F.logsigmoid(z) if self.mirrored else F.softplus(z, self.beta, self.threshold)

    def slope(self, z: Tensor) -> Tensor:
        """Return 1 / (1 + exp(-beta z))."""
        return torch.sigmoid(-z if self.mirrored else self.beta * z)

    def start(self, v: Tensor, step: Tensor) -> Tensor:
        """Return phi^-1(v), cut where the slope is the step."""
        sign = -1.0 if self.mirrored else 1.0
        tiny = torch.finfo(v.dtype).eps
        least = -torch.log1p(-step.clamp(tiny, 1 - tiny))
        scaled = torch.maximum(sign * self.beta * v, least)
        return sign / self.beta * (scaled + torch.log(-torch.expm1(-scaled)))

    def penalty(self, w: Tensor) -> Tensor:
        """Return f(w), between -pi^2 / (6 beta^2) and 0; infinity where w has the other sign."""
        w = -w if self.mirrored else w
        f = (_dilogarithm(self.beta * w.clamp_min(0)) - math.pi**2 / 6) / self.beta**2
        return _outside(f, w < 0)


#: B_2k / (2k + 1)! for k = 1, 2, ...: of u^(2k + 1) in Li_2(1 - exp(-u)).
_BERNOULLI = (
    1 / 6, -1 / 30, 1 / 42, -1 / 30, 5 / 66, -691 / 2730, 7 / 6, -3617 / 510, 43867 / 798,
)  # fmt: skip


def _dilogarithm(t: Tensor) -> Tensor:
    """Return Li_2(exp(-t)) for t >= 0, by the series in u = -log(1 - x) and its reflection."""
    large = t > math.log(2)
    far = t.clamp_min(math.log(2))  # x = exp(-t) <= 1/2: u = -log(1 - x)
    near = t.clamp_max(math.log(2))  # else Li_2(1 - x), where u = t
    u = torch.where(large, -torch.log1p(-torch.exp(-far)), near)
    square, series = u * u, torch.zeros_like(u)
    for k in range(len(_BERNOULLI), 0, -1):
        series = series * square + _BERNOULLI[k - 1] / math.factorial(2 * k + 1)
    value = u - 0.25 * square + series * square * u
    reflected = math.pi**2 / 6 + torch.special.xlogy(near, -torch.expm1(-near)) - value
    return torch.where(large, value, reflected)


@dataclass(frozen=True)
class Softsign(Activation):
    """phi(z) = z / (1 + |z|): f(w) = -|w| - log(1 - |w|) - w^2 / 2 for |w| < 1."""

    sparse = False

    def __call__(self, z: Tensor) -> Tensor:
        """Return z / (1 + |z|)."""
        return F.softsign(z)

    def prox(self, v: Tensor, step: Tensor | float) -> Tensor:
        """Return phi(z), where |z| is the positive root of g z^2 + (1 - |v|) z - |v| = 0."""
        size = v.abs()
        half = 0.5 * (1 - size)
        # The root of what is squared is at least |half|; it is 0 nowhere, since g > 0.
        whole = half.abs() + torch.sqrt(half * half + step * size)
        z = torch.where(half >= 0, size / whole, whole / step)
        return v.sign() * F.softsign(z)

    def penalty(self, w: Tensor) -> Tensor:
        """Return f(w); at |w| = 1, which rounding may give, the last finite value."""
        size = w.abs()
        left = (1 - size).clamp_min(torch.finfo(w.dtype).eps / 2)
        return _outside(-size - torch.log(left) - 0.5 * w * w, size > 1)


@dataclass(frozen=True)
class Hardsigmoid(Activation):
    """phi(z) = z / 6 + 1/2 clipped to [0, 1]: f(w) = 5/2 w^2 - 3 w for 0 <= w <= 1."""

    sparse = False

    def __call__(self, z: Tensor) -> Tensor:
        """Return phi(z)."""
        return F.hardsigmoid(z)

    def prox(self, v: Tensor, step: Tensor | float) -> Tensor:
        """Return (v + 3 g) / (1 + 5 g) clipped to [0, 1]."""
        return ((v + 3 * step) / (1 + 5 * step)).clamp(0, 1)

    def penalty(self, w: Tensor) -> Tensor:
        """Return f(w), which may be negative; infinity outside [0, 1]."""
        return _outside(2.5 * w * w - 3 * w, (w < 0) | (w > 1))


@dataclass(frozen=True, eq=False)
class Weighted(Activation):
    """The penalty ``weight * f`` of another activation: what the latents of a row with gains have.

    Attributes:
        inner: The activation with the penalty f.
        weight: Positive; broadcasts against the latent.
    """

    inner: Activation
    weight: Tensor

    @property
    def sparse(self) -> bool:  # type: ignore[override]  # a constant elsewhere, here the inner one's
        """Whether the inner activation needs thresholds to be those of an l1 penalty."""
        return self.inner.sparse

    @property
    def nonnegative(self) -> bool:
        """Whether the inner activation's penalty keeps w >= 0."""
        return self.inner.nonnegative

    def __call__(self, z: Tensor) -> Tensor:
        """Return the proximal operator at step 1."""
        return self.prox(z, 1.0)

    def prox(self, v: Tensor, step: Tensor | float) -> Tensor:
        """Return the inner proximal operator at ``step * weight``."""
        return self.inner.prox(v, step * self.weight)

    def prox_(self, v: Tensor, step: Tensor | float) -> Tensor:
        """Return the same; may overwrite ``v``."""
        return self.inner.prox_(v, step * self.weight)

    def preimage(self, w: Tensor, step: Tensor | float) -> Tensor | None:
        """Return the inner preimage at ``step * weight``."""
        return self.inner.preimage(w, step * self.weight)

    def penalty(self, w: Tensor) -> Tensor:
        """Return weight * f(w)."""
        return self.weight * self.inner.penalty(w)
