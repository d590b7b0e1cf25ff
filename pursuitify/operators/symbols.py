"""The words in which a map says what it does to channels and positions, for what measures them.

A measure of the dictionary (its coherence, say) needs more of a map than ``apply``: which channels
and which positions it mixes, and with what. A map tells it in ``LinearMap.symbol``, in the words
of ``Symbols``; what becomes of them is for the measure to know.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn, Protocol

from torch import Tensor

#: Which positions of one spatial dimension an operator's outputs read, as ``Symbols`` makes it.
Relation = Any


class Symbols(Protocol):
    """A visitor of the maps of a chain, one after the other, the first applied first."""

    def read(self, item: Any) -> None:
        """Hear one map: calls its ``symbol``."""

    # -- relations of positions along one dimension ---------------------------------------------

    def window(
        self,
        size: int,
        count: int,
        taps: int,
        stride: int = 1,
        start: int = 0,
        dilation: int = 1,
        mean: float | None = None,
    ) -> Relation:
        """Return: output q < ``count`` reads input q * stride - start + t * dilation < ``size``.

        Args:
            size: Number of inputs.
            count: Number of outputs.
            taps: Number of t; each has a weight of its own, or all have ``mean``.
            stride: Step from output to output.
            start: Inputs before the image.
            dilation: Step from tap to tap.
            mean: The weight of every tap, where it is the same in every channel.
        """

    def total(self, size: int, value: float) -> Relation:
        """Return: one output, ``value`` times the sum of all ``size`` inputs."""

    def matrix(self, values: Tensor) -> Relation:
        """Return: outputs are the matrix ``values`` (outputs, inputs) times the inputs."""

    # -- what a map does ------------------------------------------------------------------------

    def weighted(
        self, weight: Tensor, groups: int, along: Sequence[Relation], transposed: bool = False
    ) -> None:
        """A kernel (c_out, c_in / groups, *taps) on windows ``along`` the dimensions.

        Args:
            weight: The kernel.
            groups: Number of groups.
            along: A window per dimension, with the kernel's taps.
            transposed: Whether the map is the adjoint of what is described.
        """

    def dense(self, weight: Tensor) -> None:
        """A matrix (out, in) on all channels and positions of a sample."""

    def scaled(self, factor: Tensor | float) -> None:
        """A factor that broadcasts against the value."""

    def channelwise(self, along: Sequence[Relation | None], factor: float = 1.0) -> None:
        """Every channel alike: ``factor`` times a relation per dimension; None for the identity."""

    def selected(self, select: Any) -> None:
        """A choice of one element per window (``max_pool.Select``)."""

    def moved(self, item: Any) -> None:
        """Elements are moved, dropped or repeated, none is scaled or added up; this is tried."""

    def refused(self, why: str) -> NoReturn:
        """The map has no form in these words; raises."""
