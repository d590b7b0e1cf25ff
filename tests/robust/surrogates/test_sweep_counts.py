"""Other numbers of sweeps: in one pass what many passes give, also inside other modules."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from pursuitify import pursuitify
from pursuitify.errors import OptionError
from pursuitify.models import ResidualNet
from pursuitify.robust import PROTOCOLS, AtIterations, LatentChange, Sweeps, audit, iterations
from pursuitify.robust.attacks.losses import cross_entropy
from pursuitify.robust.surrogates.sweep_counts import at_each, find_pursuit
from tests.support.controls import EPS, shortened

COUNTS = [4, 0, 7, 1, 7]


class Grey(nn.Module):
    """A pursuit network behind a normalisation that is no part of it."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net((x - 0.5) / 0.25)


@pytest.fixture
def net():
    torch.manual_seed(0)
    return pursuitify(ResidualNet(1, 10, depth=1, width=4).double(), iterations=3).eval()


@pytest.fixture
def x():
    return torch.rand(5, 1, 8, 8, dtype=torch.float64)


@pytest.mark.parametrize("solver", ["global", "synchronous", "layered"])
@pytest.mark.parametrize("alpha", [0.0, 0.3])
def test_one_pass_gives_what_many_give(net, x, solver, alpha):
    net.solver = solver
    torch.nn.init.constant_(net.pursuit.alpha, alpha)
    for found, count in zip(at_each(net, x, COUNTS), COUNTS, strict=True):
        torch.testing.assert_close(found, AtIterations(net, count)(x), rtol=1e-12, atol=1e-12)
    assert net.iterations == 3


def test_their_derivatives_are_the_same(net, x):
    x.requires_grad_()
    for found, count in zip(at_each(net, x, COUNTS), COUNTS, strict=True):
        (one,) = torch.autograd.grad(found[:, 0].sum(), x, retain_graph=True)
        (other,) = torch.autograd.grad(AtIterations(net, count)(x)[:, 0].sum(), x)
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_one_pass_is_one_pass(net, x, monkeypatch):
    net = copy.deepcopy(net)
    net.self_check = "off"  # a proof binds samples of its own
    calls = []
    bind = type(net)._bind
    monkeypatch.setattr(type(net), "_bind", lambda *a: calls.append(1) or bind(*a))
    at_each(net, x, range(4))
    assert len(calls) == 1


def test_derivatives_recorded_or_not_the_step_sizes_are_the_same(x):
    net = pursuitify(ResidualNet(1, 10, depth=1, width=4), iterations=6).eval()
    x = x.float()
    with torch.no_grad():
        plain = net.step_sizes(x)
    for name, step in net.step_sizes(x).items():
        assert torch.equal(step, plain[name])


def test_a_pursuit_inside_another_module_is_found(net, x):
    outer = nn.Sequential(Grey(net))
    assert find_pursuit(outer) is net
    inside = (x - 0.5) / 0.25
    torch.testing.assert_close(AtIterations(outer, 7)(x), AtIterations(net, 7)(inside))
    with iterations(outer, 2):
        assert net.iterations == 2
    y = torch.arange(5)
    for how in ("mean", "worst"):
        one = Sweeps(outer, [0, 3], how=how)(x, y, x, cross_entropy)
        torch.testing.assert_close(one, Sweeps(net, [0, 3], how=how)(inside, y, x, cross_entropy))
    near = (x + 0.05).clamp(0, 1)
    moved = LatentChange(outer)(near, y, x, cross_entropy)
    other = LatentChange(net)((near - 0.5) / 0.25, y, inside, cross_entropy)
    torch.testing.assert_close(moved, other)
    assert moved.min() > 0
    assert not net._forward_pre_hooks


def test_no_pursuit_and_two(net, x):
    assert find_pursuit(nn.Linear(1, 1)) is None
    assert find_pursuit(lambda x: x) is None
    two = nn.ModuleList([net, pursuitify(ResidualNet(1, 10, depth=1, width=4))])
    with pytest.raises(OptionError, match="2 pursuit networks"):
        find_pursuit(two)
    with pytest.raises(OptionError, match="Linear does not"):
        AtIterations(nn.Linear(1, 1), 0)


def test_the_audit_adapts_to_a_pursuit_inside_another_module(undefended, digits):
    brief = shortened(PROTOCOLS["quick"])
    net = pursuitify(undefended, iterations=3).eval()
    net(digits[0][:1])
    data = (digits[0][:4], digits[1][:4])
    one, other = (
        audit(each, data, eps=EPS, protocol=brief, progress=False)
        for each in (net, nn.Sequential(net).eval())
    )
    assert [r.name for r in one.results] == [r.name for r in other.results]
    assert [r.fooled for r in one.results] == [r.fooled for r in other.results]
    assert "same weights at T = 0" in other.clean
    views = ["T = 3 (own)", "T = 0", "T = 1", "T = 2", "T = 6"]
    assert [g.view for g in one.gradients] == [g.view for g in other.gradients] == views
