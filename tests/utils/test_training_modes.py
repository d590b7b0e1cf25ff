"""A model's own train() and eval(): the network does what they do."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pursuitify import pursuitify
from tests.support.agreement import error


class _Block(nn.Module):
    """Reads its mode in Python, as a hand-written stochastic depth does."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.norm(x)) * (1.5 if self.training else 1.0)


class _Frozen(nn.Sequential):
    """Keeps some children in evaluation mode, and their parameters fixed, when it trains."""

    def __init__(self, frozen: tuple[int, ...], returns: bool, own_eval: bool) -> None:
        super().__init__(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), _Block(), nn.Conv2d(4, 4, 3),
            nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2),
        )  # fmt: skip
        self.frozen, self.returns, self.own_eval = frozen, returns, own_eval

    def train(self, mode: bool = True) -> Any:
        super().train(mode)
        for index in self.frozen if mode else ():
            self[index].eval()
            self[index].requires_grad_(False)
        return self if self.returns else None

    def eval(self) -> Any:
        super().eval()
        if self.own_eval:
            self[5].train()
        return self


@settings(max_examples=25, deadline=None)
@given(
    frozen=st.sets(st.sampled_from([1, 3, 5])).map(tuple),
    returns=st.booleans(),
    own_eval=st.booleans(),
    modes=st.lists(st.booleans(), min_size=1, max_size=4),
    how=st.sampled_from(["as it is", "copy", "pickle"]),
)
def test_the_network_trains_what_the_source_trains(
    frozen: tuple[int, ...], returns: bool, own_eval: bool, modes: list[bool], how: str
) -> None:
    torch.manual_seed(0)
    model = _Frozen(frozen, returns, own_eval).double()
    wanted = [p.requires_grad for p in model.parameters()]
    net = pursuitify(model, iterations=0)
    assert [p.requires_grad for p in model.parameters()] == wanted  # the user's are untouched
    net = copy.deepcopy(net) if how == "copy" else net
    net = pickle.loads(pickle.dumps(net)) if how == "pickle" else net
    x = torch.randn(4, 3, 8, 8, dtype=torch.float64)
    for mode in modes:
        for module in (model, net):
            module.train() if mode else module.eval()
        assert net.training is mode
        for sweeps in (1, 0):
            net.iterations = sweeps
            out = net(x)
        model(x)
        model.load_state_dict({k: v for k, v in net.state_dict().items() if "pursuit" not in k})
        before = copy.deepcopy(model.state_dict())
        out = net(x)
        assert error(out, model(x)) == 0
        for name, value in model.state_dict().items():
            assert torch.equal(net.state_dict()[name], value), name
        for index in frozen if mode else ():
            for name, value in before.items():
                assert not name.startswith(f"{index}.") or torch.equal(
                    model.state_dict()[name], value
                )
        for name, parameter in model.named_parameters():
            assert net.get_parameter(name).requires_grad is parameter.requires_grad, name


def test_a_train_replaced_on_the_instance_counts() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten())
    norm, plain = model[1], model.train

    def train(mode: bool = True) -> nn.Module:
        plain(mode)
        norm.eval()
        return model

    model.train = train  # type: ignore[method-assign, assignment]
    net = pursuitify(model, iterations=0)
    norm.train()
    net.train()
    assert not net.get_submodule("1").training
    assert norm.training  # only the copy was put in a mode


@pytest.mark.parametrize("mode", [True, False])
def test_without_an_own_train_nothing_is_recorded(mode: bool) -> None:
    net = pursuitify(nn.Sequential(nn.Linear(3, 3), nn.ReLU()), iterations=0)
    assert not net._modes
    assert all(m.training is mode for m in net.train(mode).modules())
