"""Guides: what a full-knowledge attacker differentiates in the network's place."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pursuitify import pursuitify
from pursuitify.errors import OptionError
from pursuitify.robust import (
    AtIterations,
    Averaged,
    LatentChange,
    SmoothedBackward,
    Sweeps,
    apgd,
    fgsm,
    iterations,
    pgd,
)
from pursuitify.robust.attacks.losses import cross_entropy
from tests.support.controls import EPS, Before, quantise


@pytest.fixture(scope="module")
def net(undefended):
    return pursuitify(undefended, iterations=4).eval()


@pytest.fixture
def batch(digits):
    return digits[0][:24], digits[1][:24]


@torch.no_grad()
def accuracy(net, x, y):
    return (net(x).argmax(1) == y).float().mean().item()


def test_other_sweeps_and_back(net, undefended, batch):
    x, _ = batch
    torch.testing.assert_close(AtIterations(net, 0)(x), undefended(x))
    with iterations(net, 9) as other:
        nine = other(x)
    torch.testing.assert_close(AtIterations(net, 9)(x), nine)
    assert net.iterations == 4
    with pytest.raises(RuntimeError), iterations(net, 2):
        raise RuntimeError
    assert net.iterations == 4
    with pytest.raises(OptionError):
        AtIterations(net, -1)
    assert net.iterations == 4


GUIDES = {
    "T = 0": lambda net: AtIterations(net, 0),
    "T / 2": lambda net: AtIterations(net, 2),
    "2 T": lambda net: AtIterations(net, 8),
    "mean": Sweeps,
    "worst": lambda net: Sweeps(net, [0, 4], how="worst"),
    "latents": LatentChange,
    "averaged": lambda net: Averaged(net, 2),
    "smoothed": SmoothedBackward,
}


@pytest.mark.parametrize("name", GUIDES)
def test_every_guide_weakens_the_network_and_leaves_it(net, batch, name):
    x, y = batch
    guide = GUIDES[name](net)
    net.train()
    for attack, options in ((fgsm, {}), (pgd, {"steps": 3}), (apgd, {"steps": 4})):
        points = attack(net, x, y, eps=0.2, guide=guide, **options)
        assert (points - x).abs().max() <= 0.2
    assert all(module.training for module in net.modules())
    net.eval()
    assert accuracy(net, points, y) < accuracy(net, x, y) - 0.1
    assert net.iterations == 4
    assert all(p.grad is None for p in net.parameters())


def test_the_answer_is_the_networks_own(undefended, batch):
    """A guide that is wrong everywhere fools nobody."""
    x, y = batch
    useless = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    points = pgd(undefended, x, y, eps=0.01, steps=2, guide=useless, seed=0)
    assert accuracy(undefended, points, y) >= accuracy(undefended, x, y) - 0.1


def test_sweeps_are_what_they_say(net, batch):
    x, y = batch
    each = torch.stack([cross_entropy(AtIterations(net, t)(x), y) for t in range(5)])
    mean = Sweeps(net)(x, y, x, cross_entropy)
    worst = Sweeps(net, how="worst")(x, y, x, cross_entropy)
    torch.testing.assert_close(mean, each.mean(0))
    torch.testing.assert_close(worst, each.amax(0))


def test_latents_move_from_the_clean_ones(net, batch):
    x, y = batch
    guide = LatentChange(net)
    assert guide(x, y, x, cross_entropy).max() == 0
    with torch.no_grad():
        assert guide(x, y, x, cross_entropy).max() == 0
    near, far = (guide((x + d).clamp(0, 1), y, x, cross_entropy).mean() for d in (0.01, 0.1))
    assert 0 < near < far


@pytest.mark.parametrize(
    "flat",
    [
        F.relu,
        torch.relu,
        torch.Tensor.relu,
        nn.ReLU(inplace=True),
        nn.ReLU6(),
        nn.Hardtanh(-1, 0.5),
        lambda x: x.clamp(min=0),
        lambda x: torch.clamp(x, 0, 0.5),
        torch.round,
        lambda x: x.floor(),
        torch.sign,
    ],
)
def test_flat_places_get_a_slope_and_keep_their_value(flat):
    model = nn.Sequential(nn.Identity(), Before(flat, nn.Identity()))
    x = torch.tensor([[-3.0, -0.2, 0.0, 0.3, 0.4, 8.0]], requires_grad=True)
    smooth = SmoothedBackward(model, slope=0.25)(x * 1)
    torch.testing.assert_close(smooth, flat((x * 1).clone()))
    (slope,) = torch.autograd.grad(smooth.sum(), x)
    (own,) = torch.autograd.grad(flat(x * 1).sum(), x, allow_unused=True)
    rounding = flat(torch.tensor([0.3])).item() in (0.0, 1.0)
    allowed = (slope == 1) | (slope == 0.25)
    assert allowed.all() or (slope == own).any()
    assert slope[0, 0] == (1.0 if rounding else 0.25)


def test_smoothing_leaves_other_derivatives_alone(net, batch):
    x = batch[0].clone().requires_grad_()
    layer = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Softplus(), nn.Linear(8, 2))
    (one,) = torch.autograd.grad(layer(x).sum(), x)
    (two,) = torch.autograd.grad(SmoothedBackward(layer)(x).sum(), x)
    assert torch.equal(one, two)
    assert torch.equal(SmoothedBackward(net)(x), net(x))


def test_smoothing_breaks_a_quantised_network(undefended, digits):
    x, y = digits
    masked = Before(quantise, undefended)
    plain = apgd(masked, x, y, eps=EPS, steps=20, seed=0)
    bypass = apgd(masked, x, y, eps=EPS, steps=20, seed=0, guide=SmoothedBackward(masked))
    assert accuracy(masked, bypass, y) < accuracy(masked, plain, y) - 0.2


def test_rescaled_logits_break_a_scaled_network(undefended, digits):
    x, y = digits

    class Loud(nn.Module):
        def forward(self, x):
            return 1e5 * undefended(x)

    plain = apgd(Loud(), x, y, eps=EPS, steps=20, seed=0)
    bypass = apgd(Loud(), x, y, eps=EPS, steps=20, seed=0, loss="scaled")
    assert accuracy(undefended, bypass, y) < accuracy(undefended, plain, y) - 0.2


def test_bad_arguments(net, undefended):
    for guide in (LatentChange, Sweeps, lambda n: AtIterations(n, 0)):
        with pytest.raises(OptionError, match="PursuitNetwork"):
            guide(undefended)
    with pytest.raises(OptionError, match="how"):
        Sweeps(net, how="best")
    with pytest.raises(OptionError, match="empty"):
        Sweeps(net, [])
    with pytest.raises(OptionError, match="slope"):
        SmoothedBackward(net, slope=0)
    with pytest.raises(OptionError, match="draws"):
        Averaged(net, 0)
