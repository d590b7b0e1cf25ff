"""The structured dictionary: the sparse block matrix of the network, bound to one batch (16)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from pursuitify.compiler.graph.rows import Readers
from pursuitify.compiler.lowering.program import Pass, Program
from pursuitify.dictionary import flat_vectors
from pursuitify.dictionary.bound_rows import BoundRow, Parts, bind_row
from pursuitify.dictionary.readers import Branch, branch_of
from pursuitify.errors import InputError
from pursuitify.operators import LinearMap
from pursuitify.utils import option_checks
from pursuitify.utils.autocast import full_precision

if TYPE_CHECKING:
    from scipy.sparse.linalg import LinearOperator


@dataclass(frozen=True, eq=False)
class StructuredDictionary:
    """B, lam and y of one batch, with every frozen value in them.

    The residual of latents w is ``apply(w) - signal``. Rows and latents are dictionaries by the
    latents' names; a row that ends in a concat is handed out joined.

    Attributes:
        rows: The bound rows, in graph order.
        inputs: The network's inputs, w_0.
        shapes: Shape of each latent, batch included.
        readers: Per latent the (row, slot, paths) that read it.
        branches: The same as a tree of the maps they share.
    """

    rows: tuple[BoundRow, ...]
    inputs: tuple[Tensor, ...]
    shapes: tuple[torch.Size, ...]
    readers: Readers
    branches: tuple[Branch, ...]

    def __repr__(self) -> str:
        """Return a line per row: the latent, its shape, the diagonal, what the row reads."""
        known = dict(enumerate(self.names)) | {
            -1 - i: f"input {i}" for i in range(len(self.inputs))
        }
        lines = [f"StructuredDictionary of {len(self.rows)} rows, by latent (batch included):"]
        for row, shape in zip(self.rows, self.shapes, strict=True):
            form = "identity" if row.diagonal is None else "operator"
            read = dict.fromkeys(known[path.leaf] for slot in row.slots for path in slot)
            lines.append(f"  {row.name} {tuple(shape)}: diagonal {form}, reads {', '.join(read)}")
        return "\n".join(lines)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the latents, in graph order."""
        return tuple(row.name for row in self.rows)

    def maps(self) -> Iterator[LinearMap]:
        """Yield every map of the dictionary, in a fixed order."""
        for row in self.rows:
            if row.diagonal is not None:
                yield from row.diagonal.maps
            for paths in row.slots:
                for path in paths:
                    yield from path.maps

    @property
    def samples(self) -> int | None:
        """The batch, if dimension 0 holds sample after sample in every latent; else None.

        Latents may hold several entries of each (tokens, frames) there. Where the batch is moved
        elsewhere (tokens first) or joined (two inputs side by side), nothing is known per sample.
        """
        batch = self.inputs[0].shape[0]
        if batch == 1:
            return batch
        whole = all(shape[0] % batch == 0 for shape in self.shapes)
        paths = (path for row in self.rows for slot in row.slots for path in slot)
        read = {-1 - path.leaf for path in paths if path.leaf < 0}
        alike = all(self.inputs[i].shape[0] == batch for i in read)
        moved = any(row.sizes and row.dim == 0 for row in self.rows)
        if not whole or not alike or moved or any(m.moves_batch(batch) for m in self.maps()):
            return None
        return batch

    @property
    def signal(self) -> dict[str, Tensor]:
        """The signal y by row, which is what a row reads of the network's inputs (16); else zero.

        With ``offsets="signal"`` the offset of an encoder row is part of it.

        Shape (batch, ...), as ``apply`` returns it; not that of the latent in decoder rows.
        """
        return self._joined(self.signal_slots())

    @property
    def thresholds(self) -> dict[str, Tensor]:
        """lam_j (11) in the shape of each latent, zero where there is none; views, not to write to.

        Negated biases, BatchNorm's among them, where they do not stand in the signal;
        ``threshold_scale`` and atom gains are applied.
        """
        dtype, device = self.inputs[0].dtype, self.inputs[0].device
        return {
            row.name: torch.zeros((), dtype=dtype, device=device).expand(shape)
            if row.threshold is None
            else row.threshold.expand(shape)
            for row, shape in zip(self.rows, self.shapes, strict=True)
        }

    def with_rows(self, rows: Iterable[BoundRow]) -> StructuredDictionary:
        """Return the dictionary with other maps in its rows; slots and paths stay as they are.

        ``branches`` holds the same maps by the latent they read, so it is made anew.
        """
        rows = tuple(rows)
        return replace(self, rows=rows, branches=_branches(rows, self.readers))

    # -- B, B^T and y in slots: the one form that the public methods and every solver use ---------

    def signal_slots(self) -> list[Parts]:
        """Return y = P x + offset per row, in slots."""
        rows = []
        for row in self.rows:
            parts = []
            for paths, like in zip(row.slots, row.u, strict=True):
                total = torch.zeros_like(like)
                for path in paths:
                    if path.leaf < 0:
                        total = total + path.apply(self.inputs[-1 - path.leaf])
                parts.append(total)
            rows.append(row.add_offset(tuple(parts)))
        return rows

    def apply_slots(self, w: Sequence[Tensor]) -> list[Parts]:
        """Return B w per row, in slots, of latents in graph order."""
        rows = [list(row.decode(latent)) for row, latent in zip(self.rows, w, strict=True)]
        return self._subtract_products(rows, w)

    def residual_slots(self, w: Sequence[Tensor], signal: Sequence[Parts]) -> list[Parts]:
        """Return B w - y per row, in slots; ``signal`` is what ``signal_slots`` gives."""
        rows = [
            [own - part for own, part in zip(row.decode(latent), parts, strict=True)]
            for row, latent, parts in zip(self.rows, w, signal, strict=True)
        ]
        return self._subtract_products(rows, w)

    def adjoint_slots(self, r: Sequence[Sequence[Tensor]]) -> list[Tensor]:
        """Return B^T r by latent, of rows in slots."""
        found = []
        for j, row in enumerate(self.rows):
            total = row.encode(tuple(r[j]))
            for term in self.branches[j].terms(lambda at: r[at[0]][at[1]]):
                total = total - term
            found.append(total)
        return found

    def _subtract_products(self, rows: list[list[Tensor]], w: Sequence[Tensor]) -> list[Parts]:
        for branch, latent in zip(self.branches, w, strict=True):
            for (i, s), product in branch.products(latent):
                rows[i][s] = rows[i][s] - product
        return [tuple(parts) for parts in rows]

    def _joined(self, rows: Sequence[Parts]) -> dict[str, Tensor]:
        return {row.name: row.join(parts) for row, parts in zip(self.rows, rows, strict=True)}

    # -- the same by name -------------------------------------------------------------------------

    def apply(self, latents: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return B w by row, each of shape (batch, ...): B_j w_j - u_j without the input (16).

        Args:
            latents: A tensor per latent, shaped as ``net.latents(x)`` gives them.

        Raises:
            InputError: If a latent is missing or has another shape.
        """
        w = _ordered("latent", latents, self.names, self.shapes)
        return self._joined(self.apply_slots(w))

    def adjoint(self, rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return B^T r by latent.

        Args:
            rows: A tensor per row, shaped as ``apply`` gives them.

        Raises:
            InputError: If a row is missing or has another shape.
        """
        shapes = [row.join(row.u).shape for row in self.rows]
        ordered = _ordered("row", rows, self.names, shapes)
        parts = [row.split(r) for row, r in zip(self.rows, ordered, strict=True)]
        return dict(zip(self.names, self.adjoint_slots(parts), strict=True))

    def residual(self, latents: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return r = B w - y by row (16), shaped as ``apply`` gives it.

        Args:
            latents: A tensor per latent, shaped as ``net.latents(x)`` gives them.

        Raises:
            InputError: If a latent is missing or has another shape.
        """
        signal = self.signal
        return {name: value - signal[name] for name, value in self.apply(latents).items()}

    def objective(self, latents: Mapping[str, Tensor]) -> Tensor:
        """Return F per sample, shape (batch,) (11); infinite outside an activation's domain.

        Args:
            latents: A tensor per latent, shaped as ``net.latents(x)`` gives them.

        Raises:
            InputError: If a latent is missing or has another shape, or ``samples`` is None.
        """
        samples = self.samples
        if samples is None:
            raise InputError(
                "F per sample is not known: the network moves the batch away from dimension 0, or "
                "joins batches along it. Give one sample at a time, or take mean_objective() of "
                "the dictionary"
            )
        return self._objective(latents, samples)

    def mean_objective(self, latents: Mapping[str, Tensor]) -> Tensor:
        """Return the mean of F over the batch, a number (11); wherever the batch lies."""
        return self._objective(latents, self.samples or 1).sum() / self.inputs[0].shape[0]

    def _objective(self, latents: Mapping[str, Tensor], parts: int) -> Tensor:
        """Return F by equal parts of dimension 0."""
        total = self.inputs[0].new_zeros(parts)
        thresholds = self.thresholds
        for row, residual in zip(self.rows, self.residual(latents).values(), strict=True):
            name, w = row.name, latents[row.name]
            total = total + 0.5 * residual.reshape(parts, -1).square().sum(1)
            total = total + (thresholds[name] * w).reshape(parts, -1).sum(1)
            total = total + row.activation.penalty(w).reshape(parts, -1).sum(1)
        return total

    def materialize(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return dense B (M, N), y (M,) and lam (N,) of a batch of one.

        Columns are in graph order, each latent flattened; rows likewise. B is block lower
        triangular by construction.

        Raises:
            InputError: If the batch holds more than one sample.
        """
        if self.inputs[0].shape[0] != 1:
            raise InputError(
                f"materialize() needs a batch of one, not {self.inputs[0].shape[0]}: frozen values "
                "differ between samples. Bind one sample: net.dictionary(x[:1])"
            )
        sizes = [shape.numel() for shape in self.shapes]

        def column(flat: Tensor) -> Tensor:
            pieces = flat.split(sizes)  # type: ignore[no-untyped-call]
            latents = {
                row.name: piece.reshape(shape)
                for row, piece, shape in zip(self.rows, pieces, self.shapes, strict=True)
            }
            return torch.cat([value.reshape(-1) for value in self.apply(latents).values()])

        like = self.inputs[0]
        eye = torch.eye(sum(sizes), dtype=like.dtype, device=like.device)
        matrix = torch.func.vmap(column, chunk_size=256)(eye).T
        signal = torch.cat([value.reshape(-1) for value in self.signal.values()])
        thresholds = torch.cat([value.reshape(-1) for value in self.thresholds.values()])
        return matrix, signal, thresholds

    # -- the same as vectors of NumPy's -----------------------------------------------------------

    def as_linear_operator(self) -> LinearOperator:
        """Return B as an operator of SciPy's, for solvers of other libraries.

        Of a batch of one it is ``materialize()[0]`` without the matrix: shape (M, N), columns in
        graph order, each latent flattened. Of a batch it is block diagonal, one such block per
        sample. ``row_vector(d.signal)`` is y and ``latent_vector(d.thresholds)`` is lam in this
        form, and ``latents_of_vector`` leads back. A product is computed in the dictionary's
        precision and on its device, with the weights as they are then, and records no derivative.

        Raises:
            MissingExtraError: If SciPy is not installed.
            InputError: If ``samples`` is None, or NumPy does not have the dictionary's precision.
        """
        option_checks.extra("scipy", "scipy")
        from scipy.sparse.linalg import LinearOperator

        columns, rows = self._latent_layout(), self._row_layout()

        def product(vector: np.ndarray) -> np.ndarray:
            with torch.no_grad(), full_precision(self.inputs[0].device):
                return rows.join([*self.apply(columns.split(vector)).values()])

        def adjoint(vector: np.ndarray) -> np.ndarray:
            with torch.no_grad(), full_precision(self.inputs[0].device):
                return columns.join([*self.adjoint(rows.split(vector)).values()])

        return LinearOperator(
            (rows.size, columns.size),
            matvec=product,
            rmatvec=adjoint,
            dtype=flat_vectors.numpy_dtype(self.inputs[0].dtype),
        )

    def latent_vector(self, latents: Mapping[str, Tensor]) -> np.ndarray:
        """Return latents as a vector, shape (N,), that ``as_linear_operator`` applies to.

        Args:
            latents: A tensor per latent, shaped as ``net.latents(x)`` gives them; thresholds too.

        Raises:
            InputError: If a latent is missing or has another shape, or as
                ``as_linear_operator``.
        """
        layout = self._latent_layout()
        return layout.join(_ordered("latent", latents, self.names, self.shapes))

    def row_vector(self, rows: Mapping[str, Tensor]) -> np.ndarray:
        """Return rows as a vector, shape (M,), as ``as_linear_operator`` returns them.

        Args:
            rows: A tensor per row, shaped as ``apply`` gives them; the signal too.

        Raises:
            InputError: If a row is missing or has another shape, or as ``as_linear_operator``.
        """
        layout = self._row_layout()
        return layout.join(_ordered("row", rows, self.names, [*layout.shapes.values()]))

    def latents_of_vector(self, vector: np.ndarray) -> dict[str, Tensor]:
        """Return the latents by name of a vector, shape (N,).

        Args:
            vector: What ``latent_vector`` returns, or a solver that was given the operator.

        Raises:
            InputError: If it has another size or is not real, or as ``as_linear_operator``.
        """
        return self._latent_layout().split(vector)

    def _latent_layout(self) -> flat_vectors.VectorLayout:
        return self._layout("latent", self.shapes)

    def _row_layout(self) -> flat_vectors.VectorLayout:
        return self._layout("row", [row.join(row.u).shape for row in self.rows])

    def _layout(self, what: str, shapes: Sequence[torch.Size]) -> flat_vectors.VectorLayout:
        samples = self.samples
        if samples is None or any(shape[0] % samples for shape in shapes):
            raise InputError(
                "which entries belong to which sample is not known: the network moves the batch "
                "away from dimension 0, or joins batches along it. Give one sample at a time"
            )
        named = dict(zip(self.names, shapes, strict=True))
        return flat_vectors.VectorLayout(what, named, samples, self.inputs[0])


def _ordered(
    what: str,
    values: Mapping[str, Tensor],
    names: Sequence[str],
    shapes: Sequence[torch.Size],
) -> list[Tensor]:
    """Return the values in graph order, checked."""
    missing = [name for name in names if name not in values]
    if missing:
        raise InputError(f"{what}s are missing: {missing}; expected {list(names)}")
    for name, shape in zip(names, shapes, strict=True):
        if values[name].shape != shape:
            raise InputError(
                f"{what} {name!r} has shape {tuple(values[name].shape)}, not {tuple(shape)}"
            )
    return [values[name] for name in names]


def bind(
    program: Program,
    first: Pass,
    inputs: Sequence[Tensor],
    threshold_scale: float = 1.0,
    offsets_in_signal: bool = False,
    gains: Sequence[Tensor | None] | None = None,
    share: float = 0.0,
) -> StructuredDictionary:
    """Bind a program's rows to the operations and values of one feed-forward pass.

    Args:
        program: The program.
        first: What its pass found.
        inputs: The network's inputs.
        threshold_scale: Factor on positive thresholds of sparse latents.
        offsets_in_signal: Whether offsets of encoder rows stand in the signal.
        gains: Per row its atom gains, None where it has none; None for none at all.
        share: The share of their residuals at the pass that encoder rows take as thresholds. Their
            offsets have to stand in the signal where it is above 0.

    Raises:
        InputError: If gains do not broadcast against their latent.
    """
    options = program.nonnegative, threshold_scale, offsets_in_signal
    gains = [None] * len(program.rows) if gains is None else gains
    rows = tuple(
        bind_row(row, first.bound, u, activation, *options, c, w, share)
        for row, u, activation, c, w in zip(
            program.rows, first.u, first.activations, gains, first.latents, strict=True
        )
    )
    shapes = tuple(w.shape for w in first.latents)
    branches = _branches(rows, program.readers)
    return StructuredDictionary(rows, tuple(inputs), shapes, program.readers, branches)


def _branches(rows: Sequence[BoundRow], readers: Readers) -> tuple[Branch, ...]:
    return tuple(
        branch_of(((i, s), rows[i].slots[s][p].maps) for i, s, paths in reading for p in paths)
        for reading in readers
    )
