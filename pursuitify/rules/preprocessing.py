"""torchvision's transforms inside a model: normalisation, resizing, padding, cropping, grey, casts.

Transforms v2 choose their kernel by ``type(x)``, which while tracing is a proxy's, and then do
nothing at all. So torchvision's own transforms are not traced into; those that compute an affine
map have a rule, v1 and v2 the same one, and the others are refused by their name.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pursuitify.errors import InputError
from pursuitify.operators import (
    Chain,
    Conv,
    Expand,
    Identity,
    LinearMap,
    Scale,
    ZeroPad,
    interpolate,
    pad,
)
from pursuitify.rules.registry import Affine, Registry, Rule
from pursuitify.utils import patched_methods

Op = Callable[..., Tensor]
Size = int | Sequence[int]
#: Borders by torchvision's names, and torch's names for the same.
_BORDERS = {"constant": "constant", "edge": "replicate", "reflect": "reflect"}
_RESIZES = ("nearest", "nearest-exact", "bilinear", "bicubic")


def is_transform(module: nn.Module) -> bool:
    """Whether a module is a transform of torchvision's own that must not be traced into."""
    kinds = [kind for kind, _ in _known_v1()]
    v2 = sys.modules.get("torchvision.transforms.v2")
    if v2 is not None:
        kinds.append(v2.Transform)
    return isinstance(module, tuple(kinds)) and patched_methods.is_stock(type(module))


def registries() -> list[Registry]:
    """Return the rules of the transforms that are imported: nobody else can hold one."""
    found = []
    if "torchvision.transforms" in sys.modules:
        found.append(_v1())
    if "torchvision.transforms.v2" in sys.modules:
        found.append(_v2())
    return found


def _images(input: Tensor) -> tuple[int, int]:
    if input.dim() != 4:
        raise InputError(
            f"a transform of images got the shape {tuple(input.shape)}; pursuit needs "
            "(batch, channels, height, width)"
        )
    return input.shape[-2], input.shape[-1]


def normalize(op: Op, input: Tensor, mean: Any, std: Any, inplace: bool = False) -> Affine:
    """(x - mean) / std per channel."""
    # In place it would overwrite the signal that the rows read.
    value = op(input.clone() if inplace else input)
    center, spread = (
        torch.as_tensor(v, dtype=input.dtype, device=input.device).reshape(1, -1, 1, 1)
        for v in (mean, std)
    )
    _images(input)
    shape = (1, max(center.shape[1], spread.shape[1]), 1, 1)
    maps: list[LinearMap] = [Scale((1 / spread).expand(shape))]
    if value.shape != input.shape:
        maps.insert(0, Expand(tuple(input.shape), tuple(value.shape)))
    return Affine(value, (maps[0] if len(maps) == 1 else Chain(tuple(maps)),), -center / spread)


def _mode(interpolation: Any) -> Any:
    return getattr(interpolation, "value", interpolation)


def _resize_check(interpolation: Any = "bilinear", **_: Any) -> str | None:
    mode = _mode(interpolation)
    known = ", ".join(_RESIZES)
    return None if mode in _RESIZES else f"interpolation {mode!r} has no map here ({known} have)"


def resize(
    op: Op,
    input: Tensor,
    size: Any,
    interpolation: Any = "bilinear",
    max_size: int | None = None,
    antialias: bool | None = True,
) -> Affine:
    """Interpolation to a size, with antialiasing or without."""
    value, mode = op(input), _mode(interpolation)
    before, after = _images(input), _images(value)
    if before == after:
        return Affine(value, (Identity(),))
    smooth = mode in {"bilinear", "bicubic"}
    aligned, widened = (False, bool(antialias)) if smooth else (None, False)
    linear = interpolate(before, after, mode, aligned, antialias=widened, like=input)
    return Affine(value, (linear,))


def _pad_check(fill: Any = 0, padding_mode: str = "constant", **_: Any) -> str | None:
    if padding_mode not in _BORDERS:
        return f"padding_mode={padding_mode!r} has no map here ({', '.join(_BORDERS)} have)"
    if not (fill is None or isinstance(fill, (int, float, list, tuple))):
        return f"its fill is a {type(fill).__name__}, not a number"
    return None


