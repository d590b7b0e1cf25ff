"""Products with constant tensors from any side: matmul, bmm, einsum, tensordot.

All are one sum over labelled dimensions: entries of the operand times entries of a constant.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pursuitify.errors import InputError
from pursuitify.operators import Chain, Conv, Dense, LinearMap, Permute, Reduce, Reshape
from pursuitify.rules import split_ops
from pursuitify.rules.registry import Affine, Registry

#: A product with a constant is given by the constant alone.
registry = Registry(input_dependent=False, homogeneous=True)
Op = Callable[..., Tensor]
#: Names of the dimensions of a tensor, in order.
Labels = Sequence[int]


def contraction(
    shape: Sequence[int], labels: Labels, factor: Tensor, by: Labels, out: Labels
) -> LinearMap:
    """Return the map of a sum over labelled dimensions of an operand times a constant.

    Dimensions of both that the result keeps hold a matrix for each of their entries (a convolution
    of size one in groups); where there are none it is a dense layer. What only the operand has, and
    the result has not, is added up after that: B_j w of a decoder row has to be memory of its own.

    Args:
        shape: Shape of the operand.
        labels: Its labels, each once.
        factor: The constant.
        by: The constant's labels, each once.
        out: Labels of the result, each of the operand's or the constant's.
    """
    size = {**dict(zip(by, factor.shape, strict=True)), **dict(zip(labels, shape, strict=True))}
    maps, after = _product(labels, factor, by, out, size)
    alone = [d for d, n in enumerate(after) if n not in out]
    if alone:
        maps.append(Reduce(tuple(size[n] for n in after), tuple(alone)))
        after = [n for n in after if n in out]
    if after != list(out):
        maps.append(Permute(tuple(after.index(n) for n in out)))
    return maps[0] if len(maps) == 1 else Chain(tuple(maps))


def _product(
    labels: Labels, factor: Tensor, by: Labels, out: Labels, size: Mapping[int, int]
) -> tuple[list[LinearMap], list[int]]:
    """Return the maps of a product with a constant, and the labels of what they give."""
    groups = [n for n in labels if n in by and n in out]
    summed = [n for n in labels if n in by and n not in out]
    rest = [n for n in labels if n not in by]
    made = [n for n in out if n not in labels]

    def total(names: Labels) -> int:
        return math.prod(size[n] for n in names)

    order = [by.index(n) for n in (*groups, *made, *summed)]
    matrices = factor.permute(order).reshape(total(groups) * total(made), total(summed))
    if groups:
        first, other = rest[:1], rest[1:]
        before, after = [*first, *groups, *summed, *other], [*first, *groups, *made, *other]
        wide, thin = total(groups) * total(summed), total(groups) * total(made)
        flat: tuple[int, ...] = (total(first), wide, total(other))
        narrow: tuple[int, ...] = (total(first), thin, total(other))
        weight = matrices.unsqueeze(-1)
        middle: LinearMap = Conv.from_call(flat[2:], weight, groups=total(groups))
    else:
        before, after = [*rest, *summed], [*rest, *made]
        sizes = tuple(size[n] for n in rest)
        flat, narrow = (*sizes, total(summed)), (*sizes, total(made))
        middle = Dense(matrices, len(flat))
    maps = [*_arranged(labels, before, size, flat), middle]
    spread = tuple(size[n] for n in after)
    return (maps if narrow == spread else [*maps, Reshape(narrow, spread)]), after


def _arranged(
    labels: Labels, wanted: Labels, size: Mapping[int, int], flat: tuple[int, ...]
) -> list[LinearMap]:
    """Return the maps that put dimensions in an order and join them."""
    maps: list[LinearMap] = []
    if list(labels) != list(wanted):
        maps.append(Permute(tuple(list(labels).index(n) for n in wanted)))
    spread = tuple(size[n] for n in wanted)
    return maps if spread == flat else [*maps, Reshape(spread, flat)]


@registry.register(
    operator.matmul, torch.matmul, "matmul", torch.mm, "mm", torch.bmm, "bmm", kind="weighted",
    operands=("input", "other"), bilinear=True,
)  # fmt: skip
def matmul(op: Op, input: Tensor, other: Tensor, _affine: int = 0) -> Affine:
    """Product with a constant matrix, or with several, from either side."""
    value = op(input, other)
    left = [*range(input.dim())]
    right = [*range(input.dim(), input.dim() + other.dim())]
    if other.dim() == 1:
        right[0] = left[-1]
    else:
        right[-2] = left[-1]
    joined = min(len(left), len(right)) - 2
    for k in range(joined):  # batches are aligned at their ends
        right[-3 - k] = left[-3 - k]
    longer = left if len(left) >= len(right) else right
    rows = [left[-2]] if input.dim() > 1 else []
    columns = [right[-1]] if other.dim() > 1 else []
    out = [*longer[:-2], *rows, *columns]
    return Affine(value, _both(value, (input, other), (left, right), out, _affine))


def _both(
    value: Tensor,
    tensors: Sequence[Tensor],
    labels: Sequence[Labels],
    out: Labels,
    affine: int,
) -> tuple[LinearMap, ...]:
    """Return the map of the operand, once for each tensor: those of the constants are not used.

    Of two dimensions of one label the one of size 1 is repeated, and so it is left out.
    """
    size: dict[int, int] = {}
    for tensor, own in zip(tensors, labels, strict=True):
        for n, name in zip(tensor.shape, own, strict=True):
            size[name] = max(n, size.get(name, 1))
    cut = [
        [d for d, n in enumerate(own) if tensor.shape[d] == 1 < size[n]]
        for tensor, own in zip(tensors, labels, strict=True)
    ]
    names = [
        [n for d, n in enumerate(own) if d not in c] for own, c in zip(labels, cut, strict=True)
    ]
    bare = [t.squeeze(c) if c else t for t, c in zip(tensors, cut, strict=True)]
    constants = [i for i in range(len(bare)) if i != affine]
    sample = names[affine][0]
    if sample in out:
        for i in constants:
            if sample in names[i]:
                bare[i] = _one_for_all(bare[i], names[i].index(sample))
                names[i].remove(sample)
    if len(set(names[affine])) < len(names[affine]):
        raise InputError("a product takes the diagonal of its operand: no map is known for that")
    used = {*names[affine], *out}
    by = list(dict.fromkeys(n for i in constants for n in names[i] if n in used))
    factor = value.new_ones(())
    if len(constants) == 1 and by == names[constants[0]]:
        factor = bare[constants[0]]
    elif constants:
        number = {n: k for k, n in enumerate(dict.fromkeys(n for own in names for n in own))}
        arguments: list[Any] = []
        for i in constants:
            arguments += [bare[i], [number[n] for n in names[i]]]
        factor = torch.einsum(*arguments, [number[n] for n in by])
    whole = contraction(bare[affine].shape, names[affine], factor, by, out)
    if cut[affine]:
        shape = tuple(tensors[affine].shape)
        whole = Chain((Reshape(shape, tuple(bare[affine].shape)), whole))
    return (whole,) * len(tensors)


def _one_for_all(factor: Tensor, dim: int) -> Tensor:
    """Return a constant without the dimension that runs over the samples.

    Raises:
        InputError: If it differs between them.
    """
    first = factor.select(dim, 0)
    repeated = factor.shape[dim] == 1 or factor.stride(dim) == 0
    if not repeated and not bool((factor == first.unsqueeze(dim)).all()):
        raise InputError(
            f"a product takes another constant for each sample, of shape {tuple(factor.shape)}: "
            "pursuit needs one that is the same for all of them"
        )
    return first


@registry.register(split_ops.einsum, kind="weighted", operands=("tensors*",), bilinear=True)
def einsum(op: Op, tensors: Sequence[Tensor], equation: str, _affine: int = 0) -> Affine:
    """torch.einsum of one value of the network and constants."""
    value = op(*tensors)
    labels, out = _read(equation, [t.dim() for t in tensors])
    return Affine(value, _both(value, tensors, labels, out, _affine))


def _read(equation: str, dims: Sequence[int]) -> tuple[list[list[int]], list[int]]:
    """Return the labels of the operands and of the result; those of an ellipsis are negative."""
    left, arrow, right = equation.replace(" ", "").partition("->")
    parts = left.split(",")
    labels = [_labels(part, count) for part, count in zip(parts, dims, strict=True)]
    widest = min([0, *(n for names in labels for n in names)])
    if arrow:
        return labels, _labels(right, len(right.replace("...", "")) - widest)
    seen = [n for names in labels for n in names if n >= 0]
    once = sorted(n for n in set(seen) if seen.count(n) == 1)
    return labels, [*range(widest, 0), *once]


def _labels(part: str, count: int) -> list[int]:
    before, dots, after = part.partition("...")
    several = range(len(before) + len(after) - count, 0) if dots else ()
    return [*map(ord, before), *several, *map(ord, after)]


@registry.register(torch.tensordot, kind="weighted", operands=("a", "b"), bilinear=True)
def tensordot(op: Op, a: Tensor, b: Tensor, dims: Any = 2, _affine: int = 0) -> Affine:
    """Sum over dimensions of a value times those of a constant."""
    value = op(a, b)
    left, right = [*range(a.dim())], [*range(a.dim(), a.dim() + b.dim())]
    if isinstance(dims, int):
        dims = (range(a.dim() - dims, a.dim()), range(dims))
    for i, j in zip(*([d] if isinstance(d, int) else d for d in dims), strict=True):
        right[j] = left[i]
    out = [n for n in (*left, *right) if (n in left) != (n in right)]
    return Affine(value, _both(value, (a, b), (left, right), out, _affine))
