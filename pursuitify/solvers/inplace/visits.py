"""Visits: the work of a sweep in place (``descend``) at each latent, planned once per call."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pursuitify.dictionary.bound_rows import BoundRow
from pursuitify.dictionary.readers import Branch
from pursuitify.dictionary.structured import StructuredDictionary
from pursuitify.solvers.inplace.pooled_latents import pools_alone
from pursuitify.solvers.inplace.shared_concats import DIM, Concats


@dataclass(frozen=True, eq=False)
class Reading:
    """The step of a row that scales a concat, of which -c_i is held: see ``shared_concats``.

    Attributes:
        held: -c_i.
        factor: -gamma_j s_j.
        offset: -gamma_j lam_j.
        keep: What is left of the old latent: 1 - gamma_j, less gamma_j for every link.
    """

    held: Tensor
    factor: Tensor
    offset: Tensor | None
    keep: Tensor

    def step(self, old: Tensor, into: Tensor) -> Tensor:
        """Return keep w_j + gamma_j (s_j c_j - lam_j), in ``into``."""
        if self.offset is None:
            value = torch.mul(self.held, self.factor, out=into)
        else:
            value = torch.addcmul(self.offset, self.held, self.factor, out=into)
        return value.addcmul_(old, self.keep)


@dataclass(frozen=True, eq=False)
class Visit:
    """The work of a sweep at one latent.

    Attributes:
        row: Its row.
        link: The latent that the row subtracts, where the row is a link.
        links: Rows that are links to this latent.
        others: The other readers.
        step: gamma_j.
        reading: What is held of the row where that is a concat; it has no residual then.
    """

    row: BoundRow
    link: int | None
    links: tuple[int, ...]
    others: Branch
    step: Tensor
    reading: Reading | None = None

    @property
    def residual(self) -> bool:
        """Whether a residual of the row is held."""
        return self.link is None and self.reading is None

    @functools.cached_property
    def pooled(self) -> bool:
        """Whether the latent's pools are held, and its residual, if there is one, made anew.

        A residual can be where nothing of the row changes but the latent.
        """
        still = self.row.diagonal is not None and self.row.reads_inputs
        return pools_alone(self.others) and (self.link is not None or still)

    @functools.cached_property
    def moves(self) -> bool:
        """Whether something needs the latent's change."""
        read = self.residual or self.others.targets or self.others.through
        return bool(read) and not self.pooled


def visits_of(
    dictionary: StructuredDictionary, steps: Sequence[Tensor], concats: Concats | None = None
) -> list[Visit]:
    """Return what a sweep does at each latent."""
    links = [row.link for row in dictionary.rows]
    visits = []
    for j, (row, branch) in enumerate(zip(dictionary.rows, dictionary.branches, strict=True)):
        direct = tuple(i for i, _ in branch.targets if links[i] is not None)
        rest = tuple(target for target in branch.targets if links[target[0]] is None)
        others, reading = Branch(rest, branch.through), None
        if concats is not None:
            others = concats.branch(others, len(links))
            if j in concats.runs:
                reading = _reading(row, concats, j, steps[j], len(direct), dictionary.shapes[j])
        visits.append(Visit(row, links[j], direct, others, steps[j], reading))
    return visits


def _reading(
    row: BoundRow, concats: Concats, j: int, step: Tensor, links: int, shape: torch.Size
) -> Reading:
    run = concats.runs[j]
    offset = None if row.threshold is None else -step * row.threshold
    if row.offset is not None:
        given = step * row.offset
        offset = given if offset is None else offset + given
    return Reading(
        concats.view(run, shape[DIM]), -step * run.factor, offset, 1 - (1 + links) * step
    )
