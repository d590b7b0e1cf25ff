"""Global pursuit with extrapolation where no derivative is recorded: ``descend`` with a memory.

A step starts at v_j = w_j + alpha_j d_j, where d_j is the latent's last change. Residuals are held
at w; at v_j they follow from the products of d_j, which are kept from when they were applied.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pursuitify.dictionary.readers import Branch, PartOf, Target
from pursuitify.dictionary.structured import StructuredDictionary
from pursuitify.solvers.inplace.descend import Spares, held_at, product_into, take_step
from pursuitify.solvers.inplace.visits import Visit, visits_of


@dataclass(eq=False)
class _Last:
    """The parts of a latent's last change d_j that the next sweep reads.

    Attributes:
        change: d_j.
        own: B_j d_j; of a link row B_j v_j.
        read: B_jk^T d_j by the slot that reads it.
    """

    change: Tensor
    own: Tensor
    read: dict[Target, Tensor] = field(default_factory=dict)


def descend(
    dictionary: StructuredDictionary,
    start: Sequence[Tensor],
    steps: Sequence[Tensor],
    extrapolation: Sequence[Tensor],
    count: int,
    observed: bool,
) -> Iterator[list[Tensor]]:
    """Yield the latents after each sweep; see ``GlobalPursuit.sweeps``.

    Args:
        dictionary: The bound dictionary.
        start: The feed-forward latents.
        steps: gamma_j per latent.
        extrapolation: alpha_j per latent.
        count: T, the number of sweeps.
        observed: Whether the caller keeps what a sweep yields after the next one.
    """
    visits, spares, w = visits_of(dictionary, steps), Spares(), list(start)
    full, slots = held_at(visits, w)
    memory: list[_Last | None] = [None] * len(w)
    for t in range(count):
        recycle, last = t > 0 and not observed, t == count - 1
        for j, visit in enumerate(visits):
            old, kept, alpha = w[j], memory[j], extrapolation[j]
            at = old
            if kept is not None:
                at = torch.addcmul(old, kept.change, alpha, out=spares.take(old))
            alone = kept is not None and len(visit.links) <= 1
            into = at if alone else spares.take(old)
            r = _residual(visit, j, w, full, kept, alpha, spares)
            w[j] = new = take_step(visit, at, into, r, full, _reader(slots, kept, alpha))
            if kept is not None and not alone:
                spares.give(at)
            if r is not full[j]:
                spares.give(r)
            change = kept.change if kept is not None else spares.take(old)
            torch.sub(new, old, out=change)
            if recycle:
                spares.give(old)
            read = _subtract_products(visit.others, change, slots)
            if last:
                continue
            if visit.link is not None:
                # What is taken here makes up for ``r`` of a link row, which was given above.
                before, full[j] = full[j], product_into(visit.row, spares.take(full[j]), new)
                slots[j] = [full[j]]
                own = torch.lerp(full[j], before, -alpha, out=before)
            else:
                own = visit.row.product(change)
                full[j].add_(own)
            memory[j] = _Last(change, own, read)
        yield list(w)


def _residual(
    visit: Visit,
    j: int,
    w: Sequence[Tensor],
    full: Sequence[Tensor],
    kept: _Last | None,
    alpha: Tensor,
    spares: Spares,
) -> Tensor:
    """Return the row's residual where the step starts; of ``full`` nothing is overwritten."""
    if visit.link is not None:
        product = full[j] if kept is None else kept.own
        into = spares.take(product) if kept is None else product
        return torch.sub(product, w[visit.link], out=into)
    if kept is None:
        return full[j]
    return torch.addcmul(full[j], kept.own, alpha, out=spares.take(full[j]))


def _reader(slots: list[list[Tensor]], kept: _Last | None, alpha: Tensor) -> PartOf:
    """Return how to look up a reader's residual where the step starts."""

    def part(target: Target) -> Tensor:
        value = slots[target[0]][target[1]]
        if kept is None:
            return value
        return torch.addcmul(value, kept.read[target], alpha, value=-1.0)

    return part


def _subtract_products(
    branch: Branch, change: Tensor, slots: list[list[Tensor]]
) -> dict[Target, Tensor]:
    """Subtract the change's products from the slots that read it; return them by slot."""
    read: dict[Target, Tensor] = {}
    for target, product in branch.products(change):
        slots[target[0]][target[1]].sub_(product)
        read[target] = read[target] + product if target in read else product
    return read
