"""Differences of tensors and of what networks return: tensors in dicts, sequences and records."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

#: Entries below which torch.equal is faster than reductions of a difference.
_SMALL = 8192


def exact(value: Tensor) -> torch.dtype:
    """Return the dtype to add up many numbers in, on the value's device."""
    return torch.float32 if value.device.type == "mps" else torch.float64


def order(value: Tensor) -> list[int]:
    """Return the dimensions in the order of memory, the one with the largest step first."""
    return sorted(range(value.dim()), key=value.stride, reverse=True)


def flat(value: Tensor, dims: Sequence[int] | None = None) -> Tensor:
    """Return all entries, in the order of memory: a view where they lie side by side.

    Reductions of what is dense, but not in torch's own order (channels_last), copy it first.

    Args:
        value: The tensor.
        dims: The order of its dimensions, if another one is wanted.
    """
    value = value.detach()
    if dims is None:
        if value.is_contiguous():
            return value.view(-1)
        if value.dim() == 4 and value.is_contiguous(memory_format=torch.channels_last):
            return value.permute(0, 2, 3, 1).view(-1)
        dims = order(value)
    return value.permute(*dims).reshape(-1)


def largest(value: Tensor) -> float:
    """Return the largest magnitude of a tensor, 0 of an empty one; NaN or infinite if one is."""
    if value.numel() == 0:
        return 0.0
    # Two vectorised reductions in any memory order are faster on a CPU than one aminmax, which
    # copies what is not in torch's own order, and than the norm of order infinity.
    high, low = value.amax().item(), value.amin().item()
    return float(max(high, -low)) if low == low else math.nan


def size(value: Tensor) -> float:
    """Return the largest magnitude of a tensor's finite entries; 0 where there is none."""
    found = largest(value)
    if math.isfinite(found):
        return found
    return largest(torch.where(torch.isfinite(value), value, 0))


def square(value: Tensor) -> float:
    """Return the sum of squares."""
    found = inner(value, value)
    if not 1e-20 < found < 1e30:  # the squares may be out of float32's range
        found = float(torch.linalg.vector_norm(value, dtype=exact(value))) ** 2
    return found


def inner(a: Tensor, b: Tensor, exactly: bool = False) -> float:
    """Return the inner product of two tensors of one shape.

    Args:
        a: A tensor.
        b: Another.
        exactly: Add up in the dtype ``exact`` names: a float32 sum of a million terms is off by
            some 1e-5 of its terms' root sum of squares.
    """
    # Autocast gives its results another dtype than its operands have.
    kind = torch.promote_types(torch.promote_types(a.dtype, b.dtype), torch.float32)
    kind = exact(a) if exactly else kind
    a, b = a.to(kind), b.to(kind)
    dims = None if a.is_contiguous() and b.is_contiguous() else order(a)
    # One pass over both, and no product in memory.
    return float(torch.dot(flat(a, dims), flat(b, dims)))


def gap(a: Tensor, b: Tensor) -> float:
    """Return the largest difference; entries that are not finite differ unless they are the same.

    Args:
        a: A tensor.
        b: One of the same shape.
    """
    if a.data_ptr() == b.data_ptr() and a.stride() == b.stride():
        return 0.0
    found = float((a - b).abs_().amax()) if a.numel() else 0.0
    if math.isfinite(found):
        return found
    same = (a == b) | (a.isnan() & b.isnan())
    found = largest(torch.where(same, 0, a - b))
    return found if found == found else math.inf


def same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors of floating point hold the same, NaN apart, which is not the same.

    What ``torch.equal`` says, several times faster on a CPU where it is true: a difference of
    numbers is zero only if they are equal. Two infinities are not the same here, either.
    """
    if a.numel() < _SMALL or a.shape != b.shape or a.dtype != b.dtype or not a.is_floating_point():
        return torch.equal(a, b)
    return float((a - b).abs_().amax()) == 0


def ratio(error: float, scale: float) -> float:
    """Return error / scale; 0 for no error, whatever the scale. NaN stays NaN."""
    if error == 0:
        return 0.0
    return error / scale if scale > 0 else error * math.inf


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield what a structure holds, each with its place, ``output['aux'][0]`` for one."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from leaves(item, f"{path}[{key!r}]")
    elif isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        for i, item in enumerate(value):
            yield from leaves(item, f"{path}[{i}]")
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for entry in dataclasses.fields(value):
            yield from leaves(getattr(value, entry.name), f"{path}.{entry.name}")
    else:
        yield path, value


def difference(
    a: Any, b: Any, moves: Mapping[str, float] | None = None, tolerance: float = 1.0
) -> float:
    """Return the largest difference of two structures, relative to what the second one holds.

    Infinite where places, shapes or dtypes differ, or values that are no numbers with a fraction.

    Args:
        a: A structure.
        b: Another.
        moves: Per place, by how much values move that are as good as those of ``a``.
        tolerance: The difference is at most this where it is at most the move.
    """
    return max((e for _, e in differences(a, b, moves, tolerance)), default=0.0)


def differences(
    a: Any, b: Any, moves: Mapping[str, float] | None = None, tolerance: float = 1.0
) -> Iterator[tuple[str, float]]:
    """Yield every place of two structures with the relative difference there."""
    first, second = dict(leaves(a)), dict(leaves(b))
    for path in [p for p in (*first, *second) if p not in first or p not in second]:
        yield path, math.inf
    for path in [p for p in second if p in first]:
        move = 0.0 if moves is None else moves.get(path, 0.0)
        yield path, _difference(first[path], second[path], move / tolerance)


def spread(a: Any, b: Any) -> dict[str, float]:
    """Return the largest difference at every place that holds a tensor in both, by place.

    Infinite where whole numbers differ.
    """
    first, second = dict(leaves(a)), dict(leaves(b))
    found = {}
    for path in [p for p in second if p in first]:
        x, y = first[path], second[path]
        if isinstance(x, Tensor) and isinstance(y, Tensor) and x.shape == y.shape:
            if x.is_floating_point():
                found[path] = gap(x, y)
            else:
                found[path] = 0.0 if torch.equal(x, y) else math.inf
    return found


def _difference(a: Any, b: Any, floor: float) -> float:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        if a.shape != b.shape or a.dtype != b.dtype or a.device != b.device:
            return math.inf
        if torch.equal(a, b):
            return 0.0
        if not a.is_floating_point():
            return 0.0 if math.isinf(floor) else math.inf
        return ratio(gap(a, b), max(size(b), floor))
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return math.inf
    plain = (bool, int, float, str, type(None))
    if isinstance(a, plain) and isinstance(b, plain):
        return 0.0 if a == b or (a != a and b != b) else math.inf
    return 0.0