def padding(
    op: Op, input: Tensor, padding: Size, fill: Any = 0, padding_mode: str = "constant"
) -> Affine:
    """A border of a constant, of reflections, or of the edge."""
    value = op(input)
    sides = [padding] if isinstance(padding, int) else [*padding]
    left, top, right, bottom = sides * (4 // len(sides))
    border = pad(_images(input), (left, right, top, bottom), _BORDERS[padding_mode], like=input)
    offset = None
    if padding_mode == "constant" and any(fill if isinstance(fill, (list, tuple)) else [fill]):
        offset = op(torch.zeros_like(input[:1]))
    return Affine(value, (border,), offset)


def _cropped(op: Op, input: Tensor, size: Size) -> Affine:
    value = op(input)
    pads: list[int] = []
    for extent, new in zip(_images(input)[::-1], _images(value)[::-1], strict=True):
        low = (new - extent) // 2 if new > extent else -round((extent - new) / 2)
        pads += [low, new - extent - low]
    return Affine(value, (ZeroPad(tuple(pads)) if any(pads) else Identity(),))


def center_crop(op: Op, input: Tensor, size: Size) -> Affine:
    """The middle of an image; around one that is too small, zeros."""
    return _cropped(op, input, size)


def grayscale(op: Op, input: Tensor, num_output_channels: int = 1) -> Affine:
    """Luminance, in one channel or in three alike."""
    value, size = op(input), _images(input)
    channels = [0.2989, 0.587, 0.114] if input.shape[1] == 3 else [1.0]
    weight = input.new_tensor(channels).reshape(1, -1, 1, 1)
    weight = weight.expand(value.shape[1], -1, -1, -1).contiguous()
    return Affine(value, (Conv.from_call(size, weight),))


def _dtype_check(dtype: Any = None, **_: Any) -> str | None:
    if isinstance(dtype, torch.dtype) and dtype.is_floating_point:
        return None
    return f"it casts to {dtype}: only one dtype of floating point has a map"


def _cast(op: Op, input: Tensor, scale: bool) -> Affine:
    value = op(input)
    if input.is_floating_point() and value.dtype != input.dtype:
        raise InputError(
            f"the network casts {input.dtype} to {value.dtype}; pursuit needs one dtype throughout"
        )
    whole = not input.is_floating_point() and scale and input.dtype is not torch.bool
    linear = Scale(1 / torch.iinfo(input.dtype).max) if whole else Identity()
    return Affine(value, (linear,))


def to_dtype(op: Op, input: Tensor, dtype: Any, scale: bool = False) -> Affine:
    """A cast of integers, divided by the largest of their dtype if ``scale``."""
    return _cast(op, input, scale)


def convert_image_dtype(op: Op, input: Tensor, dtype: Any) -> Affine:
    """The same, always divided."""
    return _cast(op, input, True)


def keep(op: Op, input: Tensor) -> Affine:
    """A transform that changes the type of an image alone."""
    return Affine(op(input).as_subclass(Tensor), (Identity(),))


def _rule_of(transform: Any) -> Rule | None:
    for registry in registries():
        if type(transform) in registry:
            return registry[type(transform)]
    return None


def _compose_check(transforms: Iterable[Any] = (), **_: Any) -> str | None:
    for transform in transforms:
        rule, name = _rule_of(transform), type(transform).__name__
        if rule is None:
            return f"it holds {name}, for which no rule says that it is affine"
        why = patched_methods.reason(transform)
        if rule.check is not None and not why:
            why = rule.check(**_attributes(rule, transform)) or ""
        if why:
            return f"it holds {name}: {why}"
    return None


def _attributes(rule: Rule, module: nn.Module) -> dict[str, Any]:
    return {name: getattr(module, name) for name in rule.parameters if hasattr(module, name)}


def compose(_op: Op, input: Tensor, transforms: Iterable[Any]) -> Affine:
    """One transform after the other; offsets pass through the maps that follow them."""
    value, maps, offset = input, list[LinearMap](), None
    for transform in transforms:
        rule = _rule_of(transform)
        assert rule is not None
        assert rule.bind is not None
        if not (value.is_floating_point() or rule.casts or rule.bind is keep):
            raise InputError(
                f"{type(transform).__name__} of whole numbers ({value.dtype}) may round, which is "
                "not linear: put a cast before it, v2.ToDtype(torch.float32, scale=True)"
            )
        shape = (1, *value.shape[1:])
        bound = rule.bind(transform, value, **_attributes(rule, transform))
        if offset is not None:
            offset = bound.maps[0].apply(offset.expand(shape))
        if bound.offset is not None:
            offset = bound.offset if offset is None else offset + bound.offset
        maps.append(bound.maps[0])
        value = bound.value
    return Affine(value, (Chain(tuple(maps)) if maps else Identity(),), offset)


def _known_v1() -> list[tuple[type[nn.Module], dict[str, Any]]]:
    """Transforms v1 that are modules, each with its rule; those that are drawn stay traced."""
    v1 = sys.modules.get("torchvision.transforms")
    return [] if v1 is None else _table(v1)


def _table(family: Any) -> list[tuple[type[nn.Module], dict[str, Any]]]:
    return [
        (family.Normalize, {"bind": normalize, "channelwise": True, "elementwise": True}),
        (family.Resize, {"bind": resize, "check": _resize_check, "channelwise": True}),
        (family.Pad, {"bind": padding, "check": _pad_check, "channelwise": True}),
        (family.CenterCrop, {"bind": center_crop, "channelwise": True}),
        (family.Grayscale, {"bind": grayscale}),
        (
            family.ConvertImageDtype,
            {
                "bind": convert_image_dtype,
                "check": _dtype_check,
                "channelwise": True,
                "elementwise": True,
                "casts": True,
            },
        ),
    ]


def _registered(entries: Iterable[tuple[type[nn.Module], dict[str, Any]]]) -> Registry:
    registry = Registry()
    for kind, options in entries:
        bind = options.pop("bind")
        registry.register(kind, kind="linear", **options)(bind)
    return registry


@functools.cache
def _v1() -> Registry:
    return _registered(_known_v1())


@functools.cache
def _v2() -> Registry:
    from torchvision.transforms import v2

    casts = {"casts": True, "check": _dtype_check, "channelwise": True, "elementwise": True}
    same = {"bind": keep, "channelwise": True, "elementwise": True}
    return _registered(
        [
            *_table(v2),
            (v2.ToDtype, {"bind": to_dtype, **casts}),
            (v2.Identity, {**same}),
            (v2.ToImage, {**same}),
            (v2.ToPureTensor, {**same}),
            (v2.Compose, {"bind": compose, "check": _compose_check, "casts": True}),
        ]
    )
