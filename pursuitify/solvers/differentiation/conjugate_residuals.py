"""The linear system of the adjoint solve, by conjugate residuals, on lists of tensors.

With H = B^T B, the derivative of a minimiser w of F answers to (H + kappa) v = g on the entries
where the proximal operator has a slope d > 0, kappa = (1 / d - 1) / gamma being the curvature of
the activation's own penalty there (0 for ReLU), and v = 0 elsewhere. The matrix is symmetric and
positive semidefinite, so that it is solved by conjugate residuals: one product with B and one with
B^T per iteration, as in a sweep, and a residual that never rises even where the matrix is singular.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Vectors = list[Tensor]


def dot(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    """Return the inner product over all latents."""
    return torch.stack([(x * y).sum() for x, y in zip(a, b, strict=True)]).sum()


def number(value: Tensor) -> float:
    """Return a tensor's number; 1 on the meta device, where memory is counted and nothing read."""
    return 1.0 if value.is_meta else float(value)


def conjugate_residuals(
    matrix: Callable[[Vectors], Vectors],
    scale: Sequence[Tensor],
    g: Vectors,
    iterations: int,
    tolerance: float,
) -> tuple[Vectors, float, int]:
    """Solve A v = g for a symmetric positive semidefinite A, preconditioned by diagonal ``scale``.

    Args:
        matrix: A as a function.
        scale: An approximate inverse of A's diagonal: the step sizes.
        g: The right-hand side.
        iterations: Most products with A.
        tolerance: Stop where |A v - g| <= tolerance |g|, in the norm that ``scale`` weights.

    Returns:
        v, that relative residual, and the number of products with A.
    """

    def scaled(x: Sequence[Tensor]) -> Vectors:
        return [s * value for s, value in zip(scale, x, strict=True)]

    v = [torch.zeros_like(value) for value in g]
    r, noise = list(g), 10 * torch.finfo(g[0].dtype).eps
    if g[0].is_meta:
        iterations = min(iterations, 2)  # the next ones need no more memory
    size = number(dot(r, scaled(r)))
    if size == 0 or iterations == 0:
        return v, float(size > 0), 0
    p = scaled(r)
    ap = matrix(p)
    power, left, count = dot(p, ap), 1.0, 1
    largest = 0.0
    while True:
        quotient = number(power) / (left**2 * size)
        largest, length = max(largest, quotient), dot(ap, scaled(ap))
        if not quotient > noise * largest or not number(length) > 0:
            break  # what is left of g is out of A's reach
        step = power / length
        v = [x + step * y for x, y in zip(v, p, strict=True)]
        r = [x - step * y for x, y in zip(r, ap, strict=True)]
        z = scaled(r)
        left = max(number(dot(r, z)) / size, 0.0) ** 0.5
        if left <= tolerance or count >= iterations:
            break
        az = matrix(z)
        count += 1
        before, power = power, dot(z, az)
        p = [x + power / before * y for x, y in zip(z, p, strict=True)]
        ap = [x + power / before * y for x, y in zip(az, ap, strict=True)]
    return v, left, count
