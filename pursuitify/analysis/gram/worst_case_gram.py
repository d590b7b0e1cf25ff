"""Worst case over max-pool switches: an upper bound of every entry of the Gram matrix.

A column of a pooled latent is f + sum_{a in S} v_a: f is its part in rows that no pooling reaches,
v_a what it adds where the window that sees it as its element a selects it, S the windows that do.
For two columns with n and m selections

    <b_i, b_j> = R_00 + sum_{a in S} R_a0 + sum_{b in T} R_0b + sum_{a in S, b in T} R_ab

is at most what the n (m) largest summands give, and the columns are at least as long as the n (m)
shortest ones allow. The bound is the largest ratio over n and m. Any switches whatever give one of
these (S, T), so no choice exceeds it. It is attained where the v_a of a column are orthogonal and
of one length and the other latent is not pooled: a pooled latent read in decoder rows.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from pursuitify.analysis.gram.channel_products import Products, Supports
from pursuitify.analysis.gram.dictionary_blocks import Blocks, Use
from pursuitify.analysis.gram.entry_classes import Class, Group, Kind, Positions, combine
from pursuitify.analysis.gram.normalised_gram import Entries, Gram, overlaps
from pursuitify.errors import InternalError

#: An element of the windows of one pooling: (pooling, element per dim); None: no pooling.
Choice = tuple[tuple[object, ...], tuple[int, ...]] | None
Taps = tuple[tuple[int, int, float], ...]


@dataclass(frozen=True, eq=False)
class _Lengths:
    """The columns of one latent at one class of positions.

    Attributes:
        choices: The windows that see the position, in order.
        least: Least norm of a column with n selections, (n + 1, channels).
    """

    choices: tuple[Choice, ...]
    least: Tensor


class WorstGram(Gram):
    """Upper bounds of |B~^T B~|, entry by entry, over all choices of the max poolings.

    ``norms`` are the least over the choices.
    """

    def __init__(self, blocks: Blocks, positions: Positions | None = None) -> None:
        """Take the blocks of B with every choice kept; see ``Gram``."""
        super().__init__(blocks, positions)
        self._least: dict[tuple[int, tuple[Kind, ...]], _Lengths] = {}

    def norms(self, latent: int, kinds: tuple[Kind, ...]) -> Tensor:
        """Return the least norms of a latent's columns at one class of positions, (channels,)."""
        if not self._pooled(latent):
            return super().norms(latent, kinds)
        return self._lengths(latent, kinds).least.amin(0)

    def count(self) -> float:
        """Return how many off-diagonal entries some choice makes structurally non-zero."""
        return sum(
            entries.raw.count * entries.number
            for j, k in self.positions.related()
            for entries in self.entries(j, k)
        )

    def entries(self, j: int, k: int) -> Iterator[Entries]:
        """Yield bounds of the entries between latents j <= k, class by class."""
        if not self._pooled(j) and not self._pooled(k):
            yield from super().entries(j, k)
            return
        products = self.products(j, k)
        supports = self.supports(j, k, products)
        for found in self.positions.classes(j, k):
            one, two = found.kinds
            left, right = self._lengths(j, one), self._lengths(k, two)
            parts, held = self._parts(found, (j, k), products, supports)
            if not bool(held.any()):
                continue
            seen = {None, *left.choices, *right.choices}
            if not {c for pair in parts for c in pair} <= seen:
                raise InternalError("a max-pool window sees a position that it cannot select")
            values = _largest(parts, left, right)
            if bool(held.all()):
                yield Entries((j, k), values, None, found)
            else:
                a, b = held.nonzero().unbind(1)
                yield Entries((j, k), values[a, b], (a, b), found)

    def _pooled(self, latent: int) -> bool:
        return any(use.symbol.switch is not None for use in self.blocks.uses[latent])

    def _parts(
        self, found: Class, latents: tuple[int, int], products: list[Products], supports: Supports
    ) -> tuple[dict[tuple[Choice, Choice], Tensor], Tensor]:
        """Return what each pair of choices contributes, and which entries are not always zero."""
        j, k = latents
        shape = (self.blocks.sites[j].channels, self.blocks.sites[k].channels)
        meetings = self.positions.meetings(j, k)
        like = self.blocks.uses[j][0].symbol.weight
        parts: dict[tuple[Choice, Choice], Tensor] = {}
        held = torch.zeros(shape, dtype=torch.bool)
        for c, taps in found.meetings:
            left, right = meetings[c].left, meetings[c].right
            whole = supports((c,))
            for pair, some in _sorted(left, right, taps).items():
                part, present = whole.total([products[c].sum(some)]), torch.ones(shape).bool()
                if whole.channels is not None:
                    part = like.new_zeros(shape).index_put(whole.channels, part)
                    present = (~present).index_put(whole.channels, torch.tensor(True))
                elif j == k:
                    part = part.clone()
                if j == k and not found.lag_zero and _one_window(left, right, pair, found):
                    part.fill_diagonal_(0)  # one window does not select two elements
                    present.fill_diagonal_(False)
                parts[pair] = parts[pair] + part if pair in parts else part
                held |= present
        return parts, held

    def _lengths(self, latent: int, kinds: tuple[Kind, ...]) -> _Lengths:
        if not self._pooled(latent):
            return _Lengths((), super().norms(latent, kinds)[None])
        key = (latent, kinds)
        if key not in self._least:
            self._least[key] = self._least_norms(latent, kinds)
        return self._least[key]

    def _least_norms(self, latent: int, kinds: tuple[Kind, ...]) -> _Lengths:
        meetings = self.positions.meetings(latent, latent)
        groups = tuple(Group((k, k), 0, k, 1.0, (0, 0), ()) for k in kinds)
        channels = self.blocks.sites[latent].channels
        like = self.blocks.uses[latent][0].symbol.weight
        inner: dict[tuple[Choice, Choice], Tensor] = defaultdict(lambda: like.new_zeros(channels))
        for c in sorted(set.intersection(*(set(dict(k)) for k in kinds))):
            left, right = meetings[c].left, meetings[c].right
            counts = (left.symbol.counts, right.symbol.counts)
            taps = tuple(combine(c, groups, counts))
            for pair, some in _sorted(left, right, taps).items():
                found = overlaps(left.symbol, right.symbol, list(some), channels)
                inner[pair] = inner[pair] + found
        choices = tuple(sorted({a for a, b in inner if a is not None and a == b}, key=repr))
        fixed = inner[None, None]
        if not choices:
            return _Lengths((), fixed.clamp_min(0).sqrt()[None])
        crossed = [inner[a, None] for a in choices]
        own = []
        for a, cross in zip(choices, crossed, strict=True):
            others = (inner[a, b].clamp_max(0) for b in choices if b != a)
            own.append(sum(others, inner[a, a] + 2 * cross))
        shortest = torch.stack(own).sort(0).values.cumsum(0)
        squares = torch.cat([torch.zeros_like(fixed)[None], shortest]) + fixed
        apart = torch.stack(crossed).abs().amax(0) == 0
        squares = torch.where(apart, torch.maximum(squares, fixed), squares)
        return _Lengths(choices, squares.clamp_min(0).sqrt())


