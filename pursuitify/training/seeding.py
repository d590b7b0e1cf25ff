"""Random numbers as a function of where training stands: resuming needs no generator's state."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

# What a seed is for; the numbers are part of what makes a run repeat.
ORDER, ITEM, STEP, ATTACK, PENALTY, SOURCE, NOISE = range(7)


def derived(*numbers: int) -> int:
    """Return a seed of 32 bits that depends on every number."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def seed_all(seed: int) -> None:
    """Seed torch (every device), NumPy and Python."""
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


@contextmanager
def kept(cuda: bool = True) -> Iterator[None]:
    """Give the caller's random state back: torch's, NumPy's and Python's."""
    python, numpy = random.getstate(), np.random.get_state()
    devices: list[int] | None = None if cuda and torch.cuda.is_available() else []
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


class RandomStream:
    """A random stream of its own: inside ``with``, torch, NumPy and Python draw from it."""

    def __init__(self, seed: int) -> None:
        """Start the stream."""
        with kept(cuda=False):
            seed_all(seed)
            self._states = _states()
        self._outside = self._states

    def __enter__(self) -> None:
        self._outside = _states()
        _set(self._states)

    def __exit__(self, *_: object) -> None:
        self._states = _states()
        _set(self._outside)


def _states() -> tuple[Any, Any, Any]:
    return torch.get_rng_state(), np.random.get_state(), random.getstate()


def _set(states: tuple[Any, Any, Any]) -> None:
    torch.set_rng_state(states[0])
    np.random.set_state(states[1])
    random.setstate(states[2])
