"""Operations that move, drop, repeat or add up entries."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pursuitify.operators import Chain, Expand, Index, Narrow, Permute, Reduce, Reshape
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
    torch.unflatten, "view", "reshape", "flatten", "unflatten", "unsqueeze", "squeeze", "view_as",
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


@registry.register("expand", "expand_as", torch.broadcast_to, kind="linear")
def expand(op: Op, input: Tensor, *_sizes: Any, **_kwargs: Any) -> Affine:
    """Broadcasting to a larger shape."""
    value = op(input)
    return Affine(value, (Expand(tuple(input.shape), tuple(value.shape)),))


def _index_check(index: Any = None, **_: Any) -> str | None:
    entries = index if isinstance(index, tuple) else (index,)
    if any(isinstance(e, (Tensor, list)) for e in entries):
        return "it indexes with a tensor or a list"
    return None


@registry.register(operator.getitem, kind="linear", check=_index_check)
def getitem(op: Op, input: Tensor, index: Any) -> Affine:
    """Slicing with integers, slices, None and Ellipsis."""
    return Affine(op(input), (Index(index, tuple(input.shape)),))


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
