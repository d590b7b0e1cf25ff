"""Attacks on small plain networks: inside the ball, strong, and leaving no trace."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from pursuitify.errors import InputError, OptionError, PursuitifyError
from pursuitify.robust import fgsm, pgd
from pursuitify.robust.attacks.threat_model import BALLS, add_inward

EPS = 8 / 255


class ConvNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.2)
        )
        self.head = nn.Linear(8 * 36, 4)

    def forward(self, x):
        return self.head(self.body(x).flatten(1))


@pytest.fixture(scope="module")
def data():
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(96, 1, 6, 6, generator=generator)
    x[:, :, 0] = 0.0
    x[:, :, -1] = 1.0
    y = (2 * (x[:, 0, 1:3].mean((1, 2)) > 0.5) + (x[:, 0, 3:5].mean((1, 2)) > 0.5)).long()
    return x, y


@pytest.fixture(scope="module")
def net(data):
    """A network trained well enough that attacks have something to break."""
    x, y = data
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = ConvNet()
        optimizer = torch.optim.Adam(net.parameters(), 1e-2)
        for _ in range(150):
            optimizer.zero_grad()
            F.cross_entropy(net(x), y).backward()
            optimizer.step()
    net.zero_grad()
    net.eval()
    assert accuracy(net, x, y) > 0.95
    return net


@pytest.fixture
def linear():
    torch.manual_seed(2)
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 4))


@torch.no_grad()
def accuracy(net, x, y):
    return (net(x).argmax(1) == y).float().mean().item()


@torch.no_grad()
def losses(net, x, y):
    return F.cross_entropy(net(x), y, reduction="none")


def assert_inside(points, x, eps, norm="linf"):
    order = float("inf") if norm == "linf" else 2
    for dtype in (torch.float32, torch.float64):
        change = (points.to(dtype) - x.to(dtype)).flatten(1)
        assert torch.linalg.vector_norm(change, order, dim=1).max().item() <= eps
    assert points.min() >= 0
    assert points.max() <= 1
    assert points.shape == x.shape
    assert points.dtype == x.dtype
    assert not points.requires_grad


@pytest.mark.parametrize("eps", [0.0, 1e-7, 1 / 255, EPS, 0.1, 0.3, 1.0])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_pgd_stays_inside(net, data, eps, norm):
    x, y = data
    points = pgd(net, x, y, eps=eps, steps=4, restarts=2, norm=norm, seed=0, early_stop=False)
    assert_inside(points, x, eps, norm)


@pytest.mark.parametrize("eps", [0.0, 1e-7, 1 / 255, EPS, 0.1, 0.3, 1.0])
def test_fgsm_stays_inside(net, data, eps):
    x, y = data
    assert_inside(fgsm(net, x, y, eps=eps), x, eps)


@given(st.integers(0, 2**32 - 1), st.floats(1e-8, 2.0), st.sampled_from(sorted(BALLS)))
@settings(max_examples=60, deadline=None)
def test_balls_hold_what_they_hand_out(seed, eps, norm):
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(3, 50, generator=generator)
    x[0] = x[0].round()
    x[1] *= 1e-6
    ball = BALLS[norm](x, eps)
    far = x + torch.randn(x.shape, generator=generator)
    for points in (ball.project(far), ball.draw(generator), ball.project(x)):
        assert_inside(points, x, eps, norm)
        ball.check(points)
    assert torch.equal(ball.project(x), x)
    if eps > 1e-3:  # far above the spacing of floats, projection reaches the surface
        reached = ball.distance(ball.project(far))
        assert (
            reached >= 0.99 * torch.minimum(reached.new_tensor(eps), ball.distance(far.clamp(0, 1)))
        ).all()


def test_addition_rounds_inward():
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(10_000, generator=generator)
    change = torch.randn(10_000, generator=generator) * 0.1
    total = add_inward(x, change)
    assert ((total.double() - x.double()).abs() <= change.double().abs()).all()
    assert (total - (x + change)).abs().max() <= 1.2e-7


def test_a_point_outside_is_reported(data):
    x, _ = data
    ball = BALLS["linf"](x, 0.1)
    for bad in (x + 0.2, torch.full_like(x, torch.nan)):
        with pytest.raises(PursuitifyError, match="outside the ball"):
            ball.check(bad)


@pytest.mark.parametrize("loss", ["ce", "margin", "dlr"])
@pytest.mark.parametrize("eps", [16 / 255, 32 / 255])
def test_pgd_is_at_least_as_strong_as_fgsm(net, data, loss, eps):
    x, y = data
    weak = accuracy(net, fgsm(net, x, y, eps=eps, loss=loss), y)
    strong = accuracy(net, pgd(net, x, y, eps=eps, loss=loss, restarts=2, seed=0), y)
    assert strong <= weak < accuracy(net, x, y)


def test_enough_budget_breaks_an_undefended_network(net, data):
    x, y = data
    assert accuracy(net, pgd(net, x, y, eps=0.5, seed=0), y) == 0
    assert accuracy(net, pgd(net, x, y, eps=4.0, norm="l2", seed=0), y) == 0


@pytest.mark.parametrize("early_stop", [True, False])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_more_steps_and_restarts_never_weaken(net, data, norm, early_stop):
    x, y = data
    eps = EPS if norm == "linf" else 0.3
    options = {"eps": eps, "norm": norm, "step_size": eps / 4, "seed": 3, "early_stop": early_stop}
    runs = [(1, 1), (3, 1), (8, 1), (8, 2), (8, 4)]
    found = [pgd(net, x, y, steps=n, restarts=r, **options) for n, r in runs]
    fooled = [net(points).argmax(1) != y for points in found]
    for i in range(len(runs) - 1):
        assert (fooled[i] <= fooled[i + 1]).all()
        safe = ~fooled[i + 1]
        assert (losses(net, found[i], y)[safe] <= losses(net, found[i + 1], y)[safe] + 1e-6).all()
    assert fooled[-1].sum() > fooled[0].sum()


def test_an_input_already_wrong_is_returned_as_it_is(net, data):
    x, y = data
    points = pgd(net, x, (y + 1) % 4, eps=EPS, steps=2)
    right = net(x).argmax(1) == y
    assert torch.equal(points[right], x[right])


def test_without_early_stop_the_loss_goes_on_rising(net, data):
    x, y = data
    options = {"eps": 0.2, "steps": 10, "seed": 0}
    stopped = losses(net, pgd(net, x, y, **options), y)
    climbed = losses(net, pgd(net, x, y, early_stop=False, **options), y)
    assert climbed.mean() > stopped.mean() * 1.5


def test_closed_form_on_a_linear_model(linear, data):
    """On a linear two-class margin the worst point is x + eps sign(w), clipped."""
    x, _ = data
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 2))
    y = torch.zeros(len(x), dtype=torch.long)
    weight = model[1].weight.detach()
    step = (weight[1] - weight[0]).sign().view(1, 1, 6, 6)
    best = (x + EPS * step).clamp(0, 1)
    options = {"eps": EPS, "loss": "margin"}
    torch.testing.assert_close(fgsm(model, x, y, **options), best, atol=1e-7, rtol=0)
    found = pgd(model, x, y, early_stop=False, seed=0, **options)
    torch.testing.assert_close(found, best, atol=1e-6, rtol=0)


def test_closed_form_on_a_linear_model_l2():
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 2))
    x = torch.full((5, 1, 6, 6), 0.5)
    y = torch.ones(5, dtype=torch.long)
    weight = model[1].weight.detach()
    toward = (weight[0] - weight[1]).view(1, 1, 6, 6)
    best = x + 0.4 * toward / toward.norm()
    options = {"eps": 0.4, "norm": "l2", "loss": "margin", "early_stop": False}
    found = pgd(model, x, y, random_start=False, **options)
    torch.testing.assert_close(found, best, atol=1e-5, rtol=0)
    found = pgd(model, x, y, seed=0, steps=100, step_size=0.4, **options)
    torch.testing.assert_close(found, best, atol=1e-4, rtol=0)


@pytest.mark.parametrize("attack", [fgsm, pgd])
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_black_and_white_pixels_move(attack, value):
    """A clamp inside the differentiated expression would halve or drop their gradient."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 2, bias=False))
    with torch.no_grad():
        sign = 1.0 if value == 0 else -1.0
        model[1].weight.copy_(torch.stack([torch.full((36,), -sign), torch.full((36,), sign)]))
    x = torch.full((2, 1, 6, 6), value)
    options = {"random_start": False} if attack is pgd else {}
    points = attack(model, x, torch.zeros(2, dtype=torch.long), eps=0.1, **options)
    assert (points != x).all()


