"""Derivatives at the last iterate, by implicit differentiation (``memory="implicit"``).

The sweeps run without a graph; only the last latents are kept. They are taken for a minimiser w of
F(w) = 1/2 |B w - y|^2 + <lam, w> + f(w), which answers to a change of y, lam and B by

    (H + kappa) dw = -d( B^T (B w - y) + lam )   on the entries where prox has a slope,

and by nothing elsewhere (``conjugate_residuals.py``). So with v the solution of
(H + kappa) v = w_bar, the derivatives are those of  -<B v, B w - y> - <v, lam>  at fixed v and w,
and of f likewise. Step sizes and extrapolation do not move a minimiser: their derivatives are zero.

**When this is biased.** The latents after T sweeps are not a minimiser: where they are far from one
(``Solves.forward``), the result belongs to another point than the output does. Where the minimiser
is not unique (more active entries than equations), the latents depend on where the sweeps started,
which is not seen here. Where an entry is just about to become active, F has a kink and either side
is a guess. And the adjoint solve is cut off (``Solves.adjoint``).

Global and synchronous pursuit share their minimisers, so that this serves both.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pursuitify.dictionary.bound_rows import BoundPath
from pursuitify.dictionary.structured import StructuredDictionary
from pursuitify.errors import OptionError
from pursuitify.operators import Detached
from pursuitify.operators.base import flatten
from pursuitify.solvers.differentiation.column_products import Residuals, derivatives, image, plus
from pursuitify.solvers.differentiation.conjugate_residuals import (
    Vectors,
    conjugate_residuals,
    dot,
    number,
)
from pursuitify.solvers.differentiation.tensor_extraction import put_in, take_out
from pursuitify.solvers.differentiation.tensor_uses import (
    Held,
    held_by,
    read_by_sweeps,
    refuse_hidden,
)
from pursuitify.utils.autocast import full_precision


class ImplicitWarning(UserWarning):
    """Implicit derivatives were taken where one of the two equations is not solved."""


@dataclass(frozen=True)
class Solves:
    """The accuracy to which the two equations behind implicit derivatives were solved.

    Attributes:
        forward: How far the latents are from a fixed point: |w - S(w)| / |w|, S one synchronous
            proximal step with the same step sizes, over all latents and samples.
        adjoint: The relative residual of the adjoint solve, in the norm that the step sizes weight.
        iterations: The number of its iterations.
    """

    forward: float
    adjoint: float
    iterations: int


def implicit(
    dictionary: StructuredDictionary,
    sweeps: Callable[[], Iterable[Sequence[Tensor]]],
    steps: Sequence[Tensor],
    extrapolation: Sequence[Tensor] | None,
    iterations: int,
    tolerance: float,
    report: Callable[[Solves], None],
) -> list[Tensor]:
    """Return the latents after the last sweep, with implicit derivatives.

    Args:
        dictionary: The bound dictionary.
        sweeps: Yields the latents after each sweep; run without a graph.
        steps: gamma_j per latent.
        extrapolation: alpha_j per latent, or None for none.
        iterations: Most iterations of the adjoint solve.
        tolerance: The relative residual where it stops; one above it is warned of.
        report: Receives the outcome after each backward pass.

    Raises:
        OptionError: If an operation holds a tensor where it cannot be found.
    """
    if any(isinstance(m, Detached) for path in _paths(dictionary) for m in flatten(path.maps)):
        raise OptionError(
            "memory='implicit' differentiates a minimiser of all latents together, which knows no "
            "part under torch.no_grad() as this network's forward has one: use memory='store', "
            "'recompute', or 'implicit' with implicit_last"
        )
    with torch.no_grad():
        last: Sequence[Tensor] = ()
        for latents in sweeps():
            last = latents
    signal = [list(parts) for parts in dictionary.signal_slots()]
    skeleton, held = take_out(read_by_sweeps(dictionary))
    slots = tuple(len(parts) for parts in signal)
    call = _SolveOptions(skeleton, slots, len(held), iterations, tolerance, report)
    flat = itertools.chain(*signal)
    return list(_ImplicitFunction.apply(call, *last, *flat, *steps, *held, *(extrapolation or ())))


def _paths(dictionary: StructuredDictionary) -> Iterator[BoundPath]:
    """Yield every path of every row."""
    for row in dictionary.rows:
        for slot in row.slots:
            yield from slot


@dataclass(frozen=True, eq=False)
class _SolveOptions:
    """The inputs of the autograd function beside tensors."""

    skeleton: StructuredDictionary
    slots: tuple[int, ...]
    held: int
    iterations: int
    tolerance: float
    report: Callable[[Solves], None]

    def sort(self, flat: Sequence[Any]) -> tuple[list[Any], list[list[Any]], list[Any], list[Any]]:
        """Return what is said of latents, of slots (by row), of steps and of held tensors."""
        rest, size = iter(flat), len(self.slots)
        latents = list(itertools.islice(rest, size))
        rows = [list(itertools.islice(rest, n)) for n in self.slots]
        steps = list(itertools.islice(rest, size))
        return latents, rows, steps, list(itertools.islice(rest, self.held))


class _ImplicitFunction(torch.autograd.Function):
    """The identity on finished latents; its adjoint is that of the minimiser."""

    @staticmethod
    def forward(ctx: Any, call: _SolveOptions, *tensors: Tensor) -> tuple[Tensor, ...]:
        latents, signal, steps, held = call.sort(tensors)
        w = [t.to(step.dtype) for t, step in zip(latents, steps, strict=True)]
        dictionary = put_in(call.skeleton, [t.detach() for t in held])
        with torch.enable_grad(), full_precision(w[0].device):
            product = dictionary.apply_slots(w)
            refuse_hidden((part for parts in product for part in parts), "implicit")
        r = [
            b - y
            for parts, own in zip(product, signal, strict=True)
            for b, y in zip(parts, own, strict=True)
        ]
        ctx.call = call
        ctx.save_for_backward(*w, *r, *steps, *held)
        ctx.set_materialize_grads(False)
        return tuple(t.view_as(t) for t in latents)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *w_bar: Tensor | None) -> tuple[Tensor | None, ...]:
        call: _SolveOptions = ctx.call
        w, r, steps, held = call.sort([t.detach() for t in ctx.saved_tensors])
        *_, wanted = call.sort(ctx.needs_input_grad[1:])
        held = [t.requires_grad_(want) for t, want in zip(held, wanted, strict=True)]
        dictionary = put_in(call.skeleton, held)
        with full_precision(w[0].device):
            point = _stand_at(dictionary, w, r, steps)
            v = _solve(point, call, w_bar)
            moved = [list(parts) for parts in dictionary.apply_slots(v)]
            bars = _pull(point, v, moved, held_by(call.skeleton, wanted), held)
        still = [torch.zeros_like(step) for step in steps]
        rest = len(ctx.needs_input_grad) - 1 - len(call.slots) * 2 - sum(call.slots) - call.held
        weights = [steps[0].new_zeros(()) for _ in range(rest)]
        return (None, *[None] * len(w), *itertools.chain(*moved), *still, *bars, *weights)


@dataclass(frozen=True, eq=False)
class _FixedPoint:
    """The point at which the derivatives are taken.

    Attributes:
        dictionary: What the sweeps read, with leaves where a derivative is wanted.
        w: The latents.
        r: The residuals there.
        steps: gamma_j per latent.
        z: Arguments of the proximal operators whose values are ``w``.
        slopes: The slope of each proximal operator there.
        distance: ``Solves.forward``.
    """

    dictionary: StructuredDictionary
    w: Vectors
    r: Residuals
    steps: Vectors
    z: Vectors
    slopes: Vectors
    distance: float


def _stand_at(
    dictionary: StructuredDictionary, w: Vectors, r: Residuals, steps: Vectors
) -> _FixedPoint:
    z, slopes, gaps = [], [], []
    for row, value, slope, step in zip(
        dictionary.rows, w, dictionary.adjoint_slots(r), steps, strict=True
    ):
        if row.threshold is not None:
            slope = slope + row.threshold
        moved = value - step * slope
        gaps.append(value - row.activation.prox(moved, step))
        back = row.activation.preimage(value, step)
        z.append(moved if back is None else back)
        with torch.enable_grad():
            leaf = z[-1].detach().requires_grad_()
            out = row.activation.prox(leaf, step)
        (d,) = derivatives([out], [leaf], [torch.ones_like(out)])
        slopes.append(torch.zeros_like(leaf) if d is None else d)
    distance = number(dot(gaps, gaps).sqrt() / dot(w, w).sqrt().clamp_min(1e-30))
    return _FixedPoint(dictionary, w, r, steps, z, slopes, distance)


def _solve(point: _FixedPoint, call: _SolveOptions, w_bar: Sequence[Tensor | None]) -> Vectors:
    """Return v, and report."""
    kappa = [
        torch.where(d > 0, (1 / d - 1) / step, 0.0)
        for d, step in zip(point.slopes, point.steps, strict=True)
    ]

    def matrix(v: Vectors) -> Vectors:
        product = point.dictionary.adjoint_slots(point.dictionary.apply_slots(v))
        return [
            torch.where(d > 0, h + k * x, 0.0)
            for d, h, k, x in zip(point.slopes, product, kappa, v, strict=True)
        ]

    g = [
        torch.zeros_like(d) if bar is None else torch.where(d > 0, bar.to(d.dtype), 0.0)
        for d, bar in zip(point.slopes, w_bar, strict=True)
    ]
    v, left, count = conjugate_residuals(matrix, point.steps, g, call.iterations, call.tolerance)
    outcome = Solves(point.distance, left, count)
    call.report(outcome)
    if not max(outcome.forward, outcome.adjoint) <= call.tolerance:
        # In orders of magnitude, so that Python shows what stays the same once, not at every step.
        said = []
        if not outcome.forward <= call.tolerance:
            said.append(
                "the sweeps have not reached a fixed point (the latents are up to "
                f"{_magnitude(outcome.forward)} from a fixed point, relative), so that these are "
                "the derivatives of another point than the output: take more iterations"
            )
        if not outcome.adjoint <= call.tolerance:
            said.append(
                f"the adjoint solve left up to {_magnitude(outcome.adjoint)} within "
                f"{call.iterations} iterations: raise implicit_iterations, which helps where the "
                "latents are at a minimiser that is unique"
            )
        warnings.warn(
            f"memory='implicit' (implicit_tolerance={call.tolerance:g}): the derivatives are "
            f"approximate; {'; '.join(said)}. memory='recompute' has the derivatives of the sweeps "
            "themselves. See 'solves' of the network",
            ImplicitWarning,
            stacklevel=2,
        )
    return v


def _magnitude(value: float) -> str:
    """Return the power of ten that a residual does not exceed."""
    return f"1e{math.ceil(math.log10(value))}" if 0 < value < math.inf else f"{value:g}"


def _pull(
    point: _FixedPoint,
    v: Vectors,
    moved: Residuals,
    held: Sequence[Held],
    tensors: Sequence[Tensor],
) -> list[Tensor | None]:
    """Return the cotangents of what the dictionary holds; ``moved`` is B v."""
    bars: list[Tensor | None] = [None] * len(tensors)

    def add(indices: Sequence[int], terms: Sequence[Tensor | None]) -> None:
        for index, term in zip(indices, terms, strict=True):
            bars[index] = plus(bars[index], term)

    for j, (row, own) in enumerate(zip(point.dictionary.rows, held, strict=True)):
        for change, rest in ((v[j], point.r), (point.w[j], moved)) if own.column else ():
            with torch.enable_grad():
                product = image(point.dictionary, j, change)
            leaves = [tensors[i] for i in own.column]
            seen = [-value for value in product.seen(rest, j)]
            add(own.column, derivatives(product.tensors(), leaves, seen))
        if own.threshold is not None:
            add([own.threshold], [-v[j].sum_to_size(tensors[own.threshold].shape)])
        if own.prox:
            with torch.enable_grad():
                out = row.activation.prox(point.z[j], point.steps[j])
            d = point.slopes[j]
            bar = torch.where(d > 0, v[j] / (point.steps[j] * d), 0.0)
            add(own.prox, derivatives([out], [tensors[i] for i in own.prox], [bar]))
    return bars
