"""Global pursuit where no derivative is recorded: the elementwise work in place.

The values are those of ``global_sweep.sweep`` up to rounding, without extrapolation. This saves
memory traffic, which is the cost that remains beside the weighted operators:

* every term of a step is added into the new latent, every change into the residuals that read it;
  packed convolutions (``kernel_packing``) do so themselves;
* a row's slots are views of one tensor: nothing is joined for its operator, and nothing split;
* a max-pool's adjoint is scattered into the sum it belongs to;
* a *link* row, r_j = B_j w_j - w_k with nothing else in it, is held as its product p_j = B_j w_j.
  Its share of w_k's step is then one interpolation, w_k - gamma (w_k - p_j), and neither latent's
  change has to be formed for it;
* rows that scale one concat keep one copy of that concat, not a residual each
  (``shared_concats``);
* a latent that is read through pools alone keeps the pools' outputs (``pooled_latents``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from pursuitify.dictionary.bound_rows import BoundRow
from pursuitify.dictionary.readers import Branch, PartOf, Target
from pursuitify.dictionary.structured import StructuredDictionary
from pursuitify.operators.onednn_conv import PackedConv
from pursuitify.solvers.inplace.pooled_latents import Pooled
from pursuitify.solvers.inplace.shared_concats import shared
from pursuitify.solvers.inplace.visits import Visit, visits_of


class Spares:
    """Tensors that nothing needs any more, by layout.

    A large tensor made anew costs more than the arithmetic on it, because the system hands out its
    pages one by one.
    """

    def __init__(self) -> None:
        self._free: dict[object, list[Tensor]] = {}

    def take(self, like: Tensor) -> Tensor:
        """Return a tensor of the same layout, with anything in it."""
        found = self._free.get(_layout(like))
        return found.pop() if found else torch.empty_like(like)

    def give(self, value: Tensor) -> None:
        """Take a tensor back."""
        self._free.setdefault(_layout(value), []).append(value)


def _layout(value: Tensor) -> object:
    return value.shape, value.stride(), value.dtype


def descend(
    dictionary: StructuredDictionary,
    start: Sequence[Tensor],
    steps: Sequence[Tensor],
    count: int,
    observed: bool,
) -> Iterator[list[Tensor]]:
    """Yield the latents after each sweep; see ``GlobalPursuit.sweeps``.

    Args:
        dictionary: The bound dictionary.
        start: The feed-forward latents.
        steps: gamma_j per latent.
        count: T, the number of sweeps.
        observed: Whether the caller keeps what a sweep yields after the next one.
    """
    spares, w, concats = Spares(), list(start), shared(dictionary, start)
    visits = visits_of(dictionary, steps, concats)
    full, slots = held_at(visits, w)
    rows = len(visits)
    slots += [list(concat.parts) for concat in concats.concats]
    pooled = [Pooled(v.others, w[j]) if v.pooled else None for j, v in enumerate(visits)]

    def part(target: Target) -> Tensor:
        i, s = target
        return slots[i][s] if i < rows else concats.concats[i - rows].slope(s, w)

    for t in range(count):
        recycle, last = t > 0 and not observed, t == count - 1
        for j, visit in enumerate(visits):
            old, pool = w[j], pooled[j]
            into = old if _may_stay(visit, recycle) else spares.take(old)
            if visit.link is not None:
                full[j].sub_(w[visit.link])
            w[j] = take_step(visit, old, into, full[j], full, part, pool)
            if pool is not None:
                pool.pass_on(w[j], slots)
            if visit.moves:
                delta = torch.sub(w[j], old, out=old if recycle else spares.take(old))
                visit.others.subtract_products(delta, slots)
                if not last and visit.residual:
                    _add_product(visit.row, full, slots, j, delta)
                spares.give(delta)
            elif recycle and into is not old:
                spares.give(old)
            if last:
                continue
            if visit.link is not None:
                slots[j] = [product_into(visit.row, full[j], w[j])]
                full[j] = slots[j][0]
            elif pool is not None:
                full[j] = torch.sub(visit.row.product(w[j]), visit.row.u[0], out=full[j])
        yield list(w)


def held_at(
    visits: Sequence[Visit], w: Sequence[Tensor]
) -> tuple[list[Tensor], list[list[Tensor]]]:
    """Return what is held of every row at the feed-forward latents, and views of it by slot.

    That is a row's residual, a link row's product, or the concat that a row reads: the last is not
    cut into slots.
    """
    full: list[Tensor] = []
    slots: list[list[Tensor]] = []
    for visit, latent in zip(visits, w, strict=True):
        if visit.reading is not None:
            full.append(visit.reading.held)
            slots.append([])
            continue
        if visit.link is not None:
            value = _product(visit.row, latent)
        else:
            value = visit.row.product(latent) - visit.row.join(visit.row.u)
        full.append(value)
        slots.append(list(visit.row.split(value)))
    return full, slots


def _may_stay(visit: Visit, recycle: bool) -> bool:
    """Whether the new latent may overwrite the old one: no term reads that again."""
    alone = len(visit.links) <= 1 and visit.reading is None
    return recycle and not visit.moves and alone


def take_step(
    visit: Visit,
    old: Tensor,
    into: Tensor,
    r: Tensor,
    products: Sequence[Tensor],
    part: PartOf,
    pooled: Pooled | None = None,
) -> Tensor:
    """Return the latent after its proximal step, in ``into``.

    Args:
        visit: The latent's visit.
        old: Where the step starts.
        into: Memory for the result; may be ``old`` where only a link reads that.
        r: The row's residual at ``old``, in one piece; not read where the row reads a concat.
        products: Per link row its product.
        part: Residuals of the other readers at ``old``, by slot.
        pooled: What the latent's pools give, if that is held.
    """
    row, step = visit.row, visit.step
    value = old if visit.reading is None else visit.reading.step(old, into)
    for number, i in enumerate(visit.links):
        if visit.reading is not None:
            value = value.addcmul_(products[i], step)
        elif number:
            value = value.addcmul_(products[i], step).addcmul_(old, -step)
        else:
            value = torch.lerp(old, products[i], step, out=into)
    if row.diagonal is None and visit.reading is None:
        value = torch.addcmul(value, r, -step, out=into)
    for target in visit.others.targets:
        value = torch.addcmul(value, part(target), step, out=into)
    if value is not into:
        value = into.copy_(old)
    if pooled is not None:
        value = pooled.add_terms(value, part, step)
    else:
        value = Branch((), visit.others.through).add_terms(value, part, step)
    if visit.reading is not None:
        return row.activation.prox_(value, step)
    return _descend_own(row, value, r, step)


def _descend_own(row: BoundRow, value: Tensor, full: Tensor, step: Tensor) -> Tensor:
    """Return prox(value - step (B_j^T r_j + lam_j)); overwrites ``value``.

    Where B_j is the identity the step along r_j is in ``value``.
    """
    maps = () if row.diagonal is None else row.diagonal.maps
    if len(maps) == 1 and isinstance(maps[0], PackedConv):
        bias = None if row.threshold is None else maps[0].inner.as_bias(row.threshold)
        if bias is not None or row.threshold is None:
            scaled = None if bias is None else -step * bias
            # Not with oneDNN's own ReLU, which would cost no pass over memory: it turns NaN into 0.
            value = maps[0].direct.add(value, full, scaled)
            return row.activation.prox_(value, step)
    if row.diagonal is not None:
        value = value.addcmul_(row.slope_at(full), -step)
    elif row.threshold is not None:
        value = value.add_(-step * row.threshold)
    return row.activation.prox_(value, step)


def product_into(row: BoundRow, into: Tensor, w: Tensor) -> Tensor:
    """Return B_j w, in the memory of ``into`` where the operator can write there."""
    maps = () if row.diagonal is None else row.diagonal.maps
    if len(maps) == 1 and isinstance(maps[0], PackedConv):
        return maps[0].adjoint_into(into, w)
    return _product(row, w)


def _product(row: BoundRow, w: Tensor) -> Tensor:
    """Return B_j w, in memory of its own: a map of the user's may return a view of ``w``."""
    value = row.product(w)
    shared_memory = value.untyped_storage().data_ptr() == w.untyped_storage().data_ptr()
    return value.clone() if shared_memory else value


def _add_product(
    row: BoundRow, full: list[Tensor], slots: list[list[Tensor]], j: int, delta: Tensor
) -> None:
    """Add B_j delta to the row's residual, in place: its slots are views of it."""
    before = full[j]
    if row.diagonal is None:
        full[j] = before.add_(delta)
    else:
        full[j] = row.diagonal.add_adjoint(before, delta, 1.0)
    if full[j] is not before:
        slots[j] = list(row.split(full[j]))
