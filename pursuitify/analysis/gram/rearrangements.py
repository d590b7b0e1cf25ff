"""Maps that only move elements (reshape, permute, slice, place, pad), followed by numbering them.

Such a map has a kernel form if it treats channels and positions apart: a channel shuffle, a slot
of channels, a crop, a flatten. Moving the numbers 1, 2, ... through it shows which.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from pursuitify.analysis.gram import position_relations
from pursuitify.analysis.gram.position_relations import Line
from pursuitify.analysis.gram.symbol import (
    Symbol,
    TensorSite,
    UnsupportedError,
    select_rows,
    site_of,
)
from pursuitify.operators import LinearMap


def moved(symbol: Symbol, site: TensorSite, run: Sequence[LinearMap]) -> tuple[Symbol, TensorSite]:
    """Return a symbol after a run of maps that only move elements.

    Raises:
        UnsupportedError: If they mix channels and positions.
    """
    if site.flat:
        raise UnsupportedError("a reshape of a flattened value")
    numbers = _numbers(site, run)
    dims, positions = len(site.sizes), math.prod(site.sizes)
    count = site.channels * positions
    if numbers.shape == (1, count) and positions > 1:
        if bool((numbers[0] == torch.arange(count)).all()):
            return symbol, replace(site, flat=True)
        raise UnsupportedError("a flatten in another order")
    out = site_of(numbers.shape, dims)
    flat = numbers.reshape(out.channels, -1)
    held = flat >= 0
    channel, place = flat // positions, flat % positions
    some = held.any(1)
    first = torch.where(held, channel, -1).amax(1)
    if not bool(((channel == first[:, None]) | ~held).all()):
        raise UnsupportedError("a map that mixes channels and positions")
    base = torch.where(held, place, -1).amax(0)
    alike = ((place == base) | ~held).all() and (held[some] == held[some][:1]).all()
    if not bool(alike):
        raise UnsupportedError("a map that moves channels' positions differently")
    along = _index_lines(base.reshape(out.sizes), site.sizes)
    return _gathered(symbol, first, along, out)


def _numbers(site: TensorSite, run: Sequence[LinearMap]) -> Tensor:
    """Return which element lands where, -1 where none does."""
    dims = len(site.sizes)
    for skip in range(dims + 1):  # sizes were padded with ones: find how many the map knows
        shape = (1, site.channels, *site.sizes[: dims - skip])
        value = torch.arange(1, math.prod(shape) + 1, dtype=torch.float64).reshape(shape)
        try:
            numbers = _applied(run, value).long() - 1
            _check(run, shape, numbers)
            return numbers
        except (RuntimeError, IndexError):
            if skip == dims or site.sizes[dims - skip - 1] != 1:
                break
    raise UnsupportedError(f"{type(run[0]).__name__} cannot be followed")


def _applied(run: Sequence[LinearMap], value: Tensor) -> Tensor:
    for item in run:
        value = item.apply(value)
    return value


def _check(run: Sequence[LinearMap], shape: tuple[int, ...], numbers: Tensor) -> None:
    """Refuse a map that does more than move: a user's own may scale or mix."""
    generator = torch.Generator().manual_seed(0)
    probe = torch.randn(shape, generator=generator, dtype=torch.float64)
    wanted = torch.where(numbers < 0, 0.0, probe.reshape(-1)[numbers.clamp(0, probe.numel() - 1)])
    if not torch.allclose(_applied(run, probe), wanted):
        names = ", ".join(type(item).__name__ for item in run)
        raise UnsupportedError(f"{names} has no kernel form: it does more than move elements")


def _index_lines(base: Tensor, sizes: tuple[int, ...]) -> tuple[Line, ...]:
    """Return per dim the relation of a map that moves positions (-1: nothing) along each dim."""
    held = base >= 0
    along: list[Line] = []
    for d, (n, out) in enumerate(zip(sizes, base.shape, strict=True)):
        stride = math.prod(sizes[d + 1 :])
        coordinate = torch.where(held, base // stride % n, -1)
        own = coordinate.movedim(d, 0).reshape(out, -1).amax(1)
        wanted = own.reshape([-1 if i == d else 1 for i in range(len(sizes))])
        if not bool(((coordinate == wanted) | ~held).all()):
            raise UnsupportedError("a map that permutes the spatial dimensions")
        matrix = torch.zeros(out, n)
        kept = own >= 0
        matrix[kept.nonzero()[:, 0], own[kept]] = 1.0
        same = n == out and bool((own == torch.arange(n)).all())
        along.append(
            position_relations.identity(n) if same else position_relations.from_matrix(matrix)
        )
    return tuple(along)


def _gathered(
    symbol: Symbol, index: Tensor, along: tuple[Line, ...], out: TensorSite
) -> tuple[Symbol, TensorSite]:
    """Return a symbol whose output channel o is the former channel index[o]; -1 is zero."""
    names = (index >= 0).nonzero()[:, 0]
    joined = tuple(
        position_relations.compose(a, b) for a, b in zip(symbol.lines, along, strict=True)
    )
    weight, rows, cols = select_rows(symbol.weight, symbol.rows, symbol.cols, index[names], names)
    ends = (symbol.channels[0], out.channels)
    return Symbol(weight, rows, cols, joined, ends, symbol.switch), out
