"""Rows bound to one batch: chains of maps, thresholds and signals.

Where compile time (rows) meets run time (operations bound by the feed-forward pass).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pursuitify.compiler.graph.rows import Row, Use
from pursuitify.compiler.lowering.offsets import offset_of
from pursuitify.compiler.lowering.program import Bound
from pursuitify.errors import InputError
from pursuitify.operators import Chain, Conv, LinearMap, Place, Scale, compose
from pursuitify.operators.activations import Activation, Linear

Parts = tuple[Tensor, ...]


@dataclass(frozen=True, eq=False)
class BoundPath:
    """One path of a row: the block B_jk^T, a chain of maps from a leaf.

    Attributes:
        leaf: Index of the latent, or -1 - i for the i-th input.
        maps: The chain, the map next to the leaf first; empty for the identity.
    """

    leaf: int
    maps: tuple[LinearMap, ...]

    def apply(self, w: Tensor) -> Tensor:
        """Return B_jk^T w."""
        for item in self.maps:
            w = item.apply(w)
        return w

    def adjoint(self, r: Tensor) -> Tensor:
        """Return B_jk r."""
        for item in reversed(self.maps):
            r = item.adjoint(r)
        return r


@dataclass(frozen=True, eq=False)
class BoundRow:
    """One row r_j = B_j w_j - u_j, bound.

    Attributes:
        name: The latent's name.
        activation: Its activation.
        diagonal: B_j^T as a chain: the weighted operator W, times the gains where the row has some;
            None for B_j = I.
        slots: Per slot its paths.
        sizes: Lengths of the slots along ``dim``; empty where there is one slot.
        dim: The dimension the row is split along.
        threshold: lam_j, broadcasts against the latent; None for zero. Gains are in it, and in the
            penalty of ``activation``.
        offset: What stands in the signal y_j beside the network's inputs: the affine offset of an
            encoder row with ``offsets="signal"``, and its threshold as well with ``"stationary"``.
            Broadcasts against the latent; None for zero.
        u: u_j + offset at the feed-forward pass, in slots: B_j w_j - u is the residual there.
        gains: The atom gains c_j of a decoder row, broadcast against the latent; None for none.
    """

    name: str
    activation: Activation
    diagonal: Chain | None
    slots: tuple[tuple[BoundPath, ...], ...]
    sizes: tuple[int, ...]
    dim: int
    threshold: Tensor | None
    offset: Tensor | None
    u: Parts
    gains: Tensor | None = None

    @property
    def link(self) -> int | None:
        """The latent w_k of a link row, r_j = B_j w_j - w_k; None where the row is no link."""
        paths = self.slots[0]
        single = len(self.slots) == len(paths) == 1 and self.diagonal is not None
        return paths[0].leaf if single and paths[0].leaf >= 0 and not paths[0].maps else None

    @property
    def reads_inputs(self) -> bool:
        """Whether the row reads the network's inputs alone, in one slot: u_j is what it is."""
        return len(self.slots) == 1 and all(path.leaf < 0 for path in self.slots[0])

    def split(self, full: Tensor) -> Parts:
        """Cut a full row into its slots."""
        return split(full, self.sizes, self.dim)

    def join(self, parts: Parts) -> Tensor:
        """Put slots together."""
        return torch.cat(parts, self.dim) if self.sizes else parts[0]

    def product(self, w: Tensor) -> Tensor:
        """Return B_j w."""
        return w if self.diagonal is None else self.diagonal.adjoint(w)

    def add_offset(self, parts: Parts) -> Parts:
        """Return what the row reads of latents or inputs, in slots, with its offset added."""
        return parts if self.offset is None else self.split(self.join(parts) + self.offset)

    def decode(self, w: Tensor) -> Parts:
        """Return B_j w, in slots."""
        return self.split(self.product(w))

    def encode(self, parts: Parts) -> Tensor:
        """Return B_j^T r."""
        full = self.join(parts)
        return full if self.diagonal is None else self.diagonal.apply(full)

    def feedforward(self, projected: Tensor) -> Tensor:
        """Return the feed-forward value of the latent (17), given B_j^T u_j - lam_j.

        That is a proximal step from zero, of step 1; with gains, of step 1 / c_j
        (mathematics.md, section 1).
        """
        if self.gains is None:
            return self.activation(projected)
        return self.activation.prox(projected / self.gains, 1.0 / self.gains)

    def slope(self, parts: Parts) -> Tensor:
        """Return B_j^T r + lam_j, a tensor of its own."""
        return self.slope_at(self.join(parts))

    def slope_at(self, full: Tensor) -> Tensor:
        """Return the same, given r in one piece."""
        if self.diagonal is None:
            return full.clone() if self.threshold is None else full + self.threshold
        maps = self.diagonal.maps
        if self.threshold is not None and len(maps) == 1 and isinstance(maps[0], Conv):
            bias = maps[0].as_bias(self.threshold)
            if bias is not None:
                return maps[0].apply(full, bias)
        value = self.diagonal.apply(full)
        return value if self.threshold is None else value + self.threshold


