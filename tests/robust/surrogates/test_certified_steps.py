"""Certified steps as a surrogate of adaptive ones: what it answers, and that the audit takes it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pursuitify import pursuitify
from pursuitify.errors import InputError, OptionError
from pursuitify.models import ResidualNet
from pursuitify.robust import PROTOCOLS, CertifiedSteps, Protocol, audit, pgd
from pursuitify.robust.surrogates.certified_steps import adapts_steps
from tests.support.controls import EPS, TINY

TITLES = ("gradients of certified steps", "certified steps at 3 T")


class Grey(nn.Module):
    """A pursuit network behind a normalisation that is no part of it."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net((x - 0.5) / 0.25)


@pytest.fixture
def net():
    torch.manual_seed(0)
    model = ResidualNet(1, 10, depth=1, width=4).double()
    return pursuitify(model, iterations=2, steps="adaptive").eval()


@pytest.fixture
def x():
    return torch.rand(5, 1, 8, 8, dtype=torch.float64)


def test_it_is_the_same_network_with_certified_steps(net, x):
    own = net(x)
    held, more = CertifiedSteps(net)(x), CertifiedSteps(net, 3)(x)
    assert (net.steps, net.iterations) == ("adaptive", 2)
    assert torch.equal(net(x), own)
    net.steps = "certified"
    assert torch.equal(net(x), held)
    assert not torch.equal(held, own)
    net.iterations = 6
    assert torch.equal(net(x), more)
    assert not torch.equal(more, held)


def test_inside_another_module_and_after_an_error(net, x):
    assert adapts_steps(Grey(net))
    assert not adapts_steps(nn.Linear(2, 2))
    found = CertifiedSteps(Grey(net))(x)
    with pytest.raises(InputError):
        CertifiedSteps(net)(x.reshape(5, 64))
    assert net.steps == "adaptive"
    net.steps = "certified"
    assert not adapts_steps(net)
    assert torch.equal(Grey(net)(x), found)


def test_what_is_no_pursuit_network_and_a_factor_that_is_none_are_refused(net):
    with pytest.raises(OptionError, match="must be or hold a PursuitNetwork"):
        CertifiedSteps(nn.Linear(2, 2))
    with pytest.raises(OptionError, match="factor=0"):
        CertifiedSteps(net, 0)


def test_an_attack_follows_it(net, x):
    y = net(x).argmax(1)
    points = pgd(net, x, y, eps=EPS, steps=2, guide=CertifiedSteps(net), seed=0)
    assert float((points - x).abs().max()) <= EPS + 1e-12
    assert not torch.equal(points, x)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_every_protocol_has_both(protocol):
    steps = {step.name: step for step in PROTOCOLS[protocol].steps}
    for title in TITLES:
        assert steps[title].needs == "adaptive"


def test_the_audit_runs_them_where_steps_adapt_and_only_there(net, x):
    chosen = tuple(step for step in PROTOCOLS["quick"].steps if step.name in TITLES)
    short = Protocol("short", (*TINY.steps[:2], *chosen), TINY.twin, TINY.curve, TINY.factors)
    y = net(x).argmax(1)
    found = audit(net, (x, y), eps=EPS, protocol=short, progress=False)
    results = {r.name: r for r in found.results if r.subject == "network"}
    assert set(TITLES) < set(results)
    assert all(not results[title].error for title in TITLES)
    assert all(title in str(found) for title in TITLES)
    assert found.setting["steps"] == "adaptive"
    net.steps = "certified"
    fixed = audit(net, (x, y), eps=EPS, protocol=short, progress=False)
    assert not set(TITLES) & {r.name for r in fixed.results}


def test_a_record_of_other_steps_is_refused(net, x, tmp_path):
    y = net(x).argmax(1)
    audit(net, (x, y), eps=EPS, protocol=TINY, progress=False, resume=tmp_path / "record.json")
    net.steps = "certified"
    with pytest.raises(OptionError, match=r"differs in .*steps"):
        audit(net, (x, y), eps=EPS, protocol=TINY, progress=False, resume=tmp_path / "record.json")
