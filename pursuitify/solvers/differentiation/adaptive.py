"""Derivatives of sweeps with adaptive steps, by keeping less than plain unrolling keeps.

The steps and the shares that line searches take depend on the data; their derivatives are part of
the exact ones. The reverse sweep of fixed steps (``reverse_sweep.py``) does not know them, so that
torch's checkpoints stand here: the state between sweeps (latents, residuals, steps) is kept, and
what happens within a sweep is computed again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from pursuitify.dictionary.structured import StructuredDictionary
from pursuitify.solvers import adaptive_sweep
from pursuitify.solvers.adaptive_sweep import AdaptiveState
from pursuitify.solvers.differentiation.truncated import attached
from pursuitify.solvers.line_search import LineSearch

Latents = list[Tensor]


def recomputed(
    dictionary: StructuredDictionary,
    start: Sequence[Tensor],
    estimates: Sequence[Tensor],
    search: LineSearch,
    count: int,
    levels: int,
) -> Latents:
    """Return the latents after ``count`` sweeps, with the derivatives of plain unrolling.

    Args:
        dictionary: The bound dictionary.
        start: The feed-forward latents.
        estimates: About 1 / L_j per latent, times the scale of all steps.
        search: The line search.
        count: T >= 1, the number of sweeps.
        levels: 1 keeps the state of every sweep, 2 that of every ceil(sqrt(T))-th.
    """

    def sweeps(state: AdaptiveState, first: int, stop: int) -> AdaptiveState:
        for t in range(first, stop):
            last = t == count - 1
            state = _kept(
                lambda at, last=last: adaptive_sweep.sweep(
                    dictionary, at, estimates, search, last=last
                ),
                state,
            )
        return state

    state = adaptive_sweep.begin(dictionary, start, estimates, search)
    if levels == 1:
        return sweeps(state, 0, count).w
    stride = math.isqrt(count - 1) + 1
    for first in range(0, count, stride):
        stop = min(first + stride, count)
        state = _kept(lambda at, a=first, b=stop: sweeps(at, a, b), state)
    return state.w


def through_last(
    dictionary: StructuredDictionary,
    start: Sequence[Tensor],
    estimates: Sequence[Tensor],
    search: LineSearch,
    count: int,
    kept: int,
) -> Latents:
    """Return the latents after ``count`` sweeps, the last ``kept`` recorded.

    As in ``truncated.py``: the latents before are constants, and so are the steps that the sweeps
    before have found.

    Args:
        dictionary: The bound dictionary.
        start: The feed-forward latents.
        estimates: As for ``recomputed``.
        search: The line search.
        count: T, the number of sweeps.
        kept: k, at least 1 and less than T.
    """
    with torch.no_grad():
        state = adaptive_sweep.begin(dictionary, start, estimates, search)
        for _ in range(count - kept):
            state = adaptive_sweep.sweep(dictionary, state, estimates, search, last=False)
    state = AdaptiveState(state.w, attached(dictionary, state.r, state.w), state.steps)
    for t in range(count - kept, count):
        last = t == count - 1
        state = adaptive_sweep.sweep(dictionary, state, estimates, search, last=last)
    return state.w


def _kept(run: Any, state: AdaptiveState) -> AdaptiveState:
    """Return ``run(state)``; for derivatives the state alone is kept."""

    def on_tensors(
        w: Latents, r: list[list[Tensor]], steps: list[Tensor]
    ) -> tuple[Latents, list[list[Tensor]], list[Tensor]]:
        after = run(AdaptiveState(w, r, steps))
        return after.w, after.r, after.steps

    return AdaptiveState(
        *checkpoint(
            on_tensors, state.w, state.r, state.steps, use_reentrant=False, preserve_rng_state=False
        )
    )
