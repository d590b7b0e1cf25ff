"""Step sizes: one per latent, per sample where frozen values are, the latent's own in each mode."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pursuitify import pursuitify


class _Auxiliary(nn.Module):
    """Has one activation more in training mode, in the middle of the graph."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.aux, self.b = nn.Linear(3, 4), nn.Linear(4, 5), nn.Linear(4, 4)
        self.head, self.head2 = nn.Linear(4, 2), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        h = torch.relu(self.a(x))
        extra = self.head2(torch.relu(self.aux(h))) if self.training else None
        y = self.head(torch.relu(self.b(h)))
        return y if extra is None else (y, extra)


def test_beta_follows_its_latent_from_mode_to_mode() -> None:
    net = pursuitify(_Auxiliary().double(), iterations=1)
    assert len(net.pursuit.beta) == 3
    x = torch.rand(2, 3, dtype=torch.float64)
    last = list(net.eval().latents(x))[-1]
    assert last in net.train().latents(x)
    with torch.no_grad():
        before = {mode: net.train(mode).step_sizes(x) for mode in (False, True)}
        place = [row.name for row in net._programs[True].rows].index(last)
        net.pursuit.beta[place] = 0.6
        for mode in (False, True):
            after = net.train(mode).step_sizes(x)
            for name, step in after.items():
                factor = 1 / 0.6 if name == last else 1.0
                tolerance = 1e-9 if not mode else 0.1  # an estimate that still moves
                assert float(step / before[mode][name]) == pytest.approx(factor, rel=tolerance)


def test_gates_give_every_sample_its_own_step() -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.g, self.b = nn.Conv2d(2, 3, 3), nn.Linear(3, 3), nn.Conv2d(3, 3, 3)
            self.head = nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            h = torch.relu(self.a(x))
            gate = 4 * torch.sigmoid(9 * self.g(h.mean((2, 3))))
            h = torch.relu(self.b(h * gate[:, :, None, None]))
            return self.head(h.mean((2, 3)))

    torch.manual_seed(0)
    net = pursuitify(Gated().double().eval(), iterations=2)
    x = torch.randn(3, 2, 7, 7, dtype=torch.float64)
    with torch.no_grad():
        together, steps = net.latents(x), net.step_sizes(x)
        assert {tuple(s.shape) for s in steps.values()} == {(), (3, 1, 1, 1)}
        for i in range(3):
            for name, value in net.latents(x[i : i + 1]).items():
                assert torch.allclose(value[0], together[name][i], rtol=1e-12, atol=1e-12)


def test_held_parameters_can_come_back() -> None:
    net = pursuitify(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)))
    with torch.no_grad():
        net.pursuit.beta.fill_(0.1)
    assert float(net.pursuit.betas().detach()) == pytest.approx(0.501)
    net.pursuit.betas().sum().backward()
    assert float(net.pursuit.beta.grad) == 1.0
    paper = pursuitify(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)), paper=True)
    with torch.no_grad():
        paper.pursuit.beta.fill_(0.1)
    assert float(paper.pursuit.betas().detach()) == pytest.approx(0.1)
