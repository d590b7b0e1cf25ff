"""Normalisations by statistics of each sample, frozen at the feed-forward pass.

GroupNorm, InstanceNorm, LayerNorm, RMSNorm and LocalResponseNorm divide a value by statistics of
itself. The statistics of the feed-forward pass make of each a diagonal scale with an offset, which
all sweeps share (mathematics.md, section 4). Scale and offset belong to one sample, so the scale is
never folded into a kernel. Derivatives go through both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pursuitify.errors import InputError
from pursuitify.operators import Scale
from pursuitify.rules.registry import Affine, Registry
from pursuitify.rules.weighted import channel

Op = Callable[..., Tensor]


def _own(**_: Any) -> str:
    return "its statistics are those of each sample"


registry = Registry(input_dependent=_own)
#: Attributes of all rules below: frozen, they are diagonal.
_DIAGONAL: dict[str, Any] = {
    "kind": "diagonal",
    "channelwise": True,
    "elementwise": True,
    "runs_source": True,
}


def _standardised(
    value: Tensor,
    mean: Tensor,
    var: Tensor,
    eps: float,
    weight: Tensor | None,
    bias: Tensor | None,
    per_sample: bool = True,
) -> Affine:
    """Return ``value = (input - mean) / sqrt(var + eps) * weight + bias`` with its map and offset.

    Args:
        value: What the source's operation returned, of shape (batch, ...).
        mean: Broadcasts against ``value`` and has as many dimensions.
        var: The variance without Bessel's correction, likewise.
        eps: Added to the variance.
        weight: Broadcasts against ``value``; None for 1.
        bias: Broadcasts against ``value``; None for 0.
        per_sample: Whether mean and variance are those of each sample.
    """
    scale = torch.rsqrt(var + eps)
    scale = scale if weight is None else scale * weight
    offset = -mean * scale if bias is None else bias - mean * scale
    return Affine(value, (Scale(scale, per_sample),), offset)


def _per_channel(vector: Tensor | None, dims: int) -> Tensor | None:
    return None if vector is None else channel(vector, dims)


@registry.register(nn.GroupNorm, F.group_norm, torch.group_norm, **_DIAGONAL)
def group_norm(
    op: Op,
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    _cudnn_enabled: bool = True,
) -> Affine:
    """GroupNorm of (batch, channels, *space), its statistics fixed for all sweeps."""
    value = op(input)
    dims, channels = input.dim(), input.shape[1]
    groups = input.reshape(input.shape[0], num_groups, -1)
    statistics = torch.var_mean(groups, 2, correction=0)
    repeats = channels // num_groups
    var, mean = (
        s.repeat_interleave(repeats, 1).reshape(-1, channels, *[1] * (dims - 2)) for s in statistics
    )
    return _standardised(
        value, mean, var, eps, _per_channel(weight, dims), _per_channel(bias, dims)
    )


def _module_statistics(
    training: bool = False, track_running_stats: bool = False, **_: Any
) -> str | None:
    return _own() if training or not track_running_stats else None


def _function_statistics(use_input_stats: bool = True, **_: Any) -> str | None:
    return _own() if use_input_stats else None


def _instance(
    op: Op,
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    own: bool,
    eps: float,
) -> Affine:
    value = op(input)
    dims = input.dim()
    if own:
        space = list(range(2, dims))
        var, mean = torch.var_mean(input, space, correction=0, keepdim=True)
    else:
        assert running_mean is not None
        assert running_var is not None
        mean, var = channel(running_mean, dims), channel(running_var, dims)
    scale, shift = _per_channel(weight, dims), _per_channel(bias, dims)
    return _standardised(value, mean, var, eps, scale, shift, per_sample=own)


_INSTANCE_DIMS = {nn.InstanceNorm1d: 3, nn.InstanceNorm2d: 4, nn.InstanceNorm3d: 5}


@registry.register(*_INSTANCE_DIMS, stateful=True, input_dependent=_module_statistics, **_DIAGONAL)
def instance_norm_module(
    op: Op,
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    track_running_stats: bool = False,
    momentum: float | None = 0.1,
    eps: float = 1e-5,
) -> Affine:
    """InstanceNorm as a module: running statistics in evaluation mode where it tracks them.

    The source's own operation runs once and updates the running statistics once.
    """
    wanted = next(d for kind, d in _INSTANCE_DIMS.items() if isinstance(op, kind))
    if input.dim() != wanted:
        raise InputError(
            f"{type(op).__name__} got an input of shape {tuple(input.shape)}; pursuit needs a "
            f"batch dimension: {wanted} dimensions (batch, channels, *space)"
        )
    own = training or not track_running_stats
    return _instance(op, input, running_mean, running_var, weight, bias, own, eps)


@registry.register(
    F.instance_norm, stateful=True, input_dependent=_function_statistics, **_DIAGONAL
)
def instance_norm(
    op: Op,
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Affine:
    """InstanceNorm as a function, which is told whose statistics to take."""
    return _instance(op, input, running_mean, running_var, weight, bias, use_input_stats, eps)


def _last(input: Tensor, normalized_shape: int | Sequence[int], what: str) -> list[int]:
    """Return the dimensions that a norm over the last ones takes together.

    Raises:
        InputError: If the first, which is the batch, is among them.
    """
    count = 1 if isinstance(normalized_shape, int) else len(normalized_shape)
    if count >= input.dim():
        raise InputError(
            f"{what} over {count} dimensions got an input of shape {tuple(input.shape)}; pursuit "
            "needs a batch dimension before them"
        )
    return list(range(-count, 0))


@registry.register(nn.LayerNorm, F.layer_norm, torch.layer_norm, **_DIAGONAL)
def layer_norm(
    op: Op,
    input: Tensor,
    normalized_shape: int | Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    _cudnn_enable: bool = True,
) -> Affine:
    """LayerNorm over the last dimensions, its statistics fixed for all sweeps."""
    over = _last(input, normalized_shape, "LayerNorm")
    value = op(input)
    var, mean = torch.var_mean(input, over, correction=0, keepdim=True)
    return _standardised(value, mean, var, eps, weight, bias)


@registry.register(nn.RMSNorm, F.rms_norm, torch.rms_norm, **_DIAGONAL)
def rms_norm(
    op: Op,
    input: Tensor,
    normalized_shape: int | Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
) -> Affine:
    """RMSNorm over the last dimensions, its root mean square fixed for all sweeps."""
    over = _last(input, normalized_shape, "RMSNorm")
    value = op(input)
    least = torch.finfo(input.dtype).eps if eps is None else eps
    scale = torch.rsqrt(input.square().mean(over, keepdim=True) + least)
    return Affine(value, (Scale(scale if weight is None else scale * weight, per_sample=True),))


@registry.register(nn.LocalResponseNorm, F.local_response_norm, **_DIAGONAL)
def local_response_norm(
    op: Op, input: Tensor, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0
) -> Affine:
    """Division by (k + alpha * mean of squares of ``size`` channels)^beta, fixed for all sweeps."""
    value = op(input)
    squares = input.square().flatten(2).unsqueeze(1)
    padded = F.pad(squares, (0, 0, size // 2, (size - 1) // 2))
    mean = F.avg_pool2d(padded, (size, 1), stride=1).reshape(input.shape)
    return Affine(value, (Scale((k + alpha * mean).pow(-beta), per_sample=True),))
