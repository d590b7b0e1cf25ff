"""Who reads a latent, as a tree of shared maps: the off-diagonal blocks of one column.

A pool that several rows inline is one map: a sweep applies it once to the change of its latent,
and once, adjoint, to the sum of what those rows send back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from torch import Tensor

from pursuitify.maps import LinearMap

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

    def terms(self, part: PartOf) -> Iterator[Tensor]:
        """Yield the terms of sum_j B_jk r_j, given r_j by slot."""
        for target in self.targets:
            yield part(target)
        for linear, branch in self.through:
            total: Tensor | None = None
            for term in branch.terms(part):
                total = term if total is None else total + term
            assert total is not None, "a branch without readers"
            yield linear.adjoint(total)


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
