"""A forward that is no function of its input: what it draws, counts or keeps is refused, not fixed.

Every kind is run against its source as well, so that what converts is shown to be followed.
"""

from __future__ import annotations

import collections
import itertools
import os
import random
import threading
import time
import types
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pursuitify import pursuitify
from pursuitify.compiler.tracing import hidden_state
from pursuitify.errors import TraceError

TORCH = torch.Generator().manual_seed(5)
NUMPY = np.random.default_rng(1)
PYTHON = random.Random(2)
COUNTED = [0]


class Net(nn.Module):
    """A network with a body of one's own, which may keep things in ``held``."""

    def __init__(self, body: Callable[[Any, Tensor], Tensor], held: Any = None) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 1)
        self.body, self.held = body, held

    def forward(self, x: Tensor) -> Tensor:
        """Return the last latent."""
        return torch.relu(self.last(self.body(self, torch.relu(self.first(x)))))


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def _list(net: Any, x: Tensor) -> Tensor:
    net.held[0] += 1
    return x * net.held[0]


def _entry(net: Any, x: Tensor) -> Tensor:
    net.held["n"] = net.held["n"] + 1
    return x * net.held["n"]


def _namespace(net: Any, x: Tensor) -> Tensor:
    net.held.n += 1
    return x * net.held.n


def _class(net: Any, x: Tensor) -> Tensor:
    net.held.calls += 1
    return x * net.held.calls


class _Counts:
    calls = 0


def _global(_net: Any, x: Tensor) -> Tensor:
    COUNTED[0] += 1
    return x * COUNTED[0]


def _default(_net: Any, x: Tensor, kept: list[int] = []) -> Tensor:  # noqa: B006
    kept.append(1)
    return x * len(kept)


def _closure() -> Callable[[Any, Tensor], Tensor]:
    count = 0

    def body(_net: Any, x: Tensor) -> Tensor:
        nonlocal count
        count += 1
        return x * count

    return body


def _rotating(net: Any, x: Tensor) -> Tensor:
    net.held.rotate(1)
    return x * net.held[0]


def _replaced(net: Any, x: Tensor) -> Tensor:
    net.held = net.held * 2
    return x * net.held


def _replaced_like(net: Any, x: Tensor) -> Tensor:
    net.held = net.held.to(x) * 2
    return x * net.held


def _in_place(net: Any, x: Tensor) -> Tensor:
    net.held.mul_(2)
    return x * net.held


def _last(net: Any, x: Tensor) -> Tensor:
    y = x if net.held is None else x + net.held
    net.held = x.mean()
    return y


def _forked(_net: Any, x: Tensor) -> Tensor:
    with torch.random.fork_rng(devices=[]):
        return x * torch.rand(1)


