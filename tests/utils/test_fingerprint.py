"""Fingerprints: equal where the subject is, different where anything that counts is."""

from __future__ import annotations

import functools
import operator
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from pursuitify.utils.fingerprint import (
    attributes_of,
    comparable,
    holds_generator,
    of_tensors,
    of_values,
)

FACTOR: Any = 1.0


class Setting:
    """An object of a user's own."""

    def __init__(self, size: float) -> None:
        self.size = size


class Slots:
    """An object without a ``__dict__``."""

    __slots__ = ("size",)

    def __init__(self, size: float) -> None:
        self.size = size


def scaled(x: Any, size: float = 1.0) -> Any:
    return x * size


def with_global(x: Any) -> Any:
    return x * FACTOR


def seeded(kind: Callable[[int], Any]) -> Callable[[float], Any]:
    return lambda size: kind(int(8 * size))


#: A thing made of a number; another number makes another thing.
THINGS: dict[str, Callable[[float], Any]] = {
    "number": lambda s: s,
    "text": str,
    "range": lambda s: range(int(8 * s)),
    "slice": lambda s: slice(0, int(8 * s)),
    "size": lambda s: torch.Size([int(8 * s)]),
    "list": lambda s: [1, [s]],
    "dict": lambda s: {"a": {"b": s}},
    "set": lambda s: {1.0, s + 2},
    "frozen set of objects": lambda s: frozenset([(1, s)]),
    "array": lambda s: np.array([s]),
    "array of objects": lambda s: np.array([s, None], dtype=object),
    "number of NumPy": lambda s: np.float32(s),
    "tensor": lambda s: torch.tensor([s]),
    "sparse tensor": lambda s: torch.tensor([[0.0, s]]).to_sparse(),
    "conjugated tensor": lambda s: torch.tensor([1 + 1j * s]).conj(),
    "shape of a tensor on meta": lambda s: torch.empty(int(8 * s), device="meta"),
    "module": lambda s: nn.Sequential(nn.Dropout(s)),
    "object": Setting,
    "object with slots": Slots,
    "partial": lambda s: functools.partial(scaled, size=s),
    "method": lambda s: nn.Dropout(s).forward,
    "closure": lambda s: lambda x: scaled(x, s),
    "default": lambda s: lambda x, size=s: scaled(x, size),
    "closure of a closure": lambda s: lambda x: (lambda y: y * s)(x),
    "generator of torch": seeded(lambda n: torch.Generator().manual_seed(n)),
    "generator of NumPy": seeded(np.random.default_rng),
    "old generator of NumPy": seeded(np.random.RandomState),
    "generator of Python": seeded(random.Random),
}


@pytest.mark.parametrize("attributes", [True, False])
@pytest.mark.parametrize("name", THINGS)
def test_equal_things_have_equal_fingerprints_and_others_other_ones(
    name: str, attributes: bool
) -> None:
    make = THINGS[name]
    one, again, other = (of_values(make(s), attributes=attributes) for s in (0.5, 0.5, 0.25))
    assert one == again
    assert one != other
    assert holds_generator([make(0.5)]) == ("generator" in name)


@pytest.mark.parametrize(
    "make",
    [
        lambda s: s,
        Setting,
        lambda s: {"size": s},
        lambda s: nn.Dropout(s),
        lambda s: torch.tensor(s),
        lambda s: functools.partial(scaled, size=s),
    ],
)
def test_what_a_function_names_in_its_module_counts(
    make: Callable[[float], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for size in (0.5, 0.5, 0.25):
        monkeypatch.setitem(globals(), "FACTOR", make(size))
        found.append(of_values(with_global))
    assert found[0] == found[1]
    assert found[0] != found[2]


def test_functions_of_libraries_are_known_by_name() -> None:
    pairs = [
        (torch.relu, torch.sigmoid),
        (torch.Tensor.neg, torch.Tensor.abs),
        (nn.functional.relu, nn.functional.gelu),
        (operator.add, operator.sub),
        (nn.ReLU, nn.GELU),
        (np, torch),
    ]
    for one, other in pairs:
        assert of_values(one) == of_values(one) != of_values(other)


def test_a_library_counts_with_its_version(monkeypatch: pytest.MonkeyPatch) -> None:
    import networkx

    before, known = of_values(networkx.DiGraph), of_values(nn.ReLU)
    monkeypatch.setattr(networkx, "__version__", "0")
    monkeypatch.setattr(torch, "__version__", "0")
    assert of_values(networkx.DiGraph) != before
    assert of_values(nn.ReLU) == known, "those who compare ask for torch's version themselves"


class Counting(nn.Module):
    """A network with an attribute that every pass changes."""

    def __init__(self, mean: float = 0.0) -> None:
        super().__init__()
        self.body, self.mean, self.calls = nn.Linear(2, 2), mean, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        y: Tensor = self.body(x - self.mean)
        return y


def test_attributes_of_modules_count_where_they_are_asked_for() -> None:
    torch.manual_seed(0)
    net = Counting()
    whole, weights, each = of_values(net), of_values(net, attributes=False), attributes_of(net)
    net(torch.zeros(1, 2))
    assert of_values(net) != whole
    assert of_values(net, attributes=False) == weights
    assert {k for k, v in attributes_of(net).items() if v != each[k]} == {"calls"}
    assert each.keys() >= {"mean", "calls", "body.in_features"}
    with torch.no_grad():
        net.body.weight[0, 0] += 1
    assert of_values(net, attributes=False) != weights


@given(st.lists(st.lists(st.integers(0, 3), max_size=3), max_size=3))
def test_no_two_structures_read_alike(structure: list[list[int]]) -> None:
    """Where a list ends counts: [[1], [2]] is not [[1, 2], []]."""
    flat = [[*(i for part in structure for i in part)], *([[]] * (len(structure) - 1))]
    assert (of_values(structure) == of_values(flat)) == (structure == flat)


@given(st.lists(st.lists(st.integers(0, 3), max_size=2), min_size=1, max_size=3), st.data())
def test_one_object_twice_is_two_equal_ones(parts: list[list[int]], data: st.DataObject) -> None:
    places = data.draw(st.lists(st.integers(0, len(parts) - 1), max_size=4))
    shared = [parts[i] for i in places]
    assert of_values(shared) == of_values([list(part) for part in shared])


def test_sets_have_no_order_and_circles_end() -> None:
    one, other = {0, 8}, {8, 0}
    assert list(one) != list(other), "what was put in first comes first"
    assert of_values(one) == of_values(other)
    circle: list[Any] = [1]
    circle.append(circle)
    second: list[Any] = [2]
    second.append(second)
    assert of_values(circle) != of_values(second)
    member = Setting(1.0)
    member.size = {member}  # type: ignore[assignment]
    assert of_values(member) == of_values(member)


def test_a_text_with_half_a_character_has_one() -> None:
    assert of_values("\ud800") != of_values("\udfff")


def test_tensors_count_with_shape_type_and_entries() -> None:
    x = torch.arange(6.0)
    others = [x.reshape(2, 3), x.double(), x + 1, x.flip(0)]
    assert len({of_tensors(t) for t in (x, *others)}) == 5
    assert of_tensors(torch.arange(12.0)[::2] / 2) == of_tensors(x), "strides do not"
    assert of_tensors(torch.empty(0, 3)) != of_tensors(torch.empty(0, 2))


def test_fingerprints_of_code_are_compared_within_one_version_of_python() -> None:
    found = of_values(scaled)
    assert ":" in found
    assert ":" not in of_values(1)
    assert comparable(found, found)
    assert not comparable("#3.11:a", "#3.12:a")
