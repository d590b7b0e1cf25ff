"""These tests check which programs are known to draw no random numbers, and against their runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pursuitify as package
from pursuitify import pursuitify
from pursuitify.operators import Identity


class Body(nn.Module):
    """A network with one operation between its layers."""

    def __init__(self, body: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.body = body
        self.first, self.last = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)
        self.norm, self.drop = nn.BatchNorm2d(4), nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        x = F.relu(self.norm(self.first(x)))
        return self.last(self.body(self, x).mean((2, 3)))


#: Operations, and whether they draw in training and in evaluation mode.
BODIES: dict[str, tuple[Callable[[Any, Tensor], Tensor], bool, bool]] = {
    "nothing": (lambda net, x: x, False, False),
    "gate": (lambda net, x: x * torch.sigmoid(x.mean((2, 3), keepdim=True)), False, False),
    "module": (lambda net, x: net.drop(x), True, False),
    "function": (lambda net, x: F.dropout(x, 0.5, net.training), True, False),
    "always": (lambda net, x: F.dropout(x, 0.5), True, True),
    "noise": (lambda net, x: x * torch.rand_like(x), True, True),
    "mask": (lambda net, x: x * x.new_empty(x.size(0), 1, 1, 1).bernoulli_(0.5), True, True),
    "sizes": (lambda net, x: x.reshape(x.shape[0], 4, -1, x.size(3)), False, False),
}


@pytest.mark.parametrize("mode", [True, False])
@pytest.mark.parametrize("name", BODIES)
def test_what_draws_is_known(name: str, mode: bool) -> None:
    body, *draws = BODIES[name]
    model = Body(body).train(mode)
    net, x = pursuitify(model), torch.rand(2, 3, 6, 6)
    before = torch.get_rng_state()
    model(x)
    moved = not torch.equal(torch.get_rng_state(), before)
    assert moved is draws[not mode]
    if moved:
        assert net._program.may_draw(net)
    elif name != "gate":  # an operation without a rule may do anything
        assert not net._program.may_draw(net)


def test_a_mode_that_changes_later_counts() -> None:
    net = pursuitify(Body(BODIES["module"][0]).eval())
    assert not net._program.may_draw(net)
    net.get_submodule("drop").train()
    assert net._program.may_draw(net)


def test_hooks_and_rules_of_the_users_own_may_draw() -> None:
    net = pursuitify(Body(BODIES["nothing"][0]).eval())
    net.get_submodule("last").register_forward_hook(lambda *_: None)
    assert net._program.may_draw(net)

    class Noise(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * torch.rand(())

    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), Noise(), nn.Conv2d(4, 4, 1), nn.ReLU())
    net = pursuitify(model.eval(), rules={Noise: package.rules.linear(Identity())})
    assert net._program.may_draw(net)
