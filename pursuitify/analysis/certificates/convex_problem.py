"""The convex problem that a pursuit solves at one input, dense, and its exact minimiser."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pursuitify.analysis.measures.bind_network import bind, check_finite
from pursuitify.analysis.measures.dense_gram import normalised
from pursuitify.network.pursuit_network import PursuitNetwork
from pursuitify.operators.activations import Activation


@dataclass(frozen=True)
class ConvexProblem:
    """min_w 1/2 ||D w - y||^2 + <lam, w> + sum f_j(w_j), with unit columns.

    Attributes:
        matrix: D.
        signal: y.
        thresholds: lam over the column norms.
        norms: Norms of the columns before.
        parts: (shape, activation) per latent; its entries are that many columns.
    """

    matrix: Tensor
    signal: Tensor
    thresholds: Tensor
    norms: Tensor
    parts: tuple[tuple[torch.Size, Activation], ...]

    def prox(self, v: Tensor, step: float) -> Tensor:
        """Return the proximal step of the activations in the scale of unit columns."""
        n = self.norms.clamp_min(torch.finfo(self.norms.dtype).tiny)
        return n * prox(self.parts, v / n, step / n.square())

    def slope(self, w: Tensor) -> Tensor:
        """Return D^T (D w - y) + lam."""
        return self.matrix.T @ (self.matrix @ w - self.signal) + self.thresholds

    def solve(self, tolerance: float = 1e-11, most: int = 50_000) -> Tensor:
        """Return the minimiser: accelerated proximal steps with restarts."""
        step = 1 / float(torch.linalg.matrix_norm(self.matrix, 2)) ** 2
        start = torch.zeros_like(self.thresholds)
        return minimise(start, self.slope, self.prox, step, tolerance, most)

    def bounded_below(self) -> Tensor:
        """Return which atoms have w >= 0 as their constraint."""
        return bounded_below(self.parts)


def bounded_below(parts: Sequence[tuple[torch.Size, Activation]]) -> Tensor:
    """Return which atoms have w >= 0 as their constraint, from (shape, activation) per latent."""
    return torch.cat([torch.full((shape.numel(),), f.nonnegative) for shape, f in parts])


def prox(parts: Sequence[tuple[torch.Size, Activation]], v: Tensor, steps: Tensor) -> Tensor:
    """Return the proximal step of all latents, flattened one after the other as ``v`` is.

    Args:
        parts: (shape, activation) per latent; slopes and gains of channels need the shape.
        v: The points.
        steps: The step of every entry.
    """
    sizes = [shape.numel() for shape, _ in parts]
    cut = zip(torch.split(v, sizes), torch.split(steps, sizes), parts, strict=True)
    found = [f.prox(p.reshape(shape), step.reshape(shape)) for p, step, (shape, f) in cut]
    return torch.cat([p.reshape(-1) for p in found])


def minimise(
    start: Tensor,
    slope: Callable[[Tensor], Tensor],
    prox: Callable[[Tensor, float], Tensor],
    step: float,
    tolerance: float,
    most: int,
    advance: Callable[[], None] | None = None,
) -> Tensor:
    """Return the minimiser of a smooth convex function plus one that has a proximal operator.

    Args:
        start: Where to start.
        slope: Gradient of the smooth part.
        prox: Proximal step of the other, (point, step).
        step: At most one over the gradient's Lipschitz constant.
        tolerance: Largest gradient step, over ``step``, at which to stop.
        most: Most iterations.
        advance: Called after each.
    """
    w = last = start
    t = 1.0
    for _ in range(most):
        after = (1 + math.sqrt(1 + 4 * t * t)) / 2
        v = w + (t - 1) / after * (w - last)
        new = prox(v - step * slope(v), step)
        if float((v - new) @ (new - w)) > 0:
            after = 1.0
        last, w, t = w, new, after
        if advance is not None:
            advance()
        if float((w - v).abs().max()) <= tolerance * step:
            break
    return w


def problem(net: PursuitNetwork, x: Tensor) -> ConvexProblem:
    """Return the convex problem that the network's pursuit solves at one input."""
    with torch.no_grad():
        dictionary = bind(net, None, x)
        check_finite(dictionary)
        unit, norms, _ = normalised(dictionary)
        _, signal, thresholds = dictionary.materialize()
    activations = (row.activation for row in dictionary.rows)
    parts = tuple(zip(dictionary.shapes, activations, strict=True))
    scaled = thresholds / norms.clamp_min(torch.finfo(norms.dtype).tiny)
    return ConvexProblem(unit, signal, scaled, norms, parts)
