"""From the setting ``memory`` to who keeps what."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

from pursuitify.dictionary.structured import StructuredDictionary
from pursuitify.errors import OptionError
from pursuitify.solvers import global_pursuit, synchronous
from pursuitify.solvers.differentiation.checkpointed import (
    layered_recomputed,
    synchronous_recomputed,
)
from pursuitify.solvers.differentiation.implicit import Request, implicit
from pursuitify.solvers.differentiation.recompute import recomputed
from pursuitify.solvers.differentiation.truncated import synchronous_through_last, through_last
from pursuitify.solvers.settings import Settings, Solves

Latents = list[Tensor]


def solve(
    settings: Settings,
    dictionary: StructuredDictionary,
    start: Sequence[Tensor],
    steps: Sequence[Tensor],
    extrapolation: Sequence[Tensor] | None,
) -> Latents:
    """Return the latents after the last sweep, to be differentiated as ``settings.memory`` says.

    Args:
        settings: The network's options; ``memory`` is not ``"store"``.
        dictionary: The bound dictionary.
        start: The feed-forward latents.
        steps: gamma_j per latent.
        extrapolation: alpha_j per latent, or None for none.

    Raises:
        OptionError: If the solver has no derivatives of this kind, or an operation holds a tensor
            where it cannot be found.
    """
    count, solver = settings.iterations, settings.solver
    if settings.memory == "recompute":
        if solver == "layered":
            return layered_recomputed(dictionary, start, steps, count)
        if solver == "synchronous":
            return synchronous_recomputed(dictionary, steps, count)
        levels = settings.recompute_levels
        return recomputed(dictionary, start, steps, extrapolation, count, levels)
    if solver == "layered":
        raise OptionError(
            "memory='implicit' has no meaning for solver='layered', whose latents minimise no "
            "common objective: use memory='store' or 'recompute', or the global solver"
        )
    last = settings.implicit_last
    if last is not None and last < count:
        if solver == "synchronous":
            return synchronous_through_last(dictionary, steps, count, last)
        return through_last(dictionary, start, steps, extrapolation, count, last)

    def sweeps() -> Iterator[Latents]:
        if solver == "synchronous":
            return synchronous.synchronous(dictionary, steps, count)
        return global_pursuit.global_pursuit(
            dictionary, start, steps, extrapolation, count, observed=False
        )

    if last is not None:
        *_, w = sweeps()
        return w

    def report(outcome: Solves) -> None:
        settings.solves = outcome

    if solver == "synchronous":
        extrapolation = None
    request = Request(settings.implicit_iterations, settings.implicit_tolerance, report)
    return implicit(dictionary, sweeps, steps, extrapolation, request)
