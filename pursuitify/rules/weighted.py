"""Weighted operators: convolutions, dense layers, products with constants; BatchNorm's scale."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pursuitify.errors import InputError
from pursuitify.operators import (
    Chain,
    Conv,
    Dense,
    Expand,
    LinearMap,
    Permute,
    Reduce,
    Reshape,
    SampleMatrices,
    Scale,
    SparseMatrix,
    conv_transpose_map,
    pad,
)
from pursuitify.rules import split_ops
from pursuitify.rules.registry import Affine, Registry
from pursuitify.utils import memory_format

#: A convolution or a dense layer is given by its weights alone.
registry = Registry(input_dependent=False)
Op = Callable[..., Tensor]
Ints = int | Sequence[int]
#: Names of the dimensions of a tensor, in order.
Labels = Sequence[int]


def channel(vector: Tensor, dims: int) -> Tensor:
    """View a per-channel vector so that it broadcasts against (batch, channel, *space)."""
    return vector.reshape(1, -1, *[1] * (dims - 2))


def _batched(input: Tensor, weight: Tensor, what: str) -> None:
    if input.dim() != weight.dim():
        raise InputError(
            f"{what} got an input of shape {tuple(input.shape)}; pursuit needs a batch dimension: "
            f"{weight.dim()} dimensions (batch, channels, *space)"
        )


def _conv_check(padding_mode: str = "zeros", **_: Any) -> str | None:
    modes = ("zeros", "reflect", "replicate", "circular")
    return None if padding_mode in modes else f"padding_mode={padding_mode!r} is unknown"


def filter_norms(module: nn.Module) -> Tensor:
    """Return the norm of each output channel's filter, in float64."""
    norms: Tensor = _kernel(module).flatten(1).norm(dim=1)
    return norms


def _kernel(module: nn.Module) -> Tensor:
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight.detach().double()


@registry.register(
    nn.Conv1d, nn.Conv2d, nn.Conv3d, F.conv1d, F.conv2d, F.conv3d, kind="weighted",
    check=_conv_check, absorbs_scale=True, channel_gains=filter_norms, runs_source=True,
)  # fmt: skip
def conv(
    op: Op,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Ints = 1,
    padding: Ints | str = 0,
    dilation: Ints = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
) -> Affine:
    """Convolution; a padding other than zeros is a map of its own before it."""
    _batched(input, weight, "a convolution")
    offset = None if bias is None else channel(bias, input.dim())
    size = tuple(input.shape[2:])
    weight = memory_format.kernel(weight, input)
    linear = Conv.from_call(size, weight, stride, padding, dilation, groups)
    if padding_mode != "zeros":
        sides = [n for low_high in reversed(linear.padding) for n in low_high]
        border = pad(size, sides, padding_mode, like=input)
        padded = tuple(n + low + high for n, (low, high) in zip(size, linear.padding, strict=True))
        inner = Conv.from_call(padded, weight, stride, 0, dilation, groups)
        return Affine(op(input), (Chain((border, inner)),), offset)
    return Affine(op(input), (linear,), offset)


def transposed_filter_norms(module: nn.Module) -> Tensor:
    """Return the norm of each output channel's filter; the kernel is (c_in, c_out / groups, *k)."""
    kernel, groups = _kernel(module), getattr(module, "groups", 1)
    kernel = kernel.reshape(groups, -1, *kernel.shape[1:]).transpose(1, 2).flatten(0, 1)
    norms: Tensor = kernel.flatten(1).norm(dim=1)
    return norms


_TRANSPOSED: dict[str, Any] = {
    "kind": "weighted", "absorbs_scale": True, "channel_gains": transposed_filter_norms,
    "runs_source": True,
}  # fmt: skip


@registry.register(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, **_TRANSPOSED)
def conv_transpose_module(
    op: Op,
    input: Tensor,
    output_size: Sequence[int] | None = None,
    *,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    groups: int,
    dilation: Sequence[int],
) -> Affine:
    """Transposed convolution as a module, to the size that the call names, if any."""
    value = op(input) if output_size is None else op(input, list(output_size))
    sizes = zip(
        input.shape[2:], value.shape[2:], weight.shape[2:], stride, padding, dilation, strict=True
    )
    extra = [out - ((n - 1) * s - 2 * p + d * (k - 1) + 1) for n, out, k, s, p, d in sizes]
    found: Affine = conv_transpose(
        lambda _: value, input, weight, bias, stride, padding, extra, groups, dilation
    )
    return found


