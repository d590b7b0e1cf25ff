"""The convex problem that a pursuit solves at one input, dense, and its exact minimiser."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pursuitify.activations import Activation, Clip, ReLU
from pursuitify.analysis.binding import bind
from pursuitify.analysis.explicit import normalised
from pursuitify.network import PursuitNetwork


@dataclass(frozen=True)
class Problem:
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
        w = last = torch.zeros_like(self.thresholds)
        t = 1.0
        for _ in range(most):
            after = (1 + math.sqrt(1 + 4 * t * t)) / 2
            v = w + (t - 1) / after * (w - last)
            new = self.prox(v - step * self.slope(v), step)
            if float((v - new) @ (new - w)) > 0:
                after = 1.0
            last, w, t = w, new, after
            if float((w - v).abs().max()) <= tolerance * step:
                break
        return w

    def bounded_below(self) -> Tensor:
        """Return which atoms have w >= 0 as their constraint."""
        held = [isinstance(f, ReLU) or (isinstance(f, Clip) and f.low == 0) for _, f in self.parts]
        return torch.cat([torch.full((n,), h) for (n, _), h in zip(self.parts, held, strict=True)])


def problem(net: PursuitNetwork, x: Tensor) -> Problem:
    """Return the convex problem that the network's pursuit solves at one input."""
    with torch.no_grad():
        dictionary = bind(net, None, x)
        unit, norms, _ = normalised(dictionary)
        _, signal, thresholds = dictionary.materialize()
    sizes = [shape.numel() for shape in dictionary.shapes]
    parts = tuple((n, row.activation) for n, row in zip(sizes, dictionary.rows, strict=True))
    scaled = thresholds / norms.clamp_min(torch.finfo(norms.dtype).tiny)
    return Problem(unit, signal, scaled, norms, parts)
