"""pursuitify(): constants, modes, options that reach the network."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pursuitify import PursuitNetwork, pursuitify
from pursuitify.conversion.convert import compile_model
from tests.support.nets import BY_NAME


class Constants(nn.Module):
    """Tensors made by the forward, another one in each mode, and one kept as an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.kept = nn.Linear(4, 4), torch.tensor([1.0, -1.0, 0.5, 2.0])
        self.inner = nn.Module()
        self.inner.kept = torch.tensor(3.0)

    def forward(self, x: Tensor) -> Tensor:
        shift = torch.tensor([1.0, 2.0, 3.0, 4.0])
        scale = torch.tensor(2.0) if self.training else torch.tensor(5.0)
        return F.relu((self.first(x) + shift) * self.kept) * scale * self.inner.kept


@pytest.mark.parametrize("training", [False, True])
def test_constants_of_both_modes(training: bool) -> None:
    model, x = Constants().train(training), torch.randn(3, 4)
    keys = set(model.state_dict())
    for mode in (training, not training):
        net = pursuitify(model, iterations=0).train(mode)
        expected = copy.deepcopy(model).train(mode)(x)
        assert torch.equal(net(x), expected)
        assert torch.equal(net.source(x), expected)
        assert set(net.state_dict()) - keys == {"pursuit.beta", "pursuit.alpha"}
        net.iterations = 3
        assert net(x).shape == expected.shape
        net.solver = "feedforward"
        assert torch.equal(net(x), expected)
    double = pursuitify(model, iterations=2).double()
    assert double(x.double()).dtype == torch.float64


def test_one_program_where_both_modes_do_the_same() -> None:
    programs, constants = compile_model(BY_NAME["conv_chain"].build(), "auto")
    assert programs[False] is programs[True]
    assert not constants
    programs, constants = compile_model(Constants(), "auto")
    assert programs[False] is not programs[True]
    assert len(constants) >= 3


class Auxiliary(nn.Module):
    """A second head in training mode, as googlenet has."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 5), nn.Linear(5, 6)
        self.extra, self.last = nn.Linear(5, 5), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x = F.relu(self.first(x))
        y = self.last(F.relu(self.second(x)))
        return (y, F.relu(self.extra(x))) if self.training else y


def test_modes_with_other_latents() -> None:
    net, x = pursuitify(Auxiliary().eval(), iterations=2), torch.randn(3, 4)
    assert len(net.graph) == 3
    assert isinstance(net(x), Tensor)
    net.train()
    assert len(net.graph) == 4
    main, extra = net(x)
    assert main.shape == (3, 2)
    assert extra.shape == (3, 5)
    (main.sum() + extra.sum()).backward()
    assert all(p.grad is not None for p in net.parameters() if p.requires_grad)
    assert net.pursuit.beta.shape == (3,)
    assert isinstance(net.eval()(x), Tensor)


def test_options_reach_the_network() -> None:
    model = BY_NAME["linear_residual"].build()
    net = pursuitify(model, 4, "layered", "encoder")
    assert isinstance(net, PursuitNetwork)
    assert (net.iterations, net.solver) == (4, "layered")
    layouts = [v for n, v in net.graph.nodes(data="layout")][1:]
    assert layouts == ["decoder", *["encoder"] * (len(layouts) - 1)]
    assert net.training is model.training is False
    assert pursuitify(model.train()).training is True


def test_frozen_norms_stay_frozen() -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU()).train()
    model[1].eval()
    net = pursuitify(model, iterations=2)
    assert [m.training for m in net.modules() if isinstance(m, nn.BatchNorm2d)] == [False]
    net(torch.randn(2, 2, 5, 5))
    assert int(net.state_dict()["1.num_batches_tracked"]) == 0
