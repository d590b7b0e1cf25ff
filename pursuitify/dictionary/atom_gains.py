"""Least-squares atom gains of decoder rows (mathematics.md, section 1).

A decoder row with gains c > 0 reads u_j ~ W^T (c w_j). At the feed-forward latents of a few batches
the best gains minimise E ||W^T (c w) - u||^2. That is a quadratic function of c, one number per
channel. Its matrix is never formed: conjugate gradients need

    H c = sum over samples and positions of  w * W(W^T (c w)),

one adjoint and one application of the row's own operator, BatchNorm, groups and strides included.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pursuitify.operators import Chain, Dense

#: Weight of the pull towards the one gain that suits all channels best, relative to H's entries.
RIDGE = 1e-3
#: Least gain, relative to the same.
LEAST = 1e-2
#: Conjugate gradients end at this residual, relative to the start, or after so many steps.
_TOLERANCE, _STEPS = 1e-8, 200


@dataclass(frozen=True)
class RowFit:
    """A fit says how well a decoder row explains what it reads, at the feed-forward latents.

    Attributes:
        latent: Name of the row's latent.
        before: ||B_j w_j - u_j|| / ||u_j|| without gains, over all samples.
        after: The same with the gains; that of ``before`` where the row was left without.
        smallest: The smallest gain.
        largest: The largest gain.
    """

    latent: str
    before: float
    after: float
    smallest: float
    largest: float

    @property
    def explained(self) -> float:
        """The share of ||u_j||^2 that the row explains with its gains; below 0 it adds to it."""
        return 1.0 - self.after**2


@dataclass(frozen=True, eq=False)
class Sample:
    """A decoder row bound to one batch.

    Attributes:
        diagonal: Its operator W, without gains.
        w: Its feed-forward latent.
        u: What it reads, u_j, in one piece.
    """

    diagonal: Chain
    w: Tensor
    u: Tensor


def fit(name: str, samples: Sequence[Sample]) -> tuple[Tensor | None, RowFit]:
    """Return the best positive gains of a row, and what they are worth.

    Args:
        name: The latent's name.
        samples: The row, bound to every batch.

    Returns:
        The gains, shaped to broadcast against the latent without its batch, in float64; None where
        the row explains nothing of u at any gain (dead units, or u of zeros), which is then left
        as it is.
    """
    axis = _channel_axis(samples[0])

    def project(values: Iterable[Tensor]) -> Tensor:
        """Return, per channel, the sum of w times W of a residual."""
        totals = [
            _per_channel(s.w * s.diagonal.apply(value), axis)
            for s, value in zip(samples, values, strict=True)
        ]
        return torch.stack(totals).sum(0)

    def decoded(c: Tensor) -> list[Tensor]:
        return [s.diagonal.adjoint(_along(c, s.w, axis) * s.w) for s in samples]

    def normal(c: Tensor) -> Tensor:
        return project(decoded(c))

    ones = torch.ones(samples[0].w.shape[axis], dtype=torch.float64, device=samples[0].w.device)
    right, flat = project([s.u for s in samples]), normal(ones)
    size = sum(_square(s.u) for s in samples)
    before = _relative(decoded(ones), samples, size)
    curvature = float(flat.sum())
    common = float(right.sum()) / curvature if curvature > 0 else 0.0
    if not (common > 0 and size > 0):
        return None, RowFit(name, before, before, 1.0, 1.0)
    ridge = RIDGE * curvature / len(ones)
    gains = _bounded(
        lambda c: normal(c) + ridge * c, right + ridge * common, common * ones, LEAST * common
    )
    after = _relative(decoded(gains), samples, size)
    shape = [1] * (samples[0].w.dim() - 1)
    shape[axis - 1 if axis > 0 else axis] = len(gains)
    report = RowFit(name, before, after, float(gains.min()), float(gains.max()))
    return gains.reshape(shape), report


def _bounded(
    matrix: Callable[[Tensor], Tensor], right: Tensor, start: Tensor, least: float
) -> Tensor:
    """Return the minimiser of c^T H c / 2 - c^T g with entries of at least ``least``, nearly.

    Entries that come out smaller are fixed there and the others found again, until none is.
    """
    free = torch.ones_like(start, dtype=torch.bool)
    c = start
    while True:
        c = _conjugate_gradients(matrix, right, torch.where(free, c, least), free)
        small = free & (c < least)
        if not bool(small.any()):
            return c
        free = free & ~small


def _conjugate_gradients(
    matrix: Callable[[Tensor], Tensor], right: Tensor, start: Tensor, free: Tensor
) -> Tensor:
    """Return the solution of H c = g in the free entries, the others as they are."""
    c = start.clone()
    rest = torch.where(free, right - matrix(c), 0.0)
    direction, size = rest, float(rest @ rest)
    first = size
    for _ in range(min(_STEPS, 2 * int(free.sum()))):
        if size <= _TOLERANCE**2 * first:
            break
        image = torch.where(free, matrix(direction), 0.0)
        curvature = float(direction @ image)
        if not curvature > 0:
            break
        c = c + size / curvature * direction
        rest = rest - size / curvature * image
        size, last = float(rest @ rest), size
        direction = rest + size / last * direction
    return c


def _relative(decoded: Sequence[Tensor], samples: Sequence[Sample], size: float) -> float:
    left = sum(_square(d - s.u) for d, s in zip(decoded, samples, strict=True))
    return (left / size) ** 0.5 if size > 0 else 0.0


def _square(value: Tensor) -> float:
    return float(value.double().square().sum())


def _channel_axis(sample: Sample) -> int:
    """Return the dimension of the latent that holds one entry per atom of the weighted operator."""
    return -1 if any(isinstance(item, Dense) for item in sample.diagonal.maps) else 1


def _per_channel(value: Tensor, axis: int) -> Tensor:
    kept = axis % value.dim()
    return value.double().sum([d for d in range(value.dim()) if d != kept])


def _along(c: Tensor, like: Tensor, axis: int) -> Tensor:
    shape = [1] * like.dim()
    shape[axis] = len(c)
    return c.to(like.dtype).reshape(shape)
