"""Outside libraries on our networks: they agree with ours."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pursuitify import pursuitify
from pursuitify.errors import InputError, MissingExtraError, OptionError
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


def small(classes, shape):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        size = int(torch.tensor(shape).prod())
        net = nn.Sequential(nn.Flatten(), nn.Linear(size, 12), nn.ReLU(), nn.Linear(12, classes))
        x = torch.rand(6, *shape)
        net[3].bias.data -= net(x).detach().mean(0)  # so that no class always wins
    net = pursuitify(net.eval(), iterations=1).eval()
    return net, x, net(x).argmax(1)


SHAPES = [(1, 4, 4), (16,), (2, 8), (1, 2, 2, 4)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("classes", [2, 3, 4, 6])
def test_autoattack_on_few_classes_and_any_shape_runs_or_is_refused_before(
    classes, shape, monkeypatch
):
    """The advice of a refusal is followed, and works."""
    library = pytest.importorskip("pyautoattack")
    net, x, y = small(classes, shape)
    ran = []
    whole = library.AutoAttack.run_standard_evaluation

    def noted(self, *args, **options):
        ran.append(1)
        for part in (self.apgd, self.apgd_targeted, self.fab):
            part.n_iter = part.n_iter_orig = 3
        self.square.n_queries = 5
        return whole(self, *args, **options)

    monkeypatch.setattr(library.AutoAttack, "run_standard_evaluation", noted)
    try:
        points = autoattack(net, x, y, eps=0.3)
        assert (classes >= 4, len(shape)) == (True, 3)
    except OptionError as error:
        text = str(error)
        assert classes < 4 or len(shape) != 3
        assert not ran, "refused before anything ran"
        assert ("apgd-t needs 4 classes" in text) == (classes < 4)
        assert ("square needs images" in text) == (len(shape) != 3)
        advice = text.split("attacks=[")[1].split("]")[0]
        attacks = [name.strip("' ") for name in advice.split(",")]
        points = autoattack(net, x, y, eps=0.3, version="custom", attacks=attacks)
    assert points.shape == x.shape
    assert (net(points).argmax(1) != y).any()


@pytest.mark.parametrize("attacks", [["apgd-ce", "fab"], ["square"]])
def test_autoattack_in_float64(attacks):
    pytest.importorskip("pyautoattack")
    net, x, y = small(3, (1, 4, 4))
    net, x = net.double(), x.double()
    points = autoattack(net, x, y, eps=0.3, version="custom", attacks=attacks)
    assert points.dtype == torch.float64
    assert (points - x).abs().max() <= 0.3
    assert (net(points).argmax(1) != y).any()


@pytest.mark.parametrize(
    "options",
    [
        {"version": "nope"},
        {"version": "custom", "attacks": []},
        {"version": "custom", "attacks": ["nope"]},
        {"version": "custom", "attacks": "square"},
        {"batch_size": 0},
    ],
    ids=str,
)
def test_autoattack_refuses_options_that_it_has_not(options):
    pytest.importorskip("pyautoattack")
    net, x, y = small(4, (1, 4, 4))
    with pytest.raises(OptionError, match=r"(version|attacks|batch_size)=.* (is not|must list)"):
        autoattack(net, x, y, eps=0.1, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attack": "LinfPGD", "norm": "l2"}, "keeps to a ball in linf"),
        ({"attack": "L2PGD"}, "keeps to a ball in l2"),
        ({"attack": "L1FastGradientAttack"}, "keeps to a ball in l1"),
        ({"attack": "base"}, "has no 'base'"),
        ({"steps": 3, "nope": 1}, "no option 'nope'; valid: .*'steps'"),
        ({"norm": "l0"}, "norm='l0' is not one of 'linf', 'l2'"),
    ],
    ids=str,
)
def test_foolbox_refuses_before_the_work(options, message):
    pytest.importorskip("foolbox")
    net, x, y = small(4, (1, 4, 4))
    with pytest.raises(OptionError, match=message):
        foolbox(net, x, y, eps=0.1, **options)


def test_foolbox_on_a_table_and_with_any_distance():
    pytest.importorskip("foolbox")
    net, x, y = small(2, (16,))
    assert (net(foolbox(net, x, y, eps=0.3, steps=5)).argmax(1) != y).any()
    net, x, y = small(3, (1, 4, 4))
    # It minimises whatever distance it is given; the ball's is.
    points = foolbox(net, x, y, eps=1.0, attack="LinearSearchContrastReductionAttack")
    assert points.shape == x.shape
    flat, x, y = small(2, (16,))
    with pytest.raises(OptionError, match="foolbox's GaussianBlurAttack cannot attack inputs"):
        foolbox(flat, x, y, eps=1.0, attack="GaussianBlurAttack")


@pytest.mark.parametrize("attack", [pgd, square, apgd])
def test_labels_and_a_single_logit_are_refused_before_the_work(attack):
    calls = []

    class Counted(nn.Module):
        def forward(self, x):
            calls.append(len(x))
            return x.flatten(1)[:, :3]

    x, y = torch.rand(6, 1, 4, 4), torch.tensor([0, 1, 2, 0, 1, 3])
    with pytest.raises(InputError, match=r"label 3, .*3 classes, numbered 0 to 2: 1 of 6 labels"):
        attack(Counted(), x, y, eps=0.1, batch_size=2)
    assert calls == [2], "one pass over the first batch"
    one = nn.Sequential(nn.Flatten(), nn.Linear(16, 1)).eval()
    with pytest.raises(InputError, match=r"one logit per sample.*return two"):
        attack(one, x, y % 2, eps=0.1)
    with pytest.raises(InputError, match="one logit per sample"):
        audit(one, (x, y % 2), eps=0.1, progress=False)
