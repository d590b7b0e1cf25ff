"""Measures of the normalised Gram matrix, summed over the classes of its entries."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from pursuitify.analysis.gram.entry_classes import kinds_of
from pursuitify.analysis.gram.normalised_gram import Entries, Gram
from pursuitify.errors import InputError

#: How N(G) is counted; printed with every number.
N_RULE = (
    "N(G): structurally non-zero off-diagonal entries of B~^T B~, both triangles, each class "
    "counted as often as it occurs in the image"
)


@dataclass(frozen=True)
class Pair:
    """Two atoms and their normalised inner product.

    Attributes:
        latents: Names of the latents.
        channels: Channels of the atoms.
        positions: An example of their positions (on the infinite lattice: up to a shift).
        value: The entry of the Gram matrix.
    """

    latents: tuple[str, str]
    channels: tuple[int, int]
    positions: tuple[tuple[int, ...], tuple[int, ...]]
    value: float

    @property
    def lag(self) -> tuple[int, ...]:
        """Second minus first position, each in its own latent's coordinates."""
        return tuple(b - a for a, b in zip(*self.positions, strict=True))

    def __str__(self) -> str:
        """Return the pair in one line."""
        ends = [
            f"{n}[channel {c}, position {p}]"
            for n, c, p in zip(self.latents, self.channels, self.positions, strict=True)
        ]
        return f"{ends[0]} and {ends[1]}: {self.value:+.4f}"


@dataclass(frozen=True)
class Block:
    """Measures of the block of G between two latents, off-diagonal entries only.

    Attributes:
        latents: Names of the latents; a block and its transpose are one.
        maximum: Largest absolute entry.
        rms: Root mean square over structurally non-zero entries.
        mean_abs: Mean absolute value over them.
        count: Number of structurally non-zero entries, both triangles.
        squares: Sum of their squares.
        total_abs: Sum of their absolute values.
        pair: The pair of atoms that attains the maximum.
    """

    latents: tuple[str, str]
    maximum: float
    count: float
    squares: float
    total_abs: float
    pair: Pair | None

    @property
    def rms(self) -> float:
        """Root mean square over structurally non-zero entries."""
        return math.sqrt(self.squares / self.count) if self.count else 0.0

    @property
    def mean_abs(self) -> float:
        """Mean absolute value over structurally non-zero entries."""
        return self.total_abs / self.count if self.count else 0.0


@dataclass(frozen=True)
class ColumnNorms:
    """Statistics of the global column norms of one latent."""

    latent: str
    minimum: float
    mean: float
    maximum: float
    zero: float


def block(gram: Gram, j: int, k: int) -> Block:
    """Measure the block between latents j <= k.

    Raises:
        InputError: If an entry is not finite: a maximum would pass over it.
    """
    names = gram.blocks.names
    best, pair = -1.0, None
    count = squares = total = 0.0
    for entries in gram.entries(j, k):
        if entries.number == 0:
            continue
        values = entries.off_diagonal()
        times = entries.raw.count
        count += times * entries.number
        squares += times * float(torch.linalg.vector_norm(values, dtype=torch.float64)) ** 2
        total += times * float(torch.linalg.vector_norm(values, 1, dtype=torch.float64))
        top = float(torch.linalg.vector_norm(values, math.inf))
        if not math.isfinite(top + squares):
            raise InputError(
                f"entries of the Gram matrix between {names[j]!r} and {names[k]!r} are not finite"
            )
        if top > best:
            best, pair = top, _pair(entries, names, values)
    return Block((names[j], names[k]), max(best, 0.0), count, squares, total, pair)


def _pair(entries: Entries, names: tuple[str, ...], values: torch.Tensor) -> Pair:
    flat = values.reshape(-1)
    index = int(flat.abs().argmax())
    j, k = entries.latents
    places = tuple(g.example for g in entries.raw.groups)
    return Pair(
        (names[j], names[k]),
        entries.pair(index),
        (tuple(p for p, _ in places), tuple(q for _, q in places)),
        float(flat[index]),
    )


def blocks(gram: Gram, progress: Callable[[int, int], None] | None = None) -> tuple[Block, ...]:
    """Measure every block that is not structurally zero.

    Args:
        gram: The Gram matrix.
        progress: Called with (done, all) after each block.
    """
    pairs = gram.positions.related()
    found = []
    for done, (j, k) in enumerate(pairs, 1):
        found.append(block(gram, j, k))
        if progress is not None:
            progress(done, len(pairs))
    return tuple(b for b in found if b.count)


def norms(gram: Gram) -> tuple[ColumnNorms, ...]:
    """Return statistics of the column norms of every latent."""
    found = []
    for j, name in enumerate(gram.blocks.names):
        low, high, total, number, zero = math.inf, 0.0, 0.0, 0.0, 0.0
        for kinds, count in kinds_of(gram.positions, j):
            values = gram.lengths(j, kinds)
            low, high = min(low, float(values.min())), max(high, float(values.max()))
            total += count * float(values.sum())
            number += count * len(values)
            zero += count * float((values == 0).sum())
        found.append(ColumnNorms(name, low, total / number, high, zero))
    return tuple(found)
