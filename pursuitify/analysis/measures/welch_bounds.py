"""Lower bounds of coherence and frame potential from shapes alone (mathematics.md, section 6)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from pursuitify.analysis.gram.entry_classes import CountedFrame
from pursuitify.errors import OptionError


def welch(rows: float, atoms: float) -> float:
    """Return the Welch bound on the mutual coherence of one frame.

    Args:
        rows: Dimension d of the space.
        atoms: Number k of unit vectors in it.

    Examples:
        >>> round(welch(rows=4, atoms=8), 4)
        0.378
    """
    if rows <= 0 or atoms <= 0:
        raise OptionError(f"a frame has rows and atoms, not {rows} and {atoms}")
    if atoms <= 1:
        return 0.0
    return math.sqrt(max(atoms / rows - 1, 0.0) / (atoms - 1))


def convolutional_welch(
    channels: int, filters: int, size: int | Sequence[int], stride: int | Sequence[int] = 1
) -> float:
    """Return the Welch bound of one convolutional frame on an image without borders.

    Args:
        channels: Input channels c.
        filters: Number k of filters.
        size: Taps per spatial dim; an integer is one dim repeated twice.
        stride: Stride per spatial dim, likewise.
    """
    sizes = (size, size) if isinstance(size, int) else tuple(size)
    strides = (stride,) * len(sizes) if isinstance(stride, int) else tuple(stride)
    if len(sizes) != len(strides) or min(*sizes, *strides, channels, filters) < 1:
        raise OptionError("size and stride need as many positive integers as there are dims")
    neighbours = math.prod(2 * math.ceil(f / s) - 1 for f, s in zip(sizes, strides, strict=True))
    excess = max(filters / (math.prod(strides) * channels) - 1, 0.0)
    others = filters * neighbours - 1
    return math.sqrt(excess / others) if others else 0.0


def chain_frame_potential(inputs: int, widths: Sequence[int]) -> float:
    """Return the closed-form deep bound of a chain of dense layers in decoder layout.

    The least deep frame potential of networks whose weights are large beside the identities, all
    atoms in use. It is the least of all networks if no latent but the last is wider than what it
    reads; where a wide latent is read by a narrow one there are lower ones, see ``chain_excess``.

    Args:
        inputs: Width d of the input.
        widths: Widths of the latents.
    """
    if not widths or min(inputs, *widths) < 1:
        raise OptionError("a chain has an input and latents, all of width 1 or more")
    excess, number, before = 0.0, 0.0, inputs
    for j, k in enumerate(widths):
        excess += k * max(k / before - 1, 0.0)
        number += k * (k - 1) + (2 * k * widths[j + 1] if j + 1 < len(widths) else 0)
        before = k
    return math.sqrt(excess / number) if number else 0.0


def chain_excess(
    channels: Sequence[int], columns: Sequence[float], heights: Sequence[float]
) -> float:
    """Return the least sum of squared entries of a chain over which atoms are in use.

    Write column a of latent j as sqrt(t_a) v_a in row j, its weights, and sqrt(1 - t_a) in row
    j + 1, its identity part (v_a of norm 1; t_a = 1 where no row reads it). The sum is

        sum_j sum_{a != b} t_a t_b <v_a, v_b>^2 + 2 sum_j sum_a t_a sum_m v_am^2 (1 - t_m),

    m the atoms of latent j - 1. For fixed v it is affine in each t alone, so the least lies where
    all t are 0 or 1: atoms are in use or out of use. n vectors in k coordinates of which p belong
    to atoms in use then have the frame operator of least ||F||^2 + 2 tr F (out of use) - n:
    nothing if n <= p, else ``_layer``. Schur and Horn's theorem says that such vectors exist.

    For dense chains this is the infimum (approached as weights in use grow). For convolutions the
    atoms of a channel are in use together; the value is approached by kernels of stride^2 taps.

    Args:
        channels: Channels of each latent.
        columns: Number of columns of each latent.
        heights: Number of elements of each row.
    """
    costs, before = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    for j, (c, n, k) in enumerate(zip(channels, columns, heights, strict=True)):
        share = torch.ones(1, dtype=torch.float64)
        used = n * share
        if j + 1 < len(channels):
            share = torch.arange(c + 1, dtype=torch.float64) / c
            used = n - heights[j + 1] * (1 - share)
        best = [
            (costs + _layer(part[:, None], k * before, k)).amin(1)
            for part in torch.split(used, 256)
        ]
        costs, before = torch.cat(best), share
    return float(costs.min())


def _layer(n: Tensor, p: Tensor, k: float) -> Tensor:
    """Return the least excess of n unit vectors in k coordinates, p of them free of cost.

    The other coordinates cost 2 per unit of energy. Eigenvalue x on the free and x - 1 on the
    others, as many as the rank min(n, k) allows.
    """
    rank = n.clamp_max(k)
    spread = (n + rank - p) / rank.clamp_min(1e-300)
    return torch.where(n > p, rank * spread.square() - (rank - p) - n, 0.0).clamp_min(0)


def excess_of_frames(
    frames: Sequence[CountedFrame], columns: Sequence[float], rows: Sequence[set[int]]
) -> float:
    """Return the sum of ``frame_excess`` over frames whose atoms are counted alike.

    Args:
        frames: The runs of latents that form frames.
        columns: Number of columns of each latent that are not zero.
        rows: Per latent the rows that hold it.
    """
    return sum(
        frame_excess([columns[j] for j in f.latents], [rows[j] for j in f.latents], f.heights)
        for f in frames
    )


def frame_excess(
    columns: Sequence[float], rows: Sequence[set[int]], heights: Mapping[int, float]
) -> float:
    """Return a lower bound of the sum of squared off-diagonal entries of any normalised Gram.

    K unit columns in R^M have at least K (K / M - 1). Latents are split into runs of neighbours,
    each a frame in the rows it touches; the best split counts.

    Args:
        columns: Number of columns of each latent.
        rows: Per latent the rows that hold it.
        heights: Number of elements of each row that holds a latent.
    """
    count = len(columns)
    best = [0.0] * (count + 1)
    for end in range(1, count + 1):
        best[end] = best[end - 1]
        total, touched, height = 0.0, set[int](), 0.0
        for start in range(end - 1, -1, -1):
            total += columns[start]
            new = rows[start] - touched
            touched |= new
            height += sum(heights[i] for i in new)
            best[end] = max(best[end], best[start] + total * max(total / height - 1, 0.0))
    return best[count]
