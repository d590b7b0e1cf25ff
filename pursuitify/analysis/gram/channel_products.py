"""Channel products of two blocks over the rows they share, and where the products stand."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pursuitify.analysis.gram.symbol import Symbol

#: Largest table of products of all pairs of taps that is made at once, in elements.
TABLE = 24_000_000


@dataclass(frozen=True, eq=False)
class Aligned:
    """Two blocks over the rows they share: groups of (rows, columns, taps) matrices each."""

    left: Tensor
    right: Tensor
    cols: tuple[Tensor, Tensor]

    @property
    def keys(self) -> tuple[Tensor, Tensor]:
        """Channels of the entries, (groups, left columns, right columns) each."""
        a, b = self.cols
        shape = (a.shape[0], a.shape[1], b.shape[1])
        return a[:, :, None].expand(shape), b[:, None, :].expand(shape)


def align(left: Symbol, right: Symbol) -> Aligned:
    """Bring two blocks onto the rows they share; row by row where both are grouped, differently."""
    same = left is right or torch.equal(left.rows, right.rows)
    if same and (left.rows.shape[0] == 1 or left.rows.shape[1] > 1):
        return Aligned(left.weight, right.weight, (left.cols, right.cols))
    if left.rows.shape[0] == 1 == right.rows.shape[0]:
        a, b = _common(left.rows[0], right.rows[0])
        return Aligned(left.weight[:, a], right.weight[:, b], (left.cols, right.cols))
    (wa, ra, ca), (wb, rb, cb) = (_rowwise(s) for s in (left, right))
    a, b = _common(ra, rb)
    return Aligned(_take(wa, a), _take(wb, b), (ca[a], cb[b]))


def _take(weight: Tensor, index: Tensor) -> Tensor:
    """Return the groups at ``index``, without a copy where that is all of them in order."""
    if len(index) == len(weight) and bool((index == torch.arange(len(index))).all()):
        return weight
    return weight[index]


def _rowwise(symbol: Symbol) -> tuple[Tensor, Tensor, Tensor]:
    """Return every row as a group of its own."""
    groups, rows, columns, taps = symbol.weight.shape
    weight = symbol.weight.reshape(groups * rows, 1, columns, taps)
    cols = symbol.cols[:, None, :].expand(groups, rows, columns).reshape(groups * rows, columns)
    return weight, symbol.rows.reshape(-1), cols


def _common(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Return where the rows that both have stand in each."""
    size = int(torch.cat([left, right]).max()) + 1
    place = torch.full((size,), -1)
    place[right] = torch.arange(len(right))
    found = place[left]
    return (found >= 0).nonzero()[:, 0], found[found >= 0]


