"""Rows bound to one batch: chains of maps, thresholds and signals.

Where compile time (rows) meets run time (operations bound by the feed-forward pass).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from pursuitify.activations import Activation
from pursuitify.classify import Sites
from pursuitify.graph import Path, Row, Slot
from pursuitify.maps import Chain, Identity, LinearMap, Place, Scale, compose, is_weighted
from pursuitify.program import Bound

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
        diagonal: The weighted operator W with B_j = W^T, as a chain; None for B_j = I.
        slots: Per slot its paths.
        sizes: Lengths of the slots along ``dim``; empty where there is one slot.
        dim: The dimension the row is split along.
        threshold: lam_j, broadcasts against the latent; None for zero.
        signal: u_j at the feed-forward pass, in slots.
    """

    name: str
    activation: Activation
    diagonal: Chain | None
    slots: tuple[tuple[BoundPath, ...], ...]
    sizes: tuple[int, ...]
    dim: int
    threshold: Tensor | None
    signal: Parts

    def split(self, full: Tensor) -> Parts:
        """Cut a full row into its slots."""
        return tuple(full.split(self.sizes, self.dim)) if self.sizes else (full,)  # type: ignore[no-untyped-call]

    def join(self, parts: Parts) -> Tensor:
        """Put slots together."""
        return torch.cat(parts, self.dim) if self.sizes else parts[0]

    def decode(self, w: Tensor) -> Parts:
        """Return B_j w, in slots."""
        return self.split(w if self.diagonal is None else self.diagonal.adjoint(w))

    def encode(self, parts: Parts) -> Tensor:
        """Return B_j^T r."""
        full = self.join(parts)
        return full if self.diagonal is None else self.diagonal.apply(full)


def bind_row(
    row: Row,
    sites: Sites,
    bound: Mapping[str, Bound],
    leaves: Mapping[fx.Node, int],
    signal: Tensor,
    activation: Activation,
) -> BoundRow:
    """Bind one row to the operations of a feed-forward pass."""
    stop = {n for n in leaves if n is not row.node}
    dim, extents = _extents(row, bound)
    slots = tuple(
        tuple(_bind_path(path, row, slot, sites, bound, leaves, dim, extent) for path in slot.paths)
        for slot, extent in zip(row.slots, extents, strict=True)
    )
    sizes = tuple(length for _, length in extents) if len(extents) > 1 else ()
    outer = offset_at(row.top, stop, sites, bound)
    inner = outer if row.layout == "encoder" else offset_at(row.signal, stop, sites, bound)
    linear = signal if inner is None else signal - inner
    diagonal = None
    if row.diagonal:
        diagonal = Chain(compose([_map_of(n, sites, bound) for n in row.diagonal]))
    result = BoundRow(
        name=row.name,
        activation=activation,
        diagonal=diagonal,
        slots=slots,
        sizes=sizes,
        dim=dim,
        threshold=None if outer is None else -outer,
        signal=(linear,),
    )
    if not sizes:
        return result
    return BoundRow(**{**vars(result), "signal": result.split(linear)})


def _map_of(node: fx.Node, sites: Sites, bound: Mapping[str, Bound]) -> LinearMap:
    """The map of a node that has one affine operand."""
    operands = sites[node].operands
    return bound[node.name].maps[next(i for i, o in enumerate(operands) if o is not None)]


def _extents(row: Row, bound: Mapping[str, Bound]) -> tuple[int, list[tuple[int, int]]]:
    """Return the split dimension and (start, length) per slot."""
    if not row.slots[0].places:
        return 0, [(0, 0)]
    extents, dim = [], 0
    for slot in row.slots:
        places = [bound[n.name].maps[k] for n, k in slot.places]
        assert all(isinstance(p, Place) for p in places)
        dim = places[0].dim  # type: ignore[attr-defined]
        start = sum(p.start for p in places)  # type: ignore[attr-defined]
        extents.append((start, places[0].length))  # type: ignore[attr-defined]
    return dim, extents


def _bind_path(
    path: Path,
    row: Row,
    slot: Slot,
    sites: Sites,
    bound: Mapping[str, Bound],
    leaves: Mapping[fx.Node, int],
    dim: int,
    extent: tuple[int, int],
) -> BoundPath:
    maps = [bound[n.name].maps[k] for n, k in path.steps]
    post = [_map_of(n, sites, bound) for n in row.post]
    if len(row.slots) > 1:
        post = [m.narrow(dim, *extent) for m in post]
    return BoundPath(leaves[path.leaf], compose([*maps, *post]))


def offset_at(
    node: fx.Node, leaves: set[fx.Node], sites: Sites, bound: Mapping[str, Bound]
) -> Tensor | None:
    """Return the value of an expression tree at all-zero leaves; None for zero."""
    if node in leaves:
        return None
    operation = bound[node.name]
    total = operation.offset
    for k, operand in enumerate(sites[node].operands):
        if operand is None:
            continue
        inner = offset_at(operand, leaves, sites, bound)
        if inner is not None:
            term = _push(operation.maps[k], inner, bound[operand.name].shape)
            total = term if total is None else total + term
    return total


def _push(linear: LinearMap, offset: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Apply a map to an offset that broadcasts against ``shape``."""
    if isinstance(linear, (Scale, Identity)):
        return linear.apply(offset)
    per_sample = offset.dim() == len(shape) and offset.shape[0] != 1
    batch = 1 if is_weighted(linear) and not per_sample else shape[0]
    return linear.apply(offset.expand(batch, *shape[1:]))