@registry.register(F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d, **_TRANSPOSED)
def conv_transpose(
    op: Op,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Ints = 1,
    padding: Ints = 0,
    output_padding: Ints = 0,
    groups: int = 1,
    dilation: Ints = 1,
) -> Affine:
    """Transposed convolution: the adjoint of a convolution."""
    _batched(input, weight, "a transposed convolution")
    weight = memory_format.kernel(weight, input)
    linear = conv_transpose_map(
        tuple(input.shape[2:]), weight, stride, padding, output_padding, groups, dilation
    )
    return Affine(op(input), (linear,), None if bias is None else channel(bias, input.dim()))


@registry.register(
    nn.Linear, F.linear, kind="weighted", absorbs_scale=True, channel_gains=filter_norms,
    runs_source=True,
)  # fmt: skip
def linear(op: Op, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Affine:
    """Dense layer on the last dimension."""
    return Affine(op(input), (Dense(weight, input.dim()),), bias)


def contraction(
    shape: Sequence[int], labels: Labels, factor: Tensor, by: Labels, out: Labels
) -> LinearMap:
    """Return the map of a sum over labelled dimensions of an operand times a constant.

    Dimensions of both that the result keeps hold a matrix for each of their entries (a convolution
    of size one in groups); where there are none it is a dense layer. The first label is that of the
    samples: a constant that has it holds matrices of each. What only the operand has, and
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

    if labels[0] in groups:  # the samples
        sample, *groups = groups
        order = [by.index(n) for n in (sample, *groups, *made, *summed)]
        each = (size[sample], total(groups))
        own = factor.permute(order).reshape(*each, total(made), total(summed))
        before, after = [sample, *groups, *summed, *rest], [sample, *groups, *made, *rest]
        arranged = _arranged(labels, before, size, (*each, total(summed), total(rest)))
        shape = tuple(size[n] for n in after)
        last = Reshape((*each, total(made), total(rest)), shape)
        return [*arranged, SampleMatrices(own), last], after

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
    operator.matmul, torch.matmul, "matmul", torch.mm, "mm", torch.bmm, "bmm", torch.sparse.mm,
    torch.spmm, kind="weighted", operands=("input", "other"), bilinear=True,
)  # fmt: skip
def matmul(
    op: Op, input: Tensor, other: Tensor, _affine: int = 0, _per_sample: bool = False
) -> Affine:
    """Product with a constant matrix, or with several, from either side."""
    value = op(input, other)
    constant = (other, input)[_affine]
    if constant.layout is not torch.strided:
        return Affine(value, (_sparse(constant, _affine, value.dtype),) * 2)
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
    return Affine(value, _both(value, (input, other), (left, right), out, _affine, _per_sample))


def _sparse(matrix: Tensor, affine: int, dtype: torch.dtype) -> LinearMap:
    """Return the map of a product with a sparse matrix.

    Args:
        matrix: The matrix, in any layout of torch's.
        affine: 0 where it stands on the right of the operand, a matrix; 1 where on the left.
        dtype: The dtype of the product.
    """
    entries = matrix.to_sparse().coalesce()
    rows, columns = entries.indices()
    height, width = matrix.shape
    values = entries.values().to(dtype)
    if affine == 0:
        return SparseMatrix(1, columns, rows, values, (width, height))
    return SparseMatrix(0, rows, columns, values, (height, width))


def _both(
    value: Tensor,
    tensors: Sequence[Tensor],
    labels: Sequence[Labels],
    out: Labels,
    affine: int,
    per_sample: bool,
) -> tuple[LinearMap, ...]:
    """Return the map of the operand, once for each tensor: those of the constants are not used.

    Of two dimensions of one label the one of size 1 is repeated, and so it is left out. With
    ``per_sample`` a constant is computed from the input: it has a matrix of its own for each
    sample, even where all of them are equal, for steps may not depend on what else is in a batch.
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
    if sample in out and not per_sample:
        for i in constants:
            if sample in names[i]:
                one = _one_for_all(bare[i], names[i].index(sample))
                if one is not None:
                    bare[i] = one
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


def _one_for_all(factor: Tensor, dim: int) -> Tensor | None:
    """Return a constant without the dimension that runs over the samples; None if they differ."""
    first = factor.select(dim, 0)
    repeated = factor.shape[dim] == 1 or factor.stride(dim) == 0
    same = repeated or bool((factor == first.unsqueeze(dim)).all())
    return first if same else None


@registry.register(
    split_ops.einsum, kind="weighted", operands=("tensors*",), bilinear=True, fresh=False
)  # of one operand alone it is a view
def einsum(
    op: Op, tensors: Sequence[Tensor], equation: str, _affine: int = 0, _per_sample: bool = False
) -> Affine:
    """torch.einsum of one value of the network and constants."""
    value = op(*tensors)
    labels, out = _read(equation, [t.dim() for t in tensors])
    return Affine(value, _both(value, tensors, labels, out, _affine, _per_sample))


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
def tensordot(
    op: Op, a: Tensor, b: Tensor, dims: Any = 2, _affine: int = 0, _per_sample: bool = False
) -> Affine:
    """Sum over dimensions of a value times those of a constant."""
    value = op(a, b)
    left, right = [*range(a.dim())], [*range(a.dim(), a.dim() + b.dim())]
    if isinstance(dims, int):
        dims = (range(a.dim() - dims, a.dim()), range(dims))
    for i, j in zip(*([d] if isinstance(d, int) else d for d in dims), strict=True):
        right[j] = left[i]
    out = [n for n in (*left, *right) if (n in left) != (n in right)]
    return Affine(value, _both(value, (a, b), (left, right), out, _affine, _per_sample))


@registry.register(torch.mv, "mv", kind="weighted", operands=("input", "vec"), bilinear=True)
def matrix_vector(
    op: Op, input: Tensor, vec: Tensor, _affine: int = 0, _per_sample: bool = False
) -> Affine:
    """Product of a matrix and a vector, one of them constant."""
    value = op(input, vec)
    return Affine(value, _both(value, (input, vec), ([0, 1], [1]), [0], _affine, _per_sample))


@registry.register(
    torch.inner, "inner", kind="weighted", operands=("input", "other"), bilinear=True
)
def inner(
    op: Op, input: Tensor, other: Tensor, _affine: int = 0, _per_sample: bool = False
) -> Affine:
    """Sum over the last dimension of a value times a constant."""
    value = op(input, other)
    left = [*range(input.dim())]
    right = [*range(input.dim(), input.dim() + other.dim() - 1), left[-1]]
    return Affine(
        value,
        _both(value, (input, other), (left, right), left[:-1] + right[:-1], _affine, _per_sample),
    )


@registry.register(
    torch.outer, torch.ger, "outer", "ger", torch.kron, "kron", kind="weighted",
    operands=("input", "other"), bilinear=True,
)  # fmt: skip
def kronecker(
    op: Op, input: Tensor, other: Tensor, _affine: int = 0, _per_sample: bool = False
) -> Affine:
    """Every entry of a value times every entry of a constant; the outer product of two vectors."""
    value = op(input, other)
    dims = max(input.dim(), other.dim())
    shapes = [(*[1] * (dims - t.dim()), *t.shape) for t in (input, other)]
    names = [
        [k * dims + d for d in range(dims) if s[d] > 1 or k == _affine]
        for k, s in enumerate(shapes)
    ]
    bare = [
        t.reshape([n for d, n in enumerate(s) if k * dims + d in own])
        for k, (t, s, own) in enumerate(zip((input, other), shapes, names, strict=True))
    ]
    out = [n for d in range(dims) for n in (d, dims + d) if n in names[0] or n in names[1]]
    whole, *_ = _both(value, bare, names, out, _affine, _per_sample)
    size = {
        n: k for own, t in zip(names, bare, strict=True) for n, k in zip(own, t.shape, strict=True)
    }
    moving = (input, other)[_affine]
    first = Reshape(tuple(moving.shape), tuple(bare[_affine].shape))
    last = Reshape(tuple(size[n] for n in out), tuple(value.shape))
    return Affine(value, (Chain((first, whole, last)),) * 2)


#: What is common to the rules of beta * input + alpha * (product of two factors).
_PLUS: dict[str, Any] = {"kind": "weighted", "bilinear": True, "factors": (1, 2)}


def _plus(
    value: Tensor,
    tensors: Sequence[Tensor],
    labels: Sequence[Labels],
    factors: tuple[float, float],
    affine: int,
    per_sample: bool,
) -> Affine:
    """Return a sum and a product of which one factor is constant.

    Args:
        value: The sum.
        tensors: What is added, and the two factors of the product.
        labels: Labels of both, and of the product.
        factors: What the first tensor is multiplied by, and what the product is.
        affine: Position among ``tensors`` of the factor that is no constant.
        per_sample: Whether the other factor is computed from the input.
    """
    input, *pair = tensors
    beta, alpha = factors
    # A bias stays one row, for an offset need only broadcast; a value of the network has its own.
    full = input.dim() == value.dim() and input.shape[0] == value.shape[0]
    added: list[LinearMap] = []
    if input.shape != value.shape:
        batch = value.shape[0] if full else 1
        added.append(Expand(tuple(input.shape), (batch, *value.shape[1:])))
    added.append(Scale(beta))
    constant = 2 - affine
    pair[constant] = pair[constant] if alpha == 1 else alpha * pair[constant]
    product, _ = _both(value, pair, labels[:2], labels[2], affine - 1, per_sample)
    return Affine(value, (Chain(tuple(added)), product, product))


@registry.register(torch.addmm, "addmm", operands=("input", "mat1", "mat2"), **_PLUS)
def addmm(
    op: Op,
    input: Tensor,
    mat1: Tensor,
    mat2: Tensor,
    beta: float = 1,
    alpha: float = 1,
    _affine: int = 1,
    _per_sample: bool = False,
) -> Affine:
    """Beta * input + alpha * mat1 @ mat2: a dense layer with its matrix transposed, and a sum."""
    tensors, labels = (input, mat1, mat2), ([0, 1], [1, 2], [0, 2])
    return _plus(op(*tensors), tensors, labels, (beta, alpha), _affine, _per_sample)


@registry.register(torch.addmv, "addmv", operands=("input", "mat", "vec"), **_PLUS)
def addmv(
    op: Op,
    input: Tensor,
    mat: Tensor,
    vec: Tensor,
    beta: float = 1,
    alpha: float = 1,
    _affine: int = 1,
    _per_sample: bool = False,
) -> Affine:
    """Beta * input + alpha * mat @ vec."""
    tensors, labels = (input, mat, vec), ([0, 1], [1], [0])
    return _plus(op(*tensors), tensors, labels, (beta, alpha), _affine, _per_sample)


@registry.register(torch.baddbmm, "baddbmm", operands=("input", "batch1", "batch2"), **_PLUS)
def baddbmm(
    op: Op,
    input: Tensor,
    batch1: Tensor,
    batch2: Tensor,
    beta: float = 1,
    alpha: float = 1,
    _affine: int = 1,
    _per_sample: bool = False,
) -> Affine:
    """Beta * input + alpha * batch1 @ batch2, matrix by matrix."""
    tensors, labels = (input, batch1, batch2), ([0, 1, 2], [0, 2, 3], [0, 1, 3])
    return _plus(op(*tensors), tensors, labels, (beta, alpha), _affine, _per_sample)


def _statistics(
    training: bool = False,
    running_mean: object = ...,  # a node of the graph is no static parameter, and a tensor there
    running_var: object = ...,
    **_: Any,
) -> str | None:
    if training or running_mean is None or running_var is None:
        return "its statistics are those of the batch"
    return None


def batch_norm_factors(module: nn.Module) -> Tensor:
    """Return the size of each channel's factor, in float64; without running statistics at var 1."""
    weight, var = getattr(module, "weight", None), getattr(module, "running_var", None)
    like = weight if var is None else var
    scale = torch.ones(()) if like is None else torch.ones_like(like)
    if var is not None:
        scale = torch.rsqrt(var + getattr(module, "eps", 1e-5))
    return (scale if weight is None else scale * weight).detach().double().abs()


def _alone(op: Op) -> None:
    """Refuse statistics that are taken over several processes: a sweep would know its own alone."""
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    if isinstance(op, nn.SyncBatchNorm) and distributed and torch.distributed.get_world_size() > 1:
        raise InputError(
            "a SyncBatchNorm in training mode takes the statistics of all processes, which no "
            "sweep knows: use BatchNorm, or train in one process"
        )


@registry.register(
    nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm,
    F.batch_norm, torch.batch_norm,
    kind="diagonal", channelwise=True, elementwise=True, stateful=True,
    input_dependent=_statistics, absorbs_scale=True, channel_gains=batch_norm_factors,
    runs_source=True,
)  # fmt: skip
def batch_norm(
    op: Op,
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float | None = 0.1,
    eps: float = 1e-5,
) -> Affine:
    """BatchNorm, its scale and offset fixed for all sweeps (mathematics.md, section 4).

    Batch statistics in training mode, running statistics otherwise; the source's own operation
    runs once and updates the running statistics once.
    """
    if training or running_mean is None or running_var is None:
        _alone(op)
        dims = [d for d in range(input.dim()) if d != 1]
        var, mean = torch.var_mean(input, dims, correction=0)
    else:
        mean, var = running_mean, running_var
    scale = torch.rsqrt(var + eps)
    scale = scale if weight is None else scale * weight
    offset = -mean * scale if bias is None else bias - mean * scale
    dim = input.dim()
    return Affine(op(input), (Scale(channel(scale, dim)),), channel(offset, dim))