def _choices(use: Use) -> list[Choice]:
    """Return per tap of a block, taps of all dims flattened, the choice it belongs to."""
    switch, counts = use.symbol.switch, use.symbol.counts
    if switch is None:
        return [None] * torch.Size(counts).numel()
    rest = [n // line.count for n, line in zip(counts, switch.lines, strict=True)]
    return [
        (switch.key, tuple(t // own for t, own in zip(taps, rest, strict=True)))
        for taps in itertools.product(*map(range, counts))
    ]


def _sorted(left: Use, right: Use, taps: Taps) -> dict[tuple[Choice, Choice], Taps]:
    """Return the taps that meet by the choices they belong to."""
    one, two = _choices(left), _choices(right)
    found: dict[tuple[Choice, Choice], list[tuple[int, int, float]]] = defaultdict(list)
    for t, u, v in taps:
        found[one[t], two[u]].append((t, u, v))
    return {pair: tuple(some) for pair, some in found.items()}


def _one_window(left: Use, right: Use, pair: tuple[Choice, Choice], found: Class) -> bool:
    """Whether two choices are of the same window of one pooling, at all positions of a class."""
    a, b = pair
    if a is None or b is None or a[0] != b[0]:
        return False
    assert left.symbol.switch is not None
    for line, group, t, u in zip(left.symbol.switch.lines, found.groups, a[1], b[1], strict=True):
        for p, q in group.members:
            one = {w for w, tap, _ in line.outputs(p) if tap == t}
            if not one or one != {w for w, tap, _ in line.outputs(q) if tap == u}:
                return False
    return True


def _largest(parts: dict[tuple[Choice, Choice], Tensor], left: _Lengths, right: _Lengths) -> Tensor:
    """Return the largest |entry| over the numbers of selections, at most 1."""
    rows, shorter = _concerned({a for a, _ in parts}, left)
    cols, narrower = _concerned({b for _, b in parts}, right)
    zero = torch.zeros_like(next(iter(parts.values())))

    def table(over: tuple[Choice, ...], by: tuple[Choice, ...], sign: int) -> Tensor:
        found = [sign * parts.get((a, b), zero) for a in over for b in by]
        return torch.stack(found).reshape(len(over), len(by), *zero.shape)

    best = zero
    for sign in (1, -1):
        base = sign * parts.get((None, None), zero)[None]
        if cols:
            base = base + _top(table((None,), cols, sign)[0])
        gains: Tensor | None = None
        if rows:
            gains = table(rows, (None,), sign)[:, :1].expand(-1, len(narrower), *zero.shape)
            if cols:
                gains = gains + torch.stack([_top(row) for row in table(rows, cols, sign)])
        for m, least in enumerate(narrower):
            total = base[m][None] if gains is None else base[m] + _top(gains[:, m])
            length = shorter[:, :, None] * least
            ratio = total / length.clamp_min(torch.finfo(length.dtype).tiny)
            best = torch.maximum(best, ratio.clamp(0, 1).amax(0))
    return best


def _concerned(present: set[Choice], all_: _Lengths) -> tuple[tuple[Choice, ...], Tensor]:
    """Return the choices that change an entry, and the least norms by how many of them are made."""
    own = tuple(a for a in all_.choices if a in present)
    free = len(all_.choices) - len(own)
    least = [all_.least[n : n + free + 1].amin(0) for n in range(len(own) + 1)]
    return own, torch.stack(least)


def _top(values: Tensor) -> Tensor:
    """Return the sums of the n largest of (count, ...) for n = 0..count."""
    sums = values.sort(0, descending=True).values.cumsum(0)
    return torch.cat([torch.zeros_like(sums[:1]), sums])
