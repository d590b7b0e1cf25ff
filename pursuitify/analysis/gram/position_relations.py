"""One spatial dimension of an operator: which output positions read which input positions.

A block of the dictionary acts on a lattice of positions. Along one dimension it is a ``Band``,
translation covariant on the infinite lattice (a convolution, its adjoint, a pooling window), or a
``Table``, an explicit finite relation (border effects, a flattened layer, a global mean). An
operator has *taps*: each relates positions and is tied to one channel matrix (a kernel element).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

#: (position, tap, coefficient)
Entry = tuple[int, int, float]


@dataclass(frozen=True)
class Band:
    """Output q reads input p through tap t where ``up * p + offset == down * q``.

    Attributes:
        up: Upsampling factor.
        down: Stride.
        taps: Per tap its (offset, coefficient) pairs.
        n_in: Number of input positions in the image.
        n_out: Number of output positions in the image.
        edges: The relation inside the image, where that is not the band cut off.
    """

    up: int
    down: int
    taps: tuple[tuple[tuple[int, float], ...], ...]
    n_in: int
    n_out: int
    edges: Table | None = None

    @property
    def count(self) -> int:
        """Number of taps."""
        return len(self.taps)

    @property
    def period(self) -> int:
        """Input positions after which the relation repeats."""
        return self.down // math.gcd(self.up, self.down)

    def outputs(self, p: int) -> list[Entry]:
        """Return the output positions that read input ``p``, border or not."""
        found = []
        for t, pairs in enumerate(self.taps):
            for offset, value in pairs:
                place = self.up * p + offset
                if place % self.down == 0:
                    found.append((place // self.down, t, value))
        return found

    def inputs(self, q: int) -> list[Entry]:
        """Return the input positions that output ``q`` reads, border or not."""
        return self.transposed().outputs(q)

    def transposed(self) -> Band:
        """Return the adjoint relation."""
        taps = tuple(tuple((-o, v) for o, v in pairs) for pairs in self.taps)
        edges = None if self.edges is None else self.edges.transposed()
        return Band(self.down, self.up, taps, self.n_out, self.n_in, edges)

    def table(self) -> Table:
        """Return the relation inside the image: what zero padding leaves of it."""
        if self.edges is not None:
            return self.edges
        entries = (
            (q, p, t, v)
            for p in range(self.n_in)
            for q, t, v in self.outputs(p)
            if 0 <= q < self.n_out
        )
        return Table(tuple(entries), self.count, self.n_in, self.n_out)


@dataclass(frozen=True)
class Table:
    """A finite relation, entry by entry.

    Attributes:
        entries: (output, input, tap, coefficient).
        count: Number of taps.
        n_in: Number of input positions.
        n_out: Number of output positions.
    """

    entries: tuple[tuple[int, int, int, float], ...]
    count: int
    n_in: int
    n_out: int

    @cached_property
    def _by_input(self) -> dict[int, list[Entry]]:
        found = defaultdict(list)
        for q, p, t, v in self.entries:
            found[p].append((q, t, v))
        return dict(found)

    @cached_property
    def _by_output(self) -> dict[int, list[Entry]]:
        found = defaultdict(list)
        for q, p, t, v in self.entries:
            found[q].append((p, t, v))
        return dict(found)

    def outputs(self, p: int) -> list[Entry]:
        """Return the output positions that read input ``p``."""
        return self._by_input.get(p, [])

    def inputs(self, q: int) -> list[Entry]:
        """Return the input positions that output ``q`` reads."""
        return self._by_output.get(q, [])

    def transposed(self) -> Table:
        """Return the adjoint relation."""
        entries = tuple((p, q, t, v) for q, p, t, v in self.entries)
        return Table(entries, self.count, self.n_out, self.n_in)

    def table(self) -> Table:
        """Return the relation itself."""
        return self


Line = Band | Table


def negated(line: Line) -> Line:
    """Return the relation with its coefficients negated."""
    if isinstance(line, Table):
        entries = tuple((q, p, t, -v) for q, p, t, v in line.entries)
        return Table(entries, line.count, line.n_in, line.n_out)
    taps = tuple(tuple((o, -v) for o, v in pairs) for pairs in line.taps)
    edges = None if line.edges is None else negated(line.edges)
    assert edges is None or isinstance(edges, Table)
    return Band(line.up, line.down, taps, line.n_in, line.n_out, edges)


def identity(n: int) -> Band:
    """Return the identity on ``n`` positions."""
    return Band(1, 1, (((0, 1.0),),), n, n)


def window(
    size: int,
    count: int,
    taps: int,
    stride: int = 1,
    start: int = 0,
    dilation: int = 1,
    mean: float | None = None,
) -> Band:
    """Return a sliding window: one tap per element, or one tap with coefficient ``mean``."""
    offsets = [start - t * dilation for t in range(taps)]
    if mean is None:
        return Band(1, stride, tuple(((o, 1.0),) for o in offsets), size, count)
    return Band(1, stride, (tuple((o, mean) for o in offsets),), size, count)


def whole(n: int) -> Table:
    """Return the relation of a flattened dense layer: one output, a tap per position."""
    return Table(tuple((0, p, p, 1.0) for p in range(n)), n, n, 1)


def summed(n: int, value: float) -> Table:
    """Return the relation of a mean over the dimension."""
    return Table(tuple((0, p, 0, value) for p in range(n)), 1, n, 1)


def from_matrix(mat: Tensor) -> Line:
    """Return the relation of a matrix (out, in): a band where its middle is covariant."""
    rows = mat.tolist()
    entries = tuple((q, p, 0, v) for q, row in enumerate(rows) for p, v in enumerate(row) if v != 0)
    exact = Table(entries, 1, mat.shape[1], mat.shape[0])
    return _band_of(exact) or exact


def _band_of(table: Table) -> Band | None:
    """Find the band whose relation the middle of a table is, if three periods of it agree."""
    for up, down in [(1, s) for s in range(1, 9)] + [(s, 1) for s in range(2, 9)]:
        if table.n_out < 3 * up or table.n_in < 3 * down:
            continue
        start = table.n_out // 2 - table.n_out // 2 % up
        cycle = [table.inputs(start + r) for r in range(up)]
        shifts = [[[(p + s * down, v) for p, _, v in row] for row in cycle] for s in (-1, 1)]
        near = [
            [[(p, v) for p, _, v in table.inputs(start + s * up + r)] for r in range(up)]
            for s in (-1, 1)
        ]
        if not all(cycle) or not _close(shifts, near):
            continue
        pairs = {down * (start + r) - up * p: v for r, row in enumerate(cycle) for p, _, v in row}
        taps = (tuple(sorted(pairs.items())),)
        return Band(up, down, taps, table.n_in, table.n_out, table)
    return None


def _close(left: Sequence[object], right: Sequence[object]) -> bool:
    def flat(item: object) -> list[float]:
        if isinstance(item, (list, tuple)):
            return [len(item), *(v for part in item for v in flat(part))]
        return [float(item)]  # type: ignore[arg-type]

    a, b = flat(left), flat(right)
    return len(a) == len(b) and all(abs(x - y) < 1e-6 for x, y in zip(a, b, strict=True))


def compose(first: Line, second: Line) -> Line:
    """Return ``second`` after ``first``; the taps multiply (the first's vary slowest)."""
    if isinstance(first, Band) and isinstance(second, Band):
        composed = _bands(first, second)
        if composed is not None:
            return composed
    a, b = first.table(), second.table()
    totals: dict[tuple[int, int, int], float] = defaultdict(float)
    for m, p, t, v in a.entries:
        for q, u, w in b.outputs(m):
            totals[q, p, t * b.count + u] += v * w
    entries = tuple((q, p, t, v) for (q, p, t), v in sorted(totals.items()))
    return Table(entries, a.count * b.count, a.n_in, b.n_out)


def _bands(first: Band, second: Band) -> Band | None:
    if first.down > 1 and second.up > 1:
        return None  # the middle lattice is coarser than both: not covariant
    common = math.lcm(first.down, second.up)
    a, b = common // first.down, common // second.up
    up, down = a * first.up, b * second.down
    shared = math.gcd(up, down)
    taps = []
    for left in first.taps:
        for right in second.taps:
            total: dict[int, float] = defaultdict(float)
            for o, v in left:
                for e, w in right:
                    if (a * o + b * e) % shared == 0:
                        total[(a * o + b * e) // shared] += v * w
            taps.append(tuple(sorted(total.items())))
    return Band(up // shared, down // shared, tuple(taps), first.n_in, second.n_out)
