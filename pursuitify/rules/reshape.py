"""Operations that move, drop, repeat or add up entries."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pursuitify.errors import InputError
from pursuitify.operators import (
    Adjoint,
    Chain,
    CumulativeSum,
    Expand,
    Index,
    LinearMap,
    Narrow,
    Permute,
    Pick,
    Reduce,
    Reshape,
    SparseMatrix,
    Unfold,
)
from pursuitify.operators.reshape import Roll
from pursuitify.rules import split_ops
from pursuitify.rules.registry import Affine, Registry

#: Which entry goes where depends on sizes alone.
registry = Registry(input_dependent=False, homogeneous=True)
Op = Callable[..., Tensor]


def _reshaped(value: Tensor, input: Tensor) -> Affine:
    return Affine(value, (Reshape(tuple(input.shape), tuple(value.shape)),))


@registry.register(
    nn.Flatten, nn.Unflatten, torch.flatten, torch.reshape, torch.unsqueeze, torch.squeeze,
    torch.unflatten, torch.ravel, torch.atleast_1d, torch.atleast_2d, torch.atleast_3d,
    "view", "reshape", "flatten", "ravel", "unflatten", "unsqueeze", "squeeze", "view_as",
    "reshape_as", kind="linear",
)  # fmt: skip
def reshape(op: Op, input: Tensor, *_args: Any, **_kwargs: Any) -> Affine:
    """Every operation that keeps the entries in order."""
    return _reshaped(op(input), input)


def _permuted(op: Op, input: Tensor, order: Sequence[int]) -> Affine:
    return Affine(op(input), (Permute(tuple(order)),))


@registry.register(
    torch.transpose, torch.swapaxes, torch.swapdims, "transpose", "swapaxes", "swapdims",
    kind="linear",
)  # fmt: skip
def transpose(op: Op, input: Tensor, dim0: int, dim1: int) -> Affine:
    """Two dimensions change places."""
    order = list(range(input.dim()))
    order[dim0], order[dim1] = order[dim1], order[dim0]
    return _permuted(op, input, order)


@registry.register("t", torch.t, kind="linear")
def matrix_transpose(op: Op, input: Tensor) -> Affine:
    """The transpose of a matrix."""
    return _permuted(op, input, (1, 0))


@registry.register("permute", kind="linear")
def permute_method(op: Op, input: Tensor, *_dims: Any) -> Affine:
    """Dimensions in a new order."""
    value = op(input)
    probe = torch.empty(tuple(range(2, input.dim() + 2)), device="meta")
    order = [n - 2 for n in probe.permute(*_dims).shape]
    return Affine(value, (Permute(tuple(order)),))


@registry.register(torch.movedim, torch.moveaxis, "movedim", "moveaxis", kind="linear")
def movedim(op: Op, input: Tensor, source: Any, destination: Any) -> Affine:
    """Dimensions moved to other places."""
    probe = torch.empty(tuple(range(2, input.dim() + 2)), device="meta")
    order = [n - 2 for n in probe.movedim(source, destination).shape]
    return Affine(op(input), (Permute(tuple(order)),))


@registry.register(torch.permute, kind="linear")
def permute(op: Op, input: Tensor, dims: Sequence[int]) -> Affine:
    """Dimensions in a new order."""
    return _permuted(op, input, [d % input.dim() for d in dims])


def _roll_check(dims: Any = None, **_: Any) -> str | None:
    if dims is None or (isinstance(dims, (list, tuple)) and not dims):
        return "it rolls the flattened tensor, the batch included"
    return None


@registry.register(torch.roll, "roll", kind="linear", fresh=True, check=_roll_check)
def roll(
    op: Op, input: Tensor, shifts: int | Sequence[int], dims: int | Sequence[int] | None = None
) -> Affine:
    """A cyclic shift along dimensions."""
    assert dims is not None
    axes = (dims,) if isinstance(dims, int) else tuple(dims)
    steps = (shifts,) if isinstance(shifts, int) else tuple(shifts)
    return Affine(op(input), (Roll(steps, tuple(d % input.dim() for d in axes)),))


def _reduced(op: Op, input: Tensor, dim: Any, keepdim: bool, mean: bool) -> Affine:
    dims = (dim,) if isinstance(dim, int) else tuple(dim)
    dims = tuple(sorted(d % input.dim() for d in dims))
    return Affine(op(input), (Reduce(tuple(input.shape), dims, keepdim, mean),))


def _dim_check(dim: Any = None, dtype: Any = None, **_: Any) -> str | None:
    if dim is None or (isinstance(dim, (list, tuple)) and not dim):
        return "it reduces over every dimension, the batch included"
    return "it changes the dtype" if dtype is not None else None


@registry.register(torch.mean, "mean", kind="linear", fresh=True, check=_dim_check)
def mean(
    op: Op, input: Tensor, dim: Any = None, keepdim: bool = False, dtype: Any = None
) -> Affine:
    """Mean over dimensions."""
    return _reduced(op, input, dim, keepdim, True)


@registry.register(torch.sum, "sum", kind="linear", fresh=True, check=_dim_check)
def sum_(
    op: Op, input: Tensor, dim: Any = None, keepdim: bool = False, dtype: Any = None
) -> Affine:
    """Sum over dimensions."""
    return _reduced(op, input, dim, keepdim, False)


def _cumulative_check(dtype: Any = None, **_: Any) -> str | None:
    return "it changes the dtype" if dtype is not None else None


@registry.register(torch.cumsum, "cumsum", kind="linear", fresh=True, check=_cumulative_check)
def cumulative_sum(op: Op, input: Tensor, dim: int, dtype: Any = None) -> Affine:
    """Sums of the first entries along a dimension."""
    axis = dim % input.dim()
    return Affine(op(input), (CumulativeSum(axis, input.shape[axis]),))


@registry.register(torch.diff, "diff", kind="linear", fresh=True)
def difference(op: Op, input: Tensor, n: int = 1, dim: int = -1) -> Affine:
    """Differences of neighbours along a dimension, several times over."""
    axis, maps = dim % input.dim(), list[LinearMap]()
    for k in range(min(n, input.shape[axis])):
        size = input.shape[axis] - k
        first = torch.arange(size - 1, device=input.device)
        signs = torch.ones_like(first, dtype=input.dtype)
        places, values = torch.cat([first, first + 1]), torch.cat([-signs, signs])
        maps.append(SparseMatrix(axis, first.repeat(2), places, values, (size - 1, size)))
    return Affine(op(input), (maps[0] if len(maps) == 1 else Chain(tuple(maps)),))


@registry.register("expand", "expand_as", "broadcast_to", torch.broadcast_to, kind="linear")
def expand(op: Op, input: Tensor, *_sizes: Any, **_kwargs: Any) -> Affine:
    """Broadcasting to a larger shape."""
    value = op(input)
    return Affine(value, (Expand(tuple(input.shape), tuple(value.shape)),))


@registry.register(operator.getitem, kind="linear")
def getitem(op: Op, input: Tensor, index: Any) -> Affine:
    """Indexing with integers, slices, None, Ellipsis, and constant tensors, lists and masks."""
    value = op(input)
    entries = spelled_out(index, input.dim())
    listed = [i for i, e in enumerate(entries) if isinstance(e, (Tensor, list))]
    if not listed:
        return Affine(value, (Index(index, tuple(input.shape)),))
    others = [e for i, e in enumerate(entries) if i not in listed]
    if len(listed) == 1 and all(isinstance(e, slice) and e == slice(None) for e in others):
        (dim,) = listed
        places = torch.as_tensor(entries[dim], device=input.device)
        if places.dim() == 1 and places.dtype is not torch.uint8:
            return Affine(value, (_pick(input, dim, places),))
    apart = listed[-1] - listed[0] >= len(listed)  # torch then moves what was picked to the front
    first = entries[0] if entries else None
    kept = isinstance(first, slice) and first == slice(None) and not apart
    return _numbered(value, input, lambda numbers: numbers[index], kept)


def spelled_out(index: Any, dims: int) -> list[Any]:
    """Return the entries of an index, with slices in the place of an Ellipsis."""
    entries = list(index) if isinstance(index, tuple) else [index]
    used = sum(_dims_of(e) for e in entries)
    for i, entry in enumerate(entries):
        if entry is Ellipsis:
            return [*entries[:i], *[slice(None)] * (dims - used), *entries[i + 1 :]]
    return entries


def _dims_of(entry: Any) -> int:
    """Return how many dimensions an entry of an index reads."""
    if entry is None or entry is Ellipsis:
        return 0
    mask = isinstance(entry, Tensor) and entry.dtype in (torch.bool, torch.uint8)
    return entry.dim() if mask else 1


def _pick(input: Tensor, dim: int, index: Tensor) -> Pick:
    """Return the map that picks entries of a dimension, by indices of any sign or by a mask."""
    size = input.shape[dim]
    index = index.nonzero().squeeze(1) if index.dtype is torch.bool else index.long() % size
    return Pick(dim, index.to(input.device), size)


def _numbered(
    value: Tensor, input: Tensor, op: Callable[[Tensor], Tensor], by_sample: bool
) -> Affine:
    """Return the map of an operation that copies entries, found by moving their numbers.

    Args:
        value: Its value.
        input: Its operand.
        op: The operation, of a tensor of integers.
        by_sample: Whether it does the same with every sample, and leaves them where they are.
    """
    batch = input.shape[0] if by_sample else 1
    shape = (1, *input.shape[1:]) if by_sample else tuple(input.shape)
    numbers = torch.arange(math.prod(shape), device=input.device).reshape(shape)
    places = op(numbers).flatten()
    flat = Reshape(tuple(input.shape), (batch, numbers.numel()))
    spread = Reshape((batch, places.numel()), tuple(value.shape))
    return Affine(value, (Chain((flat, Pick(1, places, numbers.numel()), spread)),))


@registry.register("index_select", torch.index_select, kind="linear", fresh=True)
def index_select(op: Op, input: Tensor, dim: int, index: Tensor) -> Affine:
    """Entries of a dimension by constant indices."""
    return Affine(op(input), (_pick(input, dim % input.dim(), index.reshape(-1)),))


def _picks(value: Tensor, input: Tensor, indices: dict[int, Tensor]) -> Affine:
    """Return the map that picks entries of several dimensions, by dimension."""
    maps = [Pick(d, index.to(input.device), input.shape[d]) for d, index in indices.items()]
    return Affine(value, (Chain(tuple(maps)),))


@registry.register("flip", torch.flip, kind="linear", fresh=True)
def flip(op: Op, input: Tensor, *_dims: Any, **_named: Any) -> Affine:
    """The order of entries turned around along dimensions."""
    given = _named.get("dims", _dims[0] if len(_dims) == 1 else _dims)
    named = [given] if isinstance(given, int) else given
    sizes = {d % input.dim(): input.shape[d] for d in named}
    return _picks(op(input), input, {d: torch.arange(n).flip(0) for d, n in sizes.items()})


@registry.register(torch.flipud, "flipud", kind="linear", fresh=True)
def flip_up_down(op: Op, input: Tensor) -> Affine:
    """The order of entries turned around along dimension 0."""
    return _picks(op(input), input, {0: torch.arange(input.shape[0]).flip(0)})


@registry.register(torch.fliplr, "fliplr", kind="linear", fresh=True)
def flip_left_right(op: Op, input: Tensor) -> Affine:
    """The order of entries turned around along dimension 1."""
    return _picks(op(input), input, {1: torch.arange(input.shape[1]).flip(0)})


@registry.register("repeat", "tile", torch.tile, kind="linear", fresh=True)
def repeat(op: Op, input: Tensor, *_sizes: Any, **_named: Any) -> Affine:
    """Copies of the whole side by side, along dimensions old and new."""
    value = op(input)
    shape = (*(1,) * (value.dim() - input.dim()), *input.shape)
    wide = input.reshape(shape)
    indices = {
        d: torch.arange(n).repeat(value.shape[d] // n if n else 0)
        for d, n in enumerate(shape) if value.shape[d] != n
    }  # fmt: skip
    (copies,) = _picks(value, wide, indices).maps
    if value.dim() == input.dim():
        return Affine(value, (copies,))
    return Affine(value, (Chain((Reshape(tuple(input.shape), shape), copies)),))


@registry.register(torch.rot90, "rot90", kind="linear", fresh=True)
def rotate(op: Op, input: Tensor, k: int = 1, dims: Sequence[int] = (0, 1)) -> Affine:
    """Images turned by quarters."""
    return _numbered(op(input), input, op, all(d % input.dim() for d in dims))


@registry.register(torch.diagonal, "diagonal", kind="linear")
def diagonal(op: Op, input: Tensor, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Affine:
    """Entries of two equal indices."""
    return _numbered(op(input), input, op, all(d % input.dim() for d in (dim1, dim2)))


def _attribute_check(name: str = "", **_: Any) -> str | None:
    return None if name in {"T", "mT"} else f"no rule says that its attribute {name} is linear"


@registry.register(getattr, kind="linear", check=_attribute_check)
def transposed_attribute(op: Op, input: Tensor, name: str) -> Affine:
    """x.mT and x.T: the last two dimensions change places, or all of them."""
    order = list(range(input.dim()))
    return _permuted(op, input, order[::-1] if name == "T" else [*order[:-2], *order[:-3:-1]])


def _repeats_check(dim: Any = None, **_: Any) -> str | None:
    return "it repeats the entries of the flattened tensor" if dim is None else None


@registry.register(
    "repeat_interleave", torch.repeat_interleave, kind="linear", fresh=True, check=_repeats_check
)
def repeat_interleave(
    op: Op, input: Tensor, repeats: int | Tensor, dim: int | None = None, output_size: Any = None
) -> Affine:
    """Copies of every entry of a dimension, one beside the other."""
    assert dim is not None
    axis = dim % input.dim()
    index = torch.arange(input.shape[axis], device=input.device).repeat_interleave(repeats)
    return Affine(op(input), (Pick(axis, index, input.shape[axis]),))


@registry.register("unfold", kind="linear")
def sliding_windows(op: Op, input: Tensor, dimension: int, size: int, step: int) -> Affine:
    """Windows of one dimension, their elements in a new last one."""
    value, axis = op(input), dimension % input.dim()
    index = torch.arange(input.shape[axis], device=input.device).unfold(0, size, step)
    picked = (*input.shape[:axis], index.numel(), *input.shape[axis + 1 :])
    cut = (*input.shape[:axis], *index.shape, *input.shape[axis + 1 :])
    order = [d for d in range(len(cut)) if d != axis + 1] + [axis + 1]
    maps = (
        Pick(axis, index.reshape(-1), input.shape[axis]),
        Reshape(picked, cut),
        Permute(tuple(order)),
    )
    return Affine(value, (Chain(maps),))


def _pair(value: int | Sequence[int]) -> tuple[int, int]:
    height, width = (value, value) if isinstance(value, int) else value
    return height, width


@registry.register(nn.Unfold, F.unfold, kind="linear", fresh=True)
def unfold(
    op: Op, input: Tensor, kernel_size: Any, dilation: Any = 1, padding: Any = 0, stride: Any = 1
) -> Affine:
    """Windows of images side by side."""
    _with_batch(input, 4)
    sizes = map(_pair, (input.shape[2:], kernel_size, dilation, padding, stride))
    return Affine(op(input), (Unfold(*sizes),))


@registry.register(nn.Fold, F.fold, kind="linear", fresh=True)
def fold(
    op: Op,
    input: Tensor,
    output_size: Any,
    kernel_size: Any,
    dilation: Any = 1,
    padding: Any = 0,
    stride: Any = 1,
) -> Affine:
    """Windows added up to images where they overlap."""
    _with_batch(input, 3)
    sizes = map(_pair, (output_size, kernel_size, dilation, padding, stride))
    return Affine(op(input), (Adjoint(Unfold(*sizes)),))


def _with_batch(input: Tensor, dims: int) -> None:
    if input.dim() != dims:
        raise InputError(
            f"the windows of images got an input of shape {tuple(input.shape)}; pursuit needs a "
            f"batch dimension: {dims} dimensions"
        )


@registry.register("narrow", torch.narrow, kind="linear")
def narrow(op: Op, input: Tensor, dim: int, start: int, length: int) -> Affine:
    """One range of a dimension."""
    axis = dim % input.dim()
    return Affine(op(input), (Narrow(axis, start, length, input.shape[axis]),))


@registry.register("select", torch.select, kind="linear")
def select(op: Op, input: Tensor, dim: int, index: int) -> Affine:
    """One entry of a dimension."""
    spec = (slice(None),) * (dim % input.dim()) + (index,)
    return Affine(op(input), (Index(spec, tuple(input.shape)),))


def _piece(value: Tensor, input: Tensor, sizes: Sequence[int], index: int, dim: int) -> Affine:
    axis, i = dim % input.dim(), index % len(sizes)
    return Affine(value, (Narrow(axis, sum(sizes[:i]), sizes[i], input.shape[axis]),))


@registry.register(split_ops.chunk_piece, kind="linear")
def chunk_piece(op: Op, input: Tensor, index: int, chunks: int, dim: int = 0) -> Affine:
    """One piece of torch.chunk."""
    sizes = [p.shape[dim] for p in torch.chunk(input, chunks, dim)]
    return _piece(op(input), input, sizes, index, dim)


@registry.register(split_ops.split_piece, kind="linear")
def split_piece(
    op: Op, input: Tensor, index: int, split_size_or_sections: Any, dim: int = 0, **_names: Any
) -> Affine:
    """One piece of torch.split."""
    sizes = [p.shape[dim] for p in torch.split(input, split_size_or_sections, dim)]
    return _piece(op(input), input, sizes, index, dim)


@registry.register(split_ops.tensor_split_piece, kind="linear")
def tensor_split_piece(
    op: Op, input: Tensor, index: int, sections: Any = None, dim: int = 0, *, indices: Any = None
) -> Affine:
    """One piece of torch.tensor_split, hsplit, vsplit or dsplit."""
    cut = sections if indices is None else indices
    sizes = [p.shape[dim] for p in torch.tensor_split(input, cut, dim)]
    return _piece(op(input), input, sizes, index, dim)


@registry.register(split_ops.unbind_piece, kind="linear")
def unbind_piece(op: Op, input: Tensor, index: int, dim: int = 0) -> Affine:
    """One piece of torch.unbind."""
    spec = (slice(None),) * (dim % input.dim()) + (index,)
    return Affine(op(input), (Index(spec, tuple(input.shape)),))


def _shuffle(input: Tensor, inner: Sequence[int], order: Sequence[int], out: Tensor) -> Chain:
    shape = tuple(inner)
    moved = tuple(shape[i] for i in order)
    return Chain(
        (
            Reshape(tuple(input.shape), shape),
            Permute(tuple(order)),
            Reshape(moved, tuple(out.shape)),
        )
    )


@registry.register(nn.PixelShuffle, F.pixel_shuffle, torch.pixel_shuffle, kind="linear")
def pixel_shuffle(op: Op, input: Tensor, upscale_factor: int) -> Affine:
    """Channels become pixels."""
    value, r = op(input), upscale_factor
    b, c, h, w = input.shape
    return Affine(value, (_shuffle(input, (b, c // r**2, r, r, h, w), (0, 1, 4, 2, 5, 3), value),))


@registry.register(nn.PixelUnshuffle, F.pixel_unshuffle, torch.pixel_unshuffle, kind="linear")
def pixel_unshuffle(op: Op, input: Tensor, downscale_factor: int) -> Affine:
    """Pixels become channels."""
    value, r = op(input), downscale_factor
    b, c, h, w = input.shape
    return Affine(
        value, (_shuffle(input, (b, c, h // r, r, w // r, r), (0, 1, 3, 5, 2, 4), value),)
    )


@registry.register(nn.ChannelShuffle, F.channel_shuffle, torch.channel_shuffle, kind="linear")
def channel_shuffle(op: Op, input: Tensor, groups: int) -> Affine:
    """Channels of different groups change places."""
    value = op(input)
    b, c, *space = input.shape
    order = (0, 2, 1, *range(3, input.dim() + 1))
    return Affine(value, (_shuffle(input, (b, groups, c // groups, *space), order, value),))
