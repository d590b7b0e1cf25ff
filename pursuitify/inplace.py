"""Global pursuit where no derivative is recorded: the elementwise work in place.

The same values as ``pursuit.sweep`` up to rounding, without extrapolation. What is saved is memory
traffic, which is what remains beside the weighted operators:

* sums go into tensors that are at hand, and the latents' own memory holds their changes;
* a max-pool's adjoint is scattered into the sum it belongs to;
* a *link* row, r_j = B_j w_j - w_k with nothing else in it, is held as its product p_j = B_j w_j.
  Its share of w_k's step is then one interpolation, w_k - gamma (w_k - p_j), and neither latent's
  change has to be formed for it: on a chain 11 passes over memory per latent instead of 17.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pursuitify.bind import BoundRow
from pursuitify.dictionary import StructuredDictionary
from pursuitify.feedback import Branch, Target


@dataclass(frozen=True, eq=False)
class _Place:
    """What a sweep does at one latent.

    Attributes:
        link: The latent that the row subtracts, where the row is a link.
        links: Rows that are links to this latent.
        others: The other readers.
    """

    link: int | None
    links: tuple[int, ...]
    others: Branch

    @property
    def moves(self) -> bool:
        """Whether something needs the latent's change."""
        return bool(self.link is None or self.others.targets or self.others.through)


def descend(
    dictionary: StructuredDictionary,
    start: Sequence[Tensor],
    residual: list[list[Tensor]],
    steps: Sequence[Tensor],
    count: int,
    observed: bool,
) -> Iterator[list[Tensor]]:
    """Yield the latents after each sweep; see ``pursuit.global_pursuit``.

    Args:
        dictionary: The bound dictionary.
        start: The feed-forward latents.
        residual: Per row its residual at ``start``, in slots; overwritten.
        steps: gamma_j per latent.
        count: T, the number of sweeps.
        observed: Whether the caller keeps what a sweep yields after the next one.
    """
    places = _places(dictionary)
    w, r = list(start), residual
    scratch: dict[object, Tensor] = {}
    for j, place in enumerate(places):
        if place.link is not None:
            r[j] = [r[j][0].add_(w[place.link])]
    for t in range(count):
        for j, place in enumerate(places):
            row, last = dictionary.rows[j], t == count - 1
            delta = _step(row, place, j, w, r, steps[j], scratch, t > 0 and not observed)
            if delta is not None:
                place.others.subtract_products(delta, r)
            if last:
                continue
            if delta is None or place.link is not None:
                r[j] = list(row.decode(w[j]))
            else:
                r[j] = [p.add_(q) for p, q in zip(r[j], row.decode(delta), strict=True)]
        yield list(w)


def _step(
    row: BoundRow,
    place: _Place,
    j: int,
    w: list[Tensor],
    r: list[list[Tensor]],
    step: Tensor,
    scratch: dict[object, Tensor],
    recycle: bool,
) -> Tensor | None:
    """Take the proximal step of latent j; return its change, or None where nothing needs it.

    What is no latent and no residual goes through ``scratch``: a large tensor made anew costs more
    than the arithmetic on it, because the system hands out its pages one by one.
    """

    def part(target: Target) -> Tensor:
        return r[target[0]][target[1]]

    old = w[j]
    parts = r[j] if place.link is None else [r[j][0].sub_(w[place.link])]
    slope = place.others.subtract_terms(row.slope(tuple(parts)), part)
    for i in place.links[1:]:
        slope = slope.sub_(r[i][0]).add_(old)
    base, into = old, slope
    if recycle and not place.moves:
        into = old
    if place.links:
        product = r[place.links[0]][0]
        base = torch.lerp(old, product, step, out=into if into is old else _like(old, scratch))
    w[j] = row.activation.prox_(torch.addcmul(base, slope, step, value=-1.0, out=into), step)
    if not place.moves:
        return None
    return torch.sub(w[j], old, out=old) if recycle else w[j] - old


def _like(value: Tensor, scratch: dict[object, Tensor]) -> Tensor:
    key = (value.shape, value.stride(), value.dtype)
    if key not in scratch:
        scratch[key] = torch.empty_like(value)
    return scratch[key]


def _places(dictionary: StructuredDictionary) -> list[_Place]:
    links = [_link(row) for row in dictionary.rows]
    places = []
    for j, branch in enumerate(dictionary.branches):
        direct = tuple(i for i, _ in branch.targets if links[i] is not None)
        rest = tuple(target for target in branch.targets if links[target[0]] is None)
        places.append(_Place(links[j], direct, Branch(rest, branch.through)))
    return places


def _link(row: BoundRow) -> int | None:
    """Return the latent that a link row subtracts, None where the row is no link."""
    paths = row.slots[0]
    single = len(row.slots) == len(paths) == 1 and row.diagonal is not None
    return paths[0].leaf if single and paths[0].leaf >= 0 and not paths[0].maps else None
