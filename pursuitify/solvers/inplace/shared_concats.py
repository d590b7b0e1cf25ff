"""Rows that scale the values of one concat: these are held once, not a residual per row.

In a network like DenseNet each unit reads BatchNorm(concat of all before it). Its row is an encoder
row, r_i = w_i - s_i c_i, where s_i is a factor per channel and c_i a run of slots of one concat c.
Held as residuals, the change of every slot is subtracted from every row that reads it, and the
change of every w_i is added to its row. Held as c

* w_i's own share of its step is gamma_i (w_i - s_i c_i), from c and the latent as they are;
* a slot's share is sum_i s_i (w_i - s_i c), over the rows that read it, likewise;
* a change of a slot is added to c, once.

Where the signal holds an offset o_i (``offsets="signal"``), s_i c_i + o_i stands for s_i c_i.

So c is all that has to be kept up to date. The code keeps -c instead of c, so that a change is
subtracted from it, as it is from the residuals of other rows. A factor may be one number, or
missing, and c a single value.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pursuitify.dictionary.bound_rows import BoundPath, BoundRow
from pursuitify.dictionary.readers import Branch, Target
from pursuitify.dictionary.structured import StructuredDictionary
from pursuitify.operators import Scale

#: The dimension of the concats: channels.
DIM = 1
#: What a slot holds: a latent, and the maps (by identity) that its value goes through.
_Value = tuple[int, tuple[int, ...]]


@dataclass(frozen=True, eq=False)
class ConcatRun:
    """The part of a concat that one row reads.

    Attributes:
        concat: Index of the concat.
        first: Its first slot that the row reads; the row's slot s is the concat's first + s.
        factor: s_i, (1, channels, 1, ...).
    """

    concat: int
    first: int
    factor: Tensor


@dataclass(frozen=True, eq=False)
class Concat:
    """A concat that several rows scale.

    Attributes:
        held: -c, (batch, channels, ...).
        parts: The same by slot: views of it.
        readers: Per slot the rows that read it, each with where the slot starts in the row's latent
            and with its piece of s_i.
        squares: Per slot the sum of s_i^2 over these rows.
        constants: Per slot the sum of s_i o_i over these rows; None where no signal has an offset.
    """

    held: Tensor
    parts: tuple[Tensor, ...]
    readers: tuple[tuple[tuple[int, int, Tensor], ...], ...]
    squares: tuple[Tensor, ...]
    constants: tuple[Tensor | None, ...]

    def slope(self, slot: int, w: Sequence[Tensor]) -> Tensor:
        """Return sum_i s_i (w_i - s_i c - o_i) at one slot, a tensor of its own."""
        held, constant = self.parts[slot], self.constants[slot]
        total = held * self.squares[slot]
        if constant is not None:
            total.sub_(constant)
        for i, start, factor in self.readers[slot]:
            total.addcmul_(w[i].narrow(DIM, start, held.shape[DIM]), factor)
        return total


@dataclass(frozen=True, eq=False)
class Concats:
    """All shared concats of a dictionary.

    Attributes:
        concats: The concats.
        runs: By row what it reads; rows that are not here have a residual.
    """

    concats: tuple[Concat, ...]
    runs: dict[int, ConcatRun]

    def view(self, run: ConcatRun, channels: int) -> Tensor:
        """Return -c_i: what one row reads, by its number of channels."""
        concat = self.concats[run.concat]
        start = sum(part.shape[DIM] for part in concat.parts[: run.first])
        return concat.held.narrow(DIM, start, channels)

    def branch(self, branch: Branch, rows: int) -> Branch:
        """Return a branch that reads concats where it read the rows that are not held.

        Slot n of concat g is the target (rows + g, n).
        """

        def moved(targets: tuple[Target, ...]) -> dict[Target, None]:
            runs = ((self.runs[i], s) for i, s in targets if i in self.runs)
            return {(rows + run.concat, run.first + s): None for run, s in runs}

        found, through = moved(branch.targets), []
        for linear, rest in branch.through:
            if isinstance(linear, Scale):  # the last map on the way to rows that share
                found |= moved(rest.targets)
                rest = Branch(tuple(t for t in rest.targets if t[0] not in self.runs), rest.through)
            rest = self.branch(rest, rows)
            if rest.targets or rest.through:
                through.append((linear, rest))
        left = tuple(target for target in branch.targets if target[0] not in self.runs)
        return Branch((*left, *found), tuple(through))


@dataclass
class _SharingRows:
    """Rows of one concat, the longest first: each with its first slot there."""

    values: tuple[_Value, ...]
    rows: list[tuple[int, int]]


def shared(dictionary: StructuredDictionary, w: Sequence[Tensor]) -> Concats:
    """Return the concats that two or more rows scale, at the latents ``w``."""
    groups: list[_SharingRows] = []
    wanted = [_values(row, value.dim()) for row, value in zip(dictionary.rows, w, strict=True)]
    readable = {i: values for i, values in enumerate(wanted) if values is not None}
    for i, values in sorted(readable.items(), key=lambda item: -len(item[1])):
        for group in groups:
            first = _find(values, group.values)
            if first is not None:
                group.rows.append((i, first))
                break
        else:
            groups.append(_SharingRows(values, [(i, 0)]))
    runs: dict[int, ConcatRun] = {}
    made: list[Concat] = []
    for group in groups:
        if len(group.rows) > 1:
            for i, first in group.rows:
                runs[i] = ConcatRun(len(made), first, _factors(dictionary.rows[i], w[i]))
            made.append(_concat(dictionary.rows, group, runs, w))
    return Concats(tuple(made), runs)


def _concat(
    rows: Sequence[BoundRow],
    group: _SharingRows,
    runs: Mapping[int, ConcatRun],
    w: Sequence[Tensor],
) -> Concat:
    longest = rows[group.rows[0][0]]
    inner = [_cut(path)[0] for (path,) in longest.slots]
    values = [path.apply(w[path.leaf]) for path in inner]
    held = torch.cat(values, DIM).neg_()
    sizes = [value.shape[DIM] for value in values]
    readers: list[list[tuple[int, int, Tensor]]] = [[] for _ in sizes]
    constants: list[Tensor | None] = [None] * len(sizes)
    for i, first in group.rows:
        start, offset = 0, rows[i].offset
        for slot in range(first, first + len(rows[i].slots)):
            piece = runs[i].factor.narrow(DIM, start, sizes[slot])
            readers[slot].append((i, start, piece))
            if offset is not None:
                own = piece * _per_entry(offset, w[i]).narrow(DIM, start, sizes[slot])
                before = constants[slot]
                constants[slot] = own if before is None else before + own
            start += sizes[slot]
    squares = [torch.stack([f for _, _, f in found]).square().sum(0) for found in readers]
    parts = torch.split(held, sizes, DIM)
    return Concat(held, tuple(parts), tuple(map(tuple, readers)), tuple(squares), tuple(constants))


def _per_entry(offset: Tensor, w: Tensor) -> Tensor:
    """Return an offset with all channels of the latent; other dimensions stay broadcast."""
    sizes = [*(1,) * (w.dim() - offset.dim()), *offset.shape]
    full = offset.reshape(sizes)
    sizes[DIM] = w.shape[DIM]
    return full.expand(sizes)


def _values(row: BoundRow, dims: int) -> tuple[_Value, ...] | None:
    """Return what the row's slots hold; None where it is no scaled concat of latents."""
    alone = all(len(paths) == 1 and paths[0].leaf >= 0 for paths in row.slots)
    if dims <= DIM or row.diagonal is not None or not alone or (row.sizes and row.dim != DIM):
        return None
    cut = [_cut(path) for (path,) in row.slots]
    if not all(_per_channel(factor, dims) for _, factor in cut):
        return None
    return tuple((path.leaf, tuple(map(id, path.maps))) for path, _ in cut)


