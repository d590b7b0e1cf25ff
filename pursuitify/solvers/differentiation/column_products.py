"""One column of the dictionary: what a change of one latent does to every residual.

The column K_j of latent j maps a change to ``own``, its part in the latent's own row (B_j), and to
``read``, its part in the rows that read the latent (B_ij^T, which enters those rows negatively).
The slope (18) is its adjoint. For every s and r,

    <s, K_j^T r> = <K_j s, r>,

so the derivatives of the slope in whatever K_j holds are those of the right-hand side, and the
product K_j s is one that the reverse pass needs anyway.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pursuitify.dictionary.bound_rows import Parts
from pursuitify.dictionary.readers import Target
from pursuitify.dictionary.structured import StructuredDictionary

#: Per row a tensor per slot.
Residuals = list[list[Tensor]]
#: The same where None stands for zero.
Cotangents = list[list[Tensor | None]]


@dataclass(frozen=True, eq=False)
class Image:
    """K_j applied to a change of latent j.

    Attributes:
        own: The part in the latent's own row, in slots; empty where it was not asked for.
        read: By slot, the part in the rows that read the latent.
    """

    own: Parts
    read: dict[Target, Tensor]

    def tensors(self) -> list[Tensor]:
        """Return the own parts, then what is read."""
        return [*self.own, *self.read.values()]

    def changed(self, change: Callable[[Tensor], Tensor]) -> Image:
        """Return the image with every tensor changed."""
        read = {target: change(value) for target, value in self.read.items()}
        return Image(tuple(change(value) for value in self.own), read)

    def take_back(self, r: Residuals, j: int) -> None:
        """Undo what the change of latent j did to the residuals."""
        for s, value in enumerate(self.own):
            r[j][s] = r[j][s] - value
        for (i, s), value in self.read.items():
            r[i][s] = r[i][s] + value

    def seen(self, r: Residuals, j: int) -> list[Tensor]:
        """Return r where K_j reaches, with the sign it has there, in the order of ``tensors``."""
        return [*r[j][: len(self.own)], *(-r[i][s] for i, s in self.read)]

    def seen_cotangents(self, r: Cotangents, j: int) -> list[Tensor | None]:
        """Return the same of cotangents."""
        read = [r[i][s] for i, s in self.read]
        return [*r[j][: len(self.own)], *(None if bar is None else -bar for bar in read)]

    def pull(self, r: Cotangents, j: int) -> None:
        """Add the image to cotangents of the residuals, with the sign it has there."""
        for s, value in enumerate(self.own):
            r[j][s] = plus(r[j][s], value)
        for (i, s), value in self.read.items():
            bar = r[i][s]
            r[i][s] = -value if bar is None else bar - value


def image(dictionary: StructuredDictionary, j: int, change: Tensor, own: bool = True) -> Image:
    """Return K_j times a change of latent j."""
    read = dictionary.branches[j].products_by_target(change)
    return Image(tuple(dictionary.rows[j].decode(change)) if own else (), read)


def plus(total: Tensor | None, term: Tensor | None) -> Tensor | None:
    """Return the sum of two values of which None is zero."""
    if total is None or term is None:
        return term if total is None else total
    return total + term


def derivatives(
    outputs: Sequence[Tensor], inputs: Sequence[Tensor], cotangents: Iterable[Tensor | None]
) -> list[Tensor | None]:
    """Return the cotangents of the inputs; outputs that depend on none are passed over."""
    pairs = [
        (output, cotangent)
        for output, cotangent in zip(outputs, cotangents, strict=True)
        if cotangent is not None and output.requires_grad
    ]
    if not pairs or not inputs:
        return [None] * len(inputs)
    ends, values = zip(*pairs, strict=True)
    return list(torch.autograd.grad(ends, inputs, values, allow_unused=True))
