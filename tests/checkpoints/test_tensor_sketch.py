"""Sketches tell tensors apart, and do not tell rounding errors apart."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from pursuitify.checkpoints.tensor_sketch import same, sketch


@pytest.mark.parametrize("count", [1, 7, 256, 5000])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_rounding_is_the_same_and_one_entry_is_not(count: int, dtype: torch.dtype) -> None:
    value = torch.randn(count, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert same(sketch(value), sketch(value.to(dtype)))
    for place in (0, count // 2, count - 1):
        other = value.clone()
        other[place] += 10.0
        assert not same(sketch(value), sketch(other.to(dtype)))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (torch.arange(4), torch.arange(4).float()),
        (torch.arange(4), torch.arange(4).view(2, 2)),
        (torch.tensor([100000, 1]), torch.tensor([100001, 1])),
        (torch.tensor([True, False]), torch.tensor([False, True])),
        (torch.tensor([0.0, -torch.inf]), torch.tensor([-torch.inf, 0.0])),
        (torch.tensor([0.0, torch.inf]), torch.tensor([0.0, torch.nan])),
        (torch.tensor([1 + 1j]), torch.tensor([1 - 1j])),
        (torch.empty(0), torch.empty(0, 3)),
    ],
)
def test_others(one: torch.Tensor, other: torch.Tensor) -> None:
    for value in (one, other):
        assert same(json.loads(json.dumps(sketch(value))), sketch(value.clone()))
    assert not same(sketch(one), sketch(other))


@pytest.mark.parametrize(
    "hostile",
    [None, [], {}, "x", {"shape": [2]}, {"norms": {}}, {"norms": [], "sums": []}]
    + [{key: None} for key in ("shape", "precision", "norms", "sums")]
    + [{"norms": [1.0], "sums": [1.0]}, {"norms": [[], []]}, {"precision": float("nan")}],
)
def test_what_is_no_sketch(hostile: Any) -> None:
    whole = sketch(torch.ones(2))
    altered = {**whole, **hostile} if isinstance(hostile, dict) and hostile else hostile
    if altered == {**whole, "shape": [2]}:
        altered = {"shape": [2]}
    assert not same(altered, whole)
    assert not same(whole, altered)
    assert same(whole, whole)
