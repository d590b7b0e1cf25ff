"""The start of the search for the least frame potential."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

#: Rounds of making a frame tight and its atoms of unit norm, by turns; fewer for large ones.
_ROUNDS = 40
_LARGE = 100_000
#: Elements above which a matrix of orthonormal rows is made of blocks.
_HUGE = 4_000_000


def start(
    shape: Sequence[int], stride: Sequence[int], seed: int, generator: torch.Generator
) -> Tensor:
    """Return a start for one weight: atoms of unit norm, close to a tight frame.

    By turns (``seed`` modulo 3): on as many taps as the stride has, in the kernel's middle, where a
    convolutional frame can attain its Welch bound; on all taps; on the former, with a random part
    of the atoms scaled down, as the least potential of a wide latent read by a narrow one has it.

    Args:
        shape: Shape of the weight, (out, in, *taps).
        stride: Stride of the convolution; empty for other operators, which use all taps.
        seed: Number of the start.
        generator: What draws it.
    """
    weight = torch.zeros(*shape)
    taps: tuple[slice, ...] = (slice(None),) * len(shape[2:])
    if seed % 3 != 1 and len(stride) == len(taps):
        firsts = [max(k - s, 0) // 2 for k, s in zip(shape[2:], stride, strict=True)]
        taps = tuple(slice(a, a + s) for a, s in zip(firsts, stride, strict=True))
    kept = (slice(None), slice(None), *taps)
    weight[kept] = _tight(weight[kept].shape, generator)
    if seed % 3 == 2:
        scale = torch.where(torch.rand(shape[0], generator=generator) < 0.3, 0.05, 1.0)
        weight = weight * scale.reshape(-1, *(1,) * (len(shape) - 1))
    return weight


def _tight(shape: torch.Size, generator: torch.Generator) -> Tensor:
    count, size = shape[0], shape[1:].numel()
    flat = torch.randn(count, size, generator=generator)
    if count <= size:
        return _orthonormal(flat).reshape(shape)
    rounds = _ROUNDS if math.prod(flat.shape) <= _LARGE else 1
    for _ in range(rounds if size > 1 else 0):
        # The polar factor, by the Gram matrix: an SVD may not converge where the frame is tight,
        # since all singular values are equal then.
        values, vectors = torch.linalg.eigh((flat.mT @ flat).double())
        least = values[-1] * torch.finfo(flat.dtype).eps
        root = (vectors * values.clamp_min(least).rsqrt()) @ vectors.mT
        flat = flat @ root.to(flat.dtype)
        flat = flat / flat.norm(dim=1, keepdim=True).clamp_min(1e-12)
    flat = flat / flat.norm(dim=1, keepdim=True).clamp_min(1e-12)
    shaped: Tensor = flat.reshape(shape)
    return shaped


def _orthonormal(flat: Tensor) -> Tensor:
    """Return orthonormal rows, no more of them than columns.

    Of a huge matrix, such as VGG's first dense layer, blocks on the diagonal are orthonormal and
    the rest is zero: to make all of it orthonormal would take longer than any search.
    """
    rows, columns = flat.shape
    parts = min(rows, -(-flat.numel() // _HUGE))
    made = torch.zeros_like(flat) if parts > 1 else flat
    for part in range(parts):
        high = slice(part * rows // parts, (part + 1) * rows // parts)
        wide = slice(part * columns // parts, (part + 1) * columns // parts)
        made[high, wide] = torch.linalg.qr(flat[high, wide].mT)[0].mT
    return made