#: Bodies that depend on more than their input, and what the network holds for them.
REFUSED: dict[str, tuple[Callable[[Any, Tensor], Tensor], Any]] = {
    "generator": (lambda net, x: x * torch.rand(1, 4, 1, 1, generator=net.held), generator()),
    "generator, permutation": (
        lambda net, x: x[:, torch.randperm(4, generator=net.held)], generator()),
    "generator, in place": (
        lambda net, x: x * x.new_empty(x.size(0), 1, 1, 1).bernoulli_(0.5, generator=net.held),
        generator(),
    ),
    "generator, branch": (
        lambda net, x: x if torch.rand(1, generator=net.held).item() < 0.5 else 2 * x,
        generator()),
    "generator in a list": (
        lambda net, x: x * torch.rand(1, generator=net.held[0]["a"]), [{"a": generator()}]),
    "generator, global": (lambda _net, x: x * torch.rand(1, generator=TORCH), None),
    "Random": (lambda net, x: x * net.held.random(), random.Random(0)),
    "Random, branch": (lambda net, x: x if net.held.random() < 0.5 else 2 * x, random.Random(0)),
    "Random, global": (lambda _net, x: x * PYTHON.random(), None),
    "random": (lambda _net, x: x * random.random(), None),
    "SystemRandom": (lambda _net, x: x * random.SystemRandom().random(), None),
    "NumPy": (lambda _net, x: x * float(np.random.rand()), None),
    "NumPy's Generator": (lambda net, x: x * float(net.held.random()), np.random.default_rng(0)),
    "NumPy's Generator, global": (lambda _net, x: x * float(NUMPY.random()), None),
    "NumPy's RandomState": (
        lambda net, x: x * float(net.held.rand()), np.random.RandomState(0)),
    "NumPy, a new Generator": (
        lambda _net, x: x * float(np.random.default_rng().random()), None),
    "forked": (_forked, None),
    "clock": (lambda _net, x: x * time.perf_counter_ns(), None),
    "urandom": (lambda _net, x: x * int.from_bytes(os.urandom(8), "big"), None),
    "list": (_list, [0]),
    "dict": (_entry, {"n": 0}),
    "Counter": (_entry, collections.Counter()),
    "namespace": (_namespace, types.SimpleNamespace(n=0)),
    "class": (_class, _Counts),
    "global": (_global, None),
    "default": (_default, None),
    "closure": (_closure(), None),
    "deque": (_rotating, collections.deque([1, 2, 3])),
    "count": (lambda net, x: x * next(net.held), itertools.count(1)),
    "cycle": (lambda net, x: x * next(net.held), itertools.cycle([1, 2])),
    "iterator": (lambda net, x: x * next(net.held), iter([1, 2, 3, 4, 5, 6, 7, 8])),
    "tensor replaced": (_replaced, torch.ones(1)),
    "tensor replaced by a traced one": (_replaced_like, torch.ones(1)),
    "tensor in place": (_in_place, torch.ones(1)),
    "last input": (_last, None),
    "last input in a list": (
        lambda net, x: x if net.held.append(x) or len(net.held) < 2 else x + net.held[-2], []),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_depends_on_more_than_the_input_is_refused(name: str) -> None:
    body, held = REFUSED[name]
    model = Net(body, held).eval()
    states = [hidden_state.state_of(g) for g in (PYTHON, NUMPY)]
    drawn = TORCH.get_state(), torch.get_rng_state(), random.getstate()
    with pytest.raises(TraceError, match=r"called again|random numbers|Generator|in place"):
        pursuitify(model)
    # The caller's generators are where they were.
    assert [hidden_state.state_of(g) for g in (PYTHON, NUMPY)] == states
    assert torch.equal(TORCH.get_state(), drawn[0])
    assert torch.equal(torch.get_rng_state(), drawn[1])
    assert random.getstate() == drawn[2]


def _lazy(net: Any, x: Tensor) -> Tensor:
    if net.held is None:
        net.held = torch.full((1, 4, 1, 1), 2.0)
    return x * net.held


def _lazy_like(net: Any, x: Tensor) -> Tensor:
    if net.held is None:
        net.held = x.new_ones(x.size(0), 1, 1, 1)
    return x * net.held


def _by_size(net: Any, x: Tensor) -> Tensor:
    key = len(x.shape)
    if key not in net.held:
        net.held[key] = torch.ones_like(x[:, :1])
    return x * net.held[key]


def _moved(net: Any, x: Tensor) -> Tensor:
    net.held = net.held.to(device=x.device)
    return x * net.held


def _seen(net: Any, x: Tensor) -> Tensor:
    net.held = x
    return 2 * x


def _counted(net: Any, x: Tensor) -> Tensor:
    net.held[0] += 1
    return 2 * x


#: Bodies that keep something and give the same to the same input.
KEPT: dict[str, tuple[Callable[[Any, Tensor], Tensor], Any]] = {
    "made once": (_lazy, None),
    "made once of sizes": (_lazy_like, None),
    "made once in a dict": (_by_size, {}),
    "moved": (_moved, torch.full((1,), 2.0)),
    "looked at from outside": (_seen, None),
    "listed": (lambda net, x: x if net.held.append(x.detach()) else 2 * x, []),
    "counted": (_counted, [0]),
    "not a number": (lambda _net, x: torch.nan_to_num(x * float("nan"), 1.0) * x, None),
    "generator of no use": (lambda _net, x: 2 * x, generator()),
}


@pytest.mark.parametrize("name", KEPT)
def test_what_is_kept_and_changes_nothing_converts(name: str) -> None:
    torch.manual_seed(0)
    body, held = KEPT[name]
    model, x = Net(body, held).eval(), torch.rand(2, 3, 5, 5)
    net = pursuitify(model, iterations=0)
    with torch.no_grad():
        for _ in range(3):
            assert torch.equal(net(x), model(x))


def _numbers() -> Iterator[int]:
    yield from range(9)


@pytest.mark.parametrize("held", [_numbers(), threading.Lock()])
def test_what_cannot_be_copied_is_refused(held: Any) -> None:
    with pytest.raises(TraceError, match=r"cannot be copied: cannot pickle .* __deepcopy__"):
        pursuitify(Net(lambda net, x: x, held))


def test_states_of_generators_are_put_back() -> None:
    for made in (generator(), random.Random(1), np.random.default_rng(1), np.random.RandomState(1)):
        state = hidden_state.state_of(made)
        assert not hidden_state.put_state(made, state)

        def draw(of: Any = made) -> float:
            return float(torch.rand(1, generator=of) if isinstance(of, torch.Generator) else
                         of.random())  # fmt: skip

        first = draw()
        assert hidden_state.put_state(made, state)
        assert draw() == first
