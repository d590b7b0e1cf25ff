"""Entries of the normalised Gram matrix of B, class by class, from kernels alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from pursuitify.analysis.gram.channel_products import Products, Supports, align
from pursuitify.analysis.gram.dictionary_blocks import Blocks, in_range
from pursuitify.analysis.gram.entry_classes import Class, Group, Kind, Positions, combine
from pursuitify.analysis.gram.symbol import Symbol


@dataclass(frozen=True, eq=False)
class Entries:
    """Normalised entries of one class: every structurally non-zero pair of channels.

    Attributes:
        latents: The two latents.
        values: The entries: a matrix (left, right channels), or a list beside ``channels``.
        channels: The channels of each value; None where ``values`` is the whole matrix.
        raw: The class.
    """

    latents: tuple[int, int]
    values: Tensor
    channels: tuple[Tensor, Tensor] | None
    raw: Class

    def pair(self, index: int) -> tuple[int, int]:
        """Return the channels of the value at a flat index."""
        if self.channels is not None:
            return int(self.channels[0][index]), int(self.channels[1][index])
        return divmod(index, self.values.shape[1])

    def off_diagonal(self) -> Tensor:
        """Return the values without the atoms' own unit entries, flat or as a matrix."""
        if not self.raw.lag_zero:
            return self.values
        if self.channels is None:
            return self.values - torch.diag(self.values.diagonal())
        return self.values * (self.channels[0] != self.channels[1])

    @property
    def number(self) -> int:
        """The number of off-diagonal entries."""
        if self.channels is None:
            return self.values.numel() - (len(self.values) if self.raw.lag_zero else 0)
        if not self.raw.lag_zero:
            return self.values.numel()
        return int((self.channels[0] != self.channels[1]).sum())


