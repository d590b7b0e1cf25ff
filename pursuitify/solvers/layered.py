"""Layered pursuit, L-BP (Algorithm 1): each row is solved on its own, in order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from pursuitify.dictionary.bound_rows import BoundRow
from pursuitify.dictionary.norm_bounds import Norms, lipschitz
from pursuitify.dictionary.structured import StructuredDictionary
from pursuitify.solvers.proximal_step import may_overwrite, proximal_step
from pursuitify.solvers.solver import Latents, Solver, SolverInput
from pursuitify.solvers.step_sizes import step_sizes


class LayeredPursuit(Solver):
    """Layered basis pursuit: row after row by T proximal-gradient steps, u_j fixed meanwhile.

    On an encoder row a step of size 1 is the layer itself. Its latents minimise no common
    objective, and are known at the end alone.
    """

    name: ClassVar[str] = "layered"
    pursues: ClassVar[bool] = True
    passes_through: ClassVar[bool] = False

    def step_sizes(
        self, dictionary: StructuredDictionary, norms: Norms, betas: Sequence[Tensor]
    ) -> list[Tensor]:
        """Return gamma_j from the row's own operator alone, as Algorithm 1 needs."""
        constants = lipschitz(dictionary, norms, layered=True)
        return step_sizes(constants, betas, dictionary.names, dictionary.inputs[0].dtype)

    def sweeps(self, given: SolverInput, observed: bool = True) -> Iterator[Latents]:
        """Yield the latents once, after T steps on every row."""
        w = list(given.feedforward)
        for j in range(len(w)):
            w[j] = solve_row(given.dictionary, j, w, given.steps[j], given.count)
        yield w

    def recomputed(self, given: SolverInput, levels: int) -> Latents:
        """Return the latents; a row's steps are run once more for its derivatives."""
        w = list(given.feedforward)
        for j in range(len(w)):
            w[j] = checkpoint(
                solve_row,
                given.dictionary,
                j,
                list(w),
                given.steps[j],
                given.count,
                use_reentrant=False,
                preserve_rng_state=False,
            )
        return w


def solve_row(
    dictionary: StructuredDictionary, j: int, w: Latents, step: Tensor, count: int
) -> Tensor:
    """Return latent j after ``count`` proximal-gradient steps on its own row, from ``w[j]``."""
    row, latent, inplace = dictionary.rows[j], w[j], may_overwrite()
    read = tuple(_read(dictionary, row, s, w, like) for s, like in enumerate(row.u))
    u = row.add_offset(read)
    for _ in range(count):
        parts = tuple(b - part for b, part in zip(row.decode(latent), u, strict=True))
        latent = proximal_step(row, latent, row.slope(parts), step, inplace)
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
