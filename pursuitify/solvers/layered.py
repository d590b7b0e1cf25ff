"""Layered pursuit, L-BP (Algorithm 1): each row is solved on its own, in order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from pursuitify.dictionary.bound_rows import BoundRow
from pursuitify.dictionary.structured import StructuredDictionary
from pursuitify.solvers.global_pursuit import Latents
from pursuitify.solvers.proximal_step import _proximal_step, may_overwrite


def layered(
    dictionary: StructuredDictionary, start: Sequence[Tensor], steps: Sequence[Tensor], count: int
) -> Iterator[Latents]:
    """Yield the latents after Algorithm 1: each row solved by ``count`` steps, in order.

    u_j is fixed from finished latents. On an encoder row a step of size 1 is the layer itself.

    Args:
        dictionary: The bound dictionary.
        start: The feed-forward latents, where each row starts (9).
        steps: gamma_j per latent.
        count: T, the number of proximal-gradient steps per row.
    """
    w = list(start)
    for j in range(len(w)):
        w[j] = solve_row(dictionary, j, w, steps[j], count)
    yield w


def solve_row(
    dictionary: StructuredDictionary, j: int, w: Latents, step: Tensor, count: int
) -> Tensor:
    """Return latent j after ``count`` proximal-gradient steps on its own row, from ``w[j]``."""
    row, latent, inplace = dictionary.rows[j], w[j], may_overwrite()
    signal = tuple(_read(dictionary, row, s, w, like) for s, like in enumerate(row.signal))
    for _ in range(count):
        parts = tuple(b - u for b, u in zip(row.decode(latent), signal, strict=True))
        latent = _proximal_step(row, latent, row.slope(parts), step, inplace)
    return latent


def _read(
    dictionary: StructuredDictionary, row: BoundRow, slot: int, w: Latents, like: Tensor
) -> Tensor:
    """Return one slot of u_j from the current latents."""
    total: Tensor | None = None
    for path in row.slots[slot]:
        leaf = dictionary.inputs[-1 - path.leaf] if path.leaf < 0 else w[path.leaf]
        term = path.apply(leaf)
        total = term if total is None else total + term
    return torch.zeros_like(like) if total is None else total
