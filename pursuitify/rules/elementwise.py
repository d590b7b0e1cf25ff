"""Joins, products and masks: add, sub, cat, stack, scalar factors, gates, dropout."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pursuitify.errors import InputError
from pursuitify.operators import Chain, Detached, Expand, Identity, LinearMap, Place, Reshape, Scale
from pursuitify.rules import hints, split_ops
from pursuitify.rules.registry import Affine, Registry
from pursuitify.rules.split_ops import CASTS

#: A factor or an operand that depends on the input is seen in the graph: the rules depend on none.
registry = Registry(input_dependent=False, homogeneous=True)
Op = Callable[..., Tensor]
Value = Tensor | float


def _constant(number: float, like: Tensor) -> Tensor:
    return torch.full((), number, dtype=like.dtype, device=like.device)


def _term(operand: Value, out: Tensor, factor: float) -> LinearMap:
    maps: list[LinearMap] = []
    if isinstance(operand, Tensor) and operand.shape != out.shape:
        maps.append(Expand(tuple(operand.shape), tuple(out.shape)))
    if factor != 1:
        maps.append(Scale(factor))
    return maps[0] if len(maps) == 1 else Chain(tuple(maps)) if maps else Identity()


def _sum(input: Value, other: Value, first: float, second: float) -> Affine:
    value = _weighted(input, first) + _weighted(other, second)
    assert isinstance(value, Tensor)
    offset = None
    for operand, factor in ((input, first), (other, second)):
        if not isinstance(operand, Tensor):
            offset = _constant(operand * factor, value)
    return Affine(value, (_term(input, value, first), _term(other, value, second)), offset)


def _weighted(operand: Value, factor: float) -> Value:
    return operand if factor == 1 else operand * factor


@registry.register(
    operator.add, operator.iadd, torch.add, "add", "add_", kind="join", operands=("input", "other")
)
def add(_op: Op, input: Value, other: Value, alpha: float = 1) -> Affine:
    """Addition in every spelling; operands that broadcast are expanded."""
    return _sum(input, other, 1, alpha)


@registry.register(
    operator.sub, operator.isub, torch.sub, torch.subtract, "sub", "sub_", kind="join",
    operands=("input", "other"),
)  # fmt: skip
def sub(_op: Op, input: Value, other: Value, alpha: float = 1) -> Affine:
    """Subtraction."""
    return _sum(input, other, 1, -alpha)


@registry.register(torch.rsub, kind="join", operands=("input", "other"))
def reversed_sub(_op: Op, input: Value, other: Value, alpha: float = 1) -> Affine:
    """Subtraction of the first from the second."""
    return _sum(input, other, -alpha, 1)


@registry.register(
    torch.lerp, "lerp", "lerp_", kind="join", operands=("input", "end", "weight"), weighting=2,
    linear_in=(0, 1), otherwise="its weight alone depends on the input, and neither end does",
)  # fmt: skip
def lerp(_op: Op, input: Tensor, end: Tensor, weight: Value) -> Affine:
    """A mean of two values by weights that are constant, or a frozen gate."""
    value = torch.lerp(input, end, weight)
    maps = (scaling(input, 1 - weight, value, True), scaling(end, weight, value, True))
    return Affine(value, (*maps, Identity()))


def _three(function: Callable[..., Tensor], *keys: Any, quotient: bool = False) -> None:
    """Add the rule of a sum of a value and the product, or the quotient, of two others."""
    only: dict[str, Any] = {"linear_in": (0, 1), "otherwise": hints.DIVIDES} if quotient else {}

    @registry.register(
        *keys, kind="product", operands=("input", "tensor1", "tensor2"), factors=(1, 2),
        channelwise=True, elementwise=True, homogeneous=False, **only,
    )  # fmt: skip
    def added(
        _op: Op,
        input: Tensor,
        tensor1: Tensor,
        tensor2: Tensor,
        value: float = 1,
        _affine: int = 1,
        _per_sample: bool = False,
    ) -> Affine:
        """A sum with a product, of two factors one is a constant or a frozen gate."""
        total = function(input, tensor1, tensor2, value=value)
        moving, other = (tensor1, tensor2) if _affine == 1 else (tensor2, tensor1)
        factor = value / other if quotient else value * other
        scaled = scaling(moving, factor, total, _per_sample)
        return Affine(total, (_term(input, total, 1), scaled, scaled))


_three(torch.addcmul, torch.addcmul, "addcmul", "addcmul_")
_three(torch.addcdiv, torch.addcdiv, "addcdiv", "addcdiv_", quotient=True)


@registry.register(
    split_ops.where, kind="join", operands=("input", "other"), channelwise=True,
    chosen_by_size=hints.WRITTEN_OUT,
)  # fmt: skip
def where(op: Op, input: Value, other: Value, condition: Tensor) -> Affine:
    """One of two values at each place, as a mask that is constant or frozen says."""
    value = op(input, other)
    maps, offset = list[LinearMap](), None
    for operand, mask in ((input, condition), (other, ~condition)):
        if isinstance(operand, Tensor):
            maps.append(scaling(operand, mask, value, True))
        else:
            maps.append(Identity())
            offset = _constant(operand, value) * mask
    return Affine(value, tuple(maps), offset)


def _fill_check(value: Any = 0, **_: Any) -> str | None:
    if isinstance(value, (int, float)) and not math.isfinite(value):
        return f"it fills with {value}, from which no residual is finite: fill with a number"
    return None


@registry.register(
    torch.masked_fill, "masked_fill", "masked_fill_", kind="linear", fresh=True, channelwise=True,
    check=_fill_check, chosen_by_size=hints.WRITTEN_OUT,
    homogeneous=lambda value, **_: isinstance(value, (int, float)) and value == 0,
)  # fmt: skip
def masked_fill(_op: Op, input: Tensor, mask: Tensor, value: Value) -> Affine:
    """A number in the places of a mask that is constant or frozen."""
    filled = input.masked_fill(mask, value)
    linear = scaling(input, ~mask, filled, True)
    number = value if isinstance(value, Tensor) else _constant(value, filled)
    return Affine(filled, (linear,), number * mask)


@registry.register(torch.tril, "tril", torch.triu, "triu", kind="linear", fresh=True)
def triangle(op: Op, input: Tensor, diagonal: int = 0) -> Affine:
    """Entries of matrices below a diagonal, or above it; the others are zeros."""
    return Affine(op(input), (Scale(op(torch.ones_like(input[:1] if input.dim() > 2 else input))),))


@registry.register(
    torch.cat, torch.concat, torch.concatenate, kind="join", operands=("tensors*",), concat=True
)
def cat(_op: Op, tensors: Sequence[Tensor], dim: int = 0) -> Affine:
    """Concatenation: each operand has a slot of its own."""
    value = torch.cat(list(tensors), dim)
    axis = dim % value.dim()
    maps, start = [], 0
    for tensor in tensors:
        maps.append(Place(axis, start, tensor.shape[axis], value.shape[axis]))
        start += tensor.shape[axis]
    return Affine(value, tuple(maps))


def _laid(*keys: Any, dim: int, prepare: Callable[..., Any]) -> None:
    """Add the rule of a concatenation of operands that get some more dimensions of size 1."""

    @registry.register(*keys, kind="join", operands=("tensors*",))
    def laid(op: Op, tensors: Sequence[Tensor]) -> Affine:
        """Concatenation along a dimension that the name of the function says."""
        wide = [prepare(tensor) for tensor in tensors]
        axis = 0 if wide[0].dim() == 1 else dim
        places = cat(torch.cat, wide, axis).maps
        maps = [
            place if tensor.shape == w.shape
            else Chain((Reshape(tuple(tensor.shape), tuple(w.shape)), place))
            for tensor, w, place in zip(tensors, wide, places, strict=True)
        ]  # fmt: skip
        return Affine(op(*tensors), tuple(maps))


def _columns(tensor: Tensor) -> Tensor:
    return tensor.unsqueeze(1) if tensor.dim() == 1 else tensor


_laid(torch.hstack, dim=1, prepare=torch.atleast_1d)
_laid(torch.vstack, torch.row_stack, dim=0, prepare=torch.atleast_2d)
_laid(torch.dstack, dim=2, prepare=torch.atleast_3d)
_laid(torch.column_stack, dim=1, prepare=_columns)


@registry.register(torch.stack, kind="join", operands=("tensors*",))
def stack(_op: Op, tensors: Sequence[Tensor], dim: int = 0) -> Affine:
    """Concatenation along a new dimension."""
    value = torch.stack(list(tensors), dim)
    axis = dim % value.dim()
    maps = []
    for i, tensor in enumerate(tensors):
        unsqueezed = tuple(tensor.unsqueeze(axis).shape)
        add_axis = Reshape(tuple(tensor.shape), unsqueezed)
        maps.append(Chain((add_axis, Place(axis, i, 1, len(tensors)))))
    return Affine(value, tuple(maps))


def scaling(input: Tensor, factor: Value, value: Tensor, per_sample: bool) -> LinearMap:
    """Return the map of a product, in the shape of ``value``, to which operands are broadcast."""
    if isinstance(factor, Tensor):
        if factor.dtype is torch.bool:
            factor = factor.to(value.dtype)
        if 0 < factor.dim() < value.dim():  # (channels, 1, 1), as torch broadcasts it
            factor = factor.reshape((1,) * (value.dim() - factor.dim()) + factor.shape)
    scale = Scale(factor, per_sample)
    if value.shape == input.shape:
        return scale
    return Chain((Expand(tuple(input.shape), tuple(value.shape)), scale))


@registry.register(
    operator.mul, operator.imul, torch.mul, torch.multiply, "mul", "mul_", kind="product",
    operands=("input", "other"), channelwise=True, elementwise=True,
    chosen_by_size=hints.WRITTEN_OUT,
)  # fmt: skip
def mul(_op: Op, input: Value, other: Value, _affine: int = 0, _per_sample: bool = False) -> Affine:
    """Product with a constant or a frozen gate: a diagonal scale."""
    value = input * other
    x, factor = (input, other) if _affine == 0 else (other, input)
    assert isinstance(x, Tensor)
    assert isinstance(value, Tensor)
    return Affine(value, (scaling(x, factor, value, _per_sample),) * 2)


@registry.register(
    operator.truediv, operator.itruediv, torch.div, torch.divide, torch.true_divide, "div", "div_",
    kind="product", operands=("input", "other"), channelwise=True, elementwise=True,
    linear_in=(0,), otherwise=hints.DIVIDES,
    check=lambda rounding_mode=None, **_: None if rounding_mode is None else "it rounds",
)  # fmt: skip
def div(
    _op: Op,
    input: Value,
    other: Value,
    rounding_mode: str | None = None,
    _affine: int = 0,
    _per_sample: bool = False,
) -> Affine:
    """Division by a constant or a frozen value."""
    value = input / other
    assert isinstance(input, Tensor)
    assert isinstance(value, Tensor)
    if isinstance(other, Tensor) and not other.is_floating_point():
        other = other.to(value.dtype)  # torch divides by whole numbers in its default dtype
    factor = 1.0 / other
    return Affine(value, (scaling(input, factor, value, _per_sample), Identity()))


@registry.register(
    operator.neg, torch.neg, "neg", kind="linear", channelwise=True, elementwise=True, fresh=True
)
def neg(_op: Op, input: Tensor) -> Affine:
    """Change of sign."""
    return Affine(-input, (Scale(-1.0),))


def _mask(op: Op, input: Tensor, active: bool) -> Affine:
    if not active:
        return Affine(input, (Identity(),))
    mask = op(torch.ones_like(input))
    return Affine(input * mask, (Scale(mask, per_sample=True),))


def _drawn(training: bool = True, **_: Any) -> str | None:
    return "it draws a mask" if training else None


@registry.register(
    nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d,
    F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, torch.dropout,
    kind="linear", channelwise=True, elementwise=True, stateful=True, draws=True,
    input_dependent=_drawn,
)  # fmt: skip
def dropout(
    op: Op, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
) -> Affine:
    """Dropout; the mask is drawn once per forward, in the source's place, and kept."""
    return _mask(op, input, training and p > 0)


