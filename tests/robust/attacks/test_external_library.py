"""Outside libraries on our networks: they agree with ours."""

from __future__ import annotations

import sys

import pytest
import torch
from torch.nn import functional as F

from pursuitify import pursuitify
from pursuitify.errors import MissingExtraError, OptionError
from pursuitify.robust import apgd, audit, autoattack, foolbox, pgd, square
from tests.support.controls import EPS


@torch.no_grad()
def accuracy(net, x, y):
    return (net(x).argmax(1) == y).float().mean().item()


@pytest.mark.parametrize(("adapter", "name"), [(autoattack, "pyautoattack"), (foolbox, "foolbox")])
def test_a_missing_library_names_the_extra(undefended, digits, adapter, name, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError, match=r"pip install 'pursuitify\[robust\]'"):
        adapter(undefended, *digits, eps=EPS)


@pytest.mark.parametrize(("norm", "eps"), [("linf", EPS), ("l2", 0.5)])
def test_foolbox_agrees(undefended, digits, norm, eps):
    pytest.importorskip("foolbox")
    x, y = digits
    F.cross_entropy(undefended(x[:8]), y[:8]).backward()
    held = [p.grad.clone() for p in undefended.parameters()]
    attack = {"linf": "LinfPGD", "l2": "L2PGD"}[norm]
    options = {"steps": 20, "abs_stepsize": eps / 8}
    theirs = foolbox(undefended, x, y, eps=eps, norm=norm, attack=attack, batch_size=100, **options)
    ours = pgd(undefended, x, y, eps=eps, norm=norm, steps=20, step_size=eps / 8, seed=0)
    assert all(torch.equal(p.grad, g) for p, g in zip(undefended.parameters(), held, strict=True))
    undefended.zero_grad()
    assert all(p.requires_grad for p in undefended.parameters())
    gap = accuracy(undefended, theirs, y) - accuracy(undefended, ours, y)
    assert -0.02 <= gap <= 0.06  # ours keeps the worst point on the way, foolbox the last
    with pytest.raises(OptionError, match="no 'Nothing'"):
        foolbox(undefended, x, y, eps=eps, attack="Nothing")


def test_autoattack_agrees_attack_by_attack(hardened, digits):
    pytest.importorskip("pyautoattack")
    x, y = (part[:32] for part in digits)
    options = {"version": "custom", "attacks": ["apgd-ce"]}
    state = torch.get_rng_state()
    theirs = autoattack(hardened, x, y, eps=EPS, **options)
    assert torch.equal(state, torch.get_rng_state())
    ours = apgd(hardened, x, y, eps=EPS, seed=0)
    assert abs(accuracy(hardened, theirs, y) - accuracy(hardened, ours, y)) <= 0.07
    with pytest.raises(OptionError, match="custom"):
        autoattack(hardened, x, y, eps=EPS, attacks=["square"])


def test_they_take_a_pursuit_network(undefended, digits):
    pytest.importorskip("pyautoattack")
    pytest.importorskip("foolbox")
    net = pursuitify(undefended, iterations=2).eval()
    x, y = (part[:16] for part in digits)
    clean = accuracy(net, x, y)
    assert accuracy(net, foolbox(net, x, y, eps=0.2, steps=5), y) < clean
    points = autoattack(net, x, y, eps=0.2, version="custom", attacks=["apgd-ce"])
    assert accuracy(net, points, y) < clean


@pytest.mark.slow
@pytest.mark.parametrize("which", ["undefended", "hardened"])
def test_the_audit_finds_what_autoattack_finds(which, digits, request):
    """It may be the stronger one: it runs attacks that AutoAttack lacks."""
    pytest.importorskip("pyautoattack")
    net = request.getfixturevalue(which)
    x, y = digits
    report = audit(net, digits, eps=EPS, protocol="standard", progress=False)
    theirs = accuracy(net, autoattack(net, x, y, eps=EPS), y)
    print(f"{which}: audit {report.worst():.2%}, AutoAttack {theirs:.2%}")
    assert report.verdict == "no flag raised"
    assert report.worst() <= theirs + 0.01
    assert report.curve[-1].accuracy == 0


SAME = {  # ours at the budget that pyautoattack's attack has when it runs alone
    "apgd-ce": (apgd, {"restarts": 5}),
    "apgd-dlr": (apgd, {"loss": "dlr", "restarts": 5}),
    "apgd-t": (apgd, {"targets": 9}),
}


@pytest.mark.slow
@pytest.mark.parametrize("which", ["undefended", "hardened"])
@pytest.mark.parametrize("name", SAME)
def test_every_attack_succeeds_as_often_as_theirs(which, name, digits, request):
    pytest.importorskip("pyautoattack")
    net = request.getfixturevalue(which)
    x, y = digits
    attack, options = SAME[name]
    theirs = autoattack(net, x, y, eps=EPS, version="custom", attacks=[name])
    ours = attack(net, x, y, eps=EPS, steps=100, seed=0, **options)
    assert abs(accuracy(net, ours, y) - accuracy(net, theirs, y)) <= 0.02


@pytest.mark.slow
@pytest.mark.parametrize("which", ["undefended", "hardened"])
def test_square_is_no_weaker_than_theirs(which, digits, request):
    """Theirs never places a window at the last row or column, ours does."""
    pytest.importorskip("pyautoattack")
    net = request.getfixturevalue(which)
    x, y = digits
    theirs = autoattack(net, x, y, eps=EPS, version="custom", attacks=["square"])
    ours = square(net, x, y, eps=EPS, queries=5000, seed=0)
    assert accuracy(net, ours, y) <= accuracy(net, theirs, y) + 0.01
