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
        parts: (number of columns, activation) per latent.
    """

    matrix: Tensor
    signal: Tensor
    thresholds: Tensor
    norms: Tensor
    parts: tuple[tuple[int, Activation], ...]

    def prox(self, v: Tensor, step: float) -> Tensor:
        """Return the proximal step of the activations in the scale of unit columns."""
        sizes = [size for size, _ in self.parts]
        found = []
        for values, n, (_, f) in zip(
            torch.split(v, sizes), torch.split(self.norms, sizes), self.parts, strict=True
        ):
            n = n.clamp_min(torch.finfo(n.dtype).tiny)
            found.append(n * f.prox(values / n, step / n.square()))
        return torch.cat(found)

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


def bounded_below(parts: Sequence[tuple[int, Activation]]) -> Tensor:
    """Return which atoms have w >= 0 as their constraint, from (number, activation) per latent."""
    return torch.cat([torch.full((n,), f.nonnegative) for n, f in parts])


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
    sizes = [shape.numel() for shape in dictionary.shapes]
    parts = tuple((n, row.activation) for n, row in zip(sizes, dictionary.rows, strict=True))
    scaled = thresholds / norms.clamp_min(torch.finfo(norms.dtype).tiny)
    return ConvexProblem(unit, signal, scaled, norms, parts)
