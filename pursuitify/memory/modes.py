"""From the setting ``memory`` to who keeps what."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from pursuitify.dictionary import StructuredDictionary
from pursuitify.memory.checkpoints import layered_recomputed, synchronous_recomputed
from pursuitify.memory.recompute import recomputed
from pursuitify.settings import Settings


def solve(
    settings: Settings,
    dictionary: StructuredDictionary,
    start: Sequence[Tensor],
    steps: Sequence[Tensor],
    extrapolation: Sequence[Tensor] | None,
) -> list[Tensor]:
    """Return the latents after the last sweep, to be differentiated as ``settings.memory`` says.

    Args:
        settings: The network's options; ``memory`` is not ``"store"``.
        dictionary: The bound dictionary.
        start: The feed-forward latents.
        steps: gamma_j per latent.
        extrapolation: alpha_j per latent, or None for none.
    """
    count = settings.iterations
    if settings.solver == "layered":
        return layered_recomputed(dictionary, start, steps, count)
    if settings.solver == "synchronous":
        return synchronous_recomputed(dictionary, steps, count)
    return recomputed(dictionary, start, steps, extrapolation, count, settings.recompute_levels)
