"""Fingerprints of kernels' contents: results are kept as long as these stay."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pursuitify.utils.autocast import exact_products
from pursuitify.utils.torch_internals import version_of


@torch.no_grad()
def kernel_contents(weights: Sequence[Tensor]) -> bytes:
    """Return a signature of some kernels: two sums along every row of each, and their shapes.

    Contents, not versions, so that writes no version counts (through ``.data``) are seen too and a
    kernel that came back is known again. A change that leaves both sums of every row as they are to
    rounding is not seen: no training step does that, a change made for it could.

    Args:
        weights: Kernels (rows, ...), each read once in its own memory order.
    """
    moved = (values.cpu() for values in kernel_sums(weights))
    return kernel_forms(weights) + b"".join(value.numpy().tobytes() for value in moved)


def kernel_forms(weights: Sequence[Tensor]) -> bytes:
    """Return what is known of kernels without reading them: shapes, orders, types, devices."""
    return repr([(tuple(w.shape), w.stride(), w.dtype, str(w.device)) for w in weights]).encode()


@torch.no_grad()
def kernel_sums(weights: Sequence[Tensor]) -> list[Tensor]:
    """Return the sums of ``kernel_contents`` where the kernels are: one vector per device, type."""
    by_kind: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    with exact_products():  # rounded factors would hide small changes
        for rows in map(_rows, weights):
            value = (rows @ _probes(rows.shape[1], rows.dtype, rows.device)).flatten()
            by_kind.setdefault((value.dtype, value.device), []).append(value)
    return [torch.cat(values) for values in by_kind.values()]


@dataclass(frozen=True, eq=False)
class Versions:
    """The storages of tensors and how often torch had written into each, at one moment.

    torch counts writes in place, also those under ``no_grad`` and by optimizers, and a storage that
    ``.data = ...`` replaces is another one. It does not count what fused optimizers write, nor
    writes through ``.data`` or NumPy: contents have to be compared for them.
    """

    counts: tuple[tuple[weakref.ref[Any], int], ...]

    @classmethod
    def of(cls, tensors: Sequence[Tensor]) -> Versions:
        """Return those of some tensors; no storage is kept alive."""
        return cls(tuple((weakref.ref(t.untyped_storage()), version_of(t)) for t in tensors))

    def __reduce__(self) -> tuple[type[Versions], tuple[tuple[()]]]:
        """Make copies and pickles empty: the storages are this process's own."""
        return Versions, ((),)

    def still(self, tensors: Sequence[Tensor]) -> bool:
        """Return whether these are the same storages, and no write was counted since."""
        return len(tensors) == len(self.counts) > 0 and all(
            storage() is t.untyped_storage() and count == version_of(t)
            for t, (storage, count) in zip(tensors, self.counts, strict=True)
        )


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
