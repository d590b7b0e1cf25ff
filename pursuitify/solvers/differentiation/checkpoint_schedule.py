"""The schedule of sweeps whose latents are kept, and the repetition of the sweeps between them.

With one level the latents of every sweep are kept and nothing is run again. With two, a stretch is
ceil(sqrt(T)) sweeps long, and of each stretch only the latents at its start are kept (two sweeps'
where there is extrapolation, which reads the last change). The residuals at the start of a stretch
follow from those at its end, where the reverse run stands: r_start = r_end - K (w_end - w_start).
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from pursuitify.dictionary.structured import StructuredDictionary
from pursuitify.solvers import global_sweep
from pursuitify.solvers.differentiation.column_products import Residuals, image
from pursuitify.solvers.differentiation.reverse_sweep import Reverse
from pursuitify.solvers.differentiation.tensor_extraction import put_in
from pursuitify.solvers.differentiation.tensor_uses import refuse_hidden

Latents = list[Tensor]
Value = TypeVar("Value")


@dataclass(frozen=True, eq=False)
class CheckpointPlan:
    """The inputs of a run beside tensors.

    Attributes:
        skeleton: The dictionary without its tensors.
        slots: Number of slots per row.
        extrapolates: Whether there are extrapolation weights.
        count: T, the number of sweeps.
        stride: Length of a stretch.
        keeps_all: Whether every sweep's latents are kept.
        device: Kind of device.
        precision: The dtype of autocast, or None where it is off.
    """

    skeleton: StructuredDictionary
    slots: tuple[int, ...]
    extrapolates: bool
    count: int
    stride: int
    keeps_all: bool
    device: str
    precision: torch.dtype | None

    @classmethod
    def of(
        cls,
        skeleton: StructuredDictionary,
        r: Residuals,
        extrapolates: bool,
        count: int,
        levels: int,
        device: str,
    ) -> CheckpointPlan:
        """Make the plan of a run of ``count`` sweeps."""
        keeps_all = levels == 1
        stride = count if keeps_all else math.isqrt(count - 1) + 1
        autocast = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
        precision = torch.get_autocast_dtype(device) if autocast else None
        slots = tuple(len(parts) for parts in r)
        return cls(skeleton, slots, extrapolates, count, stride, keeps_all, device, precision)

    def stretches(self) -> list[tuple[int, int]]:
        """Return (first, stop) of each stretch of sweeps."""
        starts = [*range(0, self.count, self.stride), self.count]
        return list(itertools.pairwise(starts))

    def cast(self) -> contextlib.AbstractContextManager[Any]:
        """Return the precision of the forward pass, for what is run again.

        Casts of weights are not cached: a cached one would stand outside the graph it is used in.
        """
        if self.precision is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device, self.precision, cache_enabled=False)

    def restore(
        self, saved: Sequence[Tensor], times: Sequence[int]
    ) -> tuple[Arguments[Tensor], KeptSweeps]:
        """Sort what was kept: the arguments but for start and residuals, and the record."""
        rest = [t.detach() for t in saved]
        size = len(self.slots)

        def take(count: int) -> list[Tensor]:
            taken, rest[:count] = rest[:count], []
            return taken

        kept, flat = len(times) * size, sum(self.slots)
        steps, alphas = take(size), take(size if self.extrapolates else 0)
        held = take(len(rest) - kept - flat)
        latents = {t: take(size) for t in times}
        return Arguments([], [], steps, alphas, held), KeptSweeps(
            latents, _nested(self, take(flat))
        )


@dataclass(frozen=True, eq=False)
class Arguments(Generic[Value]):
    """The arguments of a run: tensors, or one value for each of them.

    Attributes:
        start: Per latent, where it starts.
        r: The residuals there.
        steps: gamma_j per latent.
        extrapolation: alpha_j per latent; empty for none.
        held: The tensors that stood in the dictionary.
    """

    start: list[Value]
    r: list[list[Value]]
    steps: list[Value]
    extrapolation: list[Value]
    held: list[Value]

    def flat(self) -> list[Value]:
        """Return all in the order ``sorted`` reads them."""
        parts = itertools.chain.from_iterable(self.r)
        return [*self.start, *parts, *self.steps, *self.extrapolation, *self.held]

    @staticmethod
    def sorted(plan: CheckpointPlan, values: Sequence[Value]) -> Arguments[Value]:
        """Sort a flat sequence."""
        size, rest = len(plan.slots), iter(values)
        start = list(itertools.islice(rest, size))
        r = _nested(plan, list(itertools.islice(rest, sum(plan.slots))))
        steps = list(itertools.islice(rest, size))
        alphas = list(itertools.islice(rest, size if plan.extrapolates else 0))
        return Arguments(start, r, steps, alphas, list(rest))


@dataclass(eq=False)
class KeptSweeps:
    """The record that a forward run keeps for the reverse one.

    Attributes:
        latents: By number of sweeps done, the latents.
        r: The residuals at the end, or at the start of the last stretch if that is run again.
    """

    latents: dict[int, Latents]
    r: Residuals

    def note(self, plan: CheckpointPlan, t: int, state: global_sweep.SweepState) -> None:
        """Keep what is needed of the state after ``t`` sweeps."""
        starts = {first for first, _ in plan.stretches()}
        starts |= {first - 1 for first in starts} if plan.extrapolates else set()
        if plan.keeps_all or t in starts:
            self.latents[t] = list(state.w)
        if t == (plan.count if plan.keeps_all else plan.stretches()[-1][0]):
            self.r = [list(parts) for parts in state.r]

    def flat(self) -> list[Tensor]:
        """Return all tensors, as ``CheckpointPlan.restore`` reads them."""
        latents = itertools.chain.from_iterable(self.latents.values())
        return [*latents, *itertools.chain.from_iterable(self.r)]


def _nested(plan: CheckpointPlan, flat: Sequence[Value]) -> list[list[Value]]:
    rest = iter(flat)
    return [list(itertools.islice(rest, n)) for n in plan.slots]


def run_on(
    plan: CheckpointPlan,
    dictionary: StructuredDictionary,
    given: Arguments[Tensor],
    state: global_sweep.SweepState,
    first: int,
    stop: int,
) -> Iterator[global_sweep.SweepState]:
    """Yield the states after the sweeps ``first`` to ``stop - 1``.

    Raises:
        OptionError: If an operation holds a tensor where it cannot be found: then the very first
            sweep, run on tensors none of which wants a derivative, has one all the same.
    """
    starts = {start for start, _ in plan.stretches()}
    for t in range(first, stop):
        with torch.enable_grad() if t == 0 else contextlib.nullcontext():
            state = global_sweep.sweep(
                dictionary,
                state,
                given.steps,
                given.extrapolation if plan.extrapolates and t > 0 else None,
                last=t == plan.count - 1,
                # What starts a stretch is kept; under autocast a sum may need a wider dtype.
                inplace=t not in starts and plan.precision is None,
            )
        refuse_hidden(itertools.chain(state.w, *state.r), "recompute")
        yield state


def begin_again(
    plan: CheckpointPlan,
    given: Arguments[Tensor],
    record: KeptSweeps,
    run: Reverse,
    first: int,
    stop: int,
) -> dict[int, Latents]:
    """Return the latents before and after every sweep of a stretch, the one before it included.

    The reverse run stands at ``stop``. Without residuals of its own yet, it is placed there.
    """
    latents = dict(record.latents)
    if plan.keeps_all:
        run.r = [list(parts) for parts in record.r]
        return latents
    plain = [t.detach() for t in run.tensors]
    dictionary = put_in(plan.skeleton, plain)
    end = stop == plan.count
    r = [list(parts) for parts in (record.r if end else run.r)]
    if not end:
        for j in range(len(r)):
            image(dictionary, j, latents[stop][j] - latents[first][j]).take_back(r, j)
    state = global_sweep.SweepState(latents[first], r, plan.extrapolates, [], [], [])
    if plan.extrapolates and first > 0:
        for j, w in enumerate(latents[first]):
            state.change.append(w - latents[first - 1][j])
            moved = image(dictionary, j, state.change[j])
            state.own.append(moved.own)
            state.read.append(moved.read)
    known = stop - 1 if plan.extrapolates else stop
    last = plan.count if end else known - 1
    for t, after in enumerate(run_on(plan, dictionary, given, state, first, last), first + 1):
        latents[t], state = list(after.w), after
    if end:
        run.r = [list(parts) for parts in state.r]
    return latents
