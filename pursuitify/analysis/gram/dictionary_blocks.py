"""The dictionary's blocks as symbols: per latent the row slots that hold it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pursuitify.analysis.gram.operator_symbols import block_of
from pursuitify.analysis.gram.symbol import (
    Symbol,
    TensorSite,
    UnsupportedError,
    select_rows,
    site_of,
    unit,
)
from pursuitify.dictionary.bound_rows import BoundPath, BoundRow
from pursuitify.dictionary.structured import StructuredDictionary
from pursuitify.errors import InputError
from pursuitify.operators import Chain, LinearMap

#: A slot of a row: (row, slot).
Place = tuple[int, int]


@dataclass(frozen=True)
class Use:
    """One block of B: latent ``latent`` in slot ``place``.

    Attributes:
        place: The row and its slot.
        latent: The latent.
        symbol: The block, sign included.
    """

    place: Place
    latent: int
    symbol: Symbol


@dataclass(frozen=True)
class Blocks:
    """All blocks of B.

    Attributes:
        names: Names of the latents.
        sites: Channels and positions of each latent.
        uses: Per latent its blocks.
    """

    names: tuple[str, ...]
    sites: tuple[TensorSite, ...]
    uses: tuple[tuple[Use, ...], ...]


#: Columns whose largest weight has an exponent beyond this are scaled: their squares would be lost.
_EXPONENT = 30
_HALF = (torch.float16, torch.bfloat16)


def in_range(blocks: Blocks) -> tuple[Blocks, tuple[Tensor | None, ...]]:
    """Return the blocks in a range where squares of weights neither vanish nor overflow.

    The Gram matrix of unit columns does not depend on the columns' lengths, so each channel of a
    latent is multiplied by a power of two, which rounds nothing. Ordinary weights stay as they are.

    Returns:
        The blocks, and per latent what its channels were multiplied by, None where by nothing.

    Raises:
        InputError: If a weight is NaN or infinite.
    """
    factors: list[Tensor | None] = []
    uses = []
    for name, site, own in zip(blocks.names, blocks.sites, blocks.uses, strict=True):
        made: dict[int, Symbol] = {}
        symbols = [_wide(use.symbol, made) for use in own]
        factor = _factor(symbols, site.channels, name)
        if factor is not None:
            symbols = [_multiplied(symbol, factor, made) for symbol in symbols]
        factors.append(factor)
        uses.append(tuple(replace(u, symbol=s) for u, s in zip(own, symbols, strict=True)))
    return replace(blocks, uses=tuple(uses)), tuple(factors)


def _wide(symbol: Symbol, made: dict[int, Symbol]) -> Symbol:
    """Return a symbol in float32 at least; one and the same for one and the same."""
    if symbol.weight.dtype not in _HALF:
        return symbol
    if id(symbol) not in made:
        made[id(symbol)] = replace(symbol, weight=symbol.weight.float())
    return made[id(symbol)]


def _multiplied(symbol: Symbol, factor: Tensor, made: dict[int, Symbol]) -> Symbol:
    if id(symbol) not in made:
        columns = factor.to(symbol.weight.dtype)[symbol.cols]
        made[id(symbol)] = replace(symbol, weight=symbol.weight * columns[:, None, :, None])
    return made[id(symbol)]


def _factor(symbols: Sequence[Symbol], channels: int, name: str) -> Tensor | None:
    """Return the powers of two that bring every channel's largest weight near 1, if need be."""
    top: Tensor | None = None
    for symbol in symbols:
        size = symbol.weight.detach().abs().amax((1, 3)).reshape(-1)
        top = size.new_zeros(channels) if top is None else top
        top = top.scatter_reduce(0, symbol.cols.reshape(-1), size, "amax")
    if top is None:
        return None
    if not bool(torch.isfinite(top).all()):
        wrong = (~torch.isfinite(top)).nonzero().flatten().tolist()
        shown = ", ".join(map(str, wrong[:8])) + (" ..." if len(wrong) > 8 else "")
        raise InputError(
            f"the dictionary's columns of latent {name!r} hold NaN or infinite weights (channels "
            f"{shown}): there is nothing to measure. Look at the weights of its layer, and of "
            "those that read it"
        )
    exponent = torch.frexp(top).exponent
    if not bool((exponent.abs() > _EXPONENT).any()):
        return None
    return torch.ldexp(torch.ones_like(top), -exponent.clamp(-126, 126))


