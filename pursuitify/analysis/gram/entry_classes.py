"""Classes of pairs of atoms whose entries of the Gram matrix are alike, per spatial dimension.

An entry of B^T B between two atoms is a sum over pairs of taps that meet in a row. Along each
dimension the pairs of positions fall into few groups in which the same taps meet; a class of
entries is a combination of groups, one per dimension. Nothing here reads a weight.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch

from pursuitify.analysis.gram.dictionary_blocks import Blocks, Place, Use
from pursuitify.analysis.gram.position_relations import Band, Line

#: Per meeting (a pair of blocks) the (tap, tap, coefficient) that contribute.
Taps = tuple[tuple[int, tuple[tuple[int, int, float], ...]], ...]
#: Class of a position along one dimension: what the column's norm depends on.
Kind = Taps


@dataclass(frozen=True)
class Group:
    """Pairs of positions along one dimension in which the same taps meet.

    Attributes:
        kinds: Classes of the two positions.
        order: Sign of second minus first position; the lag's direction.
        taps: What meets.
        count: How many such pairs there are (on the infinite lattice: per image, on average).
        example: One such pair of positions.
        members: All of them; on the infinite lattice those whose first position lies in one
            period.
        period: Positions of both latents after which all repeats, None where they are finite.
    """

    kinds: tuple[Kind, Kind]
    order: int
    taps: Taps
    count: float
    example: tuple[int, int]
    members: tuple[tuple[int, int], ...]
    period: tuple[int, int] | None = None


@dataclass(frozen=True)
class Meeting:
    """Two blocks that share rows, of the first and of the second latent.

    Attributes:
        left: The first latent's block.
        right: The second's.
        index: Which of their latents' blocks they are.
    """

    left: Use
    right: Use
    index: tuple[int, int]


@dataclass(frozen=True)
class Class:
    """Entries that are alike: one group per dimension.

    Attributes:
        groups: The groups.
        meetings: Per meeting that contributes the (tap, tap, coefficient), taps of all dims
            flattened.
        count: How many pairs of positions, both orders counted.
        lag_zero: Whether both atoms are at the same position (of the same latent).
    """

    groups: tuple[Group, ...]
    meetings: tuple[tuple[int, tuple[tuple[int, int, float], ...]], ...]
    count: float
    lag_zero: bool

    @property
    def kinds(self) -> tuple[tuple[Kind, ...], tuple[Kind, ...]]:
        """Classes of both positions over all dims."""
        return tuple(g.kinds[0] for g in self.groups), tuple(g.kinds[1] for g in self.groups)


@dataclass(frozen=True)
class CountedFrame:
    """Neighbouring latents whose columns are vectors of one space, counted alike.

    Attributes:
        latents: Indices of the latents.
        heights: Number of elements that the latents reach of each row, in the count of the
            classes.
    """

    latents: range
    heights: dict[int, float]


class Positions:
    """The classes of entries of one dictionary."""

    def __init__(self, blocks: Blocks, keep: bool = False) -> None:
        """Take the blocks; nothing is enumerated yet.

        Args:
            blocks: The blocks; of their weights only the shapes matter.
            keep: Whether to keep the classes, for use with other weights.
        """
        self.blocks = blocks
        self._kept: dict[tuple[int, int], list[Class]] | None = {} if keep else None
        self.dims = len(blocks.sites[0].sizes)
        self.kind_of = lru_cache(maxsize=None)(self._kind)
        self.meetings = lru_cache(maxsize=None)(self._meetings)
        found = [densities(blocks, d) for d in range(self.dims)]
        self.density = [[of[i] for of, _ in found] for i in range(len(blocks.sites))]
        self._rows = [rows for _, rows in found]

    @property
    def columns(self) -> list[float]:
        """Number of columns per latent, in the same count as the classes."""
        sites = self.blocks.sites
        return [
            s.channels
            * math.prod(
                float(s.sizes[d]) if self.period(j, j, d) is None else self.density[j][d]
                for d in range(self.dims)
            )
            for j, s in enumerate(sites)
        ]

    @property
    def heights(self) -> list[float]:
        """Number of elements per row, in the same count as the classes."""
        total = [0.0] * len(self.blocks.sites)
        slots = {u.place: u.symbol.channels[1] for found in self.blocks.uses for u in found}
        for place, channels in slots.items():
            total[place[0]] += channels * math.prod(rows[place] for rows in self._rows)
        return total

    def frames(self) -> list[CountedFrame]:
        """Return runs of neighbouring latents whose atoms together form frames.

        Along a dimension the entries between two latents are counted on the infinite lattice, or,
        where one of them is read by a relation that never repeats (a flattened layer, a pooling
        over a few positions), over the positions in the image. Columns of the first count and of
        the second are not vectors of one space with one count, so a run ends where the counts, or
        the densities of the rows, do not agree. The atoms of a finite count are not truncated in
        interior mode: they live on all positions that they reach, those outside the image too.
        """
        pairs = {
            (j, k): tuple(self.period(j, k, d) is None for d in range(self.dims))
            for j, k in self.related()
        }
        partners: dict[int, list[int]] = defaultdict(list)
        for j, k in pairs:
            partners[k].append(j)
        found: list[CountedFrame] = []
        first, reached = 0, dict[Place, list[float | frozenset[int]]]()
        for k in range(len(self.blocks.sites)):
            finite = pairs[k, k]
            own = self._reach(k, finite)
            joined = {p: _joined(reached[p], own[p]) for p in own if p in reached}
            if (
                finite != pairs[first, first]
                or any(pairs[j, k] != finite for j in partners[k] if j >= first)
                or None in joined.values()
            ):
                found.append(CountedFrame(range(first, k), self._counted(reached)))
                first, reached, joined = k, {}, {}
            reached |= own | {p: sets for p, sets in joined.items() if sets is not None}
        last = range(first, len(self.blocks.sites))
        return [*found, CountedFrame(last, self._counted(reached))]

    def _reach(self, k: int, finite: tuple[bool, ...]) -> dict[Place, list[float | frozenset[int]]]:
        """Return what latent k reaches of each place: a density or a set of positions per dim."""
        found: dict[Place, list[float | frozenset[int]]] = {}
        for use in self.blocks.uses[k]:
            reach: list[float | frozenset[int]] = []
            for d, line in enumerate(use.symbol.lines):
                if finite[d]:
                    inside = range(self.blocks.sites[k].sizes[d])
                    reach.append(frozenset(q for p in inside for q, _, _ in line.outputs(p)))
                else:
                    reach.append(self.density[k][d] * _band(line).up / _band(line).down)
            before = found.get(use.place, reach)
            found[use.place] = [
                a | b if isinstance(a, frozenset) and isinstance(b, frozenset) else max(a, b)
                for a, b in zip(before, reach, strict=True)
            ]
        return found

    def _counted(self, reached: dict[Place, list[float | frozenset[int]]]) -> dict[int, float]:
        """Return the number of elements of each row that are reached."""
        channels = {u.place: u.symbol.channels[1] for found in self.blocks.uses for u in found}
        total: dict[int, float] = defaultdict(float)
        for place, reach in reached.items():
            counts = (len(r) if isinstance(r, frozenset) else r for r in reach)
            total[place[0]] += channels[place] * math.prod(counts)
        return dict(total)

    def _meetings(self, j: int, k: int) -> tuple[Meeting, ...]:
        """Return the pairs of blocks of latents j and k that share rows."""
        return tuple(
            Meeting(a, b, (m, n))
            for m, a in enumerate(self.blocks.uses[j])
            for n, b in enumerate(self.blocks.uses[k])
            if a.place == b.place and bool(torch.isin(a.symbol.rows, b.symbol.rows).any())
        )

    def related(self) -> list[tuple[int, int]]:
        """Return the pairs of latents j <= k whose block of the Gram matrix is not zero."""
        rows: dict[tuple[int, int], set[int]] = defaultdict(set)
        for j, found in enumerate(self.blocks.uses):
            for use in found:
                rows[use.place].add(j)
        pairs = {(a, b) for held in rows.values() for a in held for b in held if a <= b}
        return sorted(pair for pair in pairs if self.meetings(*pair))

    def classes(self, j: int, k: int) -> Iterator[Class]:
        """Yield the classes of entries between the atoms of latents j and k.

        Within one latent, of a pair of positions and its mirror image one is kept and counted
        twice.
        """
        if self._kept is None:
            yield from self._classes(j, k)
            return
        if (j, k) not in self._kept:
            self._kept[j, k] = list(self._classes(j, k))
        yield from self._kept[j, k]

    def _classes(self, j: int, k: int) -> Iterator[Class]:
        meetings = self.meetings(j, k)
        per_dim = [self._groups(j, k, d, meetings) for d in range(self.dims)]
        same = j == k
        counts = [(m.left.symbol.counts, m.right.symbol.counts) for m in meetings]
        for groups in itertools.product(*per_dim):
            sign = next((g.order for g in groups if g.order), 0)
            if same and sign < 0:
                continue
            shared = set.intersection(*(set(dict(g.taps)) for g in groups))
            if not shared:
                continue
            found = tuple((c, tuple(combine(c, groups, counts[c]))) for c in sorted(shared))
            zero = same and sign == 0
            count = math.prod(g.count for g in groups) * (1 if zero else 2)
            yield Class(groups, found, count, zero)

    def _kind(self, j: int, dim: int, p: int) -> Kind:
        meetings = self.meetings(j, j)
        return _taps({c: self._meet(m, dim, p).get(p, []) for c, m in enumerate(meetings)})

    @staticmethod
    def _meet(meeting: Meeting, dim: int, p: int) -> dict[int, list[tuple[int, int, float]]]:
        """Return per second position what taps meet the first position ``p``."""
        left, right = meeting.left.symbol.lines[dim], meeting.right.symbol.lines[dim]
        found: dict[int, list[tuple[int, int, float]]] = defaultdict(list)
        for q, t, v in left.outputs(p):
            for other, u, w in right.inputs(q):
                found[other].append((t, u, v * w))
        return found

    def _groups(self, j: int, k: int, dim: int, meetings: tuple[Meeting, ...]) -> list[Group]:
        nj, nk = (self.blocks.sites[i].sizes[dim] for i in (j, k))
        period = self.period(j, k, dim)
        finite = period is None
        table: dict[tuple[Kind, Kind, int, Taps], list[tuple[int, int]]] = defaultdict(list)
        for p in range(nj if period is None else period[0]):
            partners: dict[int, dict[int, list[tuple[int, int, float]]]] = defaultdict(dict)
            for c, meeting in enumerate(meetings):
                for other, taps in self._meet(meeting, dim, p).items():
                    if not finite or 0 <= other < nk:
                        partners[other][c] = taps
            for other, by_meeting in partners.items():
                order = (other > p) - (other < p) if j == k else 0
                key = (
                    self.kind_of(j, dim, p),
                    self.kind_of(k, dim, other),
                    order,
                    _taps(by_meeting),
                )
                table[key].append((p, other))
        each = 1.0 if period is None else self.density[j][dim] / period[0]
        return [
            Group((a, b), order, taps, each * len(pairs), pairs[0], tuple(pairs), period)
            for (a, b, order, taps), pairs in table.items()
        ]

    def period(self, j: int, k: int, dim: int) -> tuple[int, int] | None:
        """Return the positions of both latents after which all repeats; None where nothing does."""
        own = [[u.symbol.lines[dim] for u in self.blocks.uses[i]] for i in (j, k)]
        if not all(isinstance(line, Band) for found in own for line in found):
            return None
        left, right = (math.lcm(*(_band(line).period for line in found)) for found in own)
        ratios = set()
        for meeting in self.meetings(j, k):
            a = _band(meeting.left.symbol.lines[dim])
            b = _band(meeting.right.symbol.lines[dim])
            top, bottom = a.up * b.down, a.down * b.up
            shared = math.gcd(top, bottom)
            ratios.add((top // shared, bottom // shared))
        if len(ratios) != 1:
            return None
        top, bottom = ratios.pop()
        first = math.lcm(left, bottom * (right // math.gcd(right, top)))
        return first, first * top // bottom


def _joined(
    left: list[float | frozenset[int]], right: list[float | frozenset[int]]
) -> list[float | frozenset[int]] | None:
    """Return what two latents reach together, None where they count its positions differently."""
    found: list[float | frozenset[int]] = []
    for a, b in zip(left, right, strict=True):
        if isinstance(a, frozenset) and isinstance(b, frozenset):
            found.append(a | b)
        elif isinstance(a, frozenset) or isinstance(b, frozenset) or not math.isclose(a, b):
            return None
        else:
            found.append(a)
    return found


def _band(line: Line) -> Band:
    assert isinstance(line, Band)
    return line


def _taps(found: dict[int, list[tuple[int, int, float]]]) -> Taps:
    """Return what meets in canonical form: equal coefficients equal to the last bits."""
    return tuple(
        (c, tuple(sorted((t, u, round(v, 12)) for t, u, v in taps)))
        for c, taps in sorted(found.items())
        if taps
    )


def combine(
    meeting: int, groups: tuple[Group, ...], counts: tuple[tuple[int, ...], tuple[int, ...]]
) -> Iterator[tuple[int, int, float]]:
    """Yield the products of taps over the dims, flattened."""
    for choice in itertools.product(*(dict(g.taps)[meeting] for g in groups)):
        t = u = 0
        value = 1.0
        for (a, b, v), left, right in zip(choice, *counts, strict=True):
            t, u, value = t * left + a, u * right + b, value * v
        yield t, u, value


def kinds_of(positions: Positions, latent: int) -> Iterator[tuple[tuple[Kind, ...], float]]:
    """Yield the classes of positions of a latent and how many positions each holds."""
    site = positions.blocks.sites[latent]
    per_dim = []
    for d, n in enumerate(site.sizes):
        period = positions.period(latent, latent, d)
        span, total = (n, n) if period is None else (period[0], positions.density[latent][d])
        found: dict[Kind, float] = defaultdict(float)
        for p in range(span):
            found[positions.kind_of(latent, d, p)] += total / span
        per_dim.append(list(found.items()))
    for choice in itertools.product(*per_dim):
        yield tuple(kind for kind, _ in choice), math.prod(count for _, count in choice)


def densities(blocks: Blocks, dim: int) -> tuple[list[float], dict[Place, float]]:
    """Return how many positions each latent and each row slot has along one dimension.

    On the infinite lattice strides fix the ratios exactly, where an image rounds them: the counts
    start from a latent's true size and follow the strides.
    """
    latents: list[float | None] = [None] * len(blocks.sites)
    rows: dict[Place, float] = {}
    uses = [u for found in blocks.uses for u in found]
    for start, site in enumerate(blocks.sites):
        if latents[start] is not None:
            continue
        latents[start] = float(site.sizes[dim])
        moved = True
        while moved:
            moved = False
            for use in uses:
                line, own = use.symbol.lines[dim], latents[use.latent]
                if not isinstance(line, Band):
                    if use.place not in rows and own is not None:
                        rows[use.place], moved = float(line.n_out), True
                elif own is not None and use.place not in rows:
                    rows[use.place], moved = own * line.up / line.down, True
                elif own is None and use.place in rows:
                    latents[use.latent], moved = rows[use.place] * line.down / line.up, True
    return [n or 0.0 for n in latents], rows
