"""Integer inputs: taken where the network casts or looks them up, refused elsewhere."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pursuitify import InputError, explain, pursuitify
from pursuitify.operators import Identity
from pursuitify.rules import frozen, linear
from tests.support.agreement import bound_pass, error, rows_error


class _Table(nn.Module):
    def __init__(self, first: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = first
        self.e, self.a, self.b = nn.Embedding(5, 3), nn.Linear(9, 8), nn.Linear(8, 2)

    def forward(self, one: Tensor, two: Tensor) -> Tensor:
        cat, num = (one, two) if self.first else (two, one)
        return self.b(torch.relu(self.a(torch.cat([self.e(cat), num], 1))))


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_frozen_embedding_takes_its_integers(first: bool, dtype: torch.dtype) -> None:
    assert "frozen()" in str(explain(_Table(first)).problems[0])
    model = _Table(first).to(dtype).eval()
    x = (torch.randint(0, 5, (4,)), torch.randn(4, 6, dtype=dtype))
    x = x if first else x[::-1]
    net = pursuitify(model, iterations=0, rules={nn.Embedding: frozen()})
    assert error(net(*x), model(*x)) == 0
    net.iterations = 3
    _, first_pass, bound = bound_pass(net, x)
    assert rows_error(first_pass, bound) < 1e-6
    assert torch.isfinite(net(*x)).all()
    latents = net.latents(*x)
    assert torch.isfinite(net.objective(x, latents)).all()
    net(*x).sum().backward()
    assert net.get_parameter("e.weight").grad is not None
    with pytest.raises(InputError, match="floating point"):
        net(*(v.long() for v in x))


CASTS: dict[str, Any] = {
    "float": lambda x: x.float(),
    "to": lambda x: x.to(torch.float32),
    "to by name": lambda x: x.to(dtype=torch.float32),
    "to device and dtype": lambda x: x.to("cpu", torch.float32),
}


class _Frames(nn.Module):
    def __init__(self, cast: str, divide: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.cast, self.divide = cast, divide
        self.c, self.f = nn.Conv2d(4, 8, 4, 2), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = CASTS[self.cast](x)
        x = x / 255 if self.divide else x
        return self.f(torch.relu(self.c(x)).mean((2, 3)))


@pytest.mark.parametrize("divide", [True, False])
@pytest.mark.parametrize("cast", CASTS)
def test_frames_are_cast_by_the_network_alone(cast: str, divide: bool) -> None:
    model = _Frames(cast, divide).eval()
    net = pursuitify(model, iterations=0)
    for x in (torch.randint(0, 256, (2, 4, 12, 12), dtype=torch.uint8), torch.rand(2, 4, 12, 12)):
        net.iterations = 0
        assert error(net(x), model(x)) == 0
        net.iterations = 3
        _, first, bound = bound_pass(net, (x,))
        assert rows_error(first, bound) < 1e-5
        # The same numbers in floating point are the same network.
        assert error(net(x), net(x.float())) < 1e-6


def test_a_rule_of_the_user_s_own_for_a_cast() -> None:
    rule = linear(Identity(), elementwise=True)
    x = torch.randint(0, 256, (2, 4, 12, 12), dtype=torch.uint8)
    net = pursuitify(_Frames("float", True).eval(), iterations=2, rules={"float": rule})
    assert error(net(x), net(x.float())) < 1e-6


def test_without_a_cast_integers_are_refused_and_the_reason_names_no_second_division() -> None:
    net = pursuitify(nn.Sequential(nn.Conv2d(4, 8, 4), nn.ReLU()), iterations=0)
    x = torch.randint(0, 256, (2, 4, 12, 12), dtype=torch.uint8)
    with pytest.raises(InputError, match="if the model does not divide itself"):
        net(x)


class _Long(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.a(torch.relu(self.a(x)).to(torch.int64).float()))


class _Wider(_Long):
    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(torch.relu(self.a(x)).double() @ self.a.weight.double())


def test_casts_that_are_not_linear_are_refused() -> None:
    problems = explain(_Long()).problems
    assert "rounds or drops values" in str(problems[0])
    with pytest.raises(InputError, match="one floating-point dtype"):
        pursuitify(_Wider(), iterations=1)(torch.randn(2, 3))
