"""The global random states of torch, NumPy and Python: seeded together, and given back."""

from __future__ import annotations

import functools
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def seed_all(seed: int) -> None:
    """Seed torch (every device), NumPy and Python.

    Args:
        seed: Any whole number that torch takes; NumPy is seeded by its lowest 32 bits.
    """
    if _has_accelerator():
        torch.manual_seed(seed)
    else:
        # torch.manual_seed notes the whole call stack for devices that are not there: 70 to 900 us
        # for every sample that is read, where this takes one.
        torch.default_generator.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


@functools.cache
def _has_accelerator() -> bool:
    """Whether there is a device whose generators have to be seeded, too."""
    return torch.cuda.is_available() or torch.accelerator.is_available()


def derived(*numbers: int) -> int:
    """Return a seed of 32 bits that depends on every number."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


@contextmanager
def kept(cuda: bool = True) -> Iterator[None]:
    """Give the caller's random state back: torch's, NumPy's and Python's.

    Args:
        cuda: Whether the states of CUDA devices are given back, too.
    """
    python, numpy = random.getstate(), np.random.get_state()
    # By number: without a list torch warns where there are several.
    devices = list(range(torch.cuda.device_count())) if cuda and torch.cuda.is_available() else []
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
