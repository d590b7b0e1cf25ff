"""Maps that are a small matrix along each spatial dim: pooling, padding, interpolation.

The matrices are read off the native one-dimensional operators by probing them with the identity,
so every convention (partial windows, border rules, corner alignment) is torch's own. The pixels
that nearest interpolation selects are read off the very kernel that computes the value: torch's
kernels for different dtypes, numbers of dims and memory formats round an index differently.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from pursuitify.operators.base import Identity, LinearMap, channels_inside
from pursuitify.operators.block_mean import BlockMean
from pursuitify.operators.reshape import ZeroPad
from pursuitify.operators.symbols import Symbols
from pursuitify.utils import torch_internals
from pursuitify.utils.func_transforms import compiling

_LINEAR = {"linear", "bilinear", "trilinear"}
_NEAREST = {"nearest", "nearest-exact"}
_MODES = ("nearest", "nearest-exact", "area", "linear", "bilinear", "trilinear", "bicubic")
#: Modes in which torch can widen the kernel where an image shrinks.
_IMAGE = ("bilinear", "bicubic")
#: Every floating-point dtype holds the whole numbers below this one, bfloat16 included.
_DIGIT = 256
#: torch chooses among its kernels by whether there are more than 3 channels, not by how many more.
_ENOUGH_CHANNELS = 8


@dataclass(frozen=True, eq=False)
class Separable(LinearMap):
    """A matrix along each of the last spatial dims, the same for every channel.

    Attributes:
        mats: Matrix (out, in) per spatial dim, or None for the identity.
        bound: Upper bound of the norm: the product of the matrices' norms.
    """

    mats: tuple[Tensor | None, ...]
    bound: float

    def apply(self, x: Tensor) -> Tensor:
        """Return ``x`` multiplied along each dim."""
        return self._multiply(x, self.mats)

    def adjoint(self, y: Tensor) -> Tensor:
        """Return ``y`` multiplied by the transposed matrices."""
        return self._multiply(y, [None if mat is None else mat.mT for mat in self.mats])

    @staticmethod
    def _multiply(x: Tensor, mats: Sequence[Tensor | None]) -> Tensor:
        """Multiply along each of the last dims, in the memory format of ``x``."""
        inside = x.dim() - len(mats) == 2 and channels_inside(x)
        x = x.movedim(1, -1) if inside else x
        for i, mat in enumerate(mats):
            dim = x.dim() - len(mats) + i - inside
            if mat is None:
                continue
            if dim == x.dim() - 1:
                x = F.linear(x, mat)
                continue
            before, after = x.shape[:dim], x.shape[dim + 1 :]
            x = (mat @ x.reshape(*before, x.shape[dim], -1)).reshape(*before, -1, *after)
        return x.movedim(-1, 1) if inside else x

    def norm_bound(self) -> float:
        """Return the product of the exact norms, rounded up."""
        return self.bound

    def narrow(self, dim: int, start: int, length: int) -> Separable:
        """Return the map itself: it treats channels alike."""
        if dim not in (0, 1):
            raise NotImplementedError(f"Separable mixes the slots of dimension {dim}")
        return self

    def pattern(self) -> Separable:
        """Return the matrices with their entries that are not zero set to one."""
        mats = tuple(None if m is None else m.ne(0).to(m) for m in self.mats)
        return Separable(mats, self.bound)

    def symbol(self, into: Symbols) -> None:
        """Say: a matrix along each dim."""
        into.channelwise([None if m is None else into.matrix(m) for m in self.mats])


def _pool_op(x: Tensor, k: int, s: int, p: int, ceil: bool, include: bool, total: bool) -> Tensor:
    out = F.avg_pool1d(x, k, s, p, ceil, include)
    return out.ne(0).to(x.dtype) if total else out


def _pad_op(x: Tensor, low: int, high: int, mode: str) -> Tensor:
    return F.pad(x, (low, high), mode=mode)


def _resize_op(
    x: Tensor, size: int | None, scale: float | None, mode: str, align: bool | None
) -> Tensor:
    return F.interpolate(x, size=size, scale_factor=scale, mode=mode, align_corners=align)


def _image_op(
    x: Tensor,
    size: int | None,
    scale: float | None,
    mode: str,
    align: bool | None,
    antialias: bool,
) -> Tensor:
    """Resize images whose rows are constant: torch has no one-dimensional kernels of these modes.

    They are two pixels wide, for of images one pixel wide torch's antialiasing makes wrong ones.
    """
    wide = x[..., None].repeat(1, 1, 1, 2)
    sizes, scales = None if size is None else (size, 2), None if scale is None else (scale, 1.0)
    tall = F.interpolate(wide, sizes, scales, mode, align, antialias=antialias)
    return tall[..., 0]


_OPS: dict[str, Callable[..., Tensor]] = {
    "pool": _pool_op,
    "adaptive": F.adaptive_avg_pool1d,
    "pad": _pad_op,
    "resize": _resize_op,
    "image": _image_op,
}


@functools.lru_cache(maxsize=512)
def _probe(name: str, size: int, *args: object) -> tuple[NDArray[np.float64], float]:
    """Return the matrix (out, size) of a native one-dimensional operator, and its norm."""
    with torch_internals.without_dispatch_modes(), torch.inference_mode(False), torch.no_grad():
        eye = torch.eye(size, dtype=torch.float64, device="cpu")[:, None, :]
        matrix = _OPS[name](eye, *args)[:, 0, :].T.contiguous()
        return matrix.numpy(), float(torch.linalg.matrix_norm(matrix, 2))


def _matrix(
    dtype: torch.dtype, device: torch.device, name: str, size: int, *args: object
) -> Tensor:
    """Return the matrix of a native operator.

    A compiled graph makes it afresh: torch 2.14's compiler takes one tensor at most from a function
    whose results are constants.
    """
    if compiling():
        eye = torch.eye(size, dtype=torch.float64, device=device)[:, None, :]
        return _OPS[name](eye, *args)[:, 0, :].T.contiguous().to(dtype)
    return _known_matrix(dtype, device, name, size, *args)


@torch_internals.constant_when_compiled
def _known_matrix(
    dtype: torch.dtype, device: torch.device, name: str, size: int, *args: object
) -> Tensor:
    return torch.tensor(_probe(name, size, *args)[0], dtype=dtype, device=device)


@torch_internals.constant_when_compiled
def _norm(name: str, size: int, *args: object) -> float:
    return _probe(name, size, *args)[1]


def _separable(
    name: str,
    size: Sequence[int],
    arguments: Sequence[tuple[object, ...] | None],
    like: Tensor,
    factor: float = 1.0,
) -> LinearMap:
    """Build the map; None in ``arguments`` means the identity along that dim."""
    mats: list[Tensor | None] = []
    bound = 1 + 1e-6
    for n, args in zip(size, arguments, strict=True):
        if args is None:
            mats.append(None)
            continue
        matrix = _matrix(like.dtype, like.device, name, n, *args)
        mats.append(matrix if factor == 1 else matrix * factor)
        bound, factor = bound * _norm(name, n, *args) * abs(factor), 1.0
    return Separable(tuple(mats), bound) if any(m is not None for m in mats) else Identity()


def _per_dim(value: int | Sequence[int], dims: int) -> tuple[int, ...]:
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * dims if len(values) == 1 else values


def avg_pool(
    size: Sequence[int],
    kernel: int | Sequence[int],
    stride: int | Sequence[int] | None = None,
    padding: int | Sequence[int] = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
    *,
    like: Tensor,
) -> LinearMap:
    """Return the map of an F.avg_poolNd call.

    Args:
        size: Spatial size of the input.
        kernel: As F.avg_poolNd takes it, and so are the next five.
        stride: Defaults to the kernel.
        padding: Zero padding on both sides.
        ceil_mode: Whether partial windows at the end count.
        count_include_pad: Whether padding counts in the divisor.
        divisor_override: Divisor of every window, if given.
        like: Tensor that gives dtype and device.
    """
    dims = len(size)
    kernels, pads = _per_dim(kernel, dims), _per_dim(padding, dims)
    strides = _per_dim(stride, dims) if stride is not None and stride != () else kernels
    whole = not ceil_mode or all(n % k == 0 for n, k in zip(size, kernels, strict=True))
    if strides == kernels and not any(pads) and whole:
        factor = math.prod(kernels) / divisor_override if divisor_override else 1.0
        return BlockMean(kernels, tuple(size), factor)
    flags = (ceil_mode, count_include_pad, divisor_override is not None)
    arguments = [(k, s, p, *flags) for k, s, p in zip(kernels, strides, pads, strict=True)]
    return _separable("pool", size, arguments, like, 1 / (divisor_override or 1))


def adaptive_avg_pool(
    size: Sequence[int], output_size: int | Sequence[int | None] | None, *, like: Tensor
) -> LinearMap:
    """Return the map of an F.adaptive_avg_poolNd call.

    Args:
        size: Spatial size of the input.
        output_size: As F.adaptive_avg_poolNd takes it.
        like: Tensor that gives dtype and device.
    """
    wanted = output_size if isinstance(output_size, Sequence) else (output_size,) * len(size)
    out = [n if o is None else o for n, o in zip(size, wanted, strict=True)]
    if all(n % o == 0 for n, o in zip(size, out, strict=True)):
        kernel = tuple(n // o for n, o in zip(size, out, strict=True))
        return Identity() if set(kernel) == {1} else BlockMean(kernel, tuple(size))
    arguments = [None if n == o else (o,) for n, o in zip(size, out, strict=True)]
    return _separable("adaptive", size, arguments, like)


def pad(
    size: Sequence[int], pads: Sequence[int], mode: str = "constant", *, like: Tensor
) -> LinearMap:
    """Return the map of an F.pad call (its linear part: a fill value is an offset).

    Args:
        size: Spatial size of the input: at least the dims that are padded.
        pads: As F.pad takes them: (low, high) from the last dim backwards.
        mode: 'constant', 'reflect', 'replicate' or 'circular'.
        like: Tensor that gives dtype and device.
    """
    if not any(pads):
        return Identity()
    if mode == "constant":
        return ZeroPad(tuple(pads))
    dims = len(pads) // 2
    ends = [(pads[2 * i], pads[2 * i + 1], mode) for i in reversed(range(dims))]
    arguments = [end if any(end[:2]) else None for end in ends]
    return _separable("pad", size[len(size) - dims :], arguments, like)


def interpolate(
    size: Sequence[int],
    output_size: int | Sequence[int] | None = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    scale_factor: float | Sequence[float] | None = None,
    antialias: bool = False,
    *,
    like: Tensor,
) -> LinearMap:
    """Return the map of an F.interpolate call.

    Args:
        size: Spatial size of the input.
        output_size: Spatial size of the output, or None with a scale factor.
        mode: Any mode of F.interpolate.
        align_corners: As F.interpolate takes it.
        scale_factor: As F.interpolate takes it.
        antialias: As F.interpolate takes it.
        like: The input, or a tensor that gives dtype and device. Its number of channels and memory
            format matter in the nearest modes, for torch has a kernel of its own for each.
    """
    if mode not in _MODES:
        raise ValueError(f"interpolation mode {mode!r} is not one of {', '.join(_MODES)}")
    dims = len(size)
    flat = "linear" if mode in _LINEAR else mode
    sizes: Sequence[int | None] = (None,) * dims
    scales: Sequence[float | None] = (None,) * dims
    if output_size is not None:
        sizes = _per_dim(output_size, dims)
    elif scale_factor is not None:
        many = isinstance(scale_factor, Sequence)
        scales = scale_factor if many else (scale_factor,) * dims  # type: ignore[assignment]
    if mode in _NEAREST:
        target = None if output_size is None else tuple(sizes)
        factors = None if target is not None else tuple(scales)
        return _nearest(tuple(size), target, factors, mode, like)
    image = mode in _IMAGE and (antialias or mode == "bicubic")
    rest = (mode, align_corners, antialias) if image else (flat, align_corners)
    arguments = [
        None if n == o and flat != "area" else (o, s, *rest)
        for n, o, s in zip(size, sizes, scales, strict=True)
    ]
    return _separable("image" if image else "resize", size, arguments, like)


def _nearest(
    size: tuple[int, ...],
    output_size: tuple[int | None, ...] | None,
    scales: tuple[float | None, ...] | None,
    mode: str,
    like: Tensor,
) -> LinearMap:
    """Return the selection that torch's own kernel makes, one matrix of zeros and ones per dim."""
    shaped = like.dim() == len(size) + 2
    channels = min(like.shape[1], _ENOUGH_CHANNELS) if shaped else 1
    inside = shaped and channels_inside(like)
    call = (size, output_size, scales, mode, channels, inside)
    mats: list[Tensor | None] = []
    bound = 1 + 1e-6
    for dim in range(len(size)):
        if _keeps_all(like.dtype, like.device, dim, compiling(), *call):
            mats.append(None)
            continue
        mats.append(_selection(like.dtype, like.device, dim, *call))
        bound *= _selection_norm(like.dtype, like.device, dim, compiling(), *call)
    return Separable(tuple(mats), bound) if any(m is not None for m in mats) else Identity()