def _cut(path: BoundPath) -> tuple[BoundPath, Tensor | float]:
    """Return the path without its last scale, and the factor of that."""
    if path.maps and isinstance(path.maps[-1], Scale):
        return BoundPath(path.leaf, path.maps[:-1]), path.maps[-1].factor
    return path, 1.0


def _per_channel(factor: Tensor | float, dims: int) -> bool:
    """Whether a factor is one number, or one per channel of a latent with so many dimensions."""
    if not isinstance(factor, Tensor) or factor.dim() == 0:
        return True
    return factor.dim() == dims and factor.numel() == factor.shape[DIM]


def _find(values: tuple[_Value, ...], within: tuple[_Value, ...]) -> int | None:
    """Return where ``values`` start as a run of ``within``."""
    count = len(values)
    starts = (n for n in range(len(within) - count + 1) if within[n : n + count] == values)
    return next(starts, None)


def _factors(row: BoundRow, w: Tensor) -> Tensor:
    """Return the scales of all slots, (1, channels, 1, ...)."""
    sizes, ones, pieces = row.sizes or (w.shape[DIM],), (1,) * (w.dim() - 2), []
    for (path,), size in zip(row.slots, sizes, strict=True):
        factor = _cut(path)[1]
        value = factor if isinstance(factor, Tensor) else w.new_full((), factor)
        pieces.append(value.to(w.dtype).expand(1, size, *ones))
    return torch.cat(pieces, DIM)
