"""From chains of linear maps to symbols, map by map."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NoReturn

import torch
from torch import Tensor

from pursuitify.analysis.gram import position_relations
from pursuitify.analysis.gram.max_pool_switches import centre, every
from pursuitify.analysis.gram.position_relations import Line
from pursuitify.analysis.gram.rearrangements import moved
from pursuitify.analysis.gram.symbol import Switch, Symbol, TensorSite, UnsupportedError, unit
from pursuitify.operators import Identity, LinearMap, Select


def block_of(
    maps: Sequence[LinearMap], site: TensorSite, like: Tensor, border: bool, worst: bool = False
) -> tuple[Symbol, TensorSite]:
    """Return the symbol of a chain of maps from ``site``, and where it ends.

    Args:
        maps: The chain, the first applied first.
        site: Where it starts.
        like: Tensor that gives dtype and device.
        border: Whether zero padding truncates.
        worst: Whether to keep every choice of a max pooling; else it takes its centres.

    Raises:
        UnsupportedError: If a map mixes positions and channels in another way.
    """
    reader = _SymbolReader(unit(site, like, border), site, worst)
    for item in maps:
        reader.read(item)
    return reader.finish()


class _SymbolReader:
    """The symbol of a chain as far as it was heard: each map says what it does.

    Attributes:
        symbol: The symbol so far.
        site: Where it ends.
        worst: Whether every choice of a max pooling is kept.
    """

    window = staticmethod(position_relations.window)
    total = staticmethod(position_relations.summed)
    matrix = staticmethod(position_relations.from_matrix)

    def __init__(self, symbol: Symbol, site: TensorSite, worst: bool) -> None:
        self.symbol, self.site, self.worst = symbol, site, worst
        self._item: LinearMap = Identity()
        self._run: list[LinearMap] = []

    def read(self, item: LinearMap) -> None:
        """Hear one map."""
        self._item = item
        item.symbol(self)

    def finish(self) -> tuple[Symbol, TensorSite]:
        """Return the symbol of all maps, and where it ends."""
        self._follow()
        return self.symbol.spread(), self.site

    def moved(self, item: LinearMap) -> None:
        """Remember a map that only moves elements: a run of them is followed as one."""
        self._run.append(item)

    def _follow(self) -> None:
        if self._run:
            self.symbol, self.site = moved(self.symbol, self.site, self._run)
            self._run = []

    def refused(self, why: str) -> NoReturn:
        """Raise."""
        raise UnsupportedError(why)

    def _positioned(self) -> None:
        """Catch up with the maps that move elements; refuse where positions were flattened."""
        self._follow()
        if self.site.flat:
            self.refused(f"{type(self._item).__name__} after a flatten")

    def scaled(self, factor: Tensor | float) -> None:
        """Scale the symbol; by one factor per channel at most."""
        self._follow()
        self.symbol = _scaled(self.symbol, self.site, factor)

    def dense(self, weight: Tensor) -> None:
        """Apply a dense layer to a vector, or to a flattened image."""
        self._follow()
        self.symbol, self.site = _dense(self.symbol, self.site, weight)

    def weighted(
        self, weight: Tensor, groups: int, along: Sequence[Line], transposed: bool = False
    ) -> None:
        """Apply a convolution or its adjoint."""
        self._positioned()
        outputs, inputs, *taps = weight.shape
        kernel = weight.reshape(groups, outputs // groups, inputs, -1)
        along = (*along, *[position_relations.identity(1)] * (len(self.site.sizes) - len(taps)))
        rows = torch.arange(outputs).reshape(groups, -1)
        cols = torch.arange(inputs * groups).reshape(groups, -1)
        if transposed:
            kernel, rows, cols = kernel.transpose(1, 2), cols, rows
            along, outputs = tuple(line.transposed() for line in along), inputs * groups
        self.symbol, self.site = _then(self.symbol, kernel, rows, cols, along, outputs)

    def channelwise(self, along: Sequence[Line | None], factor: float = 1.0) -> None:
        """Apply a relation per dimension, the same in every channel."""
        self._positioned()
        sizes = self.site.sizes
        whole = [
            position_relations.identity(n) if line is None else line
            for n, line in zip(sizes, (*along, *[None] * (len(sizes) - len(along))), strict=True)
        ]
        joined = tuple(
            position_relations.compose(a, b) for a, b in zip(self.symbol.lines, whole, strict=True)
        )
        weight = self.symbol.weight if factor == 1 else self.symbol.weight * factor
        self.symbol = replace(self.symbol, weight=weight, lines=joined)
        self.site = replace(self.site, sizes=tuple(line.n_out for line in joined))

    def selected(self, select: Select) -> None:
        """Apply a max pooling: its centres, or all its choices."""
        if not self.worst or math.prod(_window(select)) == 1:
            self._positioned()
            self.channelwise(centre(select, self.site.sizes))
            return
        self._follow()
        self.symbol, self.site = _switched(self.symbol, self.site, select)


def _window(select: Select) -> tuple[int, ...]:
    return select.windows.kernel if select.windows is not None else select.size


def _switched(symbol: Symbol, site: TensorSite, item: Select) -> tuple[Symbol, TensorSite]:
    """Return a symbol before a max pooling of which every choice is kept."""
    if site.flat:
        raise UnsupportedError("a max pooling after a flatten")
    if symbol.weight.shape[1:] != (1, 1, 1) or len(torch.unique(symbol.cols)) < len(symbol.cols):
        raise UnsupportedError(
            "a max pooling after a weighted operator on one path: each of its outputs chooses for "
            "itself, and the worst case over all is not computed"
        )
    before = () if symbol.switch is None else symbol.switch.key
    key = (*before, item.indices.data_ptr(), tuple(item.indices.shape))
    along = every(item, site.sizes)
    joined = tuple(
        position_relations.compose(a, b) for a, b in zip(symbol.lines, along, strict=True)
    )
    sizes = tuple(line.n_out for line in joined)
    return replace(symbol, lines=joined, switch=Switch(key, joined)), replace(site, sizes=sizes)


def _dense(symbol: Symbol, site: TensorSite, weight: Tensor) -> tuple[Symbol, TensorSite]:
    sizes = site.sizes
    if not site.flat and math.prod(sizes) != 1:
        raise UnsupportedError("a dense layer along the last dimension of an image")
    out = weight.shape[0]
    index = torch.arange(out)[None]
    along = tuple(
        position_relations.whole(n) if n > 1 else position_relations.identity(1) for n in sizes
    )
    grouped = weight.reshape(1, out, site.channels, -1)
    joined, _ = _then(symbol, grouped, index, torch.arange(site.channels)[None], along, out)
    return joined, TensorSite(out, (1,) * len(sizes))


def _then(
    symbol: Symbol,
    weight: Tensor,
    rows: Tensor,
    cols: Tensor,
    along: tuple[Line, ...],
    outputs: int,
) -> tuple[Symbol, TensorSite]:
    """Return a weighted operator after a symbol that only selects and scales channels."""
    if symbol.weight.shape[1:] != (1, 1, 1):
        raise UnsupportedError("two weighted operators on one path")
    source = torch.full((symbol.channels[1],), -1)
    source[symbol.rows[:, 0]] = symbol.cols[:, 0]
    factor = symbol.weight.new_zeros(symbol.channels[1])
    factor[symbol.rows[:, 0]] = symbol.weight[:, 0, 0, 0]
    cols_from = source[cols]
    held = cols_from >= 0
    if not bool(held.all()):
        number = held.sum(1)
        some = number > 0
        if len(torch.unique(number[some])) > 1:
            raise UnsupportedError("a grouped convolution that reads part of its groups' channels")
        place = held[some].nonzero()[:, 1].reshape(int(some.sum()), -1)
        rows, cols = rows[some], cols[some].gather(1, place)
        cols_from = cols_from[some].gather(1, place)
        full = place[:, None, :, None].expand(-1, weight.shape[1], -1, weight.shape[3])
        weight = weight[some].gather(2, full)
    if not bool((factor == 1).all()):
        weight = weight * factor[cols][:, None, :, None]
    joined = tuple(
        position_relations.compose(a, b) for a, b in zip(symbol.lines, along, strict=True)
    )
    sizes = tuple(line.n_out for line in joined)
    ends = (symbol.channels[0], outputs)
    result = Symbol(weight, rows, cols_from, joined, ends, symbol.switch)
    return result, TensorSite(outputs, sizes)


def _scaled(symbol: Symbol, site: TensorSite, factor: Tensor | float) -> Symbol:
    if not isinstance(factor, Tensor):
        return symbol.scaled(factor)
    if factor.numel() == 1:
        return replace(symbol, weight=symbol.weight * factor.reshape(()))
    found = _per_channel(factor, symbol.channels[1], site.sizes)
    if site.flat or found is None:
        raise UnsupportedError("a scale that varies between positions (a mask)")
    return replace(symbol, weight=symbol.weight * found[symbol.rows][..., None, None])


def _per_channel(factor: Tensor, channels: int, sizes: tuple[int, ...]) -> Tensor | None:
    """Return a factor per channel, None if it varies between positions or may be read in two ways.

    Sizes were padded with ones: how many spatial dims the value has is not known, so all that fit
    have to agree.
    """
    found: list[Tensor | None] = []
    for dims in range(len(sizes), -1, -1):
        try:
            full = factor.expand(1, channels, *sizes[:dims]).reshape(channels, -1)
            found.append(full[:, 0] if bool((full == full[:, :1]).all()) else None)
        except RuntimeError:
            pass
        if dims and sizes[dims - 1] != 1:
            break
    first = found[0] if found else None
    if first is None or any(f is None or not torch.equal(f, first) for f in found):
        return None
    return first