def _selection(dtype: torch.dtype, device: torch.device, dim: int, *call: Any) -> Tensor:
    """Return the matrix (out, in) along one dim.

    A compiled graph makes it afresh, as it does the other matrices; there the compiler's own kernel
    is asked, which is the one that computes the value.
    """
    size = call[0]
    if compiling():
        picked = _picked(dtype, device, dim, *call)
        return (picked[:, None] == torch.arange(size[dim], device=device)).to(dtype)
    return _known_selection(dtype, device, dim, *call)


@torch_internals.constant_when_compiled
def _known_selection(dtype: torch.dtype, device: torch.device, dim: int, *call: Any) -> Tensor:
    picked = torch.tensor(_indices(dtype, device, *call)[dim], device=device)
    return (picked[:, None] == torch.arange(call[0][dim], device=device)).to(dtype)


@torch_internals.constant_when_compiled
def _selection_norm(
    dtype: torch.dtype, device: torch.device, dim: int, compiled: bool, *call: Any
) -> float:
    """Return the norm of a selection: the root of how often the commonest entry is picked."""
    choices = _choices(dtype, device, dim, compiled, *call)
    return math.sqrt(max(np.bincount(picked).max() for picked in choices))


@torch_internals.constant_when_compiled
def _keeps_all(
    dtype: torch.dtype, device: torch.device, dim: int, compiled: bool, *call: Any
) -> bool:
    """Whether a selection along one dim is the identity."""
    choices = _choices(dtype, device, dim, compiled, *call)
    return all(np.array_equal(picked, np.arange(call[0][dim])) for picked in choices)


