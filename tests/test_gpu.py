"""On a CUDA device: exact, without waiting for the host, capturable. Run with ``-m gpu``.

What needs no CUDA runs on the CPU as well, so that the bodies are known to work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from pursuitify import PursuitNetwork, pursuitify
from pursuitify.models import ChainNet, DenselyConnectedNet, ResidualNet
from pursuitify.solvers.global_pursuit import GlobalPursuit
from pursuitify.solvers.solver import SolverInput

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
cuda = [pytest.mark.gpu, needs_cuda]
devices = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=cuda)])
alphas = pytest.mark.parametrize("alpha", [0.0, 0.3])
networks = pytest.mark.parametrize("build", [ChainNet, ResidualNet, DenselyConnectedNet])


@pytest.fixture(autouse=True)
def _without_tf32() -> Iterator[None]:
    """TF32 rounds to ten bits: agreement is asked of float32 proper."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = False
    yield
    matmul.allow_tf32, cudnn.allow_tf32 = before


def build_net(build: type[nn.Module], device: str) -> tuple[nn.Module, Tensor]:
    """Return a source on the device, and images."""
    torch.manual_seed(0)
    model = build(in_channels=3, num_classes=5, width=8).eval()
    return model.to(device), torch.rand(4, 3, 16, 16).to(device)


def sweeper(net: PursuitNetwork, x: Tensor) -> Callable[[], list[Tensor]]:
    """Return the sweeps alone as a call: the dictionary is bound, the steps are known."""
    bound, steps = net.dictionary(x), list(net.step_sizes(x).values())
    alphas = list(net.pursuit.alphas()) if bool(net.pursuit.alpha.any()) else None
    sweeps, net.iterations = net.iterations, 0
    start = list(net.latents(x).values())
    net.iterations = sweeps
    given = SolverInput(bound, start, steps, alphas, sweeps)
    return lambda: list(GlobalPursuit().sweeps(given, observed=False))[-1]


def error(value: Tensor, expected: Tensor) -> float:
    """Return the relative difference in norm."""
    value, expected = value.detach().double().cpu(), expected.detach().double().cpu()
    return float((value - expected).norm() / expected.norm())


@devices
@networks
def test_no_sweeps_is_the_source(build: type[nn.Module], device: str) -> None:
    model, x = build_net(build, device)
    with torch.no_grad():
        assert error(pursuitify(model, iterations=0)(x), model(x)) <= 1e-6


@devices
@alphas
@networks
def test_sweeps_agree_with_float64_on_the_cpu(
    build: type[nn.Module], alpha: float, device: str
) -> None:
    model, x = build_net(build, device)
    net = pursuitify(model, iterations=5)
    reference = pursuitify(model.double().cpu(), iterations=5)
    with torch.no_grad():
        net.pursuit.alpha.fill_(alpha)
        reference.pursuit.alpha.fill_(alpha)
        expected = reference.latents(x.double().cpu())
        for name, value in net.latents(x).items():
            assert error(value, expected[name]) <= 1e-4, name


class Pooled(nn.Module):
    """A max pool between convolutions, as a resnet's stem has it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.max_pool2d(torch.relu(self.stem(x)), 3, 2, 1)
        return self.head(torch.relu(self.conv(x)).mean((2, 3)))


@devices
@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(device: str, dtype: torch.dtype, pooled: bool, recorded: bool) -> None:
    model, x = build_net(ResidualNet, device)
    net = pursuitify(Pooled().eval().to(device) if pooled else model, iterations=3)
    with torch.set_grad_enabled(recorded):
        plain, exact = net(x), net.step_sizes(x)
        with torch.autocast(device, dtype=dtype):
            mixed, steps = net(x), net.step_sizes(x)
    assert error(mixed, plain) <= 0.1
    for name, step in steps.items():
        assert step.dtype == torch.float32
        assert torch.equal(step, exact[name]), name


@devices
@alphas
@networks
def test_the_sweeps_do_not_wait_for_the_device(
    build: type[nn.Module], alpha: float, device: str
) -> None:
    model, x = build_net(build, device)
    net = pursuitify(model, iterations=3)
    with torch.no_grad():
        net.pursuit.alpha.fill_(alpha)
        run = sweeper(net, x)
        expected = [w.clone() for w in run()]
        if device == "cuda":
            torch.cuda.synchronize()
            torch.cuda.set_sync_debug_mode("error")
        try:
            found = run()
        finally:
            if device == "cuda":
                torch.cuda.set_sync_debug_mode("default")
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.gpu
@needs_cuda
@alphas
@networks
def test_the_sweeps_are_captured_in_a_cuda_graph(build: type[nn.Module], alpha: float) -> None:
    model, x = build_net(build, "cuda")
    net = pursuitify(model, iterations=3)
    with torch.no_grad():
        net.pursuit.alpha.fill_(alpha)
        run = sweeper(net, x)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                expected = [w.clone() for w in run()]
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            found = run()
        graph.replay()
        torch.cuda.synchronize()
    assert all(error(a, b) <= 1e-5 for a, b in zip(found, expected, strict=True))


@pytest.mark.gpu
@needs_cuda
def test_compiled_with_reduced_overhead() -> None:
    model, x = build_net(ResidualNet, "cuda")
    net = pursuitify(model, iterations=4)
    torch.compiler.reset()
    compiled = torch.compile(net, fullgraph=True, mode="reduce-overhead")
    with torch.no_grad():
        expected = net(x)
        for _ in range(3):
            torch.compiler.cudagraph_mark_step_begin()
            assert error(compiled(x).clone(), expected) <= 1e-4


@pytest.mark.gpu
@needs_cuda
def test_batches_are_moved_to_the_network_that_is_calibrated() -> None:
    model, x = build_net(ResidualNet, "cuda")
    net = pursuitify(model, iterations=2, calibrate=[x.cpu()])
    assert net.calibration.samples == len(x)
