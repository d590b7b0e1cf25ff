"""Babel function, and the smallest eigenvalue of B on a support by Lanczos."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pursuitify.analysis.gram.normalised_gram import Gram
from pursuitify.dictionary.structured import StructuredDictionary
from pursuitify.errors import InputError, OptionError
from pursuitify.utils import option_checks


def babel(gram: Tensor, most: int | None = None) -> Tensor:
    """Return mu_1(1..k) of a dense normalised Gram matrix: the Babel function.

    mu_1(k) is the largest sum of absolute inner products of one atom with k others.

    Args:
        gram: The matrix.
        most: Largest k; all others by default.

    Raises:
        OptionError: If ``most`` is no whole number of at least 1.
    """
    if most is not None:
        option_checks.positive("most", most)
    off = (gram - torch.diag(gram.diagonal())).abs()
    count = min(most or len(gram) - 1, len(gram) - 1)
    return off.topk(count, 1).values.cumsum(1).amax(0)


def babel_function(gram: Gram, most: int = 16) -> list[float]:
    """Return mu_1(1..most) of a whole dictionary in interior mode.

    For every atom of one period of its latent the largest inner products are kept while the Gram
    matrix streams by.

    Raises:
        OptionError: If ``most`` is no whole number of at least 1.
        InputError: If positions do not repeat (a flattened layer, a global mean, exact mode): use
            ``babel`` on the dense Gram matrix of a small network.
    """
    option_checks.positive("most", most)
    spans = _spans(gram)
    best: dict[tuple[int, tuple[int, ...]], Tensor] = {}

    def add(latent: int, place: tuple[int, ...], steps: tuple[int, ...], values: Tensor) -> None:
        ranges = [range(p % s, n, s) for p, s, n in zip(place, steps, spans[latent], strict=True)]
        for key in itertools.product([latent], itertools.product(*ranges)):
            top = torch.cat([best[key], values], 1) if key in best else values
            best[key] = top.topk(min(most, top.shape[1]), 1).values

    for j, k in gram.positions.related():
        for entries in gram.entries(j, k):
            values = entries.off_diagonal().abs()
            if entries.channels is not None:
                shape = [gram.blocks.sites[i].channels for i in (j, k)]
                values = values.new_zeros(shape).index_put(entries.channels, values)
            groups = entries.raw.groups
            one = tuple(g.period[0] for g in groups if g.period)
            two = tuple(g.period[1] for g in groups if g.period)
            for combination in itertools.product(*(g.members for g in groups)):
                add(j, tuple(p for p, _ in combination), one, values)
                if not entries.raw.lag_zero:
                    add(k, tuple(q for _, q in combination), two, values.T)
    if not best:
        return [0.0] * most
    rows = [torch.nn.functional.pad(v, (0, most - v.shape[1])) for v in best.values()]
    top = torch.cat(rows).sort(1, descending=True).values.cumsum(1).amax(0)
    return [float(v) for v in top]


def _spans(gram: Gram) -> list[tuple[int, ...]]:
    """Return per latent and dim the positions after which all its neighbourhoods repeat."""
    dims = range(gram.positions.dims)
    spans = [[1] * len(dims) for _ in gram.blocks.sites]
    for j, k in gram.positions.related():
        for d in dims:
            period = gram.positions.period(j, k, d)
            if period is None:
                raise InputError("the Babel function of a large dictionary needs interior mode")
            spans[j][d] = math.lcm(spans[j][d], period[0])
            spans[k][d] = math.lcm(spans[k][d], period[1])
    return [tuple(s) for s in spans]


@dataclass(frozen=True)
class Extremes:
    """Extreme eigenvalues of (B^T B) restricted to a support, by Lanczos.

    Attributes:
        smallest: Smallest Ritz value: an upper estimate of the smallest eigenvalue.
        largest: Largest Ritz value: a lower estimate of the largest.
        residual: Norm of the smallest Ritz pair's residual; an eigenvalue lies within it.
        size: Number of columns in the support.
        steps: Lanczos steps.
        complete: Whether they spanned all there is: the values are exact up to rounding.
    """

    smallest: float
    largest: float
    residual: float
    size: int
    steps: int
    complete: bool = False

    def bounds(self, failure: float = 1e-6) -> tuple[float, float]:
        """Return a lower bound of the smallest and an upper bound of the largest eigenvalue.

        They hold with probability 1 - ``failure`` over the starting vector, whatever the spectrum
        (Kuczynski and Wozniakowski 1992: after k steps the largest Ritz value of a positive
        semidefinite matrix of size n is off by more than a share e with probability at most
        1.648 sqrt(n) exp(-(2 k - 1) sqrt(e)); the smallest by the same of a shifted matrix).

        Args:
            failure: Probability with which they may fail.

        Raises:
            OptionError: If ``failure`` is not between 0 and 1.
        """
        if not 0 < failure < 1:
            raise OptionError(f"failure must lie between 0 and 1, not {failure}")
        if self.complete:
            return max(self.smallest - self.residual, 0.0), self.largest + self.residual
        chance = math.log(2 * 1.648 * math.sqrt(self.size) / failure)
        share = (chance / (2 * self.steps - 1)) ** 2
        if share >= 1:
            return 0.0, math.inf
        high = self.largest / (1 - share)
        return max(high - (high - self.smallest) / (1 - share), 0.0), high

    @property
    def condition(self) -> float:
        """Estimate of the condition number of B on the support."""
        return math.sqrt(self.largest / self.smallest) if self.smallest > 0 else math.inf


def extreme_eigenvalues(
    dictionary: StructuredDictionary,
    support: Mapping[str, Tensor],
    steps: int = 60,
    seed: int = 0,
) -> Extremes:
    """Estimate the extreme eigenvalues of B_S^T B_S without forming B.

    Args:
        dictionary: Bound to a batch of one.
        support: Mask per latent: which columns (as they are, not normalised) are in S.
        steps: Most Lanczos steps, fully reorthogonalised.
        seed: Seed of the starting vector.

    Raises:
        OptionError: If ``steps`` is no whole number of at least 1.
        InputError: If the support is empty, or the weights are not finite.
    """
    option_checks.positive("steps", steps)
    names, shapes = dictionary.names, dictionary.shapes
    masks = torch.cat([support[n].reshape(-1).bool() for n in names])
    size = int(masks.sum())
    if not size:
        raise InputError("the support is empty")
    lengths = [s.numel() for s in shapes]
    like = dictionary.inputs[0]

    def apply(v: Tensor) -> Tensor:
        full = like.new_zeros(len(masks))
        full[masks] = v
        parts = torch.split(full, lengths)
        latents = {n: p.reshape(s) for n, p, s in zip(names, parts, shapes, strict=True)}
        back = dictionary.adjoint(dictionary.apply(latents))
        return torch.cat([back[n].reshape(-1) for n in names])[masks]

    with torch.no_grad():
        generator = torch.Generator().manual_seed(seed)
        start = torch.randn(size, generator=generator, dtype=torch.float64).to(like)
        basis = [start / start.norm()]
        alphas: list[float] = []
        betas: list[float] = []
        for _ in range(min(steps, size)):
            v = apply(basis[-1])
            alphas.append(float(v @ basis[-1]))
            for _ in range(2):
                stacked = torch.stack(basis)
                v = v - stacked.T @ (stacked @ v)
            betas.append(float(v.norm()))
            if not math.isfinite(alphas[-1] + betas[-1]):
                raise InputError(
                    "the dictionary holds NaN or infinite values, or its squares overflow: it has "
                    "no spectrum. Look at the weights"
                )
            if betas[-1] < 1e-10 * max(alphas):
                break
            basis.append(v / betas[-1])
    count = len(alphas)
    inner = torch.diag(torch.tensor(betas[: count - 1], dtype=torch.float64), 1)
    matrix = torch.diag(torch.tensor(alphas, dtype=torch.float64)) + inner + inner.T
    values, vectors = torch.linalg.eigh(matrix)
    residual = betas[-1] * abs(float(vectors[-1, 0]))
    complete = count == size or betas[-1] < 1e-10 * max(alphas)
    return Extremes(float(values[0]), float(values[-1]), residual, size, count, complete)
