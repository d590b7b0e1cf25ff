"""Exported networks compute what the network computes; what cannot be exported is refused."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from pursuitify import InputError, InternalError, OptionError, PursuitNetwork, pursuitify
from pursuitify import export as module
from pursuitify.errors import MissingExtraError
from pursuitify.export import export_onnx, export_program
from pursuitify.models import ChainNet, DenselyConnectedNet, ResidualNet
from tests.support.agreement import error, state
from tests.support.nets import BY_NAME, randomise

slow = pytest.mark.slow
networks = pytest.mark.parametrize(
    "build",
    [
        pytest.param(ChainNet, marks=slow),
        ResidualNet,
        pytest.param(DenselyConnectedNet, marks=slow),
    ],
)


def network(build: type[nn.Module] = ResidualNet, **options: Any) -> PursuitNetwork:
    torch.manual_seed(0)
    model = randomise(build(2, 3, width=3)).eval()
    return pursuitify(model, **{"iterations": 2, **options})


def images(batch: int = 2, seed: int = 1) -> Tensor:
    return torch.randn(batch, 2, 8, 8, generator=torch.Generator().manual_seed(seed))


def run(path: Path, *inputs: Tensor) -> list[Tensor]:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]
    found = session.run(None, {n: x.numpy() for n, x in zip(names, inputs, strict=True)})
    return [torch.from_numpy(value) for value in found]


@networks
def test_the_program_is_the_network_at_any_batch(build: type[nn.Module], tmp_path: Path) -> None:
    net = network(build)
    before = state(net)
    program = export_program(net, images())
    torch.export.save(program, tmp_path / "net.pt2")
    runner = torch.export.load(tmp_path / "net.pt2").module()
    with torch.no_grad():
        for batch in (2, 5, 3):
            x = images(batch, seed=batch)
            assert error(runner(x), net(x)) <= 1e-6
    for key, value in net.state_dict().items():
        assert torch.equal(value, before[key]), key
    assert all(p.requires_grad for p in net.parameters() if p is not net.pursuit.alpha)


def operators(program: torch.export.ExportedProgram) -> list[str]:
    """Operators of this library's own, in nested graphs too."""
    parts = [m for m in program.graph_module.modules() if isinstance(m, fx.GraphModule)]
    names = [str(node.target) for part in parts for node in part.graph.nodes]
    return [name for name in names if name.startswith("pursuitify")]


def test_weights_are_worked_up_once() -> None:
    """No norm search and nothing else that reads weights alone is left in the program."""
    net = network()
    assert operators(torch.export.export(net, (images(),))), "what there is to fold"
    program = export_program(net, images())
    assert not operators(program)
    held = {n for n in program.graph.nodes if n.op == "placeholder"}
    held -= {n for n in held if n.name in program.graph_signature.user_inputs}
    for node in program.graph.nodes:
        if node.op == "call_function":
            assert not set(node.all_input_nodes) <= held, node
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(3)
        assert error(program.module()(images()), network()(images())) <= 1e-6, "it is frozen"


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"iterations": 0}, marks=slow),
        pytest.param({"solver": "layered"}, marks=slow),
        pytest.param({"solver": "synchronous"}, marks=slow),
        pytest.param({"layout": "encoder"}, marks=slow),
        {"step_scale": 0.3, "threshold_scale": 2.0},
        {"steps": "adaptive"},
    ],
    ids=str,
)
def test_settings_are_kept(options: dict[str, Any]) -> None:
    net = network(**options)
    program = export_program(net, images())
    x = images(3)
    with torch.no_grad():
        assert error(program.module()(x), net(x)) <= 1e-6


@slow
def test_extrapolation_is_kept() -> None:
    net = network(iterations=3)
    with torch.no_grad():
        still = net(images())
        net.pursuit.alpha.fill_(0.4)
        program = export_program(net, images())
        assert error(program.module()(images()), net(images())) <= 1e-6
        assert error(net(images()), still) > 1e-4


class Noisy(nn.Module):
    """Draws numbers of its own in evaluation mode too."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.relu(self.a(x))) + torch.rand_like(self.b.bias)


@slow
def test_random_numbers_are_drawn_at_every_run() -> None:
    net = pursuitify(Noisy().eval(), iterations=1)
    runner = export_program(net, torch.rand(2, 4)).module()
    x = torch.rand(3, 4)
    assert not torch.equal(runner(x), runner(x))


def test_a_fixed_batch() -> None:
    net = network()
    program = export_program(net, images(1), dynamic_batch=False)
    with torch.no_grad():
        assert error(program.module()(images(1)), net(images(1))) <= 1e-6


@networks
def test_onnx_round_trip(build: type[nn.Module], tmp_path: Path) -> None:
    net = network(build)
    path = tmp_path / "net.onnx"
    difference = export_onnx(net, images(), path)
    assert difference is not None
    assert 0 <= difference <= 1e-5
    assert [p.name for p in tmp_path.iterdir()] == ["net.onnx"], "one file holds everything"
    import onnx

    graph = onnx.load(path).graph
    for value, name in ((graph.input[0], "input"), (graph.output[0], "output")):
        assert (value.name, value.type.tensor_type.shape.dim[0].dim_param) == (name, "batch")
    with torch.no_grad():
        for batch in (1, 5):
            x = images(batch, seed=batch)
            (found,) = run(path, x)
            assert error(found, net(x)) <= 1e-5


class Two(nn.Module):
    """Two inputs, outputs in a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 5), nn.Linear(3, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor, z: Tensor) -> dict[str, Tensor]:
        h = torch.relu(self.a(x) + self.b(z))
        return {"scores": self.c(h), "features": h}


