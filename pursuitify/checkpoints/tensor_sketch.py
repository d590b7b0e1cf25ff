"""A few numbers that stand for a tensor, to tell whether another one is the same to rounding.

A hash of the bytes would not do: a network that was saved in another precision, or a constant that
another machine computed, differs in the last bits and is the same constant.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

#: A tensor of so many entries or fewer is compared entry by entry.
_PIECES = 256
#: Rounding errors allowed, of the coarser of both precisions: of a piece, of the largest one.
_ROUNDINGS, _CANCELLED = 16, 4


@torch.no_grad()
def sketch(value: Tensor) -> dict[str, Any]:
    """Return a tensor's shape, precision, and norm and weighted sum of each of its pieces.

    The pieces of a sparse tensor are those of its entries' places and values.
    """
    floating = value.dtype.is_floating_point or value.dtype.is_complex
    if value.dtype.is_complex:
        value = torch.view_as_real(value)
    flat = _entries(value.detach().to("cpu", torch.float64))
    flat = flat.nan_to_num(nan=3e38, posinf=2e38, neginf=-2e38)
    pieces = flat.tensor_split(max(1, min(_PIECES, flat.numel())))
    return {
        "shape": list(value.shape),
        "precision": torch.finfo(value.dtype).eps if floating else 0.0,
        "norms": [float(piece.norm()) for piece in pieces],
        "sums": [float(piece @ _weights(piece.numel())) for piece in pieces],
    }


def _entries(value: Tensor) -> Tensor:
    if value.layout is torch.strided:
        return value.flatten()
    held = value.to_sparse().coalesce()
    return torch.cat([held.indices().to(value.dtype).flatten(), held.values().flatten()])


def _weights(count: int) -> Tensor:
    return torch.cos(torch.arange(1, count + 1, dtype=torch.float64) * 1.6180339887)


def same(one: Any, other: Any) -> bool:
    """Whether two sketches are of the same tensor, to rounding.

    Args:
        one: A sketch, or anything that JSON can hold.
        other: Likewise.
    """
    if not (_is_sketch(one) and _is_sketch(other)) or one["shape"] != other["shape"]:
        return False
    rounded = (one["precision"] > 0, other["precision"] > 0)
    if rounded[0] != rounded[1] or len(one["norms"]) != len(other["norms"]):
        return False
    precision = max(one["precision"], other["precision"])
    largest = max(other["norms"])
    for key in ("norms", "sums"):
        for a, b, norm in zip(one[key], other[key], other["norms"], strict=True):
            bound = (_ROUNDINGS * precision + 1e-12) * norm + _CANCELLED * precision * largest
            if not abs(a - b) <= bound:
                return False
    return True


def _is_sketch(value: Any) -> bool:
    if not isinstance(value, dict) or not isinstance(value.get("shape"), list):
        return False
    norms, sums = value.get("norms"), value.get("sums")
    if not (isinstance(norms, list) and isinstance(sums, list) and 0 < len(norms) == len(sums)):
        return False
    numbers = [value.get("precision"), *norms, *sums]
    return all(isinstance(n, float) and math.isfinite(n) for n in numbers)