@pytest.mark.parametrize("attack", [fgsm, pgd])
def test_each_pixel_sees_its_whole_gradient(attack):
    """What the model is differentiated at is the leaf itself, with no clamp before it."""
    seen = []

    class Spy(nn.Module):
        def forward(self, x):
            if x.requires_grad:
                seen.append(x.is_leaf)
            return torch.stack([x.sum(1), -x.sum(1), 0 * x.sum(1)], 1)

    attack(Spy(), torch.zeros(2, 3), torch.zeros(2, dtype=torch.long), eps=0.1)
    assert seen
    assert all(seen)


@pytest.mark.parametrize("attack", [fgsm, pgd])
def test_the_model_is_left_as_it_was(net, data, attack):
    x, y = data
    model = copy.deepcopy(net).train()
    model.body[1].eval()
    F.cross_entropy(model(x), y).backward()
    grads = {k: p.grad.clone() for k, p in model.named_parameters()}
    model.head.weight.grad = None
    state = {k: v.clone() for k, v in model.state_dict().items()}
    modes = [m.training for m in model.modules()]
    inputs = x.clone()

    attack(model, inputs, y, eps=EPS)

    assert [m.training for m in model.modules()] == modes
    assert model.head.weight.grad is None
    assert all(
        torch.equal(p.grad, grads[k]) for k, p in model.named_parameters() if k != "head.weight"
    )
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert torch.equal(inputs, x)
    assert inputs.grad is None