@slow
def test_several_inputs_and_outputs(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = pursuitify(Two().eval(), iterations=2)
    x, z = torch.randn(2, 4), torch.randn(2, 3)
    difference = export_onnx(net, (x, z), tmp_path / "net.onnx")
    assert difference is not None
    assert difference <= 1e-5
    more = torch.randn(6, 4), torch.randn(6, 3)
    with torch.no_grad():
        wanted = net(*more)
    assert error(run(tmp_path / "net.onnx", *more), [wanted["scores"], wanted["features"]]) <= 1e-5


@slow
@pytest.mark.parametrize("case", ["preact_dense", "separable", "mix", "leaky_conv", "relu6_chain"])
def test_more_networks_to_onnx(case: str, tmp_path: Path) -> None:
    net = pursuitify(BY_NAME[case].build(dtype=torch.float32), iterations=2)
    x = BY_NAME[case].input(batch=2, dtype=torch.float32)
    difference = export_onnx(net, x, tmp_path / "net.onnx")
    assert difference is not None
    assert difference <= 1e-5


@slow
@pytest.mark.parametrize("name", ["resnet18", "densenet121"])
def test_torchvision_to_onnx(name: str, tmp_path: Path) -> None:
    """Float32: rounding through 2 sweeps; 1e-5 of the largest logit is about 100 eps."""
    from torchvision import models

    torch.manual_seed(0)
    net = pursuitify(models.get_model(name, weights=None).eval(), iterations=2)
    x, y = torch.rand(2, 3, 64, 64), torch.rand(3, 3, 64, 64)
    difference = export_onnx(net, x, tmp_path / "net.onnx")
    assert difference is not None
    assert difference <= 1e-5
    with torch.no_grad():
        assert error(run(tmp_path / "net.onnx", y)[0], net(y)) <= 1e-5


@slow
def test_compiled_ahead_of_time(tmp_path: Path) -> None:
    net = network()
    program = export_program(net, images())
    path = str(tmp_path / "net.pt2")
    torch._inductor.aoti_compile_and_package(program, package_path=path)
    runner = torch._inductor.aoti_load_package(path)
    with torch.no_grad():
        for batch in (2, 4):
            assert error(runner(images(batch)), net(images(batch))) <= 1e-5


class Enlarged(nn.Module):
    """Two layers, and nearest interpolation by factors that are no whole numbers between them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(3, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.interpolate(F.relu(self.first(x)), scale_factor=1.7, mode="nearest")
        x = F.interpolate(F.relu(self.last(x)), size=(9, 23), mode="nearest-exact")
        return x


@slow
def test_nearest_pixels_are_the_same_ahead_of_time(tmp_path: Path) -> None:
    """torch's kernels and its compiler each have code of their own for which pixel is nearest."""
    torch.manual_seed(0)
    net = pursuitify(randomise(Enlarged()).eval(), iterations=2)
    program = export_program(net, images())
    path = str(tmp_path / "net.pt2")
    torch._inductor.aoti_compile_and_package(program, package_path=path)
    with torch.no_grad():
        wanted = net(images())
        assert error(torch._inductor.aoti_load_package(path)(images()), wanted) <= 1e-5
        assert error(program.module()(images()), wanted) <= 1e-5


# ---------------------------------------------------------------- refusals


def test_what_cannot_be_exported_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"training mode: call net\.eval"):
        export_onnx(network().train(), images(), tmp_path / "net.onnx")
    with pytest.raises(OptionError, match="not a ResidualNet"):
        export_program(ResidualNet(2), images())  # type: ignore[arg-type]
    with pytest.raises(InputError, match="one sample"):
        export_program(network(), images(1))
    with pytest.raises(InputError, match="needs"):
        export_program(network(), torch.randn(2, 5, 8, 8))
    assert not list(tmp_path.iterdir())


def test_a_missing_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "onnxscript" else find(name)
    )
    with pytest.raises(MissingExtraError, match=r"onnxscript .*pursuitify\[export\]"):
        export_onnx(network(), images(), tmp_path / "net.onnx")


@slow
def test_a_wrong_file_does_not_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fold = module.fold_constants

    def broken(graph: Any) -> None:
        fold(graph)
        for name, value in graph.named_buffers():
            if name.startswith("folded"):
                value.mul_(1.5)

    monkeypatch.setattr(module, "fold_constants", broken)
    with pytest.raises(InternalError, match="differs from the network's"):
        export_onnx(network(), images(), tmp_path / "net.onnx")
    assert not list(tmp_path.iterdir())
    assert export_onnx(network(), images(), tmp_path / "net.onnx", tolerance=None) is None
    assert (tmp_path / "net.onnx").exists()
