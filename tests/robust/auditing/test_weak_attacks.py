"""A PGD that clamps to [0, 1] inside what it differentiates: blind where pixels are black.

Its random start pushes half of the black pixels below 0. There the clamp is flat, the slope exactly
zero, and a sign step never brings them back: on Fashion-MNIST its 20 steps lose to one FGSM step.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pursuitify.robust import apgd, audit, fgsm, pgd
from tests.support import controls
from tests.support.controls import TINY, clamped_pgd

EPS = 8 / 255


@pytest.fixture(scope="module")
def fashion():
    """A small convolutional network on Fashion-MNIST, trained, and test data."""
    x, y, x_test, y_test = controls.garments(12_000, 512)
    assert (x == 0).float().mean() > 0.45
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(1, 8, 3, 2, 1),
            nn.ReLU(),
            nn.Conv2d(8, 16, 3, 2, 1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(784, 10),
        )
        return controls.fit(net, x, y, epochs=2), x_test, y_test


@pytest.fixture(scope="module")
def handwriting():
    """A linear classifier of the digits: 49 % of their pixels are exactly black."""
    x, y, x_test, y_test = controls.digits()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        return controls.fit(net, x, y, epochs=10), x_test[:256], y_test[:256]


@torch.no_grad()
def accuracy(net, x, y):
    return (net(x).argmax(1) == y).float().mean().item()


def ours(net, x, y, *, eps):
    return pgd(net, x, y, eps=eps, steps=20, seed=0)


@pytest.mark.parametrize(("data", "eps"), [("fashion", EPS), ("handwriting", 0.1)])
def test_it_is_flagged_and_ours_is_not(data, eps, request):
    net, x, y = request.getfixturevalue(data)
    attacks = {"clamped": clamped_pgd, "ours": ours}
    report = audit(net, (x, y), eps=eps, protocol=TINY, attacks=attacks, progress=False)
    weak = [flag.detail.split()[0] for flag in report.flags if flag.name == "weak attack"]
    assert weak == ["clamped"]
    assert report.accuracy("ours") <= report.accuracy("FGSM") < report.accuracy("clamped") - 0.02


def test_it_is_flagged_where_it_beats_one_step_but_not_pgd(undefended, digits):
    """One step too long is weak itself; then PGD is the measure."""
    x, y = digits
    half = {"half": lambda net, x, y, eps: pgd(net, x, y, eps=0.75 * eps, seed=0)}
    report = audit(undefended, (x, y), eps=0.1, protocol=TINY, attacks=half, progress=False)
    (flag,) = [flag for flag in report.flags if flag.name == "weak attack"]
    assert flag.detail.startswith("half fools ")
    assert flag.detail.endswith("fewer than PGD")
    assert report.accuracy("half") < report.accuracy("FGSM")


def test_the_cause(fashion, monkeypatch):
    """Half of the black pixels have no slope for it, next to none lacks one for ours."""
    net, x, y = fashion
    seen = []
    differentiate = torch.autograd.grad

    def spied(*args, **options):
        (slope,) = differentiate(*args, **options)
        seen.append((slope[x == 0] == 0).float().mean().item())
        return (slope,)

    monkeypatch.setattr(torch.autograd, "grad", spied)
    clamped_pgd(net, x, y, eps=EPS, steps=1)
    pgd(net, x, y, eps=EPS, steps=1, seed=0, early_stop=False)
    blind, seeing = seen
    assert 0.45 < blind < 0.6
    assert seeing < 0.02


@pytest.mark.parametrize("attack", [pgd, apgd])
def test_ours_are_stronger_than_one_step_on_black_pixels(fashion, attack):
    net, x, y = fashion
    for eps in (0.02, EPS, 0.05, 0.1):
        strong = accuracy(net, attack(net, x, y, eps=eps, steps=20, seed=0), y)
        assert strong <= accuracy(net, fgsm(net, x, y, eps=eps), y)
