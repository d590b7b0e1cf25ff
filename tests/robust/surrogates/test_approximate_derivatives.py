"""Guides with the derivatives of another memory mode."""

from __future__ import annotations

import warnings

import pytest
import torch

from pursuitify import pursuitify
from pursuitify.models import ResidualNet
from pursuitify.robust.attacks.fgsm_pgd import pgd
from pursuitify.robust.auditing.attack_registry import GUIDES


@pytest.mark.parametrize(
    ("guide", "settings"),
    [("implicit", {"implicit_last": None}), ("last-k", {"implicit_last": 1})],
)
def test_the_network_with_other_derivatives(guide: str, settings: dict[str, int | None]) -> None:
    torch.manual_seed(0)
    net = pursuitify(ResidualNet(1, 10, depth=1, width=4).double(), iterations=4).eval()
    x = torch.rand(5, 1, 8, 8, dtype=torch.float64).requires_grad_()
    wrapped = GUIDES[guide](net)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        out = wrapped(x)
        (found,) = torch.autograd.grad(out[:, 0].sum(), x)
        assert (net.memory, net.implicit_last) == ("store", None)
        torch.testing.assert_close(out, net(x), rtol=1e-12, atol=1e-12)
        (own,) = torch.autograd.grad(net(x)[:, 0].sum(), x)
        net.memory, net.implicit_last = "implicit", settings["implicit_last"]
        (expected,) = torch.autograd.grad(net(x)[:, 0].sum(), x)
        net.memory, net.implicit_last = "store", None
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
        assert float((found - own).norm() / own.norm()) > 1e-3, "they must differ to be of use"
        y = net(x).argmax(1)
        moved = pgd(net, x.detach(), y, eps=0.1, steps=2, guide=wrapped)
    assert float((moved - x.detach()).abs().max()) > 0.01
