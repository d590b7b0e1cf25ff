"""The reference networks: shapes, parameter counts, tracing, refusals."""

from __future__ import annotations

import pytest
import torch
from torch import fx, nn

from pursuitify.errors import OptionError, PursuitifyError
from pursuitify.models import ChainNet, DenselyConnectedNet, ResidualNet

NETS = [ChainNet, ResidualNet, DenselyConnectedNet]


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("batch_norm", [True, False])
@pytest.mark.parametrize(("depth", "width", "channels"), [(1, 4, 3), (2, 8, 1), (3, 2, 5)])
def test_chain_and_residual_have_the_same_parameters(depth, width, channels, batch_norm):
    chain, residual = (
        net(channels, 10, depth=depth, width=width, batch_norm=batch_norm)
        for net in (ChainNet, ResidualNet)
    )
    assert count(chain) == count(residual)
    residual.load_state_dict(chain.state_dict())  # key for key


def test_parameter_count_by_hand():
    per_filter = {8: 0, 16: 0, 32: 0}
    inputs = 3
    for m in per_filter:
        per_filter[m] = 9 * inputs * m + 9 * m * m + 2 * 2 * m  # two convolutions, two norms
        inputs = m
    assert count(ResidualNet(3, 10, depth=1, width=8)) == sum(per_filter.values()) + 32 * 10 + 10


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("batch_norm", [True, False])
@pytest.mark.parametrize(
    ("channels", "size"), [(1, (8, 8)), (3, (9, 11)), (6, (32, 32)), (2, (13, 8))]
)
def test_any_channels_and_size(net, batch_norm, channels, size):
    model = net(channels, 7, depth=2, width=4, batch_norm=batch_norm)
    x = torch.randn(2, channels, *size, requires_grad=True)
    y = model(x)
    assert y.shape == (2, 7)
    y.sum().backward()
    assert x.grad is not None
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("depth", [1, 3])
def test_traceable(net, depth):
    model = net(3, 10, depth=depth, width=4).double().eval()
    traced = fx.symbolic_trace(model)
    x = torch.randn(3, 3, 10, 9, dtype=torch.float64)
    assert torch.equal(traced(x), model(x))
    relus = [n for n in traced.graph.nodes if str(n.target).rpartition(".")[2][:4] == "relu"]
    assert len(relus) == 3 * depth * 2


@pytest.mark.parametrize("net", [ChainNet, ResidualNet])
@pytest.mark.parametrize(("width", "stated"), [(8, 128), (4, 64)])
def test_classifier_features(net, width, stated):
    assert net(width=width).classifier_features == 4 * width
    wide = net(width=width, pool=2)
    assert wide.classifier_features == wide.classifier.in_features == stated
    assert wide(torch.randn(2, 3, 8, 8)).shape == (2, 10)


def test_dense_net_reads_all_former_outputs():
    model = DenselyConnectedNet(3, 10, depth=3, width=4)
    for block, (width, inputs) in zip(model.blocks, [(4, 3), (8, 12), (16, 24)], strict=True):
        assert [u.conv1.in_channels for u in block.units] == [inputs, width, 2 * width]
        assert [u.conv1.out_channels for u in block.units] == [width] * 3
    assert model.classifier_features == 48


def test_bias_only_without_batch_norm():
    for batch_norm in (True, False):
        model = ResidualNet(batch_norm=batch_norm)
        convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
        assert all((m.bias is None) == batch_norm for m in convolutions)
        assert any(isinstance(m, nn.BatchNorm2d) for m in model.modules()) == batch_norm


def test_the_skip_is_added_to_the_second_pre_activation():
    unit = ResidualNet(2, depth=2, width=3).double().eval().blocks[1][0]
    x = torch.randn(1, 3, 7, 7, dtype=torch.float64)
    skip = torch.zeros(1, 6, 4, 4, dtype=torch.float64)
    for i in range(4):
        for j in range(4):
            window = x[:, :, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2]
            skip[:, :3, i, j] = window.mean((2, 3))
    torch.testing.assert_close(unit(x), torch.relu(unit.inner(x) + skip), rtol=0, atol=1e-14)
    plain = ResidualNet(2, depth=2, width=3).eval().blocks[0][1]
    x = torch.randn(1, 3, 5, 5)
    torch.testing.assert_close(plain(x), torch.relu(plain.inner(x) + x))


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"in_channels": 0}, "in_channels must be at least 1, not 0"),
        ({"num_classes": -1}, "num_classes must be at least 1"),
        ({"depth": 1.5}, "depth must be an integer, not 1.5"),
        ({"width": True}, "width must be an integer, not True"),
        ({"pool": "2"}, "pool must be an integer"),
        ({"batch_norm": 1}, "batch_norm must be True or False"),
    ],
)
def test_bad_arguments(net, arguments, message):
    with pytest.raises(OptionError, match=message) as error:
        net(**arguments)
    assert isinstance(error.value, ValueError)
    assert isinstance(error.value, PursuitifyError)