def _choices(
    dtype: torch.dtype, device: torch.device, dim: int, compiled: bool, *call: Any
) -> list[NDArray[np.int64]]:
    """Return what may be picked along one dim: compiled code need not pick what the kernel does.

    torch's kernels for images copy pixels where a side keeps its size or doubles it, whatever the
    factor is; compilers take floor(i / factor), as torch documents it.
    """
    size, _, scales, mode, *_ = call
    found = [_indices(dtype, device, *call)[dim]]
    scale = None if scales is None else scales[dim]
    if compiled and scale is not None:
        half = 0.5 if mode == "nearest-exact" else 0.0
        places = np.arange(len(found[0]), dtype=np.float32) + np.float32(half)
        picked = np.floor(places * np.float32(1 / scale)).astype(np.int64)
        found.append(picked.clip(max=size[dim] - 1))
    return found


@functools.lru_cache(maxsize=512)
def _indices(dtype: torch.dtype, device: torch.device, *call: Any) -> tuple[NDArray[np.int64], ...]:
    """Return per dim the index of the entry that torch's kernel picks for each output."""
    where = torch.device("cpu") if device.type == "meta" else device
    with torch_internals.without_dispatch_modes(), torch.inference_mode(False), torch.no_grad():
        dims = range(len(call[0]))
        return tuple(_picked(dtype, where, dim, *call).cpu().numpy() for dim in dims)