class Gram:
    """B~^T B~, the Gram matrix of B with unit columns, never formed."""

    def __init__(
        self, blocks: Blocks, positions: Positions | None = None, floor: float = 0.0
    ) -> None:
        """Take the blocks of B.

        Args:
            blocks: The blocks.
            positions: Classes of entries found for the same structure with other weights.
            floor: Columns shorter than this share of their latent's root mean square length count
                as zero, and those up to twice as long fade in, so that derivatives by their weights
                stay bounded: the direction of a column without length means nothing.

        Raises:
            InputError: If a weight is NaN or infinite.
        """
        self.blocks, self._factors = in_range(blocks)
        self.positions = positions or Positions(blocks)
        self._floor = floor
        self._norms: dict[tuple[int, tuple[Kind, ...]], Tensor] = {}
        self._squares: dict[tuple[int, int], Tensor] = {}

    def norms(self, latent: int, kinds: tuple[Kind, ...]) -> Tensor:
        """Return the norms of a latent's columns at one class of positions, (channels,).

        They are those of the columns as scaled into range; see ``lengths``.
        """
        key = (latent, kinds)
        if key not in self._norms:
            self._norms[key] = self._norm(latent, kinds)
        return self._norms[key]

    def _norm(self, latent: int, kinds: tuple[Kind, ...]) -> Tensor:
        meetings = self.positions.meetings(latent, latent)
        groups = tuple(Group((k, k), 0, k, 1.0, (0, 0), ()) for k in kinds)
        like = self.blocks.uses[latent][0].symbol.weight
        total = like.new_zeros(self.blocks.sites[latent].channels)
        for c in sorted(set.intersection(*(set(dict(k)) for k in kinds))):
            left, right = (self.blocks.uses[latent][i].symbol for i in meetings[c].index)
            taps = list(combine(c, groups, (left.counts, right.counts)))
            if left is right and all(t == u for t, u, _ in taps):
                own = self._square(latent, meetings[c].index[0])
                factor = own.new_zeros(own.shape[-1]).index_add(
                    0,
                    torch.tensor([t for t, _, _ in taps]),
                    own.new_tensor([v for _, _, v in taps]),
                )
                total = total.index_add(0, left.cols.reshape(-1), (own @ factor).reshape(-1))
            else:
                total = total + overlaps(left, right, taps, len(total))
        alive = total > 0  # the derivative of a square root at zero is infinite
        return torch.where(alive, torch.where(alive, total, 1).sqrt(), 0)

    def lengths(self, latent: int, kinds: tuple[Kind, ...]) -> Tensor:
        """Return the columns' norms themselves, float64."""
        norms, factor = self.norms(latent, kinds).double(), self._factors[latent]
        return norms if factor is None else norms / factor.double()

    def _square(self, latent: int, index: int) -> Tensor:
        """Return the squared weights of one block summed over its rows, (groups, columns, taps)."""
        if (latent, index) not in self._squares:
            weight = self.blocks.uses[latent][index].symbol.weight
            self._squares[latent, index] = torch.linalg.vector_norm(weight, dim=1).square()
        return self._squares[latent, index]

    def inverse(self, latent: int, kinds: tuple[Kind, ...]) -> Tensor:
        """Return one over the norms, zero for a column that is zero."""
        norms = self.norms(latent, kinds)
        alive = norms > 0
        inverse = torch.where(alive, 1 / torch.where(alive, norms, 1), 0)
        if not self._floor or not bool(alive.any()):
            return inverse
        over = (norms / self._shortest(latent, kinds).to(norms) - 1).clamp(0, 1)
        return inverse * over.square() * (3 - 2 * over)

    def _shortest(self, latent: int, kinds: tuple[Kind, ...]) -> Tensor:
        """Return the floor per channel, in the scale of ``norms``."""
        lengths, factor = self.lengths(latent, kinds).detach(), self._factors[latent]
        least = self._floor * lengths.square().mean().sqrt()
        return least if factor is None else least * factor.double()

    def products(self, j: int, k: int) -> list[Products]:
        """Return the channel products of every meeting of two latents."""
        indices = [m.index for m in self.positions.meetings(j, k)]
        uses = self.blocks.uses
        return [Products(align(uses[j][a].symbol, uses[k][b].symbol)) for a, b in indices]

    def supports(self, j: int, k: int, products: list[Products]) -> Supports:
        """Return where the entries of each set of meetings stand."""
        sites = self.blocks.sites
        return Supports(products, (sites[j].channels, sites[k].channels))

    def count(self) -> float:
        """Return N(G), the number of structurally non-zero off-diagonal entries."""
        total = 0.0
        for j, k in self.positions.related():
            supports = self.supports(j, k, self.products(j, k))
            for found in self.positions.classes(j, k):
                support = supports(tuple(c for c, _ in found.meetings))
                total += found.count * support.number(found.lag_zero)
        return total

    def entries(self, j: int, k: int) -> Iterator[Entries]:
        """Yield the entries between latents j <= k, class by class."""
        products = self.products(j, k)
        supports = self.supports(j, k, products)
        last: dict[object, Tensor] = {}
        for found in self.positions.classes(j, k):
            support = supports(tuple(c for c, _ in found.meetings))
            if found.meetings not in last:
                last.clear()
                last[found.meetings] = support.total(
                    [products[c].sum(taps) for c, taps in found.meetings]
                )
            raw = last[found.meetings]
            one, two = found.kinds
            left, right = self.inverse(j, one), self.inverse(k, two)
            if support.channels is None:
                yield Entries((j, k), raw * left[:, None] * right, None, found)
            else:
                a, b = support.channels
                yield Entries((j, k), raw * left[a] * right[b], (a, b), found)


def overlaps(
    left: Symbol, right: Symbol, taps: list[tuple[int, int, float]], channels: int
) -> Tensor:
    """Return per column the sum over rows of the products of two blocks of one latent."""
    total = left.weight.new_zeros(channels)
    aligned = align(left, right)
    a, b = aligned.keys
    own = a == b
    for t, u, v in taps:
        product = aligned.left[..., t].mT @ aligned.right[..., u]
        total = total.index_add(0, a[own], product[own] * v)
    return total
