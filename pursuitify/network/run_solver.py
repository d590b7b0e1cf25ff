"""From a network's settings to a solver: the one place that knows all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from pursuitify.dictionary.structured import StructuredDictionary
from pursuitify.errors import InputError
from pursuitify.solvers import differentiation, global_pursuit, layered, proximal_step, synchronous
from pursuitify.solvers.settings import Settings
from pursuitify.utils import func_transforms

Packed = Callable[[StructuredDictionary, Sequence[Tensor], bool], StructuredDictionary]


def states(
    settings: Settings,
    dictionary: StructuredDictionary,
    start: Sequence[Tensor],
    steps: Sequence[Tensor],
    extrapolation: Sequence[Tensor] | None,
    observed: bool = True,
) -> Iterator[list[Tensor]]:
    """Yield the latents after every sweep of the network's solver.

    Args:
        settings: The network's options.
        dictionary: The bound dictionary.
        start: The feed-forward latents.
        steps: gamma_j per latent.
        extrapolation: alpha_j per latent, or None for none.
        observed: Whether the caller keeps what a sweep yields after the next one.
    """
    if settings.solver == "feedforward":
        return iter(())
    if settings.solver == "layered":
        return layered.layered(dictionary, start, steps, settings.iterations)
    if settings.solver == "synchronous":
        return synchronous.synchronous(dictionary, steps, settings.iterations)
    return global_pursuit.global_pursuit(
        dictionary, start, steps, extrapolation, settings.iterations, observed
    )


def start(
    settings: Settings, dictionary: StructuredDictionary, feedforward: Sequence[Tensor]
) -> Sequence[Tensor]:
    """Return where the network's solver starts."""
    return synchronous.zero(dictionary) if settings.solver == "synchronous" else feedforward


def solve(
    settings: Settings,
    dictionary: StructuredDictionary,
    start: Sequence[Tensor],
    steps: Sequence[Tensor],
    extrapolation: Sequence[Tensor] | None,
    packed: Packed | None = None,
) -> list[Tensor]:
    """Return the latents after the last sweep.

    Args:
        settings: The network's options.
        dictionary: The bound dictionary.
        start: The feed-forward latents.
        steps: gamma_j per latent.
        extrapolation: alpha_j per latent, or None for none.
        packed: Returns the dictionary with its kernels packed, for sweeps in place.
    """
    if settings.memory != "store" and _differentiated():
        if func_transforms.active():
            raise InputError(
                f"memory={settings.memory!r} works with autograd alone, not under torch.func or "
                "forward-mode derivatives: set net.memory = 'store'"
            )
        return differentiation.solve(settings, dictionary, start, steps, extrapolation)
    if packed is not None and settings.solver == "global" and proximal_step.may_overwrite():
        dictionary = packed(dictionary, steps, extrapolation is not None)
    last = list(start)
    for state in states(settings, dictionary, start, steps, extrapolation, observed=False):
        last = state
    return last


def _differentiated() -> bool:
    """Whether derivatives are recorded by autograd as the network runs, not by a compiler."""
    return torch.is_grad_enabled() and not torch.compiler.is_compiling()
