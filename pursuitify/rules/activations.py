"""Activations that are proximal operators, in every spelling."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pursuitify.errors import InputError
from pursuitify.operators.activations import (
    ELU,
    Activation,
    Clip,
    Hardsigmoid,
    LeakyReLU,
    ReLU,
    Sigmoid,
    Softplus,
    Softsign,
    SoftThreshold,
    Tanh,
)
from pursuitify.rules import split_ops
from pursuitify.rules.registry import Registry

#: An activation is given by its parameters alone.
registry = Registry(input_dependent=False)
Op = Callable[..., Tensor]


@registry.register(
    nn.ReLU, F.relu, F.relu_, torch.relu, torch.relu_, "relu", "relu_", kind="activation",
    homogeneous=True,
)  # fmt: skip
def relu(_op: Op, input: Tensor, inplace: bool = False) -> Activation:
    """max(z, 0)."""
    return ReLU()


@registry.register(split_ops.positive_part, kind="activation", homogeneous=True)
def positive_part(_op: Op, input: Tensor, dtype: torch.dtype) -> Activation:
    """max(z, 0), by a mask that is cast to a dtype."""
    wide = torch.promote_types(input.dtype, dtype)
    if wide is not input.dtype:
        raise InputError(
            f"the network multiplies {input.dtype} by a mask of {dtype}, which makes it {wide}; "
            "pursuit needs one floating-point dtype throughout: cast the mask to x.dtype"
        )
    return ReLU()


def _threshold_check(threshold: float = 0.0, value: float = 0.0, **_: Any) -> str | None:
    return None if threshold == value == 0 else "only Threshold(0, 0), which is ReLU, is proximal"


@registry.register(
    nn.Threshold, F.threshold, torch.threshold, torch.threshold_, kind="activation",
    check=_threshold_check, homogeneous=True,
)  # fmt: skip
def threshold(
    _op: Op, input: Tensor, threshold: float, value: float, inplace: bool = False
) -> Activation:
    """With zeros it is ReLU."""
    return ReLU()


def _range_check(min_val: float = -1.0, max_val: float = 1.0, **_: Any) -> str | None:
    return None if min_val < max_val else f"its range [{min_val}, {max_val}] is empty"


@registry.register(nn.ReLU6, F.relu6, kind="activation", check=_range_check)
def relu6(
    _op: Op, input: Tensor, inplace: bool = False, min_val: float = 0.0, max_val: float = 6.0
) -> Activation:
    """Bind z clipped to [0, 6]; nn.ReLU6 is a Hardtanh, whose bounds may be set to others."""
    return Clip(float(min_val), float(max_val))


@registry.register(nn.Hardtanh, F.hardtanh, F.hardtanh_, kind="activation", check=_range_check)
def hardtanh(
    _op: Op,
    input: Tensor,
    min_val: float = -1.0,
    max_val: float = 1.0,
    inplace: bool = False,
) -> Activation:
    """Bind z clipped to [min_val, max_val]."""
    return Clip(float(min_val), float(max_val))


def _clamp_check(min: Any = None, max: Any = None, **_: Any) -> str | None:
    if isinstance(min, Tensor) or isinstance(max, Tensor):
        return "its bounds are tensors"
    if min == 0 and max is None:
        return None
    if min is None or max is None:
        return "only clamp(min=0) and clamp(min, max) are proximal operators we know"
    return None if min < max else f"its range [{min}, {max}] is empty"


@registry.register(
    torch.clamp, torch.clip, "clamp", "clamp_", "clip", "clip_", kind="activation",
    check=_clamp_check, homogeneous=lambda max=None, **_: max is None,
)  # fmt: skip
def clamp(_op: Op, input: Tensor, min: float | None = None, max: float | None = None) -> Activation:
    """With min=0 alone it is ReLU; with both bounds Hardtanh."""
    if max is None:
        return ReLU()
    assert min is not None
    return Clip(float(min), float(max))


@registry.register(
    "clamp_min", torch.clamp_min, kind="activation", check=_clamp_check, homogeneous=True
)
def clamp_min(_op: Op, input: Tensor, min: float) -> Activation:
    """With min=0 it is ReLU."""
    return ReLU()


def _slope_check(negative_slope: float = 0.01, **_: Any) -> str | None:
    if 0 < negative_slope <= 1:
        return None
    return f"its slope {negative_slope} is not in (0, 1]: not the prox of a convex penalty"


@registry.register(
    nn.LeakyReLU, F.leaky_relu, F.leaky_relu_, kind="activation", check=_slope_check,
    homogeneous=True,
)  # fmt: skip
def leaky_relu(
    _op: Op, input: Tensor, negative_slope: float = 0.01, inplace: bool = False
) -> Activation:
    """Bind z where z >= 0, negative_slope z elsewhere."""
    return LeakyReLU(negative_slope)


def _prelu_check(weight: Any = None, **_: Any) -> str | None:
    if isinstance(weight, Tensor) and not weight.is_meta:
        low, high = float(weight.detach().min()), float(weight.detach().max())
        if not 0 < low <= high <= 1:
            return f"its slopes reach from {low:g} to {high:g}, outside (0, 1]"
    return None


@registry.register(
    nn.PReLU, F.prelu, torch.prelu, "prelu", kind="activation", check=_prelu_check,
    homogeneous=True,
)  # fmt: skip
def prelu(_op: Op, input: Tensor, weight: Tensor) -> Activation:
    """LeakyReLU with one learned slope, or one per channel."""
    slope = weight if weight.numel() == 1 else weight.reshape(1, -1, *[1] * (input.dim() - 2))
    return LeakyReLU(slope)


def _lambd_check(lambd: float = 0.5, **_: Any) -> str | None:
    return None if lambd >= 0 else f"its threshold {lambd} is negative: its penalty is not convex"


@registry.register(nn.Softshrink, F.softshrink, kind="activation", check=_lambd_check)
def softshrink(_op: Op, input: Tensor, lambd: float = 0.5) -> Activation:
    """Soft thresholding: the proximal operator of lambd |w|."""
    return SoftThreshold(float(lambd))


@registry.register(
    nn.Tanh, torch.tanh, torch.tanh_, "tanh", "tanh_", kind="activation", smooth=True
)
def tanh(_op: Op, input: Tensor) -> Activation:
    """The hyperbolic tangent."""
    return Tanh()


@registry.register(
    nn.Sigmoid, torch.sigmoid, torch.sigmoid_, torch.special.expit, "sigmoid", "sigmoid_",
    kind="activation", smooth=True,
)  # fmt: skip
def sigmoid(_op: Op, input: Tensor) -> Activation:
    """1 / (1 + exp(-z))."""
    return Sigmoid()


@registry.register(nn.Hardsigmoid, F.hardsigmoid, kind="activation", smooth=True)
def hardsigmoid(_op: Op, input: Tensor, inplace: bool = False) -> Activation:
    """Bind z / 6 + 1/2 clipped to [0, 1]."""
    return Hardsigmoid()


@registry.register(nn.Softsign, F.softsign, kind="activation", smooth=True)
def softsign(_op: Op, input: Tensor) -> Activation:
    """Bind z / (1 + |z|)."""
    return Softsign()


@registry.register(nn.LogSigmoid, F.logsigmoid, kind="activation", smooth=True)
def logsigmoid(_op: Op, input: Tensor) -> Activation:
    """Bind log(1 / (1 + exp(-z))), which is -softplus(-z)."""
    return Softplus(mirrored=True)


def _softplus_check(beta: float = 1.0, threshold: float = 20.0, **_: Any) -> str | None:
    if beta <= 0:
        return f"its beta {beta} is not above 0"
    if threshold < 20:
        return f"its threshold {threshold} is below 20: it jumps down there, and is not monotone"
    return None


@registry.register(nn.Softplus, F.softplus, kind="activation", check=_softplus_check, smooth=True)
def softplus(_op: Op, input: Tensor, beta: float = 1.0, threshold: float = 20.0) -> Activation:
    """Bind log(1 + exp(beta z)) / beta."""
    return Softplus(float(beta), float(threshold))


def _elu_check(alpha: float = 1.0, **_: Any) -> str | None:
    if 0 < alpha <= 1:
        return None
    return f"its alpha {alpha} is not in (0, 1]: not the prox of a convex penalty"


@registry.register(nn.ELU, F.elu, F.elu_, kind="activation", check=_elu_check, smooth=True)
def elu(_op: Op, input: Tensor, alpha: float = 1.0, inplace: bool = False) -> Activation:
    """Bind z where z >= 0, alpha (exp(z) - 1) elsewhere."""
    return ELU(float(alpha), 1.0)


def _celu_check(alpha: float = 1.0, **_: Any) -> str | None:
    return None if alpha > 0 else f"its alpha {alpha} is not above 0"


@registry.register(
    nn.CELU, F.celu, F.celu_, torch.celu, torch.celu_, kind="activation", check=_celu_check,
    smooth=True,
)  # fmt: skip
def celu(_op: Op, input: Tensor, alpha: float = 1.0, inplace: bool = False) -> Activation:
    """Bind z where z >= 0, alpha (exp(z / alpha) - 1) elsewhere; its slopes are at most 1."""
    return ELU(float(alpha), float(alpha))
