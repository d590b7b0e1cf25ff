"""Weighted operators: convolutions, transposed convolutions, dense layers; BatchNorm's scale."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pursuitify.errors import InputError
from pursuitify.operators import Chain, Conv, Dense, Expand, Scale, conv_transpose_map, pad
from pursuitify.rules.registry import Affine, Registry
from pursuitify.utils import memory_format

#: A convolution or a dense layer is given by its weights alone.
registry = Registry(input_dependent=False)
Op = Callable[..., Tensor]
Ints = int | Sequence[int]


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
    output_size: Sequence[int] | None,
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


@registry.register(torch.addmm, "addmm", kind="weighted", operands=("input", "mat1"))
def addmm(
    op: Op, input: Tensor, mat1: Tensor, mat2: Tensor, beta: float = 1, alpha: float = 1
) -> Affine:
    """Beta * input + alpha * mat1 @ mat2: a dense layer with its matrix transposed, and a sum."""
    value = op(input, mat1)
    weight = mat2.mT if alpha == 1 else alpha * mat2.mT
    batch = value.shape[0] if input.dim() == 2 and input.shape[0] == value.shape[0] else 1
    # A bias stays one row, for an offset need only broadcast; a value of the network has its own.
    added = Chain((Expand(tuple(input.shape), (batch, *value.shape[1:])), Scale(beta)))
    return Affine(value, (added, Dense(weight, 2)))


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
