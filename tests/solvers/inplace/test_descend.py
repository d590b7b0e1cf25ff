"""The fast path: it is the one that runs where no derivative is recorded, and it is right."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pursuitify import pursuitify
from pursuitify.models import ChainNet, DenselyConnectedNet, ResidualNet
from pursuitify.operators import LinearMap
from pursuitify.rules import linear
from pursuitify.solvers.inplace import descend, descend_extrapolated
from tests.support.nets import CASES, LAYOUTS, Case
from tests.support.oracle import Oracle

Descents = list[tuple[str, int]]
alphas = pytest.mark.parametrize("alpha", [0.0, 0.3])


@pytest.fixture
def descents(monkeypatch: pytest.MonkeyPatch) -> Descents:
    """Which fast path was asked for how many sweeps, call by call."""
    asked: Descents = []

    def watch(module: ModuleType) -> None:
        descend: Callable[..., Iterator[Any]] = module.descend

        def watched(*args: Any) -> Iterator[Any]:
            asked.append((module.__name__.rpartition(".")[2], args[-2]))
            return descend(*args)

        monkeypatch.setattr(module, "descend", watched)

    watch(descend)
    watch(descend_extrapolated)
    return asked


def path_of(alpha: float) -> str:
    return "descend_extrapolated" if alpha else "descend"


@alphas
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_fast_path_agrees_with_the_oracle(
    case: Case, layout: Any, alpha: float, descents: Descents
) -> None:
    model, x = case.build(), case.input()
    net = pursuitify(model, layout=layout)
    oracle = Oracle(case.rows(model, layout, x), x)
    counts = (1, 2, 5)
    with torch.no_grad():
        net.pursuit.alpha.fill_(alpha)
        steps = {k: float(v) for k, v in net.step_sizes(x).items()}
        for count in counts:
            net.iterations = count
            found = np.concatenate([v.reshape(-1).numpy() for v in net.latents(x).values()])
            expected = oracle.sweeps(count, steps, alpha)
            scale = max(1.0, float(np.abs(expected).max()))
            assert np.abs(found - expected).max() <= 1e-10 * scale
    assert descents == [(path_of(alpha), count) for count in counts], "another path ran"


@alphas
@pytest.mark.parametrize("build", [ChainNet, ResidualNet, DenselyConnectedNet])
def test_fast_and_plain_path_agree_in_float32(
    build: type[nn.Module], alpha: float, descents: Descents
) -> None:
    torch.manual_seed(0)
    net = pursuitify(build(in_channels=3, num_classes=5, width=8).eval(), iterations=10)
    x = torch.rand(4, 3, 16, 16)
    with torch.no_grad():
        net.pursuit.alpha.fill_(alpha)
    plain = {k: v.detach() for k, v in {"output": net(x), **net.latents(x)}.items()}
    assert descents == [], "the fast path ran where derivatives are recorded"
    with torch.no_grad():
        fast = {"output": net(x), **net.latents(x)}
    assert descents == [(path_of(alpha), 10)] * 2
    for name, value in plain.items():
        error = float((fast[name] - value).abs().max() / value.abs().max().clamp_min(1e-30))
        assert error <= 1e-6, name


@alphas
@pytest.mark.parametrize("double", [False, True])
def test_memory_does_not_grow_with_the_sweeps(
    alpha: float, double: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float32 kernels are packed, in float64 they are not; no tensor may be left over."""
    made: list[descend.Spares] = []

    class Watched(descend.Spares):
        def __init__(self) -> None:
            super().__init__()
            made.append(self)

    for module in (descend, descend_extrapolated):
        monkeypatch.setattr(module, "Spares", Watched)
    net = pursuitify(ChainNet(in_channels=3, num_classes=5, width=4).eval())
    x = torch.rand(2, 3, 8, 8)
    net, x = (net.double(), x.double()) if double else (net, x)
    left = []
    for net.iterations in (5, 20):
        with torch.no_grad():
            net.pursuit.alpha.fill_(alpha)
            net(x)
        left.append(sum(len(free) for free in made[-1]._free.values()))
    assert left[0] == left[1]


class _Fork(nn.Module):
    """Two decoder rows read one latent as it is: two links to it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 5), nn.Linear(5, 6), nn.Linear(5, 6)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.a(x))
        return torch.relu(self.b(h)) - torch.relu(self.c(h))


class _Mixed(nn.Module):
    """One slot reads a latent as it is, twice, and through a pool."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.a(x))
        mixed = h + F.avg_pool2d(h, 3, stride=1, padding=1) + h
        return torch.relu(self.b(torch.relu(mixed)))


@alphas
def test_a_slot_that_reads_a_latent_in_several_ways(alpha: float) -> None:
    torch.manual_seed(0)
    net = pursuitify(_Mixed().double(), iterations=4).eval()
    x = torch.rand(3, 2, 6, 6, dtype=torch.float64)
    with torch.no_grad():
        net.pursuit.alpha.fill_(alpha)
    recorded = net(x)
    with torch.no_grad():
        torch.testing.assert_close(net(x), recorded, rtol=1e-12, atol=1e-12)


@alphas
def test_two_links_to_one_latent(alpha: float) -> None:
    torch.manual_seed(0)
    net = pursuitify(_Fork().double(), iterations=4).eval()
    with torch.no_grad():
        net.pursuit.alpha.fill_(alpha)
    x = torch.rand(3, 4, dtype=torch.float64)
    recorded = net(x)
    assert list(dict(net.graph.nodes(data="layout")).values()).count("decoder") == 3
    with torch.no_grad():
        torch.testing.assert_close(net(x), recorded, rtol=1e-12, atol=1e-12)


class _Turned(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(-1, -2)


class _Turn(LinearMap):
    """A map whose adjoint is a view of what it is given."""

    def apply(self, x: Tensor) -> Tensor:
        return x.transpose(-1, -2)

    def adjoint(self, y: Tensor) -> Tensor:
        return y.transpose(-1, -2)

    def norm_bound(self) -> float:
        return 1.0


@alphas
def test_a_product_that_is_a_view_of_its_latent(alpha: float) -> None:
    torch.manual_seed(0)
    layers = nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), _Turned(), nn.ReLU(), nn.Conv2d(3, 2, 3)
    model = nn.Sequential(*layers, nn.ReLU()).double().eval()
    rules = {_Turned: linear(lambda module, x: _Turn(), weighted=True)}
    net = pursuitify(model, iterations=4, rules=rules)
    x = torch.rand(2, 2, 5, 5, dtype=torch.float64)
    with torch.no_grad():
        net.pursuit.alpha.fill_(alpha)
    for net.iterations in (1, 4):
        recorded = {name: value.detach() for name, value in net.latents(x).items()}
        with torch.no_grad():
            torch.testing.assert_close(net.latents(x), recorded, rtol=1e-12, atol=1e-12)
