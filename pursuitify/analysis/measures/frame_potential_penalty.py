"""A differentiable frame-potential penalty: an unbiased estimate, cheap enough for every step.

The exact sum of squared Gram entries costs channels cubed. With a random sign vector v, the
expectation of ||G_c v||^2 is ||G_c||_F^2 for every class c of entries, and G_c v costs channels
squared. One v per latent serves every class; a random part of the blocks may stand for all.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pursuitify.analysis.gram.channel_products import Products
from pursuitify.analysis.gram.dictionary_blocks import Blocks, blocks_of
from pursuitify.analysis.gram.entry_classes import Class, Kind, Positions
from pursuitify.analysis.gram.normalised_gram import Gram
from pursuitify.analysis.measures.bind_network import bind, evaluating
from pursuitify.errors import OptionError
from pursuitify.network.pursuit_network import PursuitNetwork

#: Columns below this share of their latent's usual length are out of the penalty: otherwise one
#: that is nearly dead has derivatives as large as it is short.
_FLOOR = 1e-3


@dataclass(frozen=True)
class _BlockClasses:
    """The classes of one block, gathered by what is common to them.

    Attributes:
        pair: The latents.
        weight: How often each class occurs, over N(G).
        zero: Which classes hold the atoms' own entries.
        kinds: Per class its classes of positions.
        taps: Per meeting (index, classes, left taps, right taps, coefficients), entry by entry.
    """

    pair: tuple[int, int]
    weight: Tensor
    zero: tuple[int, ...]
    kinds: tuple[tuple[tuple[Kind, ...], tuple[Kind, ...]], ...]
    taps: tuple[tuple[int, Tensor, Tensor, Tensor, Tensor], ...]


class FramePotentialPenalty:
    """Estimates the squared deep frame potential of a network, step after step.

    Interior boundary, evaluation-mode BatchNorms, max-pool windows at their centres. The structure
    is found once; a call reads the weights as they are then. Its expectation is the exact value,
    and its derivative's the exact derivative, but for channels that are nearly dead: a column of a
    thousandth of its latent's root mean square length or less counts as zero.

    Attributes:
        count: N(G).
    """

    def __init__(
        self,
        net: PursuitNetwork,
        input_shape: Sequence[int] = (3, 32, 32),
        *,
        blocks: int | None = 4,
        seed: int = 0,
    ) -> None:
        """Find the structure of the network's Gram matrix.

        Args:
            net: The network.
            input_shape: Shape of one input; in interior mode only pooling to a fixed size and
                flattened layers make a difference.
            blocks: How many blocks of the Gram matrix to draw per call, by their share of the
                entries; None for all of them.
            seed: Seed of the signs and the draws.
        """
        if blocks is not None and blocks < 1:
            raise OptionError(f"blocks must be at least 1, not {blocks}")
        self._net = net
        self._shape = tuple(input_shape)
        self._generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            found = self._blocks()
            positions = Positions(copy.copy(found), keep=True)
            gram = Gram(found, positions)
            self.count = gram.count()
            found_parts = (self._part(positions, j, k) for j, k in positions.related())
            self._parts = [part for part in found_parts if part.kinds]  # some never meet
        self._positions = positions
        self._drawn = blocks

    def __call__(self) -> Tensor:
        """Return an unbiased estimate of the squared frame potential."""
        gram = Gram(self._blocks(), self._positions, _FLOOR)
        like = gram.blocks.uses[0][0].symbol.weight
        total = like.new_zeros(())
        for part, factor in self._draw():
            total = total + factor * self._estimate(gram, part)
        return total

    def reseed(self, seed: int) -> None:
        """Restart the draws, so that a resumed run repeats them."""
        self._generator.manual_seed(seed)

    def exact(self) -> Tensor:
        """Return the squared frame potential itself, differentiable: for checks."""
        from pursuitify.analysis.measures.min_frame_potential import squares

        return squares(Gram(self._blocks(), self._positions, _FLOOR)) / max(self.count, 1.0)

    def _blocks(self) -> Blocks:
        with evaluating(self._net):
            return blocks_of(bind(self._net, self._shape, None), border=False)

    def _draw(self) -> list[tuple[_BlockClasses, float]]:
        if self._drawn is None or self._drawn >= len(self._parts):
            return [(part, 1.0) for part in self._parts]
        share = torch.tensor([float(p.weight.sum()) for p in self._parts])
        share = 0.5 * share / share.sum() + 0.5 / len(share)
        drawn = torch.multinomial(share, self._drawn, replacement=True, generator=self._generator)
        return [(self._parts[i], 1 / (self._drawn * float(share[i]))) for i in drawn.tolist()]

    def _part(self, positions: Positions, j: int, k: int) -> _BlockClasses:
        classes: list[Class] = list(positions.classes(j, k))
        gathered: dict[int, list[tuple[int, int, int, float]]] = {}
        for i, found in enumerate(classes):
            for meeting, taps in found.meetings:
                gathered.setdefault(meeting, []).extend((i, t, u, v) for t, u, v in taps)
        entries = []
        for meeting, rows in gathered.items():
            *places, values = zip(*rows, strict=True)
            c, t, u = (torch.tensor(column) for column in places)
            # In double precision: as torch's default, a pool's 1/3 would be rounded to float32.
            v = torch.tensor(values, dtype=torch.float64)
            entries.append((meeting, c, t, u, v))
        zero = tuple(i for i, found in enumerate(classes) if found.lag_zero)
        return _BlockClasses(
            (j, k),
            torch.tensor([found.count / self.count for found in classes], dtype=torch.float64),
            zero,
            tuple(found.kinds for found in classes),
            tuple(entries),
        )

    def _estimate(self, gram: Gram, part: _BlockClasses) -> Tensor:
        """Return sum over classes of weight ||(G_c - I) v||^2, v of random signs."""
        j, k = part.pair
        right_channels = gram.blocks.sites[k].channels
        products = gram.products(j, k)
        like = gram.blocks.uses[0][0].symbol.weight
        bits = torch.randint(2, (right_channels,), generator=self._generator)
        signs = (2 * bits - 1).to(like)
        rights = sorted({two for _, two in part.kinds}, key=repr)
        lefts = sorted({one for one, _ in part.kinds}, key=repr)
        scaled = torch.stack([gram.inverse(k, kind) for kind in rights]) * signs
        which = torch.tensor([rights.index(two) for _, two in part.kinds])
        sums = like.new_zeros(len(part.kinds), gram.blocks.sites[j].channels)
        for meeting, classes, t, u, v in part.taps:
            sums = sums + _applied(
                products[meeting], scaled, which[classes], classes, t, u, v, sums
            )
        inverse = torch.stack([gram.inverse(j, kind) for kind in lefts])
        sums = sums * inverse[torch.tensor([lefts.index(one) for one, _ in part.kinds])]
        if part.zero:
            own = torch.zeros_like(sums)
            for i in part.zero:
                kinds = part.kinds[i][0]
                own[i] = signs * (gram.norms(j, kinds) * gram.inverse(j, kinds)).square()
            sums = sums - own
        return (part.weight.to(like)[:, None] * sums.square()).sum()


def _applied(
    products: Products,
    scaled: Tensor,
    which: Tensor,
    classes: Tensor,
    t: Tensor,
    u: Tensor,
    v: Tensor,
    like: Tensor,
) -> Tensor:
    """Return per class the sum of coefficient times left[t]^T right[u] applied to its signs."""
    left, right = products.aligned.left, products.aligned.right
    one, two = products.aligned.cols
    vectors = scaled[:, two].transpose(0, 1)  # groups, kinds, columns
    inner = _contract(vectors, right.transpose(1, 2))  # groups, kinds, rows, right taps
    groups, count, rows, taps = inner.shape
    inner = inner.transpose(2, 3).reshape(groups, count * taps, rows)
    outer = _contract(inner, left).transpose(2, 3)  # groups, kinds and right taps, left taps, cols
    outer = outer.reshape(groups, count, taps, left.shape[-1], -1)
    picked = outer[:, which, u, t] * v.to(outer)[:, None]  # groups, entries, columns
    total = torch.zeros(groups, len(like), picked.shape[-1], dtype=like.dtype, device=like.device)
    total = total.index_add(1, classes, picked)
    flat = total.transpose(0, 1).reshape(len(like), -1)
    return torch.zeros_like(like).index_add(1, one.reshape(-1), flat)


def _contract(x: Tensor, weight: Tensor) -> Tensor:
    """Return x (groups, k, n) times weight (groups, n, m, taps), without moving the weight."""
    groups, n, m, taps = weight.shape
    if weight.is_contiguous() or min(n, m) == 1 or groups > 1:
        return (x @ weight.reshape(groups, n, m * taps)).reshape(groups, -1, m, taps)
    return (x @ weight[0].transpose(0, 1)).transpose(0, 1)[None]


_KEPT: dict[int, tuple[object, FramePotentialPenalty]] = {}


def frame_potential_penalty(
    net: PursuitNetwork, input_shape: Sequence[int] = (3, 32, 32), *, blocks: int | None = 4
) -> Tensor:
    """Return an unbiased, differentiable estimate of a network's squared deep frame potential.

    Add it to the loss, times a weight. The structure of the Gram matrix is found at the first call
    for a network and kept; see ``FramePotentialPenalty`` for its rules.

    Args:
        net: The network.
        input_shape: Shape of one input.
        blocks: How many blocks of the Gram matrix to draw; None for all of them.
    """
    key = id(net)
    held = _KEPT.get(key)
    stamp = (tuple(input_shape), blocks)
    if held is None or held[0] != stamp:
        _KEPT[key] = (stamp, FramePotentialPenalty(net, input_shape, blocks=blocks))
        weakref.finalize(net, _KEPT.pop, key, None)
    return _KEPT[key][1]()
