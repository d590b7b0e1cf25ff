"""Networks go through pickle, torch.save and a spawned process, and come out the same."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, multiprocessing, nn
from torch.nn import functional as F

from pursuitify import CheckpointError, PursuitNetwork, pursuitify
from pursuitify.checkpoints.network_identity import identity
from pursuitify.models import ResidualNet
from pursuitify.operators.activations import ReLU
from pursuitify.rules import Rule, activation
from tests.support.nets import CASES, Case


def pickled(net: PursuitNetwork) -> PursuitNetwork:
    again = pickle.loads(pickle.dumps(net))
    assert isinstance(again, PursuitNetwork)
    return again


def saved(net: PursuitNetwork) -> PursuitNetwork:
    buffer = io.BytesIO()
    torch.save(net, buffer)
    buffer.seek(0)
    again = torch.load(buffer, weights_only=False)
    assert isinstance(again, PursuitNetwork)
    return again


def same(one: nn.Module, other: nn.Module, x: Tensor) -> None:
    for sweeps in (0, 3):
        one.iterations = other.iterations = sweeps  # type: ignore[assignment]
        found = []
        for net in (one, other):
            torch.manual_seed(0)  # dropout draws in training mode
            with torch.no_grad():
                found.append(net(x))
        assert torch.equal(*found)


def moved(net: nn.Module) -> None:
    """Change every parameter as training would, extrapolation included."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(torch.rand(parameter.shape, generator=generator) * 0.2 + 0.9)
        net.get_parameter("pursuit.alpha").fill_(0.2)


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("through", [pickled, saved])
def test_round_trip(case: Case, through: Callable[[PursuitNetwork], PursuitNetwork]) -> None:
    net, x = pursuitify(case.build().double()), case.input().double()
    again = through(net)
    same(net, again, x)
    moved(net)
    moved(again)
    same(net, again, x)
    third = through(again)
    same(net, third, x)
    same(net.train(), third.train(), x)
    assert identity(third) == identity(net)
    assert list(third.graph.nodes(data=True)) == list(net.graph.nodes(data=True))
    assert list(third.graph.edges) == list(net.graph.edges)


def test_settings_and_derivatives_come_along() -> None:
    options = {"balance": True, "nonnegative_thresholds": True, "memory": "implicit"}
    net = pursuitify(ResidualNet(width=2), 4, "global", **options)  # type: ignore[arg-type]
    x = torch.rand(2, 3, 8, 8)
    net.pursuit.alpha.requires_grad_()
    net(x).sum().backward()
    again = pickled(net)
    assert again.settings() == net.settings()
    for one in (net, again):
        one.zero_grad()
        one(x).sum().backward()
    for (name, a), b in zip(net.named_parameters(), again.parameters(), strict=True):
        assert (a.grad is b.grad) or torch.equal(a.grad, b.grad), name


def test_a_copy_shares_the_code() -> None:
    net = pursuitify(ResidualNet(width=2))
    assert copy.deepcopy(net)._programs == net._programs
    again = pickled(net)
    assert (again._programs[True] is again._programs[False]) == (
        net._programs[True] is net._programs[False]
    )


def _answer(net: PursuitNetwork, x: Tensor, queue: Any) -> None:
    with torch.no_grad():
        queue.put(net(x).numpy())


def test_a_process_started_afresh() -> None:
    net, x = pursuitify(ResidualNet(width=2).double(), 3), torch.rand(2, 3, 8, 8).double()
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=_answer, args=(net, x, queue))
    process.start()
    found = torch.from_numpy(queue.get(timeout=120))
    process.join()
    with torch.no_grad():
        assert torch.equal(found, net(x))


class Functional(nn.Module):
    """Functions that are made by functions, and constants."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.mean = nn.Conv2d(1, 4, 3), torch.tensor([0.5]).double()

    def forward(self, x: Tensor, scale: float = 2.0) -> Tensor:
        y = F.max_pool2d(F.relu(self.conv(x - self.mean)), 2)
        parts = F.dropout(y, 0.5, self.training).chunk(2, 1)
        return F.relu(parts[0] * scale + parts[1][:, :, :2].mean(2, keepdim=True))


def test_functions_slices_and_constants() -> None:
    net = pursuitify(Functional().double().eval())
    same(net, pickled(net), torch.rand(2, 1, 9, 9).double())


class Mine(nn.Module):
    """An activation of the user's."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x)


def _mine(_op: Any, input: Tensor) -> ReLU:
    return ReLU()


def test_rules_of_the_user() -> None:
    model, x = nn.Sequential(nn.Linear(3, 4), Mine(), nn.Linear(4, 2)), torch.rand(2, 3)
    net = pursuitify(model, rules={Mine: Rule("mine", "activation", _mine)})
    same(net, pickled(net), x)
    net = pursuitify(model, rules={Mine: activation(ReLU())})
    for dump in (pickle.dumps, saved):
        with pytest.raises(CheckpointError, match=r"cannot be pickled.*pursuitify\.save"):
            dump(net)
    same(net, copy.deepcopy(net), x)
