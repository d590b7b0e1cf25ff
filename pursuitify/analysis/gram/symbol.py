"""Blocks of the dictionary from kernels alone: channel matrices at taps, lines per dimension.

A ``Symbol`` is one block A_ij: a grouped channel matrix per combination of taps, and per spatial
dimension the relation of positions. It costs what the kernel costs, whatever the image's size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pursuitify.analysis.gram import position_relations
from pursuitify.analysis.gram.position_relations import Line
from pursuitify.errors import PursuitifyError


class UnsupportedError(PursuitifyError):
    """A map has no translation-covariant or separable form."""


@dataclass(frozen=True, eq=False)
class Switch:
    """A choice that a block depends on: which element each window of a max pooling selects.

    Attributes:
        key: Which pooling, the same wherever the same choice is read.
        lines: Per spatial dim which window sees which position, a tap per element.
    """

    key: tuple[object, ...]
    lines: tuple[Line, ...]


@dataclass(frozen=True, eq=False)
class Symbol:
    """One block: sum over taps of a channel matrix times a relation of positions.

    Attributes:
        weight: (groups, rows, columns, taps), the taps of all dims flattened.
        rows: Output channel of each row, (groups, rows).
        cols: Input channel of each column, (groups, columns).
        lines: Relation of positions per spatial dim.
        channels: Number of (input, output) channels.
        switch: The choice that the block depends on, if every choice is kept: its taps vary slowest
            in each dim.
    """

    weight: Tensor
    rows: Tensor
    cols: Tensor
    lines: tuple[Line, ...]
    channels: tuple[int, int]
    switch: Switch | None = None

    @property
    def counts(self) -> tuple[int, ...]:
        """Taps per dim."""
        return tuple(line.count for line in self.lines)

    def transposed(self) -> Symbol:
        """Return the adjoint."""
        if self.switch is not None:
            raise UnsupportedError("a max pooling on the diagonal")
        turned = tuple(line.transposed() for line in self.lines)
        return Symbol(
            self.weight.transpose(1, 2), self.cols, self.rows, turned, self.channels[::-1]
        )

    def negated(self) -> Symbol:
        """Return minus the block; the weight is shared."""
        first, *rest = self.lines
        return replace(self, lines=(position_relations.negated(first), *rest))

    def spread(self) -> Symbol:
        """Return the block with its weight repeated over the taps of its switch."""
        if self.switch is None:
            return self
        rest = [n // line.count for n, line in zip(self.counts, self.switch.lines, strict=True)]
        shape = self.weight.shape[:3]
        weight = self.weight.reshape(*shape, *(n for own in rest for n in (1, own)))
        full = (
            n for line, own in zip(self.switch.lines, rest, strict=True) for n in (line.count, own)
        )
        return replace(self, weight=weight.expand(*shape, *full).reshape(*shape, -1))

    def scaled(self, factor: float) -> Symbol:
        """Return the block times a number."""
        return replace(self, weight=self.weight * factor)


@dataclass(frozen=True)
class TensorSite:
    """The index set of a tensor: its channels and positions, flattened or not."""

    channels: int
    sizes: tuple[int, ...]
    flat: bool = False


def site_of(shape: Sequence[int], dims: int) -> TensorSite:
    """Return the site of a tensor (1, channels, *sizes), sizes padded with ones to ``dims``."""
    sizes = tuple(shape[2:])
    if len(shape) < 2 or len(sizes) > dims:
        raise UnsupportedError(f"a value of shape {tuple(shape)} has no channel dimension 1")
    return TensorSite(shape[1], sizes + (1,) * (dims - len(sizes)))


def unit(site: TensorSite, like: Tensor, border: bool) -> Symbol:
    """Return the identity on a site; with ``border``, what follows is cut off at the border."""
    index = torch.arange(site.channels)[:, None]
    weight = like.new_ones(site.channels, 1, 1, 1)
    along = [position_relations.identity(n) for n in site.sizes]
    cut = tuple(line.table() if border else line for line in along)
    return Symbol(weight, index, index, cut, (site.channels,) * 2)


def select_rows(
    weight: Tensor, rows: Tensor, cols: Tensor, wanted: Tensor, names: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Keep the output channels ``wanted``, in that order, under new ``names``."""
    order = {int(r): i for i, r in enumerate(rows.reshape(-1))}
    present = [i for i, w in enumerate(wanted.tolist()) if w in order]
    places = torch.tensor([order[int(wanted[i])] for i in present], dtype=torch.long)
    names = names[present]
    if rows.shape[0] == 1:
        return weight[:, places], names[None], cols
    if rows.shape[1] == 1:
        return weight[places], names[:, None], cols[places]
    groups, inside = places // rows.shape[1], places % rows.shape[1]
    if len(places) % rows.shape[1] == 0:
        runs, within = groups.reshape(-1, rows.shape[1]), inside.reshape(-1, rows.shape[1])
        if bool((runs == runs[:, :1]).all() and (within == within[:1]).all()):
            kept = runs[:, 0]
            return weight[kept][:, within[0]], names.reshape(len(kept), -1), cols[kept]
    return weight[groups, inside][:, None], names[:, None], cols[groups]
