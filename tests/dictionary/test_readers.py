"""Trees of shared maps: each map once, and the same sums as path by path."""

from __future__ import annotations

import torch
from torch import Tensor

from pursuitify.dictionary.readers import branch_of
from pursuitify.operators import LinearMap, Scale


class _Counted(LinearMap):
    def __init__(self, factor: float) -> None:
        self.factor, self.applied, self.adjoined = factor, 0, 0

    def apply(self, x: Tensor) -> Tensor:
        self.applied += 1
        return self.factor * x

    def adjoint(self, y: Tensor) -> Tensor:
        self.adjoined += 1
        return self.factor * y

    def norm_bound(self) -> float:
        return abs(self.factor)


def test_common_beginnings_are_shared() -> None:
    shared, other = _Counted(2.0), _Counted(3.0)
    paths = [
        ((1, 0), ()),
        ((2, 0), (shared,)),
        ((3, 1), (shared, Scale(5.0))),
        ((3, 1), (other,)),
    ]
    branch = branch_of(paths)
    x = torch.tensor([1.0])
    products: dict[tuple[int, int], float] = {}
    for target, value in branch.products(x):
        products[target] = products.get(target, 0.0) + float(value)
    assert products == {(1, 0): 1.0, (2, 0): 2.0, (3, 1): 2.0 * 5.0 + 3.0}
    parts = {(1, 0): 1.0, (2, 0): 10.0, (3, 1): 100.0}
    total = sum(float(t) for t in branch.terms(lambda target: torch.tensor([parts[target]])))
    assert total == 1.0 + 2.0 * (10.0 + 5.0 * 100.0) + 3.0 * 100.0
    assert (shared.applied, shared.adjoined, other.applied, other.adjoined) == (1, 1, 1, 1)


def test_equal_maps_that_are_not_the_same_object_stay_apart() -> None:
    branch = branch_of([((1, 0), (Scale(2.0),)), ((2, 0), (Scale(2.0),))])
    assert len(branch.through) == 2
