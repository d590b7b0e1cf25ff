"""The tensors of a bound dictionary that sweeps read, by the latents whose update reads them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from pursuitify.dictionary.structured import StructuredDictionary
from pursuitify.errors import OptionError
from pursuitify.solvers.differentiation.tensor_extraction import holes


@dataclass(frozen=True, eq=False)
class Held:
    """The tensors, of those taken out of the dictionary, that a latent's update holds.

    Attributes:
        column: Indices of those in K_j that a derivative is wanted of.
        prox: Likewise in the activation.
        threshold: Index of lam_j, or None where there is none or no derivative is wanted.
    """

    column: tuple[int, ...]
    prox: tuple[int, ...]
    threshold: int | None


def read_by_sweeps(dictionary: StructuredDictionary) -> StructuredDictionary:
    """Return the dictionary without what only its own methods read."""
    rows = tuple(replace(row, slots=(), u=(), offset=None, gains=None) for row in dictionary.rows)
    return replace(dictionary, rows=rows, inputs=())


def held_by(skeleton: StructuredDictionary, wanted: Sequence[bool]) -> list[Held]:
    """Return per latent what its update holds.

    Args:
        skeleton: The dictionary with holes for tensors.
        wanted: By tensor, whether a derivative is wanted.
    """
    found = []
    for row, branch in zip(skeleton.rows, skeleton.branches, strict=True):
        column = tuple(i for i in holes((row.diagonal, branch)) if wanted[i])
        prox = tuple(i for i in holes(row.activation) if wanted[i])
        threshold = [i for i in holes(row.threshold) if wanted[i]]
        found.append(Held(column, prox, threshold[0] if threshold else None))
    return found


def refuse_hidden(results: Iterable[Tensor], memory: str) -> None:
    """Check results of tensors none of which wants a derivative, computed with a graph.

    Raises:
        OptionError: If one has a graph all the same: some tensor was not found.
    """
    if any(result.requires_grad for result in results):
        raise OptionError(
            f"an operation of this network holds a tensor that memory={memory!r} cannot find "
            "(in a closure?): keep it as an attribute of its map or activation, or use "
            "memory='store'"
        )
