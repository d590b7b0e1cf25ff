"""Latents that are read through pools alone: what the pools give is held, not the latent's change.

A pool makes a large latent small. Its readers need the change of what it gives, which follows from
what it gave before. So nothing of the latent's own size is formed for them, and the latent can be
overwritten.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pursuitify.dictionary.readers import Branch, PartOf
from pursuitify.operators import BlockMean, Select


def pools_alone(branch: Branch) -> bool:
    """Whether something reads a latent, and only through pools."""
    maps = [linear for linear, _ in branch.through]
    return bool(maps and not branch.targets) and all(
        isinstance(m, BlockMean | Select) for m in maps
    )


class Pooled:
    """The outputs of one latent's pools, in memory that is used again from sweep to sweep.

    Attributes:
        branch: Who reads the latent.
        values: Per pool what it gives.
    """

    def __init__(self, branch: Branch, w: Tensor) -> None:
        self.branch = branch
        self.values = [linear.apply(w) for linear, _ in branch.through]
        self._spare = [torch.empty_like(value) for value in self.values]

    def add_terms(self, total: Tensor, part: PartOf, step: Tensor) -> Tensor:
        """Return ``total + step sum_j B_jk r_j``; overwrites ``total``."""
        for (linear, rest), spare in zip(self.branch.through, self._spare, strict=True):
            total = linear.add_adjoint(total, rest.collect_into(spare, part, step), 1.0)
        return total

    def pass_on(self, w: Tensor, parts: list[list[Tensor]]) -> None:
        """Pool the new latent, and subtract the change from every slot that reads it, in place."""
        for n, (linear, rest) in enumerate(self.branch.through):
            before, value = self.values[n], linear.apply_into(self._spare[n], w)
            change = torch.sub(value, before, out=before)
            rest.subtract_products(change, parts)
            self.values[n], self._spare[n] = value, change
