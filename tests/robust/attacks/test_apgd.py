"""APGD: inside the ball, at least as strong as PGD, targeted, and leaving no trace."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pursuitify.errors import InputError, OptionError
from pursuitify.robust import apgd, fgsm, pgd
from pursuitify.robust.attacks.losses import LOSSES, toward
from tests.support.controls import EPS


@torch.no_grad()
def accuracy(net, x, y):
    return (net(x).argmax(1) == y).float().mean().item()


def assert_inside(points, x, eps, norm):
    order = float("inf") if norm == "linf" else 2
    change = (points - x).flatten(1)
    assert points.dtype == torch.float32
    assert torch.linalg.vector_norm(change, order, dim=1).max().item() <= eps
    assert points.min() >= 0
    assert points.max() <= 1


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("eps", [1e-6, 0.05, 0.5])
@pytest.mark.parametrize("targets", [0, 2])
def test_it_stays_inside(undefended, digits, norm, eps, targets):
    x, y = (part[:32] for part in digits)
    points = apgd(undefended, x, y, eps=eps, steps=5, norm=norm, targets=targets, seed=0)
    assert_inside(points, x, eps, norm)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_apgd_is_stronger_than_pgd_than_fgsm(undefended, hardened, digits, norm):
    x, y = digits
    eps = EPS if norm == "linf" else 0.5
    for net in (undefended, hardened):
        found = [
            apgd(net, x, y, eps=eps, norm=norm, steps=30, seed=0),
            pgd(net, x, y, eps=eps, norm=norm, steps=15, seed=0),
        ]
        if norm == "linf":
            found.append(fgsm(net, x, y, eps=eps))
        scores = [accuracy(net, points, y) for points in found]
        # Where the networks are trained another processor rounds otherwise: on one, three of the
        # 256 examples withstand APGD alone. FGSM is further away than that.
        assert scores[0] <= scores[1] + 4 / 256
        assert scores[1:] == sorted(scores[1:])
        assert scores[0] < scores[-1]


def test_more_restarts_never_weaken(hardened, digits):
    x, y = digits
    runs = [
        hardened(apgd(hardened, x, y, eps=EPS, steps=6, restarts=n, seed=0)).argmax(1) != y
        for n in (1, 2, 3)
    ]
    assert (runs[0] <= runs[1]).all()
    assert (runs[1] <= runs[2]).all()


def test_it_reaches_the_best_point_of_a_linear_model():
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 2))
    x, y = torch.rand(5, 1, 6, 6), torch.zeros(5, dtype=torch.long)
    weight = model[1].weight.detach()
    best = (x + 0.1 * (weight[1] - weight[0]).sign().view(1, 1, 6, 6)).clamp(0, 1)
    found = apgd(model, x, y, eps=0.1, loss="margin", early_stop=False, seed=0)
    torch.testing.assert_close(found, best, atol=1e-6, rtol=0)


def test_targets_are_tried_from_the_likeliest_on(undefended, digits):
    x, y = (part[:96] for part in digits)
    few = apgd(undefended, x, y, eps=EPS, steps=10, targets=1, seed=0)
    more = apgd(undefended, x, y, eps=EPS, steps=10, targets=4, seed=0)
    assert accuracy(undefended, more, y) <= accuracy(undefended, few, y)
    apgd(undefended, x[:8], y[:8], eps=EPS, steps=2, targets=40, seed=0)  # fewer classes exist


def test_targeted_loss_is_blind_to_scale():
    logits, y, aim = torch.randn(6, 10), torch.arange(6), torch.arange(6) + 1
    loss = toward(aim)
    torch.testing.assert_close(loss(logits, y), loss(1e4 * logits, y))
    scaled = LOSSES["scaled"]
    torch.testing.assert_close(scaled(logits, y), scaled(1e4 * logits, y))
    torch.testing.assert_close(scaled(logits, y), scaled(1e-4 * logits, y))
    three = toward(torch.tensor([1]))(torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([0]))
    assert three.item() == -1


def test_the_model_is_left_as_it_was(undefended, digits):
    x, y = (part[:16] for part in digits)
    model = copy.deepcopy(undefended).train()
    F.cross_entropy(model(x), y).backward()
    grads = {k: p.grad.clone() for k, p in model.named_parameters()}
    state = {k: v.clone() for k, v in model.state_dict().items()}
    before = torch.get_rng_state()
    points = apgd(model, x, y, eps=EPS, steps=4, seed=1)
    assert torch.equal(points, apgd(model, x, y, eps=EPS, steps=4, seed=1))
    assert torch.equal(before, torch.get_rng_state())
    assert all(module.training for module in model.modules())
    assert all(torch.equal(p.grad, grads[k]) for k, p in model.named_parameters())
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


def test_already_wrong_inputs_come_back_as_they_are(undefended, digits):
    x = digits[0]
    wrong = (undefended(x).argmax(1) + 1) % 10
    assert torch.equal(apgd(undefended, x, wrong, eps=EPS, steps=2), x)


def test_progress_and_batches(undefended, digits, capsys):
    x, y = (part[:20] for part in digits)
    points = apgd(undefended, x, y, eps=EPS, steps=3, batch_size=7, seed=0, progress=True)
    assert points.shape == x.shape
    assert "APGD" in capsys.readouterr().err


def test_bad_arguments(undefended, digits):
    x, y = (part[:4] for part in digits)
    for options in ({"steps": 0}, {"restarts": 0}, {"targets": -1}, {"norm": "l1"}, {"loss": "x"}):
        with pytest.raises(OptionError, match=next(iter(options))):
            apgd(undefended, x, y, **{"eps": EPS, **options})
    with pytest.raises(InputError, match=r"label 10, .* 0 to 9"):
        apgd(undefended, x, torch.full((4,), 10), eps=EPS)


@pytest.mark.parametrize("attack", [fgsm, pgd, apgd])
def test_a_slope_that_is_one_number_under_many_names(undefended, digits, attack):
    """What sums pixels has such a slope, and writing into a part of it would change all of it."""
    x, y = (part[:16] for part in digits)
    weights = torch.ones_like(x)

    def summed(points, labels, clean, loss):
        return points.flatten(1).sum(1) * (1 - 2 * (points.flatten(1).mean(1) > 0.4))

    def weighted(points, labels, clean, loss):
        return summed(points * weights[: len(points)], labels, clean, loss)

    given = {} if attack is fgsm else {"steps": 12, "seed": 0}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = attack(undefended, x, y, eps=EPS, guide=summed, **given)
    assert torch.equal(found, attack(undefended, x, y, eps=EPS, guide=weighted, **given))


def test_targets_have_a_loss_of_their_own(undefended, digits):
    x, y = (part[:4] for part in digits)
    with pytest.raises(OptionError, match="loss='dlr' would have no effect: targets=2"):
        apgd(undefended, x, y, eps=EPS, targets=2, loss="dlr")
