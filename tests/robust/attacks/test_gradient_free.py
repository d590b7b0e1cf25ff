"""Attacks without gradients: inside the ball, and seeing only what they say they see."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from pursuitify.errors import InputError, OptionError
from pursuitify.robust import hard_label, random_noise, square
from tests.support.controls import EPS, Before, quantise

ATTACKS = {
    "noise": (random_noise, {"draws": 12}),
    "square": (square, {"queries": 60}),
    "hard label": (hard_label, {"queries": 60}),
}
every = pytest.mark.parametrize("name", ATTACKS)


@torch.no_grad()
def accuracy(net, x, y):
    return (net(x).argmax(1) == y).float().mean().item()


def run(name, net, x, y, **options):
    attack, budget = ATTACKS[name]
    return attack(net, x, y, **{"eps": EPS, "seed": 0, **budget, **options})


@every
@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("eps", [0.0, 1e-6, 0.1, 1.0, 9.0])
def test_it_stays_inside(undefended, digits, name, norm, eps):
    x, y = (part[:24] for part in digits)
    points = run(name, undefended, x, y, eps=eps, norm=norm)
    order = float("inf") if norm == "linf" else 2
    change = torch.linalg.vector_norm((points - x).flatten(1), order, dim=1)
    assert change.max().item() <= eps
    assert points.min() >= 0
    assert points.max() <= 1


@every
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_large_budget_fools(undefended, digits, name, norm):
    x, y = (part[:64] for part in digits)
    points = run(name, undefended, x, y, eps=0.4 if norm == "linf" else 3.0, norm=norm)
    assert accuracy(undefended, points, y) < 0.5


@every
def test_no_gradient_is_taken(undefended, digits, name):
    class Blind(nn.Module):
        def forward(self, x):
            assert not torch.is_grad_enabled()
            return undefended(x)

    x, y = (part[:16] for part in digits)
    run(name, Blind(), x, y)


def test_the_hard_label_attack_reads_the_answer_only(undefended, digits):
    class Answer(nn.Module):
        def forward(self, x):
            return nn.functional.one_hot(undefended(x).argmax(1), 10).float() * 3

    x, y = (part[:64] for part in digits)
    plain = run("hard label", undefended, x, y, eps=0.2)
    assert torch.equal(run("hard label", Answer(), x, y, eps=0.2), plain)
    assert accuracy(undefended, plain, y) < accuracy(undefended, x, y) - 0.1


def test_square_breaks_what_hides_its_gradient(undefended, digits):
    x, y = (part[:128] for part in digits)
    masked = Before(quantise, undefended)
    points = square(masked, x, y, eps=EPS, queries=150, seed=0)
    assert accuracy(masked, points, y) < accuracy(masked, x, y) - 0.2


@pytest.mark.parametrize("shape", [(12,), (3, 4), (2, 1, 9)])
def test_inputs_that_are_no_images(shape):
    x = torch.rand(6, *shape)
    model = nn.Sequential(nn.Flatten(), nn.Linear(x[0].numel(), 3))
    y = model(x).argmax(1)
    for name in ATTACKS:
        for norm in ("linf", "l2"):
            points = run(name, model, x, y, eps=2.0, norm=norm)
            assert points.shape == x.shape
            assert accuracy(model, points, y) < 1


@every
def test_seeds_repeat_and_nothing_is_left_behind(undefended, digits, name):
    x, y = (part[:32] for part in digits)
    model = copy.deepcopy(undefended).train()
    state = torch.get_rng_state()
    first, again = run(name, model, x, y), run(name, model, x, y)
    assert torch.equal(first, again)
    assert torch.equal(state, torch.get_rng_state())
    assert all(module.training for module in model.modules())
    assert all(p.grad is None for p in model.parameters())
    assert not torch.equal(first, run(name, model, x, y, seed=1))


@every
def test_more_queries_never_weaken(undefended, digits, name):
    if name == "square":
        pytest.skip("its schedule depends on the number of queries")
    x, y = (part[:96] for part in digits)
    key = next(iter(ATTACKS[name][1]))
    runs = [
        undefended(run(name, undefended, x, y, eps=0.2, **{key: n})).argmax(1) != y
        for n in (8, 30, 90)
    ]
    assert (runs[0] <= runs[1]).all()
    assert (runs[1] <= runs[2]).all()


@every
def test_batches_and_progress(undefended, digits, name, capsys):
    x, y = (part[:20] for part in digits)
    points = run(name, undefended, x, y, batch_size=7, progress=True)
    assert points.shape == x.shape
    assert capsys.readouterr().err


@every
def test_bad_arguments(undefended, digits, name):
    x, y = (part[:4] for part in digits)
    key = next(iter(ATTACKS[name][1]))
    for options in ({key: 0}, {"norm": "l1"}, {"eps": -1.0}):
        with pytest.raises(OptionError, match=next(iter(options))):
            run(name, undefended, x, y, **options)
    with pytest.raises(InputError, match="empty"):
        run(name, undefended, x[:0], y[:0])
    with pytest.raises(OptionError, match="area"):
        square(undefended, x, y, eps=EPS, area=0.0)
