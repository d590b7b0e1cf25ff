"""Softshrink in every spelling: soft thresholding."""

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
