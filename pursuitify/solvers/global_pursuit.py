"""Global pursuit, deep pursuit (Algorithm 2): all latents together, in Gauss-Seidel order.

Where no derivative is recorded the elementwise work is done in place (``solvers/inplace``); the
values are the same, to rounding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from pursuitify.dictionary.structured import StructuredDictionary
from pursuitify.solvers import adaptive_sweep
from pursuitify.solvers.adaptive_sweep import AdaptiveState
from pursuitify.solvers.differentiation import adaptive
from pursuitify.solvers.differentiation.recompute import recomputed
from pursuitify.solvers.differentiation.truncated import through_last
from pursuitify.solvers.global_sweep import SweepState, begin, sweep
from pursuitify.solvers.inplace import descend, descend_adaptive, descend_extrapolated
from pursuitify.solvers.line_search import LineSearch
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
    adapts: ClassVar[bool] = True

    def sweeps(self, given: SolverInput, observed: bool = True) -> Iterator[Latents]:
        """Yield the latents after each sweep of Algorithm 2, with the gradient of (18)."""
        if given.search is not None:
            yield from self._adaptive(given, given.search, observed)
            return
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

    def _adaptive(
        self, given: SolverInput, search: LineSearch, observed: bool
    ) -> Iterator[Latents]:
        """Yield the latents after each sweep with adaptive steps."""
        dictionary, estimates = given.dictionary, given.steps
        if may_overwrite():
            start, run = given.feedforward, (given.count, observed)
            yield from descend_adaptive.descend(dictionary, start, estimates, search, *run)
            return
        if compiling():
            # They may be views of one vector, and what is compiled once takes no such arguments.
            estimates = [estimate.clone() for estimate in estimates]
        state = adaptive_sweep.begin(dictionary, given.feedforward, estimates, search)
        if compiling():
            w, r, steps = state.w, state.r, state.steps
            for _ in range(given.count - 1):
                w, r, steps = _middle_adaptive(dictionary, w, r, steps, estimates, search)
                yield list(w)
            yield list(_last_adaptive(dictionary, w, r, steps, estimates, search))
            return
        for t in range(given.count):
            last = t == given.count - 1
            state = adaptive_sweep.sweep(dictionary, state, estimates, search, last=last)
            yield list(state.w)

    def last(self, given: SolverInput) -> Latents:
        """Return the latents after the last sweep, by packed kernels where nothing is recorded."""
        return super().last(given.packed() if may_overwrite() else given)

    def recomputed(self, given: SolverInput, levels: int) -> Latents:
        """Return the latents; the sweeps between those kept are run again for derivatives."""
        if given.search is not None:
            rest = given.search, given.count, levels
            return adaptive.recomputed(given.dictionary, given.feedforward, given.steps, *rest)
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
        if given.search is not None:
            rest = given.search, given.count, kept
            return adaptive.through_last(given.dictionary, given.feedforward, given.steps, *rest)
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


@torch.compiler.nested_compile_region
def _middle_adaptive(
    dictionary: StructuredDictionary,
    w: Latents,
    r: list[list[Tensor]],
    steps: list[Tensor],
    estimates: Sequence[Tensor],
    search: LineSearch,
) -> tuple[Latents, list[list[Tensor]], list[Tensor]]:
    state = AdaptiveState(w, r, steps)
    after = adaptive_sweep.sweep(dictionary, state, estimates, search, last=False)
    return after.w, after.r, after.steps


@torch.compiler.nested_compile_region
def _last_adaptive(
    dictionary: StructuredDictionary,
    w: Latents,
    r: list[list[Tensor]],
    steps: list[Tensor],
    estimates: Sequence[Tensor],
    search: LineSearch,
) -> Latents:
    state = AdaptiveState(w, r, steps)
    return adaptive_sweep.sweep(dictionary, state, estimates, search, last=True).w
