"""torch.compile without graph breaks, one sweep compiled whatever T is; torch.export."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx, nn

from pursuitify import pursuitify
from pursuitify.models import ChainNet, DenselyConnectedNet, ResidualNet

slow = pytest.mark.slow
networks = pytest.mark.parametrize(
    "build",
    [
        pytest.param(ChainNet, marks=slow),
        ResidualNet,
        pytest.param(DenselyConnectedNet, marks=slow),
    ],
)


@pytest.fixture(autouse=True)
def _fresh() -> None:
    torch.compiler.reset()


class _Counts:
    """A backend that runs what it is given and counts its nodes."""

    def __init__(self) -> None:
        self.graphs, self.nodes = 0, 0

    def __call__(self, module: fx.GraphModule, _inputs: list[Tensor]) -> Callable[..., object]:
        self.graphs += 1
        parts = [m for m in module.modules() if isinstance(m, fx.GraphModule)]
        self.nodes += sum(n.op == "call_function" for part in parts for n in part.graph.nodes)
        return module.forward


def model(build: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return build(in_channels=2, num_classes=3, width=4).double().eval()


@networks
def test_no_graph_breaks_and_one_compiled_sweep(build: type[nn.Module]) -> None:
    net = pursuitify(model(build), iterations=3)
    x = torch.rand(2, 2, 8, 8, dtype=torch.float64)
    nodes = []
    with torch.no_grad():
        for sweeps in (3, 9):
            net.iterations = sweeps
            expected = net(x)
            torch.compiler.reset()
            backend = _Counts()
            compiled = torch.compile(net, fullgraph=True, backend=backend)
            assert torch.allclose(compiled(x), expected, rtol=1e-12, atol=1e-12)
            assert backend.graphs == 1
            nodes.append(backend.nodes)
    assert nodes[1] < 1.3 * nodes[0], "the compiled code grows with the number of sweeps"


@slow
def test_dynamic_batch() -> None:
    net = pursuitify(model(ResidualNet), iterations=2)
    compiled = torch.compile(net, fullgraph=True, dynamic=True, backend="eager")
    with torch.no_grad():
        for batch in (2, 5, 3):
            x = torch.rand(batch, 2, 8, 8, dtype=torch.float64)
            assert torch.allclose(compiled(x), net(x), rtol=1e-12, atol=1e-12)


@slow
def test_training_step_compiles() -> None:
    net = pursuitify(model(ResidualNet), iterations=2)
    x = torch.rand(2, 2, 8, 8, dtype=torch.float64)
    net(x).sum().backward()
    expected = {n: p.grad.clone() for n, p in net.named_parameters() if p.grad is not None}
    net.zero_grad()
    torch.compile(net, fullgraph=True, backend="aot_eager")(x).sum().backward()
    for name, value in expected.items():
        assert torch.allclose(dict(net.named_parameters())[name].grad, value, rtol=1e-9, atol=1e-12)


@networks
def test_export_round_trip(build: type[nn.Module]) -> None:
    net = pursuitify(model(build), iterations=2)
    x = torch.rand(2, 2, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        exported = torch.export.export(net, (x,))
        y = torch.rand_like(x)
        assert torch.allclose(exported.module()(y), net(y), rtol=1e-12, atol=1e-12)


@slow
def test_inductor_agrees() -> None:
    net = pursuitify(model(ResidualNet).float(), iterations=4)
    x = torch.rand(2, 2, 8, 8)
    with torch.no_grad():
        assert torch.allclose(torch.compile(net, fullgraph=True)(x), net(x), rtol=1e-4, atol=1e-5)