@registry.register(
    nn.Identity, "contiguous", operator.pos, torch.positive, "positive",
    kind="linear", channelwise=True, elementwise=True,
)  # fmt: skip
def identity(op: Op, input: Tensor, *_args: Any, **_kwargs: Any) -> Affine:
    """Bind an operation that changes no value."""
    return Affine(op(input), (Identity(),))


@registry.register(
    "clone", torch.clone, kind="linear", channelwise=True, elementwise=True, fresh=True
)
def clone(op: Op, input: Tensor, **_kwargs: Any) -> Affine:
    """A copy, in memory of its own."""
    return Affine(op(input), (Identity(),))


@registry.register(
    split_ops.detached, "detach", torch.detach, kind="linear", channelwise=True, elementwise=True
)
def detached(op: Op, input: Tensor) -> Affine:
    """Bind a detached value: the identity; where derivatives are recorded, none goes through."""
    return Affine(op(input), (Detached() if torch.is_grad_enabled() else Identity(),))


def _cast_check(target: Any = None, dtype: Any = None, **_: Any) -> str | None:
    wanted = target if isinstance(target, torch.dtype) else dtype
    integer = isinstance(wanted, torch.dtype) and not wanted.is_floating_point
    return f"it casts to {wanted}, which rounds or drops values" if integer else None


