"""One network called by several threads, and with sizes of input that take turns."""

from __future__ import annotations

import random
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from numpy.random import rand as drawn_by_numpy
from torch import Tensor, nn
from torch.nn import functional as F

from pursuitify import explain, pursuitify
from pursuitify.compiler.tracing import hidden_state
from pursuitify.operators import onednn_conv
from pursuitify.operators.norms import certified
from pursuitify.solvers.inplace import kernel_packing


def made() -> nn.Module:
    torch.manual_seed(0)
    layers = [layer for _ in range(4) for layer in (nn.Conv2d(4, 4, 3, padding=1), nn.ReLU())]
    return nn.Sequential(*layers).eval()


@pytest.fixture
def hasty() -> Iterator[None]:
    """Let threads take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.parametrize("kept", [1, kernel_packing.KEPT])
def test_threads_with_batches_of_their_own(
    kept: int, hasty: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel_packing, "KEPT", kept)
    monkeypatch.setattr(certified, "_KEPT", 3)
    monkeypatch.setattr(certified, "_KNOWN", {})
    net = pursuitify(made(), iterations=2)
    inputs = [torch.rand(batch, 4, 6, 6) for batch in (1, 2, 3, 5)]
    with torch.no_grad():
        expected = [net(x) for x in inputs]
    net = pursuitify(made(), iterations=2)
    wrong: list[str] = []

    def work(first: int) -> None:
        try:
            for k in range(60):
                i = (first + k) % len(inputs)
                if k % 20 == 0:
                    net._norms._kept = b"", {}
                with torch.no_grad():
                    if not torch.allclose(net(inputs[i]), expected[i], rtol=1e-4, atol=1e-6):
                        wrong.append(f"another value for input {i}")
        except Exception as error:
            wrong.append(repr(error))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.skipif(not onednn_conv.available(), reason="this torch has no such operators")
def test_sizes_that_take_turns_are_packed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    count = 0
    pack = onednn_conv._pack

    def counted(*args: Any) -> onednn_conv.Kernel:
        nonlocal count
        count += 1
        return pack(*args)

    onednn_conv.available()
    monkeypatch.setattr(onednn_conv, "_pack", counted)
    net = pursuitify(made(), iterations=2)

    def packings(inputs: list[Tensor]) -> int:
        before = count
        with torch.no_grad():
            for x in inputs:
                net(x)
        return count - before

    sizes = [torch.rand(b, 4, n, n) for b, n in ((1, 6), (2, 6), (1, 8), (2, 8))]
    assert len(sizes) == kernel_packing.KEPT
    once = packings(sizes[:1])
    assert once > 0
    assert packings(sizes) == 3 * once
    assert packings([*sizes, *reversed(sizes), *sizes]) == 0
    assert packings([torch.rand(7, 4, 6, 6)]) == once
    assert len(net._kernels._kept) == kernel_packing.KEPT, "what is kept is bounded"
    with torch.no_grad():
        net.get_parameter("0.weight").mul_(1.1)
    assert packings(sizes[:1]) == once
    assert len(net._kernels._kept) == 1, "what was packed of other weights is gone"


def test_a_model_runs_and_learns_while_another_thread_converts_it(hasty: None) -> None:
    model, x = made(), torch.rand(2, 4, 6, 6)
    expected = model(x)
    wrong: list[str] = []
    done = threading.Event()

    def use() -> None:
        try:
            while not done.is_set():
                value = model(x)
                value.sum().backward()
                if not torch.equal(value, expected):
                    wrong.append("another value")
        except Exception as error:
            wrong.append(repr(error))

    threads = [threading.Thread(target=use) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        nets = [pursuitify(model, iterations=0) for _ in range(12)]
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert not wrong
    count = len(list(pursuitify(model).source.graph.nodes))
    assert all(len(list(net.source.graph.nodes)) == count for net in nets), "nothing else is traced"
    assert all(torch.equal(net(x), expected) for net in nets)


class Branching(nn.Module):
    """A network whose trace asks for sizes, with dropouts that draw nothing in evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.last, self.drop = nn.Conv2d(4, 6, 3), nn.Linear(6, 3), nn.Dropout(0.2)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        if x.shape[-1] > 2 and x.numel() > 0:
            x = F.relu(self.conv(x))
        return self.last(self.drop(x.mean((2, 3))))


#: Draws from each global generator, as plain numbers.
GENERATORS: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "torch": (lambda: torch.manual_seed(3), lambda: torch.rand(2).tolist()),
    "random": (lambda: random.seed(3), random.random),
    "numpy": (lambda: np.random.seed(3), lambda: np.random.rand(2).tolist()),
}


class Drawing:
    """A thread that draws numbers for as long as the context is open."""

    def __init__(self, draw: Callable[[], Any]) -> None:
        self.draw = draw
        self.found: list[Any] = []
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._work)

    def _work(self) -> None:
        while not self._end.wait(1e-4):
            self.found.append(self.draw())

    def __enter__(self) -> Drawing:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()


@pytest.mark.parametrize("build", [made, Branching])
@pytest.mark.parametrize("name", GENERATORS)
def test_a_conversion_beside_a_thread_that_draws_changes_no_number_of_it(
    name: str, build: Callable[[], nn.Module]
) -> None:
    model, x = build().eval(), torch.rand(2, 4, 6, 6)
    seed, draw = GENERATORS[name]
    seed()
    with Drawing(draw) as thread, torch.no_grad():
        assert explain(model).ok
        net = pursuitify(model, iterations=1, example_inputs=x if build is made else None)
        net(x)
        assert net.verify(x).ok
    seed()
    assert thread.found == [draw() for _ in thread.found]
    assert len(thread.found) > 3


DRAWS: dict[str, Callable[[], Any]] = {
    "torch": lambda: float(torch.rand(())),
    "in place": lambda: float(torch.empty(1).uniform_()),
    "seed": lambda: torch.manual_seed(0) and 1.0,
    "random": random.random,
    "randint": lambda: random.randint(0, 5),
    "numpy": lambda: np.random.rand(),
    "by name": lambda: drawn_by_numpy(),
}


@pytest.mark.parametrize("threads", [0, 1])
@pytest.mark.parametrize("name", DRAWS)
def test_a_forward_that_draws_itself_is_refused_beside_threads(name: str, threads: int) -> None:
    class Draws(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = super().forward(x)
            return y * DRAWS[name]()

    model = Draws(nn.Conv2d(4, 4, 3), nn.ReLU())
    idle = threading.Event()
    if threads:
        threading.Thread(target=idle.wait).start()
    states = hidden_state.random_state()
    assert "draws random numbers" in str(explain(model))
    idle.set()
    assert not any(hidden_state._moved(states, hidden_state.random_state()))


def test_what_a_thread_hands_to_torch_is_named_beside_another() -> None:
    """The watch on draws stands aside where a traced value answers for itself."""

    class Hands(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return F.relu(super().forward(torch.autograd.Variable(F.relu(x))))

    idle = threading.Event()
    threading.Thread(target=idle.wait).start()
    report = str(explain(Hands(4, 4)))
    idle.set()
    assert "the traced value 'relu' to code that torch" in report
