"""Every attack refuses the same bad input by name, and verifies every batch it returns."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

from pursuitify.errors import InputError, InternalError, OptionError
from pursuitify.robust import (
    apgd,
    audit,
    autoattack,
    fgsm,
    foolbox,
    hard_label,
    pgd,
    random_noise,
    square,
)
from pursuitify.robust.attacks.threat_model import LinfBall
from tests.support.controls import EPS


def outside(attack, **options):
    def run(model, x, y, **given):
        pytest.importorskip({autoattack: "pyautoattack", foolbox: "foolbox"}[attack])
        return attack(model, x, y, **options, **given)

    return run


ATTACKS = {
    "fgsm": fgsm,
    "pgd": lambda *a, **k: pgd(*a, steps=2, **k),
    "apgd": lambda *a, **k: apgd(*a, steps=2, **k),
    "apgd-t": lambda *a, **k: apgd(*a, steps=2, targets=2, **k),
    "noise": lambda *a, **k: random_noise(*a, draws=2, **k),
    "square": lambda *a, **k: square(*a, queries=5, **k),
    "hard label": lambda *a, **k: hard_label(*a, queries=5, **k),
    "autoattack": outside(autoattack, version="custom", attacks=["apgd-ce"]),
    "foolbox": outside(foolbox, steps=2),
}
every = pytest.mark.parametrize("name", ATTACKS)
X, Y = torch.rand(6, 1, 8, 8), torch.arange(6)
REFUSED = {
    "empty": (X[:0], Y[:0], "there is nothing to attack"),
    "label above": (X, Y + 5, "y has the label 10, .* classes, numbered 0 to 9: 1 of 6"),
    "label below": (X, Y - 1, "label -1; labels are class numbers from 0 on$"),
    "too bright": (X + 0.5, Y, r"x must lie in \[0, 1\]"),
    "too dark": (X - 0.5, Y, "normalise inside the model"),
    "not a number": (X * torch.nan, Y, r"x must lie in \[0, 1\]"),
    "one label for all": (X, Y[:1], "one class number per sample"),
    "one-hot": (X, torch.eye(6)[Y], "are probabilities, and class numbers are needed"),
    "bytes": (X.byte(), Y, "float32 or float64"),
}


@every
@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_refused_by_name(undefended, name, case):
    x, y, message = REFUSED[case]
    with pytest.raises(InputError, match=message):
        ATTACKS[name](undefended, x, y, eps=EPS)


@every
def test_a_bad_radius_and_a_bad_model_are_refused(undefended, name):
    with pytest.raises(OptionError, match="eps"):
        ATTACKS[name](undefended, X, Y, eps=-1)
    with pytest.raises(InputError, match="must return logits"):
        ATTACKS[name](nn.Identity(), X, Y, eps=EPS)


@every
def test_probabilities_draw_a_warning(undefended, name):
    with pytest.warns(UserWarning, match="return probabilities; attack its logits instead"):
        ATTACKS[name](nn.Sequential(undefended, nn.Softmax(1)).eval(), X, Y, eps=EPS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ATTACKS[name](undefended, X, Y, eps=EPS)


@every
def test_a_model_in_training_mode_is_attacked_in_evaluation_mode_and_left_in_training(name):
    """So the attack meets the network that will be judged; the audit warns as well."""
    torch.manual_seed(0)
    seen = []

    class Watched(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Linear(64, 10))

        def forward(self, x):
            seen.append(self.training or self.net.training)
            return self.net(x)

    net = Watched().train()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    ATTACKS[name](net, X, net.eval()(X).argmax(1), eps=EPS)
    net.train()
    seen.clear()
    ATTACKS[name](net, X, Y, eps=EPS)
    assert not any(seen)
    assert all(module.training for module in net.modules())
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in net.parameters())


def test_the_audit_says_so(undefended):
    undefended.train()
    try:
        with pytest.warns(UserWarning, match="in training mode; audited in evaluation mode"):
            audit(undefended, (X, Y), eps=EPS, progress=False)
    finally:
        undefended.eval()


@every
def test_every_batch_is_verified(undefended, digits, name, monkeypatch):
    """A ball that hands out points a little too far is found out, whatever the attack."""
    x, y = (part[:20] for part in digits)
    checked = []
    check, project = LinfBall.check, LinfBall.project
    monkeypatch.setattr(LinfBall, "check", lambda self, p: checked.append(len(p)) or check(self, p))
    points = ATTACKS[name](undefended, x, y, eps=EPS, batch_size=7)
    assert sum(checked) >= len(points) == 20
    monkeypatch.setattr(
        LinfBall, "project", lambda self, p: project(self, p) + 1e-6 * (self.x < 0.5)
    )
    with pytest.raises(InternalError, match="outside the ball"):
        ATTACKS[name](undefended, x, y, eps=EPS)
