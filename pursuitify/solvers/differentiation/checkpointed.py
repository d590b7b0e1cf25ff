"""Layered and synchronous pursuit by torch's own checkpoints.

Each keeps one state per unit of work and runs the unit once more when its derivatives are wanted:
a row of layered pursuit, a sweep of synchronous pursuit. Nothing of another unit is alive then.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

from torch import Tensor
from torch.utils.checkpoint import checkpoint

from pursuitify.dictionary import structured
from pursuitify.dictionary.structured import StructuredDictionary
from pursuitify.solvers import layered, synchronous

_keep = functools.partial(checkpoint, use_reentrant=False, preserve_rng_state=False)


def layered_recomputed(
    dictionary: StructuredDictionary, start: Sequence[Tensor], steps: Sequence[Tensor], count: int
) -> list[Tensor]:
    """Return the latents after Algorithm 1, as ``pursuit.layered`` gives them.

    Args:
        dictionary: The bound dictionary.
        start: The feed-forward latents.
        steps: gamma_j per latent.
        count: T, the number of steps per row.
    """
    w = list(start)
    for j in range(len(w)):
        w[j] = _keep(layered.solve_row, dictionary, j, list(w), steps[j], count)
    return w


def synchronous_recomputed(
    dictionary: StructuredDictionary, steps: Sequence[Tensor], count: int
) -> list[Tensor]:
    """Return the latents after synchronous pursuit, as ``synchronous.synchronous`` gives them.

    Args:
        dictionary: The bound dictionary.
        steps: The step size, once per latent.
        count: T, the number of sweeps.
    """
    signal = structured.signal_of(dictionary)

    def sweep(w: list[Tensor], first: bool) -> list[Tensor]:
        moved = synchronous.move(dictionary, w, signal, steps, first)
        return synchronous.close(dictionary, moved, steps)

    w = synchronous.zero(dictionary)
    for t in range(count):
        w = _keep(sweep, w, t == 0)
    return w
