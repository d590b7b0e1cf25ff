"""Fingerprints of kernels' contents: results are kept as long as these stay."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor


@torch.no_grad()
def kernel_contents(weights: Sequence[Tensor]) -> bytes:
    """Return a signature of some kernels: two sums along every row of each, and their shapes.

    Contents, not versions, so that writes no version counts (through ``.data``) are seen too and a
    kernel that came back is known again. A change that leaves both sums of every row as they are to
    rounding is not seen: no training step does that, a change made for it could.

    Args:
        weights: Kernels (rows, ...), each read once in its own memory order.
    """
    shapes = repr([(tuple(w.shape), w.stride(), w.dtype, str(w.device)) for w in weights])
    sums = [
        (rows @ _probes(rows.shape[1], rows.dtype, rows.device)).flatten()
        for rows in map(_rows, weights)
    ]
    by_kind: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for value in sums:
        by_kind.setdefault((value.dtype, value.device), []).append(value)
    moved = (torch.cat(values).cpu() for values in by_kind.values())
    return shapes.encode() + b"".join(value.numpy().tobytes() for value in moved)


def _rows(weight: Tensor) -> Tensor:
    """Return the kernel as a matrix, without a copy where its memory order allows."""
    if weight.dtype not in (torch.float32, torch.float64):
        weight = weight.float()
    order = sorted(range(1, weight.dim()), key=weight.stride, reverse=True)
    flat = weight.detach().permute(0, *order)
    return flat.reshape(flat.shape[0], flat[0].numel())


@functools.lru_cache(maxsize=64)
def _probes(length: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        ramp = torch.arange(1, length + 1, device=device, dtype=dtype)
        return torch.stack([torch.cos(ramp * 1.6180339887), torch.sin(ramp * 2.2360679775)], 1)
