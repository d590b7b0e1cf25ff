"""Rules that move entries: cyclic shifts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pursuitify import ConversionError, coherence, pursuitify
from pursuitify.robust import certified_radius
from tests.support.against_oracle import assert_matches_oracle
from tests.support.agreement import assert_adjoint, assert_descends, compare
from tests.support.oracle import row

ROLLS: dict[str, Any] = {
    "function": lambda x: torch.roll(x, 1, 2),
    "many": lambda x: torch.roll(x, shifts=(1, -2), dims=(2, -1)),
    "method": lambda x: x.roll(-1, dims=3),
    "channels": lambda x: x.roll((1,), (1,)),
    "by size": lambda x: x.roll(x.shape[2] // 2, 2),
}


class Rolled(nn.Module):
    def __init__(self, roll: Any) -> None:
        super().__init__()
        self.roll = roll
        self.a, self.b = nn.Conv2d(1, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.c, self.d = nn.Conv2d(3, 2, 3, padding=1), nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        z = F.relu(self.b(self.roll(F.relu(self.a(x)))))
        return self.d(F.relu(self.roll(self.c(z))).mean((2, 3)))


def made(roll: Any) -> tuple[Rolled, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Rolled(roll).double().eval(), torch.randn(2, 1, 4, 5, dtype=torch.float64)


@pytest.mark.parametrize("name", ROLLS)
def test_a_roll_is_exact_and_descends(name: str) -> None:
    model, x = made(ROLLS[name])
    for training in (True, False):
        net, _ = compare(pursuitify, model, x, training=training, tolerance=1e-12)
    assert_adjoint(net, x)
    assert_descends(net, x, sweeps=4)
    net.iterations = 0
    assert torch.equal(net(x), model(x))


@pytest.mark.parametrize("name", ROLLS)
def test_sweeps_against_the_oracle(name: str) -> None:
    model, x = made(ROLLS[name])
    net, roll = pursuitify(model), ROLLS[name]
    one, two, three = net.latents(x)
    # The last row does not end in its convolution: B_j is the identity there.
    rows = [
        row(one, "x", diag=model.a),
        row(two, one, roll, diag=model.b),
        row(three, two, lambda w: roll(model.c(w))),
    ]
    assert_matches_oracle(net, rows, x[:1])


def test_a_roll_is_certified_and_measured() -> None:
    model, x = made(ROLLS["channels"])
    net = pursuitify(model, iterations=6, solver="synchronous")
    assert bool((certified_radius(net, x).radius > 0).all())
    net.solver = "global"
    exact = coherence(net, input_shape=(1, 4, 5), boundary="exact", x=x[:1])
    matrix = net.dictionary(x[:1]).materialize()[0]
    unit = matrix / matrix.norm(dim=0)
    gram = (unit.T @ unit).fill_diagonal_(0)
    assert exact.mutual_coherence == pytest.approx(float(gram.abs().max()), rel=1e-9)
    assert coherence(net, input_shape=(1, 12, 12)).mutual_coherence > 0


def test_a_roll_of_the_batch_moves_samples() -> None:
    model, x = made(lambda z: z.roll(1, 0))
    net = pursuitify(model, iterations=2)
    assert net.dictionary(x).samples is None
    assert_adjoint(net, x)


def test_a_roll_of_everything_is_refused() -> None:
    model, _ = made(lambda z: z.roll(1))
    with pytest.raises(ConversionError, match="the batch included"):
        pursuitify(model)