def bind_row(
    row: Row,
    bound: Mapping[str, Bound],
    u: Tensor,
    activation: Activation,
    nonnegative: bool,
    threshold_scale: float = 1.0,
    offset_in_signal: bool = False,
    gains: Tensor | None = None,
    start: Tensor | None = None,
    share: float = 0.0,
) -> BoundRow:
    """Bind one row to the operations and values of a feed-forward pass.

    Args:
        row: The row.
        bound: The bound operations by name.
        u: The value whose linear part is u_j.
        activation: The latent's activation.
        nonnegative: Hold the threshold to >= 0 where the latent is sparse.
        threshold_scale: Factor on what is positive in the threshold of a sparse latent.
        offset_in_signal: Whether the offset of an encoder row stands in its signal; else, and in a
            decoder row always, its negative is the threshold (mathematics.md, section 1).
        gains: The atom gains of a decoder row, broadcast against a latent without its batch: its
            diagonal operator, its threshold and its penalty are multiplied by them. None for none.
        start: The latent of the feed-forward pass; needed where ``share`` is above 0.
        share: How much of w_j - u_j - b_j there an encoder row takes as its threshold, and adds to
            the signal: with 1 its residual is zero at the start (mathematics.md, section 1).

    Raises:
        InputError: If the gains do not broadcast against the latent.
    """
    dim, extents = _extents(row, bound)
    post = [_map(use, bound) for use in row.post]
    slots = []
    for slot, extent in zip(row.slots, extents, strict=True):
        after = [m.narrow(dim, *extent) for m in post] if len(extents) > 1 else post
        slots.append(
            tuple(
                BoundPath(path.leaf, compose([*(_map(u, bound) for u in path.uses), *after]))
                for path in slot.paths
            )
        )
    outer = offset_of(row.preactivation_tree, bound)
    inner = outer if row.encoder else offset_of(row.u_tree, bound)
    threshold, offset = None, None
    if outer is not None and offset_in_signal and row.encoder:
        # The row's value is u_j + offset: of the latent that it gives, an active unit is no error.
        offset = outer.clamp_max(0) if nonnegative and activation.sparse else outer
        inner = outer - offset if nonnegative else None
    elif outer is not None:
        threshold = (-outer).clamp_min(0) if nonnegative and activation.sparse else -outer
    linear = u if inner is None else u - inner
    if share > 0 and row.encoder and not isinstance(activation, Linear):
        assert start is not None, "a share of what is not given"
        # start - linear is minus a slope of f_j at the start: all of it makes the row least there.
        gap = start - linear if share == 1 else share * (start - linear)
        offset = gap if offset is None else gap + offset
        threshold, linear = gap, linear + gap
    if threshold_scale != 1 and threshold is not None and activation.sparse:
        # A negative threshold is no penalty but a bias: scaling it would make w run away.
        threshold = torch.where(threshold > 0, threshold_scale * threshold, threshold)
    sizes = tuple(length for _, length in extents) if len(extents) > 1 else ()
    chain = [_map(u, bound) for u in row.diagonal]
    if gains is not None:
        gains = _fitted(row, gains, bound[row.diagonal[-1][0]].shape)
        # A factor of the output is folded into the kernel before it, as a BatchNorm's is.
        chain.append(Scale(gains))
        threshold = None if threshold is None else gains * threshold
        activation = activation.weighted(gains)
    diagonal = Chain(compose(chain)) if chain else None
    return BoundRow(
        name=row.name,
        activation=activation,
        diagonal=diagonal,
        slots=tuple(slots),
        sizes=sizes,
        dim=dim,
        threshold=threshold,
        offset=offset,
        u=split(linear, sizes, dim),
        gains=gains,
    )


def _fitted(row: Row, gains: Tensor, shape: Sequence[int]) -> Tensor:
    """Return gains with as many dims as the latent has, of ``shape``.

    Raises:
        InputError: If they do not broadcast against it.
    """
    inner = tuple(shape[1:])
    fits = gains.dim() <= len(inner) and all(
        size in (1, other) for size, other in zip(gains.shape[::-1], inner[::-1], strict=False)
    )
    if not fits:
        raise InputError(
            f"the atom gains of latent {row.name!r} have shape {tuple(gains.shape)}, which does "
            f"not broadcast against {inner}, its shape without the batch: set net.atom_gains to "
            "gains of that shape, or of one entry per channel and ones, or calibrate them again"
        )
    return gains.reshape(*(1,) * (len(shape) - gains.dim()), *gains.shape)


def split(full: Tensor, sizes: tuple[int, ...], dim: int) -> Parts:
    """Cut a tensor into slots; no sizes mean one slot."""
    return tuple(torch.split(full, list(sizes), dim)) if sizes else (full,)


def _map(use: Use, bound: Mapping[str, Bound]) -> LinearMap:
    name, operand = use
    return bound[name].maps[operand]


def _extents(row: Row, bound: Mapping[str, Bound]) -> tuple[int, list[tuple[int, int]]]:
    """Return the split dimension and (start, length) per slot."""
    if not row.slots[0].places:
        return 0, [(0, 0)]
    extents, dim = [], 0
    for slot in row.slots:
        places = [place for use in slot.places if isinstance(place := _map(use, bound), Place)]
        assert len(places) == len(slot.places), "a slot is placed by concats alone"
        dim = places[0].dim
        extents.append((sum(place.start for place in places), places[0].length))
    return dim, extents