def _picked(
    dtype: torch.dtype,
    device: torch.device,
    dim: int,
    size: tuple[int, ...],
    output_size: tuple[int, ...] | None,
    scales: tuple[float, ...] | None,
    mode: str,
    channels: int,
    inside: bool,
) -> Tensor:
    """Interpolate a ramp of indices along one dim, and return those that were picked.

    The ramp has the dtype, the size, the channels and the memory format of the input, so that torch
    runs the same kernel on it. It goes through in digits that every dtype holds exactly.
    """
    place = [1] * len(size)
    line = (0, 0, *(slice(None) if i == dim else 0 for i in range(len(size))))
    place[dim] = size[dim]
    ramp = torch.arange(size[dim], device=device)
    total = None
    unit = 1
    while True:
        digit = (ramp // unit % _DIGIT).to(dtype).reshape(1, 1, *place)
        image = digit.expand(1, channels, *size).contiguous()
        if inside and len(size) in _INSIDE:
            image = image.contiguous(memory_format=_INSIDE[len(size)])
        found = F.interpolate(image, size=output_size, scale_factor=scales, mode=mode)
        term = found[line].to(torch.int64) * unit
        total = term if total is None else total + term
        unit *= _DIGIT
        if unit >= size[dim]:
            return total


_INSIDE = {2: torch.channels_last, 3: torch.channels_last_3d}
