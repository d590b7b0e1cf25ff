"""The readers of a latent as a tree of shared maps: the off-diagonal blocks of one column.

A pool that several rows inline is one map: a sweep applies it once to the change of its latent,
and once, adjoint, to the sum of what those rows send back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from pursuitify.operators import Factor, LinearMap, accumulate

#: Index of a row and of a slot in it.
Target = tuple[int, int]
PartOf = Callable[[Target], Tensor]


@dataclass(frozen=True, eq=False)
class Branch:
    """Rows that read a value, and maps through which others do.

    Attributes:
        targets: Slots that read the value as it is.
        through: Maps of the value, each with the branch that reads its result.
    """

    targets: tuple[Target, ...]
    through: tuple[tuple[LinearMap, Branch], ...]

    def products(self, value: Tensor) -> Iterator[tuple[Target, Tensor]]:
        """Yield B_jk^T value for every slot that reads it."""
        for target in self.targets:
            yield target, value
        for linear, branch in self.through:
            yield from branch.products(linear.apply(value))

    def products_by_target(self, value: Tensor) -> dict[Target, Tensor]:
        """Return B_jk^T value by the slot that reads it; several paths to one slot add up."""
        found: dict[Target, Tensor] = {}
        for target, product in self.products(value):
            found[target] = found[target] + product if target in found else product
        return found

    def subtract_products(self, value: Tensor, parts: list[list[Tensor]]) -> None:
        """Subtract B_jk^T value from every slot that reads it, in place."""
        for i, s in self.targets:
            parts[i][s] = parts[i][s].sub_(value)
        for linear, branch in self.through:
            if len(branch.targets) == 1 and not branch.through:
                i, s = branch.targets[0]
                parts[i][s] = linear.add_apply(parts[i][s], value, -1.0)
            else:
                branch.subtract_products(linear.apply(value), parts)

    def terms(self, part: PartOf) -> Iterator[Tensor]:
        """Yield the terms of sum_j B_jk r_j, given r_j by slot."""
        for target in self.targets:
            yield part(target)
        for linear, branch in self.through:
            yield linear.adjoint(branch.sum(part))

    def minus_terms(self, total: Tensor, part: PartOf) -> Tensor:
        """Return ``total - sum_j B_jk r_j``."""
        for target in self.targets:
            total = total - part(target)
        for linear, branch in self.through:
            total = linear.minus_adjoint(total, branch.sum(part))
        return total

    def add_terms(self, total: Tensor, part: PartOf, factor: Factor) -> Tensor:
        """Return ``total + factor sum_j B_jk r_j``; overwrites ``total``."""
        for target in self.targets:
            total = accumulate(total, part(target), factor)
        for linear, branch in self.through:
            total = linear.add_adjoint(total, branch.collect(part), factor)
        return total

    def collect(self, part: PartOf) -> Tensor:
        """Return the same as ``sum``, made in place where the sum is a tensor of its own."""
        total: Tensor | None = None
        own = False  # a first term may be a residual, or a view of one
        for target in self.targets:
            total, own = (part(target), False) if total is None else (total + part(target), True)
        for linear, branch in self.through:
            term = branch.collect(part)
            if total is None:
                total = linear.adjoint(term)
            elif own:
                total = linear.add_adjoint(total, term, 1.0)
            else:
                total, own = total + linear.adjoint(term), True
        assert total is not None, "a branch without readers"
        return total

    def collect_into(self, into: Tensor, part: PartOf, factor: Factor) -> Tensor:
        """Return ``factor sum_j B_jk r_j``, in ``into``."""
        empty = True
        for target in self.targets:
            if empty:
                into, empty = torch.mul(part(target), factor, out=into), False
            else:
                into = accumulate(into, part(target), factor)
        for linear, branch in self.through:
            term = branch.collect(part)
            if empty:
                into, empty = torch.mul(linear.adjoint(term), factor, out=into), False
            else:
                into = linear.add_adjoint(into, term, factor)
        assert not empty, "a branch without readers"
        return into

    def sum(self, part: PartOf) -> Tensor:
        """Return sum_j B_jk r_j."""
        total: Tensor | None = None
        for term in self.terms(part):
            total = term if total is None else total + term
        assert total is not None, "a branch without readers"
        return total


def branch_of(paths: Iterable[tuple[Target, tuple[LinearMap, ...]]]) -> Branch:
    """Merge chains of maps, the one next to the latent first, by their common beginnings."""
    targets: list[Target] = []
    groups: dict[int, tuple[LinearMap, list[tuple[Target, tuple[LinearMap, ...]]]]] = {}
    for target, maps in paths:
        if not maps:
            targets.append(target)
        else:
            group = groups.setdefault(id(maps[0]), (maps[0], []))
            group[1].append((target, maps[1:]))
    through = tuple((linear, branch_of(rest)) for linear, rest in groups.values())
    return Branch(tuple(targets), through)
