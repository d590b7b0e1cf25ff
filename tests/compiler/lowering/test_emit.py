"""Generated code: effects run once, in source order, and the head reads what it must."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pursuitify import InputError, pursuitify
from tests.support.agreement import bound_pass, compare, error


class Effects(nn.Module):
    """Assertions and a counter before, between and after the latents."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(4, 4), nn.Linear(4, 4)
        self.register_buffer("seen", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(4))
        self.register_buffer("log", torch.zeros(2, 3))

    def forward(self, x: Tensor) -> Tensor:
        torch._assert(x.shape[0] < 5, "small batches only")
        x = F.relu(self.fc1(x))
        self.seen.add_(x.shape[0])
        self.mean.copy_(x.detach().mean(0))
        self.log[1].narrow(0, 1, 1).add_(1)  # through views, which nothing else reads
        x = self.fc2(x)
        torch._assert(x.shape[0] != 3, "not three")
        return x


@pytest.mark.parametrize("sweeps", [0, 2])
def test_effects_run_once_in_both_kinds_of_code(sweeps: int) -> None:
    model = Effects()
    net = pursuitify(model, iterations=sweeps)
    x = torch.randn(2, 4)
    net(x)
    model(x)
    assert float(net.seen) == 2
    torch.testing.assert_close(net.mean, model.mean)
    assert torch.equal(net.log, torch.tensor([[0.0, 0, 0], [0, 1, 0]]))
    for batch in (5, 3):
        with pytest.raises((AssertionError, InputError)):
            net(torch.randn(batch, 4))


def test_random_numbers_of_the_head_are_drawn_in_order() -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.fc2, self.aux = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Any:
            x = F.relu(self.fc1(x))
            aux = F.dropout(self.aux(x), 0.5) + torch.randn_like(x)
            x = F.relu(self.fc2(F.dropout(x, 0.5)))
            return {"out": x + torch.rand_like(x), "aux": aux}

    model = Noisy()
    net, x = pursuitify(model), torch.randn(3, 4)
    with torch.no_grad():
        torch.manual_seed(1)
        expected = model(x)
        torch.manual_seed(1)
        assert error(bound_pass(net, (x,))[0], expected) < 1e-6


def test_generated_code_is_readable() -> None:
    net = pursuitify(nn.Sequential(nn.Linear(4, 4), nn.ReLU()))
    code = net.source.code
    assert "def forward(self, input)" in code


def test_values_that_nothing_reads_leave_their_trace() -> None:
    """A BatchNorm whose result is thrown away still counts; a dropout still draws."""

    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.fc2, self.bn = nn.Linear(4, 4), nn.Linear(4, 4), nn.BatchNorm1d(4)

        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.fc1(x))
            F.dropout(self.bn(x), 0.5, self.training)
            return F.relu(self.fc2(F.dropout(x, 0.5, self.training)))

    for training in (True, False):
        compare(pursuitify, Idle().double(), torch.randn(5, 4).double(), training=training)