def blocks_of(dictionary: StructuredDictionary, border: bool, worst: bool = False) -> Blocks:
    """Return the blocks of a bound dictionary.

    Args:
        dictionary: Bound to a batch of one.
        border: Whether zero padding truncates atoms at the border.
        worst: Whether to keep every choice of max poolings, for ``WorstGram``.

    Raises:
        UnsupportedError: If a block has no kernel form.
    """
    dims = max(1, *(len(s) - 2 for s in dictionary.shapes))
    sites = tuple(site_of(s, dims) for s in dictionary.shapes)
    like = dictionary.inputs[0]
    uses: list[list[Use]] = [[] for _ in sites]
    for i, row in enumerate(dictionary.rows):
        start = 0
        for s, paths in enumerate(row.slots):
            extent = row.u[s].shape[row.dim] if row.sizes else 0
            landed = [
                (p, *block_of(p.maps, sites[p.leaf], like, border, worst))
                for p in paths
                if p.leaf >= 0
            ]
            target = _target(row, s, landed, dims)
            for path, symbol, _ in landed:
                uses[path.leaf].append(Use((i, s), path.leaf, symbol.negated()))
            own = _diagonal(row, target, sites[i], start, extent, like, border)
            uses[i].append(Use((i, s), i, own))
            start += extent
    return Blocks(dictionary.names, sites, tuple(tuple(u) for u in uses))


def _target(
    row: BoundRow, slot: int, landed: Sequence[tuple[BoundPath, Symbol, TensorSite]], dims: int
) -> TensorSite:
    """Return where a slot lives: positions if it is a flattened image."""
    sites = {site for _, _, site in landed}
    if len(sites) > 1:
        raise UnsupportedError(f"the paths of row {row.name!r} end in different forms")
    shape = row.u[slot].shape
    target = next(iter(sites), None) or site_of(shape, dims)
    if target.channels * torch.Size(target.sizes).numel() != shape.numel():
        raise UnsupportedError(f"row {row.name!r} is reshaped")
    return target


def _diagonal(
    row: BoundRow,
    target: TensorSite,
    own: TensorSite,
    start: int,
    extent: int,
    like: Tensor,
    border: bool,
) -> Symbol:
    """Return the slot's block of the latent of its own row."""
    if row.sizes and row.dim % max(2, len(row.u[0].shape)) != 1:
        raise UnsupportedError(f"row {row.name!r} is a concatenation of positions")
    if row.diagonal is None:
        if target.flat:
            raise UnsupportedError(f"row {row.name!r} is the identity on a flattened image")
        part = unit(target, like, border)
        return replace(part, cols=part.cols + start, channels=(own.channels, target.channels))
    first, *rest = row.diagonal.maps
    if not row.sizes:
        return _operator([first, *rest], target, like, border).transposed()
    narrowed = _narrow(first, start, extent)
    if narrowed is not None:
        return _operator([narrowed, *rest], target, like, border).transposed()
    total = replace(target, channels=sum(row.sizes))
    full = _operator([first, *rest], total, like, border).transposed()
    wanted = torch.arange(start, start + extent)
    weight, rows, cols = select_rows(
        full.weight, full.rows, full.cols, wanted, torch.arange(extent)
    )
    return Symbol(weight, rows, cols, full.lines, (full.channels[0], extent))


def _operator(maps: Sequence[LinearMap], site: TensorSite, like: Tensor, border: bool) -> Symbol:
    return block_of(maps, site, like, border)[0]


def _narrow(first: LinearMap, start: int, extent: int) -> LinearMap | None:
    if isinstance(first, Chain):
        raise UnsupportedError("a chain under a concatenation")
    return first.narrow_input(start, extent)