def test_modes_come_back_after_an_error(data):
    x, y = data

    class Breaks(ConvNet):
        def forward(self, x):
            raise RuntimeError("broken")

    model = Breaks().train()
    with pytest.raises(RuntimeError, match="broken"):
        pgd(model, x, y, eps=EPS)
    assert model.training


def test_seeds_repeat_and_leave_the_global_state_alone(net, data):
    x, y = data
    options = {"eps": EPS, "steps": 3, "early_stop": False}
    state = torch.get_rng_state()
    first, again = (pgd(net, x, y, seed=5, **options) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, again)
    assert not torch.equal(first, pgd(net, x, y, seed=6, **options))
    torch.manual_seed(0)
    first = pgd(net, x, y, **options)
    torch.manual_seed(0)
    assert torch.equal(first, pgd(net, x, y, **options))


@pytest.mark.parametrize("attack", [fgsm, pgd])
def test_batches_make_no_difference_without_chance(net, data, attack):
    x, y = data
    options = {"random_start": False} if attack is pgd else {}
    whole = attack(net, x, y, eps=EPS, **options)
    parts = attack(net, x, y, eps=EPS, batch_size=25, **options)
    torch.testing.assert_close(whole, parts, atol=1e-6, rtol=0)


@pytest.mark.parametrize("attack", [fgsm, pgd])
def test_it_runs_wherever_it_is_called(net, data, attack):
    x, y = data
    with torch.no_grad():
        assert_inside(attack(net, x, y.int(), eps=EPS), x, EPS)
    with torch.inference_mode():
        points = attack(net, x.clone(), y.clone(), eps=EPS)
    assert accuracy(net, points, y) < accuracy(net, x, y)
    wanting = x.clone().requires_grad_()
    assert_inside(attack(net, wanting, y, eps=np.float32(EPS)), x, float(np.float32(EPS)))
    assert wanting.grad is None


def test_double_precision_stays_double(net, data):
    x, y = data
    model = copy.deepcopy(net).double()
    points = pgd(model, x.double(), y, eps=0.1, steps=3, early_stop=False)
    assert points.dtype == torch.float64
    assert (points - x.double()).abs().max().item() <= 0.1


def test_the_progress_bar_shows(linear, data, capsys):
    x, y = data
    pgd(linear, x, y, eps=EPS, steps=2, progress=True)
    shown = capsys.readouterr()
    assert "PGD" in shown.err
    assert shown.out == ""
    pgd(linear, x, y, eps=EPS, steps=2)
    assert capsys.readouterr() == ("", "")


X, Y = torch.rand(4, 1, 6, 6), torch.arange(4)
BAD_INPUTS = {
    "label above": (X, torch.tensor([0, 1, 2, 4]), "label 4, .* 0 to 3"),
    "label below": (X, torch.tensor([0, 1, -1, 3]), "label -1"),
    "float labels": (X, Y.float(), "Class numbers are integers"),
    "one-hot labels": (X, torch.eye(4).long(), r"one-hot rows as y\.argmax\(1\)"),
    "too few labels": (X, Y[:3], "one class number per sample"),
    "too bright": (X + 0.5, Y, "normalise inside the model"),
    "too dark": (X - 0.5, Y, r"\[0, 1\]"),
    "nan": (torch.full_like(X, torch.nan), Y, r"\[0, 1\]"),
    "empty": (X[:0], Y[:0], "empty"),
    "bytes": ((X * 255).byte(), Y, "float32 or float64"),
    "no batch": (X[0, 0, 0, 0], Y, "batch"),
    "array": (X.numpy(), Y, "x must be a tensor"),
    "list": (X, [0, 1, 2, 3], "y are a list, not a tensor"),
}