class Products:
    """Channel products of two aligned blocks at pairs of taps."""

    def __init__(self, aligned: Aligned) -> None:
        """Choose how: all pairs of taps at once where they fit, else on demand."""
        self.aligned = aligned
        left, right = aligned.left, aligned.right
        self._table: list[tuple[Tensor, ...]] | None = None
        self.size = left.shape[0] * left.shape[2:].numel() * right.shape[2:].numel()

    def sum(self, taps: tuple[tuple[int, int, float], ...]) -> Tensor:
        """Return the sum over (tap, tap, coefficient) of the products, (groups, left, right)."""
        left, right = self.aligned.left, self.aligned.right
        groups, rows, a, ta = left.shape
        b, tb = right.shape[2:]
        if rows == 1 or self.size > TABLE:
            return self._demanded(taps)
        if self._table is None:
            one = left.permute(0, 3, 2, 1).reshape(groups, ta * a, rows)
            two = right.permute(0, 1, 3, 2).reshape(groups, rows, tb * b)
            whole = (one @ two).reshape(groups, ta, a, tb, b)
            # The derivative of an index is as large as what is indexed, for every pair of taps
            # anew; that of unbind puts all of them together once.
            self._table = [plane.unbind(2) for plane in whole.unbind(1)]
        total = None
        for t, u, v in taps:
            part = self._table[t][u]
            part = part if v == 1 else part * v
            total = part if total is None else total + part
        assert total is not None
        return total

    def _demanded(self, taps: tuple[tuple[int, int, float], ...]) -> Tensor:
        """Return the sum in as few products as fit into memory."""
        left, right = self.aligned.left, self.aligned.right
        groups, rows, a, _ = left.shape
        b = right.shape[2]
        own = left is right and all(t == u for t, u, _ in taps)
        step = max(1, TABLE // (groups * rows * (a + b)))
        total: Tensor | float = 0.0
        for start in range(0, len(taps), step):
            first, second, value = zip(*taps[start : start + step], strict=True)
            one = left[..., list(first)].permute(0, 3, 1, 2).reshape(groups, -1, a)
            two = right[..., list(second)].permute(0, 3, 1, 2).reshape(groups, -1, b)
            if set(value) != {1.0}:
                one = one * left.new_tensor(value).repeat_interleave(rows)[:, None]
            total = total + (_symmetric(one, two) if own else one.mT @ two)
        assert isinstance(total, Tensor)
        return total


def _symmetric(one: Tensor, two: Tensor, cut: int = 1024) -> Tensor:
    """Return a symmetric product one^T two from its lower triangle of blocks."""
    size = one.shape[-1]
    if size <= cut:
        return one.mT @ two
    rows = []
    for start in range(0, size, cut):
        done = one[..., start : start + cut].mT @ two[..., : start + cut]
        rows.append(torch.nn.functional.pad(done, (0, size - done.shape[-1])))
    full = torch.cat(rows, -2)
    return full.tril() + full.tril(-1).mT


@dataclass(frozen=True, eq=False)
class Support:
    """The places in a pair's channel matrix that the entries of some meetings take together."""

    channels: tuple[Tensor, Tensor] | None
    places: tuple[Tensor | None, ...]
    shape: tuple[int, int]

    def number(self, lag_zero: bool) -> int:
        """Return how many entries there are, an atom with itself not counted."""
        if self.channels is None:
            return self.shape[0] * self.shape[1] - (self.shape[0] if lag_zero else 0)
        a, b = self.channels
        return len(a) - (int((a == b).sum()) if lag_zero else 0)

    def total(self, parts: list[Tensor]) -> Tensor:
        """Return the sum of the meetings' products."""
        size = math.prod(self.shape) if self.channels is None else len(self.channels[0])
        total: Tensor | None = None
        for part, place in zip(parts, self.places, strict=True):
            flat = part.reshape(-1)
            if place is not None:
                flat = flat.new_zeros(size).index_add(0, place, flat)
            total = flat if total is None else total + flat
        assert total is not None
        return total.reshape(self.shape) if self.channels is None else total


class Supports:
    """Supports by the meetings present."""

    def __init__(self, products: list[Products], shape: tuple[int, int]) -> None:
        self.products, self.shape = products, shape
        self._made: dict[tuple[int, ...], Support] = {}

    def __call__(self, present: tuple[int, ...]) -> Support:
        """Return the support of the meetings ``present``."""
        if present not in self._made:
            self._made[present] = self._make(present)
        return self._made[present]

    def _whole(self, aligned: Aligned) -> bool:
        a, b = aligned.cols
        if len(a) != 1 or (a.shape[1], b.shape[1]) != self.shape:
            return False
        return all(bool((x[0] == torch.arange(x.shape[1])).all()) for x in (a, b))

    def _make(self, present: tuple[int, ...]) -> Support:
        whole = [self._whole(self.products[c].aligned) for c in present]
        flat: list[Tensor | None] = []
        for c, full in zip(present, whole, strict=True):
            if full:
                flat.append(None)
                continue
            a, b = self.products[c].aligned.keys
            flat.append((a * self.shape[1] + b).reshape(-1))
        if any(whole):
            return Support(None, tuple(flat), self.shape)
        kept = [f for f in flat if f is not None]
        if 8 * sum(map(len, kept)) < math.prod(self.shape):
            found, place = torch.unique(torch.cat(kept), return_inverse=True)
            places = place.split([len(keys) for keys in kept])
        else:  # no sort, and no copies of many keys
            held = torch.zeros(math.prod(self.shape), dtype=torch.bool)
            for keys in kept:
                held[keys] = True
            if bool(held.all()):
                return Support(None, tuple(flat), self.shape)
            found, order = held.nonzero()[:, 0], held.cumsum(0) - 1
            places = tuple(order[keys] for keys in kept)
        return Support((found // self.shape[1], found % self.shape[1]), places, self.shape)
