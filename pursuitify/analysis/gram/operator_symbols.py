"""From chains of linear maps to symbols, map by map."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from pursuitify.analysis.gram import position_relations
from pursuitify.analysis.gram.max_pool_switches import centre, every
from pursuitify.analysis.gram.position_relations import Line
from pursuitify.analysis.gram.rearrangements import moved
from pursuitify.analysis.gram.symbol import Site, Switch, Symbol, UnsupportedError, unit
from pursuitify.operators import (
    Adjoint,
    BlockMean,
    Chain,
    Conv,
    Dense,
    Identity,
    LinearMap,
    Reduce,
    Scale,
    Select,
    Separable,
)


def block_of(
    maps: Sequence[LinearMap], site: Site, like: Tensor, border: bool, worst: bool = False
) -> tuple[Symbol, Site]:
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
    symbol = unit(site, like, border)
    chain = _spelled(maps)
    while chain:
        item = chain.pop(0)
        if isinstance(item, Identity):
            continue
        if _moves(item):
            run = [item]
            while chain and _moves(chain[0]):
                run.append(chain.pop(0))
            symbol, site = moved(symbol, site, run)
        elif worst and isinstance(item, Select) and math.prod(_kernel(item)) > 1:
            symbol, site = _switched(symbol, site, item)
        else:
            symbol, site = _step(symbol, site, item)
    return symbol.spread(), site


def _kernel(select: Select) -> tuple[int, ...]:
    return select.windows.kernel if select.windows is not None else select.size


def _switched(symbol: Symbol, site: Site, item: Select) -> tuple[Symbol, Site]:
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


def _spelled(maps: Sequence[LinearMap]) -> list[LinearMap]:
    found: list[LinearMap] = []
    for item in maps:
        found.extend(_spelled(item.maps) if isinstance(item, Chain) else [item])
    return found


_WEIGHTED = (Conv, Dense, Adjoint, Scale, Select, BlockMean, Separable, Reduce)


def _moves(item: LinearMap) -> bool:
    """Whether a map only moves elements: reshape, permute, slice, place, pad."""
    return not isinstance(item, (*_WEIGHTED, Identity))


def _step(symbol: Symbol, site: Site, item: LinearMap) -> tuple[Symbol, Site]:
    if isinstance(item, Scale):
        return _scaled(symbol, site, item), site
    if isinstance(item, Dense):
        return _dense(symbol, site, item)
    if site.flat:
        raise UnsupportedError(f"{type(item).__name__} after a flatten")
    if isinstance(item, Conv):
        weight, rows, cols, along = _conv_parts(item, site)
        return _then(symbol, weight, rows, cols, along, item.weight.shape[0])
    if isinstance(item, Adjoint) and isinstance(item.inner, Conv):
        inner = item.inner
        out = Site(inner.weight.shape[1] * inner.groups, _padded(inner.size, site))
        weight, rows, cols, along = _conv_parts(inner, out)
        turned = tuple(line.transposed() for line in along)
        return _then(symbol, weight.transpose(1, 2), cols, rows, turned, out.channels)
    if isinstance(item, (BlockMean, Separable, Reduce, Select)):
        along, factor = _pooling(item, site)
        joined = tuple(
            position_relations.compose(a, b) for a, b in zip(symbol.lines, along, strict=True)
        )
        sizes = tuple(line.n_out for line in joined)
        weight = symbol.weight if factor == 1 else symbol.weight * factor
        return replace(symbol, weight=weight, lines=joined), replace(site, sizes=sizes)
    raise UnsupportedError(f"{type(item).__name__} has no kernel form")


def _padded(sizes: Sequence[int], site: Site) -> tuple[int, ...]:
    return tuple(sizes) + (1,) * (len(site.sizes) - len(sizes))


def _conv_parts(conv: Conv, site: Site) -> tuple[Tensor, Tensor, Tensor, tuple[Line, ...]]:
    """Return grouped weight, row and column channels, and lines of a convolution."""
    outputs, inputs, *taps = conv.weight.shape
    groups = conv.groups
    weight = conv.weight.reshape(groups, outputs // groups, inputs, -1)
    along: list[Line] = []
    for n, k, s, (low, high), d in zip(
        conv.size, taps, conv.stride, conv.padding, conv.dilation, strict=True
    ):
        out = (n + low + high - d * (k - 1) - 1) // s + 1
        along.append(position_relations.window(n, out, k, s, low, d))
    along += [position_relations.identity(1)] * (len(site.sizes) - len(taps))
    rows = torch.arange(outputs).reshape(groups, -1)
    cols = torch.arange(inputs * groups).reshape(groups, -1)
    return weight, rows, cols, tuple(along)


def _dense(symbol: Symbol, site: Site, item: Dense) -> tuple[Symbol, Site]:
    weight, sizes = item.weight, site.sizes
    if not site.flat and math.prod(sizes) != 1:
        raise UnsupportedError("a dense layer along the last dimension of an image")
    out = weight.shape[0]
    index = torch.arange(out)[None]
    along = tuple(
        position_relations.whole(n) if n > 1 else position_relations.identity(1) for n in sizes
    )
    grouped = weight.reshape(1, out, site.channels, -1)
    joined, _ = _then(symbol, grouped, index, torch.arange(site.channels)[None], along, out)
    return joined, Site(out, (1,) * len(sizes))


def _then(
    symbol: Symbol,
    weight: Tensor,
    rows: Tensor,
    cols: Tensor,
    along: tuple[Line, ...],
    outputs: int,
) -> tuple[Symbol, Site]:
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
    return result, Site(outputs, sizes)


def _scaled(symbol: Symbol, site: Site, item: Scale) -> Symbol:
    factor = item.factor
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


def _pooling(item: LinearMap, site: Site) -> tuple[tuple[Line, ...], float]:
    """Return lines and constant factor of a map that treats every channel alike."""
    sizes, factor, along = site.sizes, 1.0, []
    if isinstance(item, Select):
        return centre(item, sizes), 1.0
    if isinstance(item, BlockMean):
        factor = item.factor
        for n, k in zip(item.size, item.kernel, strict=True):
            along.append(
                position_relations.summed(n, 1 / n)
                if k == n and n > 1
                else position_relations.window(n, n // k, k, k, 0, 1, 1 / k)
            )
    elif isinstance(item, Separable):
        along = [
            position_relations.identity(n) if m is None else position_relations.from_matrix(m)
            for n, m in zip(sizes, item.mats, strict=False)
        ]
    elif isinstance(item, Reduce):
        dims = {d % len(item.in_shape) for d in item.dims}
        kept = [i for i in range(2, len(item.in_shape)) if i not in dims]
        if dims & {0, 1} or kept:
            raise UnsupportedError("a reduction over channels or over part of the positions")
        along = [
            position_relations.summed(n, 1 / n if item.mean else 1.0) for n in item.in_shape[2:]
        ]
    along += [position_relations.identity(n) for n in sizes[len(along) :]]
    return tuple(along), factor
