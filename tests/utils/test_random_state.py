"""Global random states are seeded as torch, NumPy and Python seed them."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from pursuitify.utils import random_state


def drawn() -> tuple[torch.Tensor, float, float]:
    return torch.rand(5), float(np.random.rand()), random.random()


@pytest.mark.parametrize("seed", [0, 7, 2**40 + 3, 2**63 - 1])
def test_seeds_are_those_of_the_libraries(seed: int) -> None:
    with random_state.kept():
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)
        random.seed(seed)
        expected = drawn()
        drawn()
        random_state.seed_all(seed)
        found = drawn()
    assert torch.equal(found[0], expected[0])
    assert found[1:] == expected[1:]


def test_devices_are_seeded_where_there_are_any(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[int] = []
    monkeypatch.setattr(torch, "manual_seed", seeds.append)
    for has, expected in ((False, []), (True, [3])):
        monkeypatch.setattr(random_state, "_has_accelerator", lambda has=has: has)
        with random_state.kept():
            random_state.seed_all(3)
        assert seeds == expected
