"""Choices of entries by their size or by indices: max, topk, sort, gather, embeddings.

Which entries are chosen is fixed at the feed-forward pass for all sweeps, as the switches of a max
pooling are (mathematics.md, section 4).
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pursuitify.operators import (
    Adjoint,
    Chain,
    Expand,
    Gather,
    Identity,
    LinearMap,
    Narrow,
    Permute,
    Pick,
    Reshape,
    Scale,
    Select,
    Unpool,
    Windows,
)
from pursuitify.rules import hints, split_ops
from pursuitify.rules.elementwise import scaling
from pursuitify.rules.registry import Affine, Registry


def _chooses(**_: Any) -> str:
    return "it chooses entries by their size: which ones depends on the input"


registry = Registry(input_dependent=_chooses, homogeneous=True)
Op = Callable[..., Tensor]


def _along(
    value: Tensor, indices: Tensor, shape: Sequence[int], dims: Sequence[int], one_of_all: bool
) -> Affine:
    """Return the choice of entries along dimensions, in terms of ``Select``.

    Args:
        value: What was chosen.
        indices: Where it stands in ``dims`` flattened: the kept dimensions in order, then one for
            the chosen entries.
        shape: Shape of what is chosen from.
        dims: The dimensions, sorted.
        one_of_all: Whether one entry of all is chosen.
    """
    kept = [d for d in range(len(shape)) if d not in dims]
    order, size = (*kept, *dims), tuple(shape[d] for d in dims)
    rows = (*(shape[d] for d in kept[:1]), math.prod(shape[d] for d in kept[1:]))
    count = indices.shape[-1]
    maps: list[LinearMap] = []
    if order != tuple(range(len(shape))):
        maps.append(Permute(order))
    moved = tuple(shape[d] for d in order)
    if moved != (*rows, *size):
        maps.append(Reshape(moved, (*rows, *size)))
    windows = None
    if one_of_all:
        windows = Windows(size, size, (0,) * len(size), (1,) * len(size))
    places = (count, *(1,) * (len(size) - 1))
    maps.append(Select(indices.reshape(*rows, *places), size, 1, windows))
    if one_of_all:
        maps.append(Reshape((*rows, *places), tuple(value.shape)))
    else:
        spread = (*(shape[d] for d in kept), count)
        maps.append(Reshape((*rows, count), spread))
        maps.append(Permute(tuple(order.index(d) for d in range(len(order)))))
    return Affine(value, (maps[0] if len(maps) == 1 else Chain(tuple(maps)),))


@registry.register(split_ops.chosen_values, kind="linear", fresh=True)
def chosen_values(_op: Op, input: Tensor, name: str, dim: int, **_arguments: Any) -> Affine:
    """The greatest, least, middle, k-th or k greatest entries along a dimension, or all sorted."""
    more = {k: v for k, v in _arguments.items() if k not in {"name", "dim"}}
    value, indices = getattr(torch, name)(input, dim=dim, **more)
    axis, shape = dim % input.dim(), tuple(input.shape)
    one = name not in {"topk", "sort"}
    if one and not more.get("keepdim", False):
        indices = indices.unsqueeze(axis)
    return _along(value, indices.movedim(axis, -1), shape, (axis,), one)


def _over_all(dim: Any = (), **_: Any) -> str | None:
    whole = isinstance(dim, (tuple, list)) and not dim
    return "it chooses one entry of every dimension, the batch included" if whole else None


def _extreme(place: Callable[..., Tensor], *keys: Any) -> None:
    @registry.register(*keys, kind="linear", fresh=True, check=_over_all)
    def extreme(
        op: Op, input: Tensor, dim: int | Sequence[int] = (), keepdim: bool = False
    ) -> Affine:
        """The greatest or the least entry over several dimensions; of equal ones, one."""
        dims = sorted(d % input.dim() for d in ([dim] if isinstance(dim, int) else dim))
        kept = [d for d in range(input.dim()) if d not in dims]
        indices = place(input.permute(*kept, *dims).flatten(len(kept)), -1, keepdim=True)
        return _along(op(input), indices, tuple(input.shape), dims, True)


_extreme(torch.argmax, torch.amax, "amax")
_extreme(torch.argmin, torch.amin, "amin")


@registry.register(
    torch.maximum, torch.max, "maximum", "max", torch.minimum, torch.min, "minimum", "min",
    torch.fmax, torch.fmin, kind="join", operands=("input", "other"), channelwise=True,
    all_moving=hints.WITH_A_CONSTANT,
)  # fmt: skip
def maximum(op: Op, input: Tensor, other: Tensor) -> Affine:
    """The greater, or the lesser, of two entries; of equal ones, the first."""
    value = op(input, other)
    first = value == input
    maps = (scaling(input, first, value, True), scaling(other, ~first, value, True))
    return Affine(value, maps)


@registry.register(split_ops.chosen_indices, split_ops.pooled_indices, kind="frozen", fresh=True)
def frozen_indices(op: Op, input: Tensor, **_arguments: Any) -> Tensor:
    """The choice is fixed at the feed-forward pass: it says where the chosen entries stand."""
    return op(input)


@registry.register(
    torch.argmax, "argmax", torch.argmin, "argmin", torch.argsort, "argsort",
    operator.gt, operator.ge, operator.lt, operator.le, operator.eq, operator.ne,
    torch.gt, torch.ge, torch.lt, torch.le, torch.eq, torch.ne,
    "gt", "ge", "lt", "le", "eq", "ne",
    operator.invert, operator.and_, operator.or_, operator.xor,
    torch.logical_not, torch.logical_and, torch.logical_or,
    "logical_not", "logical_and", "logical_or",
    kind="frozen", fresh=True, compares=True,
)  # fmt: skip
def compared(op: Op, input: Tensor, *_rest: Any, **_named: Any) -> Tensor:
    """Places and masks by the size of entries: they are fixed at the feed-forward pass."""
    return op(input)


def _gathered(op: Op, input: Tensor, dim: int, index: Tensor) -> Affine:
    axis, maps = dim % input.dim(), list[LinearMap]()
    shape = list(input.shape)
    for d, n in enumerate(index.shape):
        if d != axis and n != shape[d]:
            maps.append(Narrow(d, 0, n, shape[d]))
            shape[d] = n
    maps.append(Gather(axis, index, tuple(shape)))
    return Affine(op(input), (maps[0] if len(maps) == 1 else Chain(tuple(maps)),))


@registry.register(torch.gather, "gather", kind="linear", fresh=True, input_dependent=False)
def gather(op: Op, input: Tensor, dim: int, index: Tensor, sparse_grad: bool = False) -> Affine:
    """Entries along a dimension, others at every place, by constant or frozen indices."""
    return _gathered(op, input, dim, index)


def _flat_check(dim: Any = None, **_: Any) -> str | None:
    return "it reads from the flattened tensor, the batch included" if dim is None else None


@registry.register(
    torch.take_along_dim, "take_along_dim", kind="linear", fresh=True, check=_flat_check,
    input_dependent=False,
)  # fmt: skip
def take_along_dim(op: Op, input: Tensor, indices: Tensor, dim: int | None = None) -> Affine:
    """The same, with negative indices and with dimensions that are broadcast."""
    assert dim is not None
    axis = dim % input.dim()
    shape = [m if n == 1 else n for n, m in zip(input.shape, indices.shape, strict=True)]
    wide = (*shape[:axis], input.shape[axis], *shape[axis + 1 :])
    index = indices.expand(*shape[:axis], indices.shape[axis], *shape[axis + 1 :])
    found = _gathered(lambda x: op(input), input.expand(wide), axis, index % input.shape[axis])
    if wide == tuple(input.shape):
        return found
    return Affine(found.value, (Chain((Expand(tuple(input.shape), wide), *found.maps)),))


@registry.register(
    split_ops.index_add, split_ops.index_add_, kind="join", operands=("input", "source"),
    input_dependent=False,
)  # fmt: skip
def index_add(
    _op: Op, input: Tensor, source: Tensor, dim: int, index: Tensor, *, alpha: float = 1
) -> Affine:
    """Entries added to those at given places of a dimension."""
    axis = dim % input.dim()
    value = torch.index_add(input, axis, index, source, alpha=alpha)
    put: LinearMap = Adjoint(Pick(axis, index, input.shape[axis]))
    return Affine(value, (Identity(), put if alpha == 1 else Chain((put, Scale(alpha)))))


@registry.register(
    split_ops.scatter_add, split_ops.scatter_add_, kind="join", operands=("input", "src"),
    input_dependent=False,
)  # fmt: skip
def scatter_add(_op: Op, input: Tensor, src: Tensor, dim: int, index: Tensor) -> Affine:
    """Entries added to others along a dimension, at other places each."""
    axis = dim % input.dim()
    value = torch.scatter_add(input, axis, index, src)
    read = [Narrow(d, 0, n, src.shape[d]) for d, n in enumerate(index.shape) if n != src.shape[d]]
    sizes = list(enumerate(zip(index.shape, input.shape, strict=True)))
    spread = [Adjoint(Narrow(d, 0, n, m)) for d, (n, m) in sizes if d != axis and n != m]
    shape = tuple(m if d == axis else n for d, (n, m) in sizes)
    put = Chain((*read, Adjoint(Gather(axis, index, shape)), *spread))
    return Affine(value, (Identity(), put))


def _indexed(**_: Any) -> str:
    return "it reads indices that a max pooling of the input chose"


_UNPOOL: dict[int, Callable[..., Tensor]] = {
    1: F.max_unpool1d, 2: F.max_unpool2d, 3: F.max_unpool3d,
}  # fmt: skip


@registry.register(
    nn.MaxUnpool1d, nn.MaxUnpool2d, nn.MaxUnpool3d,
    F.max_unpool1d, F.max_unpool2d, F.max_unpool3d,
    kind="linear", fresh=True, channelwise=True, input_dependent=_indexed,
)  # fmt: skip
def max_unpool(
    _op: Op,
    input: Tensor,
    indices: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    output_size: Any = None,
) -> Affine:
    """Entries put where a max pooling found its own, zeros elsewhere.

    Where two entries have one place, torch keeps one of them: the one that it kept is kept. The
    value is taken by the map, since torch's own derivative goes to the lost ones as well.
    """
    unpool = _UNPOOL[input.dim() - 2]

    def run(x: Tensor) -> Tensor:
        return unpool(x, indices, kernel_size, stride, padding, output_size)

    with torch.no_grad():
        size = tuple(run(input).shape[2:])
        count = torch.arange(1, 1 + math.prod(input.shape[2:]), device=input.device)
        number = count.to(torch.float64).reshape(1, 1, *input.shape[2:]).expand(input.shape)
        last = run(number.contiguous()).flatten(2).gather(2, indices.flatten(2))
        kept = last.reshape(input.shape) == number
    put = Unpool(indices, size, kept)
    return Affine(put.apply(input), (put,))


def _table_check(max_norm: float | None = None, **_: Any) -> str | None:
    return None if max_norm is None else "max_norm writes into its table at every call"


@registry.register(nn.Embedding, F.embedding, kind="signal", fresh=True, check=_table_check)
def embedding(
    op: Op,
    input: Tensor,
    weight: Tensor,
    padding_idx: Any = None,
    max_norm: Any = None,
    *_rest: Any,
) -> Tensor:
    """Rows of a table: where integers are looked up, the numbers of the table are the signal."""
    return op(input)


@registry.register(nn.EmbeddingBag, kind="signal", fresh=True, check=_table_check)
def embedding_bag(
    op: Op, input: Tensor, offsets: Any = None, per_sample_weights: Any = None, *, max_norm: Any
) -> Tensor:
    """Sums, means or maxima of rows of a table."""
    return op(input)


@registry.register(F.one_hot, kind="signal", fresh=True, operands=("tensor",))
def one_hot(op: Op, tensor: Tensor, num_classes: int = -1) -> Tensor:
    """Integers as unit vectors."""
    return op(tensor)
