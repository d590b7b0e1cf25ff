"""Which maps of a dictionary get packed kernels, and how long these are kept."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from pursuitify.dictionary.bound_rows import BoundRow
from pursuitify.dictionary.readers import Branch
from pursuitify.dictionary.structured import StructuredDictionary
from pursuitify.operators import Chain, LinearMap
from pursuitify.operators.conv import Conv
from pursuitify.operators.onednn_conv import (
    Kernel,
    PackedConv,
    adjoint_kernel,
    direct_kernel,
    packable,
)


class Kernels:
    """The packed kernels of a network, kept while its weights are what they were.

    They take the memory of the convolutions' weights twice. A copy of the network packs its own.
    """

    def __init__(self) -> None:
        self._kept: dict[str, tuple[object, Kernel | None]] = {}
        self._contents, self._batch = b"", 0

    def __reduce__(self) -> tuple[type[Kernels], tuple[()]]:
        """Copy and pickle without the kernels."""
        return Kernels, ()

    def pack(
        self,
        dictionary: StructuredDictionary,
        steps: Sequence[Tensor],
        extrapolated: bool,
        contents: bytes,
    ) -> StructuredDictionary:
        """Return the dictionary with its convolutions packed for sweeps with these steps.

        Args:
            dictionary: The bound dictionary.
            steps: gamma_j per latent; where it differs between samples nothing is packed.
            extrapolated: Whether sweeps keep products, so that they are not added to a sum at once.
            contents: What its kernels are, as ``steps.Norms.contents`` says; empty for unknown.

        Under ``torch.backends.mkldnn.flags(enabled=False)`` nothing is packed: counters of
        operations, for one, know the public convolutions alone.
        """
        if not contents or not _wanted() or any(step.device.type != "cpu" for step in steps):
            return dictionary
        batch = dictionary.inputs[0].shape[0]
        if (contents, batch) != (self._contents, self._batch):
            self._kept.clear()
            self._contents, self._batch = contents, batch
        there = 1.0 if extrapolated else -1.0
        gammas = [float(step) if step.dim() == 0 else None for step in steps]
        rows = tuple(
            row if gamma is None else self._row(row, gamma)
            for row, gamma in zip(dictionary.rows, gammas, strict=True)
        )
        branches = tuple(
            branch if gamma is None else self._branch(branch, row.name, there, gamma)
            for branch, row, gamma in zip(dictionary.branches, dictionary.rows, gammas, strict=True)
        )
        return dataclasses.replace(dictionary, rows=rows, branches=branches)

    def _row(self, row: BoundRow, gamma: float) -> BoundRow:
        """Pack the diagonal operator: W for -gamma, W^T as it is."""
        if row.diagonal is None:
            return row
        maps = [
            self._packed(m, f"{row.name}.{i}", -gamma, 1.0) for i, m in enumerate(row.diagonal.maps)
        ]
        return dataclasses.replace(row, diagonal=Chain(tuple(maps)))

    def _branch(self, branch: Branch, place: str, there: float, gamma: float) -> Branch:
        """Pack what reads a latent: A for ``there``, A^T for gamma where it ends at the latent."""
        through = tuple(
            (
                self._packed(m, f"{place}:{i}", there, gamma),
                self._branch(rest, f"{place}:{i}", there, 1.0),
            )
            for i, (m, rest) in enumerate(branch.through)
        )
        return Branch(branch.targets, through)

    def _packed(self, linear: LinearMap, place: str, there: float, back: float) -> LinearMap:
        if not isinstance(linear, Conv) or not packable(linear):
            return linear
        direct = self._kernel(f"{place}+", linear, there)
        turned = self._kernel(f"{place}-", linear, back)
        assert direct is not None
        return PackedConv(linear, direct, turned)

    def _kernel(self, key: str, conv: Conv, factor: float) -> Kernel | None:
        wanted = (factor, conv.size)
        if key not in self._kept or self._kept[key][0] != wanted:
            make = direct_kernel if key.endswith("+") else adjoint_kernel
            self._kept[key] = wanted, make(conv, factor, self._batch)
        return self._kept[key][1]


def _wanted() -> bool:
    """Whether the user has oneDNN on, and nothing traces that knows public operators alone."""
    return bool(torch.backends.mkldnn.enabled) and not torch.jit.is_tracing()  # type: ignore[no-untyped-call, attr-defined]
