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


step_rules = pytest.mark.parametrize("steps", ["certified", "adaptive"])


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


@step_rules
@networks
def test_no_graph_breaks_and_one_compiled_sweep(build: type[nn.Module], steps: str) -> None:
    net = pursuitify(model(build), iterations=3, steps=steps)
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


class _Concats(nn.Module):
    """Concats read by a BatchNorm, as DenseNet has them, by a convolution and through a pool."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(3, 4, 3, padding=1)
        self.norm, self.c = nn.BatchNorm2d(7), nn.Conv2d(7, 3, 3, padding=1)
        self.d, self.e = nn.Conv2d(10, 4, 1), nn.Conv2d(7, 3, 1)
        self.head = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        a = torch.relu(self.a(x))
        b = torch.relu(self.b(a))
        both = torch.cat([a, b], 1)
        c = torch.relu(self.c(torch.relu(self.norm(both))))
        d = torch.relu(self.d(torch.cat([both, c], 1)))
        e = torch.relu(self.e(nn.functional.max_pool2d(torch.cat([c, d], 1), 2)))
        return self.head(e.mean((2, 3)))


@step_rules
def test_slots_share_no_memory(steps: str) -> None:
    """What slots read of one weight were views of it, which the region of a sweep refuses."""
    torch.manual_seed(0)
    net = pursuitify(_Concats().double().eval(), iterations=3, steps=steps)
    x = torch.rand(2, 2, 8, 8).double()
    assert any(len(row.sizes) > 1 for row in net.dictionary(x).rows)
    with torch.no_grad():
        compiled = torch.compile(net, fullgraph=True, backend=_Counts())
        assert torch.allclose(compiled(x), net(x), rtol=1e-12, atol=1e-12)


def test_norms_take_weights_as_convolutions_do() -> None:
    """Reduced or made contiguous for its norm, a weight was copied for every convolution of it."""
    found: list[Tensor] = []

    def backend(module: fx.GraphModule, _inputs: list[Tensor]) -> Callable[..., object]:
        for node in module.graph.nodes:
            if node.target is torch.ops.pursuitify.largest_sample.default:
                found.append(node.args[0].meta["example_value"])
        return module.forward

    net = pursuitify(model(ResidualNet).float(), iterations=2)
    x = torch.rand(2, 2, 8, 8)
    with torch.no_grad():
        assert torch.allclose(torch.compile(net, fullgraph=True, backend=backend)(x), net(x))
    kernels = [weight for weight in found if weight.dim() == 4]
    assert len(kernels) >= 4
    assert all(weight.dim() in (2, 4) for weight in found)
    assert all(k.is_contiguous(memory_format=torch.channels_last) for k in kernels)


@slow
@pytest.mark.parametrize(
    "name", ["resnet18", "densenet121", "googlenet", "squeezenet1_1", "shufflenet_v2_x0_5"]
)
def test_torchvision_compiles(name: str) -> None:
    models = pytest.importorskip("torchvision").models
    extra = {"init_weights": False} if name == "googlenet" else {}
    torch.manual_seed(0)
    net = pursuitify(models.get_model(name, weights=None, **extra).double().eval(), iterations=2)
    x = torch.rand(2, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        compiled = torch.compile(net, fullgraph=True, backend="eager")
        assert torch.allclose(compiled(x), net(x), rtol=1e-9, atol=1e-9)


@step_rules
@slow
def test_dynamic_batch(steps: str) -> None:
    net = pursuitify(model(ResidualNet), iterations=2, steps=steps)
    compiled = torch.compile(net, fullgraph=True, dynamic=True, backend="eager")
    with torch.no_grad():
        for batch in (2, 5, 3):
            x = torch.rand(batch, 2, 8, 8, dtype=torch.float64)
            assert torch.allclose(compiled(x), net(x), rtol=1e-12, atol=1e-12)


@step_rules
@slow
def test_training_step_compiles(steps: str) -> None:
    net = pursuitify(model(ResidualNet), iterations=2, steps=steps)
    x = torch.rand(2, 2, 8, 8, dtype=torch.float64)
    net(x).sum().backward()
    expected = {n: p.grad.clone() for n, p in net.named_parameters() if p.grad is not None}
    net.zero_grad()
    torch.compile(net, fullgraph=True, backend="aot_eager")(x).sum().backward()
    for name, value in expected.items():
        assert torch.allclose(dict(net.named_parameters())[name].grad, value, rtol=1e-9, atol=1e-12)


@step_rules
@networks
def test_export_round_trip(build: type[nn.Module], steps: str) -> None:
    net = pursuitify(model(build), iterations=2, steps=steps)
    x = torch.rand(2, 2, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        exported = torch.export.export(net, (x,))
        y = torch.rand_like(x)
        assert torch.allclose(exported.module()(y), net(y), rtol=1e-12, atol=1e-12)


@step_rules
@slow
def test_inductor_agrees(steps: str) -> None:
    net = pursuitify(model(ResidualNet).float(), iterations=4, steps=steps)
    x = torch.rand(2, 2, 8, 8)
    with torch.no_grad():
        assert torch.allclose(torch.compile(net, fullgraph=True)(x), net(x), rtol=1e-4, atol=1e-5)
