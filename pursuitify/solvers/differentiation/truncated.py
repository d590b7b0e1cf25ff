"""Derivatives through the last k sweeps only (``memory="implicit"`` with ``implicit_last=k``).

The sweeps before run without a graph and their latents count as constants; what the last k sweeps
read (weights, steps, the input through y) does not. The residuals there are B w - y as a function
of B and y, so that the truncation is in the latents alone. Near a fixed point the error falls
geometrically with k; far from one, as everywhere at small T, the result is biased towards the last
sweeps. At k >= T it is plain unrolling. The k sweeps are recorded as plain unrolling records them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pursuitify.dictionary.structured import StructuredDictionary
from pursuitify.solvers import global_sweep
from pursuitify.solvers.differentiation.column_products import image

Latents = list[Tensor]


def through_last(
    dictionary: StructuredDictionary,
    start: Sequence[Tensor],
    steps: Sequence[Tensor],
    extrapolation: Sequence[Tensor] | None,
    count: int,
    kept: int,
) -> Latents:
    """Return the latents after ``count`` sweeps of Algorithm 2, the last ``kept`` recorded.

    Args:
        dictionary: The bound dictionary.
        start: The feed-forward latents.
        steps: gamma_j per latent.
        extrapolation: alpha_j per latent, or None for none.
        count: T, the number of sweeps.
        kept: k, at least 1 and less than T.
    """
    before: Sequence[Tensor] = start
    with torch.no_grad():
        state = global_sweep.begin(dictionary, start, keep=extrapolation is not None)
        for t in range(count - kept):
            before = state.w
            state = global_sweep.sweep(
                dictionary, state, steps, extrapolation if t else None, last=False, inplace=t > 0
            )
    state = _attached_with_memory(dictionary, state, before)
    for t in range(count - kept, count):
        state = global_sweep.sweep(dictionary, state, steps, extrapolation, last=t == count - 1)
    return state.w


def attached(
    dictionary: StructuredDictionary, r: Sequence[Sequence[Tensor]], w: Sequence[Tensor]
) -> list[list[Tensor]]:
    """Return residuals at ``w`` that depend on what the dictionary holds.

    Args:
        dictionary: The bound dictionary.
        r: The residuals without derivatives, in slots.
        w: The latents, which count as constants.
    """
    signal = dictionary.signal_slots()
    return [
        # The value is the sweeps' own, to the last bit; the derivative is that of B w - y.
        [value + ((b - y) - (b - y).detach()) for value, b, y in zip(*parts, strict=True)]
        for parts in zip(r, dictionary.apply_slots(w), signal, strict=True)
    ]


def _attached_with_memory(
    dictionary: StructuredDictionary, state: global_sweep.SweepState, before: Sequence[Tensor]
) -> global_sweep.SweepState:
    """Return the state with ``attached`` residuals, and the last change where that is kept."""
    r = attached(dictionary, state.r, state.w)
    after = global_sweep.SweepState(state.w, r, state.keep, [], [], [])
    if state.keep:
        for j, (w, last) in enumerate(zip(state.w, before, strict=True)):
            after.change.append((w - last).detach())
            moved = image(dictionary, j, after.change[j])
            after.own.append(moved.own)
            after.read.append(moved.read)
    return after