@pytest.mark.parametrize("case", BAD_INPUTS)
@pytest.mark.parametrize("attack", [fgsm, pgd])
def test_bad_inputs(linear, attack, case):
    x, y, message = BAD_INPUTS[case]
    with pytest.raises(InputError, match=message):
        attack(linear, x, y, eps=EPS)


BAD_OPTIONS = {
    "negative eps": ({"eps": -0.1}, "eps"),
    "infinite eps": ({"eps": float("inf")}, "eps"),
    "eps is nan": ({"eps": float("nan")}, "eps"),
    "eps is text": ({"eps": "8/255"}, "eps"),
    "loss": ({"loss": "mse"}, "loss='mse' is not one of 'ce', 'margin', 'dlr'"),
    "batch size": ({"batch_size": 0}, "batch_size"),
}
BAD_PGD_OPTIONS = {
    "norm": ({"norm": "l1"}, "norm='l1' is not one of 'linf', 'l2'"),
    "no steps": ({"steps": 0}, "steps"),
    "half a step": ({"steps": 1.5}, "steps"),
    "no restarts": ({"restarts": 0}, "restarts"),
    "step size": ({"step_size": 0.0}, "step_size"),
    "pointless restarts": ({"restarts": 2, "random_start": False}, "random_start"),
}


@pytest.mark.parametrize("case", BAD_OPTIONS)
@pytest.mark.parametrize("attack", [fgsm, pgd])
def test_bad_options(linear, attack, case):
    options, message = BAD_OPTIONS[case]
    with pytest.raises(OptionError, match=message):
        attack(linear, X, Y, **{"eps": EPS, **options})


@pytest.mark.parametrize("case", BAD_PGD_OPTIONS)
def test_bad_pgd_options(linear, case):
    options, message = BAD_PGD_OPTIONS[case]
    with pytest.raises(OptionError, match=message):
        pgd(linear, X, Y, eps=EPS, **options)


def test_options_are_keywords(linear):
    with pytest.raises(TypeError):
        fgsm(linear, X, Y, EPS)


class Returns(nn.Module):
    def __init__(self, make):
        super().__init__()
        self.make = make

    def forward(self, x):
        return self.make(x)


BAD_MODELS = {
    "dict": (lambda x: {"logits": x.flatten(1)}, "must return logits"),
    "scores per pixel": (lambda x: x, "must return logits"),
    "nan": (lambda x: x.flatten(1) * torch.nan, "not finite"),
    "constant": (lambda x: torch.zeros(len(x), 4), "does not depend"),
    "detached": (lambda x: x.detach().flatten(1), "does not depend"),
    "another leaf": (lambda x: torch.zeros(len(x), 4, requires_grad=True) + 0, "does not depend"),
    "infinite slope": (lambda x: (x * 0).flatten(1)[:, :4].sqrt(), "gradient .* not finite"),
}


@pytest.mark.parametrize("case", BAD_MODELS)
@pytest.mark.parametrize("attack", [fgsm, pgd])
def test_bad_models(attack, case):
    make, message = BAD_MODELS[case]
    y = torch.zeros(4, dtype=torch.long)
    options = {"early_stop": False} if attack is pgd else {}
    with pytest.raises(InputError, match=message):
        attack(Returns(make), X, y, eps=EPS, **options)


@pytest.mark.parametrize("attack", [fgsm, pgd])
def test_not_a_module(attack):
    with pytest.raises(OptionError, match=r"nn\.Module"):
        attack(lambda x: x.flatten(1), X, Y, eps=EPS)


def test_losses_that_need_more_classes():
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 2))
    with pytest.raises(OptionError, match="classes"):
        fgsm(model, X, torch.zeros(4, dtype=torch.long), eps=EPS, loss="dlr")


@pytest.mark.parametrize("loss", ["ce", "margin", "dlr"])
def test_a_single_logit_is_refused(loss):
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 1))
    with pytest.raises(InputError, match="one logit per sample"):
        fgsm(model, X, torch.zeros(4, dtype=torch.long), eps=EPS, loss=loss)


@pytest.mark.parametrize("attack", [fgsm, pgd])
def test_probabilities_draw_one_warning(linear, attack):
    model = nn.Sequential(linear, nn.Softmax(1))
    with pytest.warns(UserWarning, match="probabilities") as caught:
        attack(model, X, Y, eps=EPS)
    assert len(caught) == 1
    assert caught[0].filename == __file__
