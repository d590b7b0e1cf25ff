"""The solvers: layered pursuit (Algorithm 1) and global pursuit (Algorithm 2).

Both are plain functions on a bound dictionary. Global pursuit keeps every residual up to date by
the change of each latent, so that a sweep applies each weighted operator once forward and once
adjoint; with extrapolation the last change's products are kept and reused, because they are
linear. What only a next sweep would read is not computed in the last one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from pursuitify.bind import BoundRow, Parts
from pursuitify.dictionary import StructuredDictionary

Latents = list[Tensor]


def _proximal_step(row: BoundRow, v: Tensor, slope: Tensor, step: Tensor) -> Tensor:
    total = slope if row.threshold is None else slope + row.threshold
    return row.activation.prox(v - step * total, step)


def layered(
    dictionary: StructuredDictionary, start: Sequence[Tensor], steps: Sequence[Tensor], count: int
) -> Iterator[Latents]:
    """Yield the latents after Algorithm 1: each row solved by ``count`` steps, in order.

    u_j is fixed from finished latents. On an encoder row a step of size 1 is the layer itself.

    Args:
        dictionary: The bound dictionary.
        start: The feed-forward latents, where each row starts (9).
        steps: gamma_j per latent.
        count: T, the number of proximal-gradient steps per row.
    """
    w = list(start)
    for j, row in enumerate(dictionary.rows):
        signal = tuple(_read(dictionary, row, s, w, like) for s, like in enumerate(row.signal))
        for _ in range(count):
            parts = tuple(b - u for b, u in zip(row.decode(w[j]), signal, strict=True))
            w[j] = _proximal_step(row, w[j], row.encode(parts), steps[j])
    yield w


def _read(
    dictionary: StructuredDictionary, row: BoundRow, slot: int, w: Latents, like: Tensor
) -> Tensor:
    """Return one slot of u_j from the current latents."""
    total: Tensor | None = None
    for path in row.slots[slot]:
        leaf = dictionary.inputs[-1 - path.leaf] if path.leaf < 0 else w[path.leaf]
        term = path.apply(leaf)
        total = term if total is None else total + term
    return torch.zeros_like(like) if total is None else total


def global_pursuit(
    dictionary: StructuredDictionary,
    start: Sequence[Tensor],
    steps: Sequence[Tensor],
    extrapolation: Sequence[Tensor] | None,
    count: int,
) -> Iterator[Latents]:
    """Yield the latents after each sweep of Algorithm 2, with the gradient of (18).

    Args:
        dictionary: The bound dictionary.
        start: The feed-forward latents.
        steps: gamma_j per latent.
        extrapolation: alpha_j per latent, or None for none.
        count: T, the number of sweeps.
    """
    rows = dictionary.rows
    w = list(start)
    r = [
        [b - u for b, u in zip(row.decode(w[j]), row.signal, strict=True)]
        for j, row in enumerate(rows)
    ]
    change: list[Tensor | None] = [None] * len(rows)
    own: list[Parts | None] = [None] * len(rows)
    read: list[list[Tensor]] = [[] for _ in rows]
    for sweep in range(count):
        last = sweep == count - 1
        for j, row in enumerate(rows):
            alpha = None if extrapolation is None or sweep == 0 else extrapolation[j]
            before = change[j]
            v, parts = w[j], tuple(r[j])
            if alpha is not None and before is not None:
                v = v + alpha * before
                parts = tuple(p + alpha * q for p, q in zip(parts, own[j] or (), strict=True))
            slope = row.encode(parts)
            for k, (i, s, paths) in enumerate(dictionary.readers[j]):
                part = r[i][s]
                if alpha is not None and before is not None:
                    part = part - alpha * read[j][k]
                for p in paths:
                    slope = slope - rows[i].slots[s][p].adjoint(part)
            new = _proximal_step(row, v, slope, steps[j])
            delta = new - w[j]
            w[j] = new
            if not last:
                own[j] = row.decode(delta)
                r[j] = [p + q for p, q in zip(r[j], own[j] or (), strict=True)]
            products = []
            for i, s, paths in dictionary.readers[j]:
                product = _sum([rows[i].slots[s][p].apply(delta) for p in paths])
                r[i][s] = r[i][s] - product
                products.append(product)
            change[j], read[j] = delta, products
        yield list(w)


def _sum(terms: Sequence[Tensor]) -> Tensor:
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total