@registry.register(*CASTS, kind="linear", channelwise=True, elementwise=True, check=_cast_check)
def cast(
    op: Op,
    input: Tensor,
    target: Any = None,
    _second: Any = None,
    _third: Any = None,
    _fourth: Any = None,
    *,
    dtype: Any = None,
    **_kwargs: Any,
) -> Affine:
    """A cast of integers to floating point, or one that finds nothing to do."""
    value = op(input)
    alike = value.dtype == input.dtype and value.device == input.device
    if not value.is_floating_point() or (input.is_floating_point() and not alike):
        raise InputError(
            f"the network casts {input.dtype} on {input.device} to {value.dtype} on "
            f"{value.device}; pursuit needs one floating-point dtype and one device throughout: "
            "move the whole network to one"
        )
    return Affine(value, (Identity(),))


@functools.cache
def torchvision_rules() -> Registry:
    """Rules for torchvision's own functions; imports it, so call it only where it is in use."""
    from torchvision.ops import stochastic_depth

    extra = Registry(input_dependent=_drawn, homogeneous=True)

    @extra.register(
        stochastic_depth, kind="linear", channelwise=True, elementwise=True, stateful=True,
        draws=True,
    )  # fmt: skip
    def drop_path(op: Op, input: Tensor, p: float, mode: str, training: bool = True) -> Affine:
        return _mask(op, input, training and p > 0)

    return extra
