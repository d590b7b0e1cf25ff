"""Global pursuit, deep pursuit (Algorithm 2): all latents together, in Gauss-Seidel order.

Where no derivative is recorded the elementwise work is done in place (``solvers/inplace``); the
values are the same, to rounding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from pursuitify.dictionary.structured import StructuredDictionary
from pursuitify.solvers.differentiation.recompute import recomputed
from pursuitify.solvers.differentiation.truncated import through_last
from pursuitify.solvers.global_sweep import SweepState, begin, sweep
from pursuitify.solvers.inplace import descend, descend_extrapolated
from pursuitify.solvers.proximal_step import may_overwrite
from pursuitify.solvers.solver import Latents, Solver, SolverInput
from pursuitify.utils.func_transforms import compiling


class GlobalPursuit(Solver):
    """Deep pursuit: T sweeps over all latents with feedback along every edge (18)."""

    name: ClassVar[str] = "global"
    pursues: ClassVar[bool] = True
    minimises: ClassVar[bool] = True
    extrapolates: ClassVar[bool] = True
    packs_kernels: ClassVar[bool] = True

    def sweeps(self, given: SolverInput, observed: bool = True) -> Iterator[Latents]:
        """Yield the latents after each sweep of Algorithm 2, with the gradient of (18)."""
        dictionary, start, steps, alphas = (
            given.dictionary,
            given.feedforward,
            given.steps,
            given.extrapolation,
        )
        if may_overwrite():
            rest = given.count, observed
            if alphas is None:
                yield from descend.descend(dictionary, start, steps, *rest)
            else:
                yield from descend_extrapolated.descend(dictionary, start, steps, alphas, *rest)
            return
        state = begin(dictionary, start, keep=alphas is not None)
        if compiling() and alphas is None:
            # torch.compile then compiles one sweep, not T copies of it.
            w, r = state.w, state.r
            for _ in range(given.count - 1):
                w, r = _middle_sweep(dictionary, w, r, steps)
                yield list(w)
            yield list(_last_sweep(dictionary, w, r, steps))
            return
        for t in range(given.count):
            weights = alphas if t > 0 else None
            state = sweep(dictionary, state, steps, weights, last=t == given.count - 1)
            yield list(state.w)

    def last(self, given: SolverInput) -> Latents:
        """Return the latents after the last sweep, by packed kernels where nothing is recorded."""
        if given.pack is not None and may_overwrite():
            packed = given.pack(given.dictionary, given.steps, given.extrapolation is not None)
            given = replace(given, dictionary=packed)
        return super().last(given)

    def recomputed(self, given: SolverInput, levels: int) -> Latents:
        """Return the latents; the sweeps between those kept are run again for derivatives."""
        return recomputed(
            given.dictionary,
            given.feedforward,
            given.steps,
            given.extrapolation,
            given.count,
            levels,
        )

    def through_last(self, given: SolverInput, kept: int) -> Latents:
        """Return the latents with derivatives through the last ``kept`` sweeps alone."""
        return through_last(
            given.dictionary,
            given.feedforward,
            given.steps,
            given.extrapolation,
            given.count,
            kept,
        )


@torch.compiler.nested_compile_region
def _middle_sweep(
    dictionary: StructuredDictionary, w: Latents, r: list[list[Tensor]], steps: Sequence[Tensor]
) -> tuple[Latents, list[list[Tensor]]]:
    after = sweep(dictionary, SweepState(w, r, False, [], [], []), steps, None, last=False)
    return after.w, after.r


@torch.compiler.nested_compile_region
def _last_sweep(
    dictionary: StructuredDictionary, w: Latents, r: list[list[Tensor]], steps: Sequence[Tensor]
) -> Latents:
    return sweep(dictionary, SweepState(w, r, False, [], [], []), steps, None, last=True).w
