"""Packed kernels: the choice of maps that get them, and the time for which they are kept."""

from __future__ import annotations

import dataclasses
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

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

#: Sizes of input whose kernels are kept: each takes the memory of the weights twice.
KEPT = 4

#: The kernels for one size of input, by place: what each was packed for, and the kernel.
_Packs = dict[str, tuple[object, "Kernel | None"]]


class Kernels:
    """The packed kernels of a network, kept while its weights are what they were.

    They are packed for the sizes of the inputs, the batch included, so they are kept by these: for
    the ``KEPT`` met last. Each takes the memory of the convolutions' weights twice. A copy of the
    network packs its own. Threads may share them: what a call uses it holds itself.
    """

    def __init__(self) -> None:
        self._kept: OrderedDict[object, _Packs] = OrderedDict()
        self._contents = b""
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type[Kernels], tuple[()]]:
        """Make copies and pickles empty: kernels are packed anew where they are used."""
        return Kernels, ()

    def _packs(self, contents: bytes, sizes: object) -> _Packs:
        """Return what is kept for inputs of these sizes; all else goes when weights changed."""
        with self._lock:
            if contents != self._contents:
                self._kept.clear()
                self._contents = contents
            packs = self._kept.setdefault(sizes, {})
            self._kept.move_to_end(sizes)
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
            return packs

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
            contents: Fingerprint of its kernels, from ``norm_bounds.Norms.contents``; empty for
                unknown.

        Under ``torch.backends.mkldnn.flags(enabled=False)`` nothing is packed: counters of
        operations, for one, know the public convolutions alone.
        """
        if not contents or not _wanted() or any(step.device.type != "cpu" for step in steps):
            return dictionary
        sizes = tuple(tuple(x.shape) for x in dictionary.inputs if isinstance(x, Tensor))
        packing = _Packing(self._packs(contents, sizes), dictionary.inputs[0].shape[0])
        # A change's products are subtracted from residuals: the kernels hold the sign, unless the
        # sweeps keep the products themselves for the next step.
        sign = 1.0 if extrapolated else -1.0
        alike = [step for step in steps if step.dim() == 0]
        read = iter(torch.stack(alike).tolist() if alike else [])  # in one transfer
        gammas = [next(read) if step.dim() == 0 else None for step in steps]
        rows = tuple(
            row if gamma is None else packing.row(row, gamma)
            for row, gamma in zip(dictionary.rows, gammas, strict=True)
        )
        branches = tuple(
            branch if gamma is None else packing.branch(branch, row.name, sign, gamma)
            for branch, row, gamma in zip(dictionary.branches, dictionary.rows, gammas, strict=True)
        )
        return dataclasses.replace(dictionary, rows=rows, branches=branches)


@dataclass(frozen=True, eq=False)
class _Packing:
    """One call's view of the kernels for its size of input.

    Attributes:
        packs: The kernels by place; other threads may add some meanwhile, or replace them.
        batch: The number of samples.
    """

    packs: _Packs
    batch: int

    def row(self, row: BoundRow, gamma: float) -> BoundRow:
        """Pack the diagonal operator: W for -gamma, W^T as it is."""
        if row.diagonal is None:
            return row
        maps = [
            self._packed(m, f"{row.name}.{i}", -gamma, 1.0) for i, m in enumerate(row.diagonal.maps)
        ]
        return dataclasses.replace(row, diagonal=Chain(tuple(maps)))

    def branch(self, branch: Branch, place: str, sign: float, gamma: float) -> Branch:
        """Pack a latent's readers: A for ``sign``, A^T for gamma where it ends at the latent."""
        through = tuple(
            (
                self._packed(m, f"{place}:{i}", sign, gamma),
                self.branch(rest, f"{place}:{i}", sign, 1.0),
            )
            for i, (m, rest) in enumerate(branch.through)
        )
        return Branch(branch.targets, through)

    def _packed(self, linear: LinearMap, place: str, forward: float, back: float) -> LinearMap:
        if not isinstance(linear, Conv) or not packable(linear):
            return linear
        direct = self._kernel(f"{place}+", linear, forward, direct_kernel)
        turned = self._kernel(f"{place}-", linear, back, adjoint_kernel)
        assert direct is not None
        return PackedConv(linear, direct, turned)

    def _kernel(
        self,
        key: str,
        conv: Conv,
        factor: float,
        make: Callable[[Conv, float, int], Kernel | None],
    ) -> Kernel | None:
        """Return the kernel kept for a place, if it is for all that a kernel depends on.

        The weight is what ``contents`` stands for; the rest is compared here.
        """
        wanted = (factor, conv.size, *conv.form, conv.padding)
        kept = self.packs.get(key)
        if kept is None or kept[0] != wanted:
            kept = wanted, make(conv, factor, self.batch)
            self.packs[key] = kept
        return kept[1]


def _wanted() -> bool:
    """Whether the user has oneDNN on, and nothing traces that knows public operators alone."""
    return bool(torch.backends.mkldnn.enabled) and not torch.jit.is_tracing()  # type: ignore[no-untyped-call, attr-defined]
