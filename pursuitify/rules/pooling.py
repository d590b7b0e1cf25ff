"""Pooling, padding and resampling."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pursuitify.operators import (
    Select,
    Windows,
    ZeroPad,
    adaptive_avg_pool,
    adaptive_cover,
    avg_pool,
    cover,
    interpolate,
    pad,
)
from pursuitify.rules.registry import Affine, Registry

#: Where entries are averaged or padded depends on sizes alone; max pooling says that it chooses.
registry = Registry(input_dependent=False, homogeneous=True)
Op = Callable[..., Tensor]
Ints = int | Sequence[int]

_MAX_POOL: dict[int, Callable[..., Any]] = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_ADAPTIVE_MAX_POOL: dict[int, Callable[..., Any]] = {
    1: F.adaptive_max_pool1d,
    2: F.adaptive_max_pool2d,
    3: F.adaptive_max_pool3d,
}


def _each(value: Ints, dims: int) -> tuple[int, ...]:
    return (value,) * dims if isinstance(value, int) else tuple(value) * (dims // len(value) or 1)


def _switches(**_: Any) -> str:
    return "it chooses the greatest of its inputs (max_pool): its switches depend on the input"


def _indices_check(return_indices: bool = False, **_: Any) -> str | None:
    return "it returns indices" if return_indices else None


@registry.register(
    nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d,
    F.max_pool1d, F.max_pool2d, F.max_pool3d,
    torch.max_pool1d, torch.max_pool2d, torch.max_pool3d,
    kind="linear", fresh=True, channelwise=True, check=_indices_check, input_dependent=_switches,
)  # fmt: skip
def max_pool(
    _op: Op,
    input: Tensor,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Ints = 0,
    dilation: Ints = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Affine:
    """Max pooling; its switches are frozen at the feed-forward pass."""
    dims = input.dim() - 2
    value, indices = _MAX_POOL[dims](
        input, kernel_size, stride, padding, dilation, ceil_mode, return_indices=True
    )
    kernel, steps = _each(kernel_size, dims), _each(stride or kernel_size, dims)
    gaps = _each(dilation, dims)
    windows = Windows(kernel, steps, _each(padding, dims), gaps)
    select = Select(indices, tuple(input.shape[2:]), cover(kernel, steps, gaps), windows)
    return Affine(value, (select,))


@registry.register(
    nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d,
    F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.adaptive_max_pool3d,
    kind="linear", fresh=True, channelwise=True, check=_indices_check, input_dependent=_switches,
)  # fmt: skip
def adaptive_max_pool(
    _op: Op, input: Tensor, output_size: Ints, return_indices: bool = False
) -> Affine:
    """Adaptive max pooling; switches frozen likewise."""
    size = tuple(input.shape[2:])
    value, indices = _ADAPTIVE_MAX_POOL[len(size)](input, output_size, return_indices=True)
    out = tuple(value.shape[2:])
    windows = None
    if all(n % o == 0 for n, o in zip(size, out, strict=True)):
        blocks = tuple(n // o for n, o in zip(size, out, strict=True))
        windows = Windows(blocks, blocks, (0,) * len(size), (1,) * len(size))
    return Affine(value, (Select(indices, size, adaptive_cover(size, out), windows),))


@registry.register(
    nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, F.avg_pool1d, F.avg_pool2d, F.avg_pool3d,
    kind="linear", fresh=True, channelwise=True,
)  # fmt: skip
def average_pool(
    op: Op,
    input: Tensor,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Ints = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Affine:
    """Average pooling."""
    dims = input.dim() - 2
    linear = avg_pool(
        tuple(input.shape[2:]),
        _each(kernel_size, dims),
        _each(stride or kernel_size, dims),
        _each(padding, dims),
        ceil_mode,
        count_include_pad,
        divisor_override,
        like=input,
    )
    return Affine(op(input), (linear,))


@registry.register(
    nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d,
    F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d,
    kind="linear", fresh=True, channelwise=True,
)  # fmt: skip
def adaptive_average_pool(op: Op, input: Tensor, output_size: Ints) -> Affine:
    """Adaptive average pooling."""
    value = op(input)
    size, out = tuple(input.shape[2:]), tuple(value.shape[2:])
    return Affine(value, (adaptive_avg_pool(size, out, like=input),))


_PAD_MODES = ("constant", "zeros", "reflect", "replicate", "circular")


def _pad_check(mode: str = "constant", **_: Any) -> str | None:
    return None if mode in _PAD_MODES else f"padding mode {mode!r} is unknown"


@registry.register(
    nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d, nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d,
    F.pad, kind="linear", fresh=True, check=_pad_check,
)  # fmt: skip
def padding(
    op: Op,
    input: Tensor,
    padding: Sequence[int],
    mode: str = "constant",
    value: float | None = None,
) -> Affine:
    """Padding with a number, reflection, replication or wrapping."""
    linear = _padded(op, input, padding, mode)
    if not value:
        return linear
    samples = input if linear.maps[0].moves_batch(len(input)) else input[:1]
    return Affine(linear.value, linear.maps, op(torch.zeros_like(samples)))


def _padded(op: Op, input: Tensor, pads: Sequence[int], mode: str) -> Affine:
    if len(pads) == 2 * input.dim() and any(pads[-2:]):
        return Affine(op(input), (ZeroPad(tuple(pads), first=True),))
    size = tuple(input.shape[-(len(pads) // 2) :])
    kind = "constant" if mode == "zeros" else mode
    return Affine(op(input), (pad(size, tuple(pads), kind, like=input),))


def _mode_rule(mode: str, *modules: type[nn.Module]) -> None:
    @registry.register(*modules, kind="linear", fresh=True, channelwise=True)
    def fixed_padding(op: Op, input: Tensor, padding: Sequence[int]) -> Affine:
        return _padded(op, input, padding, mode)


_mode_rule("reflect", nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReflectionPad3d)
_mode_rule("replicate", nn.ReplicationPad1d, nn.ReplicationPad2d, nn.ReplicationPad3d)
_mode_rule("circular", nn.CircularPad1d, nn.CircularPad2d, nn.CircularPad3d)

_MODES = ("nearest", "linear", "bilinear", "trilinear", "bicubic", "nearest-exact", "area")


def _interpolate_check(mode: str = "nearest", **_: Any) -> str | None:
    known = ", ".join(_MODES)
    return None if mode in _MODES else f"mode {mode!r} has no map here (these have: {known})"


@registry.register(
    nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d, F.interpolate, F.upsample,
    kind="linear", fresh=True, channelwise=True, check=_interpolate_check,
)  # fmt: skip
def resample(
    op: Op,
    input: Tensor,
    size: Ints | None = None,
    scale_factor: float | Sequence[float] | None = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
    antialias: bool = False,
) -> Affine:
    """Interpolation, a linear map with its true adjoint."""
    value = op(input)
    if mode == "area":
        return Affine(
            value, (adaptive_avg_pool(input.shape[2:], tuple(value.shape[2:]), like=input),)
        )
    dims = input.dim() - 2
    factors = None if recompute_scale_factor or scale_factor is None else scale_factor
    each = (factors,) * dims if isinstance(factors, (int, float)) else factors
    size_in, size_out = tuple(input.shape[2:]), tuple(value.shape[2:])
    wanted = size_out if each is None else None
    linear = interpolate(size_in, wanted, mode, align_corners, each, antialias, like=input)
    return Affine(value, (linear,))
