"""Softshrink in every spelling: soft thresholding; and bounds that are set to others."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pursuitify import ConversionError, pursuitify
from pursuitify.robust import certified_radius
from tests.support.against_oracle import assert_matches_oracle
from tests.support.agreement import assert_adjoint, assert_descends, compare
from tests.support.oracle import row


class Shrunk(nn.Module):
    def __init__(self, bound: float = 0.2) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.shrink, self.d = nn.Softshrink(bound), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        z = self.shrink(self.a(x))
        return self.d(F.softshrink(z + self.b(z), lambd=0.1).mean((2, 3)))


def made() -> tuple[Shrunk, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Shrunk().double().eval(), torch.randn(2, 1, 4, 5, dtype=torch.float64)


@pytest.mark.parametrize("options", [{}, {"nonnegative_thresholds": False}])
def test_it_is_exact_and_descends(options: dict[str, bool]) -> None:
    model, x = made()
    for training in (True, False):
        net, _ = compare(
            lambda m: pursuitify(m, **options), model, x, training=training, tolerance=1e-12
        )
    assert_adjoint(net, x)
    assert_descends(net, x, sweeps=4)
    net.iterations = 0
    assert torch.equal(net(x), model(x))


def test_sweeps_against_the_oracle() -> None:
    model, x = made()
    net = pursuitify(model)
    one, two = net.latents(x)
    rows = [
        row(one, "x", diag=model.a, activation=("soft", 0.2)),
        row(two, one, lambda w: w + model.b(w), activation=("soft", 0.1)),
    ]
    assert_matches_oracle(net, rows, x[:1])
    latents = net.latents(x)
    assert any(bool((w == 0).any()) and bool((w < 0).any()) for w in latents.values())


def test_it_is_certified() -> None:
    model, x = made()
    net = pursuitify(model, iterations=6, solver="synchronous")
    assert bool((certified_radius(net, x).radius > 0).all())


def test_a_negative_threshold_is_refused() -> None:
    with pytest.raises(ConversionError, match="is negative"):
        pursuitify(Shrunk(-1.0))


@pytest.mark.parametrize("kind", [nn.ReLU6, lambda: nn.Hardtanh(0.0, 6.0)], ids=["relu6", "clip"])
@pytest.mark.parametrize(("low", "high"), [(0.0, 6.0), (0.0, 0.1), (-0.05, 0.1), (0.05, 2.0)])
@pytest.mark.parametrize("after", [False, True])
def test_bounds_are_the_module_s_own(kind, low, high, after) -> None:
    """nn.ReLU6 is a Hardtanh: its bounds are attributes, and hold before and after conversion."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 6), kind(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2))
        model, x = model.double().eval(), torch.randn(3, 4, dtype=torch.float64)

    def bounded(module: nn.Module) -> None:
        clip = module.get_submodule("1")
        clip.min_val, clip.max_val = low, high

    if not after:
        bounded(model)
    net = pursuitify(model, iterations=3)
    bounded(model)
    bounded(net)
    assert net.verify(x).ok
    assert_descends(net, x)
    fresh = pursuitify(model, iterations=net.iterations)
    torch.testing.assert_close(net(x), fresh(x), rtol=1e-12, atol=1e-12)
    clip = net.dictionary(x).rows[0].activation
    assert (clip.low, clip.high) == (low, high)  # type: ignore[attr-defined]


def test_an_empty_range_of_relu6_is_refused() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU6(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2))
    model[1].max_val = -1.0
    with pytest.raises(ConversionError, match=r"its range \[0.0, -1.0\] is empty"):
        pursuitify(model)
