"""Exact derivatives of the sweeps from their latents alone (``memory="recompute"``).

The sweeps run without a graph; of each only the latents are kept. The residuals are not: their
updates are linear, so that the reverse pass (``reverse_sweep.py``) takes them back one by one,
latent by latent, and only one update's intermediate values are alive at a time. With two levels
only every ceil(sqrt(T))-th sweep's latents are kept (``checkpoint_schedule.py``).

What the sweeps read (weights, scales, gates, thresholds, steps) is taken out of the bound
dictionary and passed to autograd tensor by tensor (``tensor_extraction.py``). A tensor hidden where
it cannot be found is met with an error at the first sweep, never with a lost derivative.

The operations of a sweep and their order are those of plain unrolling, so outputs are the same;
derivatives agree to rounding. Derivatives of derivatives are refused with an error.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pursuitify.dictionary.structured import StructuredDictionary
from pursuitify.solvers import global_sweep
from pursuitify.solvers.differentiation.checkpoint_schedule import (
    Arguments,
    CheckpointPlan,
    KeptSweeps,
    begin_again,
    run_on,
)
from pursuitify.solvers.differentiation.column_products import Cotangents
from pursuitify.solvers.differentiation.reverse_sweep import Reverse, undo
from pursuitify.solvers.differentiation.tensor_extraction import put_in, take_out
from pursuitify.solvers.differentiation.tensor_uses import held_by, read_by_sweeps

Latents = list[Tensor]


def recomputed(
    dictionary: StructuredDictionary,
    start: Sequence[Tensor],
    steps: Sequence[Tensor],
    extrapolation: Sequence[Tensor] | None,
    count: int,
    levels: int,
) -> Latents:
    """Return the latents after ``count`` sweeps of Algorithm 2.

    Args:
        dictionary: The bound dictionary.
        start: The feed-forward latents.
        steps: gamma_j per latent.
        extrapolation: alpha_j per latent, or None for none.
        count: T >= 1, the number of sweeps.
        levels: 1 keeps the latents of every sweep, 2 those of every ceil(sqrt(T))-th.

    Raises:
        OptionError: If an operation holds a tensor where it cannot be found.
    """
    # The residuals at the start are plain autograd's: no more of it is alive than in one layer.
    r = global_sweep.begin(dictionary, start, keep=False).r
    skeleton, held = take_out(read_by_sweeps(dictionary))
    plan = CheckpointPlan.of(
        skeleton, r, extrapolation is not None, count, levels, start[0].device.type
    )
    given = Arguments(list(start), r, list(steps), list(extrapolation or ()), held)
    return list(_Recomputed.apply(plan, *given.flat()))


class _Recomputed(torch.autograd.Function):
    """The sweeps, and their adjoint."""

    @staticmethod
    def forward(ctx: Any, plan: CheckpointPlan, *tensors: Tensor) -> tuple[Tensor, ...]:
        given = Arguments.sorted(plan, tensors)
        plain = Arguments.sorted(plan, [t.detach() for t in tensors])
        dictionary = put_in(plan.skeleton, plain.held)
        record = KeptSweeps({0: given.start}, given.r)
        state = global_sweep.SweepState(plain.start, plain.r, plan.extrapolates, [], [], [])
        for t, after in enumerate(run_on(plan, dictionary, plain, state, 0, plan.count), 1):
            record.note(plan, t, after)
            state = after
        ctx.plan, ctx.times = plan, tuple(record.latents)
        ctx.save_for_backward(*given.steps, *given.extrapolation, *given.held, *record.flat())
        ctx.set_materialize_grads(False)
        return tuple(state.w)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *w_bar: Tensor | None) -> tuple[Tensor | None, ...]:
        plan: CheckpointPlan = ctx.plan
        given, record = plan.restore(ctx.saved_tensors, ctx.times)
        wanted = Arguments.sorted(plan, ctx.needs_input_grad[1:])
        with plan.cast():
            run = _stand_at_end(plan, given, wanted, w_bar)
            for first, stop in reversed(plan.stretches()):
                latents = begin_again(plan, given, record, run, first, stop)
                for t in reversed(range(first, stop)):
                    earlier = latents[t - 1] if plan.extrapolates and t > 0 else None
                    last = t == plan.count - 1
                    undo(run, latents[t + 1], latents[t], earlier, last)
                    del latents[t + 1]
        r_bar = [bar for row in run.r_bar for bar in row]
        alphas = run.extrapolation_bars if plan.extrapolates else []
        return (None, *run.w_bar, *r_bar, *run.step_bars, *alphas, *run.tensor_bars)


def _stand_at_end(
    plan: CheckpointPlan,
    given: Arguments[Tensor],
    wanted: Arguments[bool],
    w_bar: Sequence[Tensor | None],
) -> Reverse:
    """Return the reverse run before its first step; its residuals are still missing."""
    held = [
        t.detach().requires_grad_(want) for t, want in zip(given.held, wanted.held, strict=True)
    ]
    size = len(plan.slots)
    r_bar: Cotangents = [[None] * n for n in plan.slots]
    return Reverse(
        dictionary=put_in(plan.skeleton, held),
        tensors=held,
        held=held_by(plan.skeleton, wanted.held),
        steps=given.steps,
        extrapolation=given.extrapolation if plan.extrapolates else None,
        r=[],
        w_bar=list(w_bar),
        r_bar=r_bar,
        tensor_bars=[None] * len(held),
        step_bars=[None] * size,
        extrapolation_bars=[None] * size,
        change_bar=[None] * size,
        image_bar=[None] * size,
        kept=[None] * size,
    )
