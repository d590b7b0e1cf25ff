"""Synchronous pursuit: all latents at once, from zero, one step size (Jacobi, no extrapolation).

    w^0 = 0,   w^{t+1} = prox_{g f}( w^t - g (B^T (B w^t - y(x)) + lam) ),   g <= 1 / ||B||^2

This is proximal gradient descent on the whole F, so F never rises, and its answer is stable in
the input whatever the depth. Let y(x) = P x (P holds the rows that read the input), and let
d^t be how far w^t moves when x moves by e. With evaluation-mode BatchNorm and no value that is
frozen from data, B, lam and P are the same at both inputs, and d^0 = 0. Two bounds hold.

*Linear.* w -> prox(w - g B^T B w + const) is nonexpansive, so |d^{t+1}| <= |d^t| + g |B^T P e|,
hence |d^T| <= T g ||B^T P|| |e|. The blocks of B^T P are those of the latents that share a row
with the input: in a chain B_1 alone, and T g ||B_1|| is the bound.

*Square root.* prox of a convex function is firmly nonexpansive: with S = I - g B^T B, 0 <= S <= I,

    |d^{t+1}|^2 <= <d^{t+1}, S d^t + g B^T P e>
                <= 1/2 <d^{t+1}, S d^{t+1}> + 1/2 <d^t, S d^t> + g <B d^{t+1}, P e>

Writing S out and g <B d, P e> <= g/2 |B d|^2 + g/2 |P e|^2, the terms in B d^{t+1} cancel:

    |d^{t+1}|^2 <= |d^t|^2 - g |B d^t|^2 + g |P e|^2,   hence   |d^T|^2 <= T g ||P||^2 |e|^2.

The first s sweeps may be bounded by the first, the rest by the second: see
``analysis.certificates.certified_radius.lipschitz_in_x``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from pursuitify.dictionary.bound_rows import Parts
from pursuitify.dictionary.norm_bounds import Norms
from pursuitify.dictionary.structured import StructuredDictionary
from pursuitify.solvers.solver import Latents, Solver, SolverInput
from pursuitify.solvers.step_sizes import synchronous_step_sizes


class SynchronousPursuit(Solver):
    """Proximal gradient descent on the whole F: every latent at once, from zero."""

    name: ClassVar[str] = "synchronous"
    pursues: ClassVar[bool] = True
    minimises: ClassVar[bool] = True

    def start(self, given: SolverInput) -> Latents:
        """Return w^0 = 0."""
        return zero(given.dictionary)

    def step_sizes(
        self, dictionary: StructuredDictionary, norms: Norms, betas: Sequence[Tensor]
    ) -> list[Tensor]:
        """Return g = 1 / L once per latent, L >= ||B||^2; the trained beta_j are not used."""
        return synchronous_step_sizes(dictionary, norms)

    def sweeps(self, given: SolverInput, observed: bool = True) -> Iterator[Latents]:
        """Yield the latents after each of T synchronous sweeps."""
        for before in moves(given.dictionary, given.steps, given.count):
            w = close(given.dictionary, before, given.steps)
            yield w

    def recomputed(self, given: SolverInput, levels: int) -> Latents:
        """Return the latents; each sweep is run once more for its derivatives."""
        dictionary, steps = given.dictionary, given.steps
        signal = dictionary.signal_slots()

        def sweep(w: Latents, first: bool) -> Latents:
            return close(dictionary, move(dictionary, w, signal, steps, first), steps)

        w = zero(dictionary)
        for t in range(given.count):
            w = checkpoint(sweep, w, t == 0, use_reentrant=False, preserve_rng_state=False)
        return w

    def through_last(self, given: SolverInput, kept: int) -> Latents:
        """Return the latents with derivatives through the last ``kept`` sweeps alone."""
        dictionary, steps = given.dictionary, given.steps
        with torch.no_grad():
            w = zero(dictionary)
            for before in moves(dictionary, steps, given.count - kept):
                w = close(dictionary, before, steps)
        signal = dictionary.signal_slots()
        for _ in range(kept):
            w = close(dictionary, move(dictionary, w, signal, steps, first=False), steps)
        return w


def zero(dictionary: StructuredDictionary) -> Latents:
    """Return w^0 = 0."""
    like = dictionary.inputs[0]
    return [like.new_zeros(shape) for shape in dictionary.shapes]


def moves(
    dictionary: StructuredDictionary, steps: Sequence[Tensor], count: int
) -> Iterator[Latents]:
    """Yield w - g (B^T (B w - y) + lam) of each sweep: the arguments of the proximal operators."""
    w = zero(dictionary)
    signal = dictionary.signal_slots()
    for t in range(count):
        before = move(dictionary, w, signal, steps, first=t == 0)
        yield before
        w = close(dictionary, before, steps)


def move(
    dictionary: StructuredDictionary,
    w: Latents,
    signal: Sequence[Parts],
    steps: Sequence[Tensor],
    first: bool,
) -> Latents:
    """Return w - g (B^T (B w - y) + lam); ``first`` says that w is zero."""
    if first:
        residual = [tuple(-part for part in parts) for parts in signal]
    else:
        residual = dictionary.residual_slots(w, signal)
    moved = []
    for j, row in enumerate(dictionary.rows):
        slope = row.slope(residual[j])
        for term in dictionary.branches[j].terms(lambda at: residual[at[0]][at[1]]):
            slope = slope - term
        moved.append(torch.addcmul(w[j], slope, steps[j], value=-1.0))
    return moved


def close(dictionary: StructuredDictionary, moved: Latents, steps: Sequence[Tensor]) -> Latents:
    """Return prox of every latent."""
    return [
        row.activation.prox(v, step)
        for row, v, step in zip(dictionary.rows, moved, steps, strict=True)
    ]
