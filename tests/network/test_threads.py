"""One network called by several threads, and with sizes of input that take turns."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pursuitify import pursuitify
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
