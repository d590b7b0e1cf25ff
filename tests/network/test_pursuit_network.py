"""PursuitNetwork: equality at T = 0, descent, derivatives, API, cost."""

from __future__ import annotations

import ast
import copy
import itertools
import math
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import networkx as nx
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import pursuitify as package
from pursuitify import OptionError, PursuitNetwork, pursuitify
from pursuitify.models import ChainNet, DenselyConnectedNet, ResidualNet
from pursuitify.network.pursuit_network import RESERVED
from pursuitify.solvers.registry import SOLVERS
from pursuitify.solvers.solver import SolverInput
from tests.support.examples import examples
from tests.support.nets import (
    BY_NAME,
    CASES,
    LAYOUTS,
    Case,
    Gated,
    random_net,
    randomise,
)

cases = pytest.mark.parametrize("case", CASES, ids=str)
modes = pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
REFERENCES = {
    f"{net.__name__}-{'bn' if norm else 'bias'}": (net, norm)
    for net in (ChainNet, ResidualNet, DenselyConnectedNet)
    for norm in (True, False)
}
references = pytest.mark.parametrize("reference", REFERENCES)


def build(reference: str, dtype: torch.dtype = torch.float64, width: int = 3) -> nn.Module:
    net, norm = REFERENCES[reference]
    torch.manual_seed(0)
    return randomise(net(2, 5, depth=2, width=width, batch_norm=norm)).to(dtype).eval()


def images(batch: int = 3, size: int = 9, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(4)
    return torch.randn(batch, 2, size, size, generator=generator, dtype=dtype)


def error(value: Tensor, reference: Tensor) -> float:
    """Return the largest difference relative to the largest entry of the reference."""
    assert value.shape == reference.shape
    scale = max(float(reference.detach().abs().max()), 1e-3)
    return float((value - reference).detach().abs().max()) / scale


# ---------------------------------------------------------------- T = 0


class _Recorder(fx.Interpreter):
    """Runs the source and keeps every node's value."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.values: dict[str, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        self.values[n.name] = value.clone() if isinstance(value, Tensor) else value
        return value


def check_equality(model: nn.Module, x: Tensor, training: bool, tolerance: float) -> None:
    """The network is its source at T = 0, and the pass that pursuit starts from is too."""
    model.train(training)
    net = pursuitify(model, iterations=0)

    def seeded(call: Any) -> Any:
        torch.manual_seed(7)
        with torch.no_grad():
            return call()

    own = copy.deepcopy if training else (lambda module: module)  # eval mode changes nothing
    before = {k: v.clone() for k, v in model.state_dict().items()}
    expected = seeded(lambda: own(model)(x))
    assert error(seeded(lambda: own(net)(x)), expected) <= tolerance

    # The pass that binds the dictionary: its latents, the head on them, the running statistics.
    net.iterations, net.solver = 3, "feedforward"
    recorder = _Recorder(own(net).source)
    assert error(seeded(lambda: recorder.run(x)), expected) <= tolerance
    latents = seeded(lambda: net.latents(x))
    for name, value in latents.items():
        assert error(value, recorder.values[name]) <= tolerance, name
    twin = own(net)
    first, _ = seeded(lambda: twin._bind(twin._program, (x,)))
    head = seeded(lambda: twin._program.head(twin, first.latents, first, (x,)))
    assert error(head, expected) <= tolerance

    if training:
        check_running_statistics(model, net, x, seeded, tolerance)
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key


def check_running_statistics(
    model: nn.Module, net: PursuitNetwork, x: Tensor, seeded: Any, tolerance: float
) -> None:
    """One forward, with sweeps or without, updates them as one forward of the source does."""
    stepped = copy.deepcopy(model)
    seeded(lambda: stepped(x))
    for solver, sweeps in (("global", 0), ("feedforward", 3), ("global", 3)):
        twin = copy.deepcopy(net)
        twin.solver, twin.iterations = solver, sweeps
        seeded(lambda twin=twin: twin(x))
        state = twin.state_dict()
        for key, value in stepped.state_dict().items():
            if value.is_floating_point():
                assert error(state[key], value) <= tolerance, (solver, key)
            else:
                assert torch.equal(state[key], value), (solver, key)


@modes
@examples(20, 100, drawn=random_net(batch=3))
def test_equality_random(training: bool, drawn: tuple[nn.Module, Tensor]) -> None:
    check_equality(*drawn, training, 1e-12)


@modes
@references
def test_equality_reference(reference: str, training: bool) -> None:
    check_equality(build(reference), images(), training, 1e-12)
    check_equality(build(reference, torch.float32), images().float(), training, 1e-5)


class Drops(nn.Module):
    """Every dropout between and after the latents."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(2, 4, 3), nn.Conv2d(4, 4, 3)
        self.drop, self.channels = nn.Dropout(0.4), nn.Dropout2d(0.4)
        self.norm, self.last = nn.BatchNorm1d(4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.channels(F.relu(self.conv1(self.drop(x))))
        x = F.relu(self.drop(self.conv2(x))).mean((2, 3))
        x = self.norm(F.dropout(x, 0.3, self.training))
        return self.last(self.drop(x))


@modes
def test_equality_with_dropout_everywhere(training: bool) -> None:
    torch.manual_seed(0)
    check_equality(Drops().double(), images(4), training, 1e-12)


def test_dropout_really_drops() -> None:
    net = pursuitify(Drops().double().train(), iterations=2)
    x = images(4)
    assert not torch.equal(net(x), net(x))


#: tests/conversion/test_zoo.py has the other kinds of network in its quick tests.
SMALL = {"alexnet": 63, "resnet18": 64}
HEAVY = {
    "densenet121": 64,
    "squeezenet1_1": 64,
    "vgg11": 32,
    "vgg11_bn": 32,
    "resnet50": 64,
    "resnext50_32x4d": 64,
    "wide_resnet50_2": 64,
    "regnet_x_400mf": 64,
}
ZOO = [
    *SMALL.items(),
    *(pytest.param(*item, marks=pytest.mark.slow) for item in HEAVY.items()),
]


@modes
@pytest.mark.parametrize(("name", "size"), ZOO)
def test_equality_torchvision(name: str, size: int, training: bool) -> None:
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(0)
    extra = {"dropout": 0.5} if name in ("alexnet", "squeezenet1_1") else {}
    model = getattr(models, name)(num_classes=10, **extra)
    if "squeezenet" not in name and "alexnet" not in name and "vgg" not in name:
        randomise(model)
    check_equality(model, torch.randn(2, 3, size, size), training, 1e-5)


# ---------------------------------------------------------------- the dictionary and its objective


def objectives(net: PursuitNetwork, x: Tensor, sweeps: int) -> list[Tensor]:
    """Return F per sample after every sweep, each computed afresh."""
    with torch.no_grad():
        net.iterations = 0
        start = list(net.latents(x).values())
        bound, steps = net.dictionary(x), list(net.step_sizes(x).values())
        given = SolverInput(bound, start, steps, None, sweeps)
        states = itertools.chain([start], SOLVERS["global"].sweeps(given))
        return [bound.objective(dict(zip(bound.names, w, strict=True))) for w in states]


def rises(values: list[Tensor], tolerance: float = 1e-9) -> bool:
    """Return whether any sample's objective rises anywhere."""
    return any(
        bool((after > before + tolerance * before.abs().clamp_min(1.0)).any())
        for before, after in itertools.pairwise(values)
    )


@pytest.mark.parametrize("layout", LAYOUTS)
@examples(20, 100, drawn=random_net())
def test_objective_never_rises(layout: Any, drawn: tuple[nn.Module, Tensor]) -> None:
    model, x = drawn
    values = objectives(pursuitify(model, layout=layout), x, 8)
    assert all(bool(v.isfinite().all()) for v in values)
    assert not rises(values)


def test_objective_rises_with_steps_too_long() -> None:
    """The test above can fail."""
    found = False
    for case in CASES:
        net = pursuitify(case.build(), paper=True)
        with torch.no_grad():
            net.pursuit.beta.fill_(0.3)
        found |= rises(objectives(net, case.input(batch=2), 8))
    assert found


@references
def test_objective_never_rises_on_reference_nets(reference: str) -> None:
    values = objectives(pursuitify(build(reference)), images(), 8)
    assert not rises(values)
    assert bool((values[-1] < values[0]).all())


@examples(20, 100, drawn=random_net())
def test_layered_pursuit_is_finite_and_lowers_each_row(drawn: tuple[nn.Module, Tensor]) -> None:
    model, x = drawn
    net = pursuitify(model, iterations=6, solver="layered")
    with torch.no_grad():
        assert all(bool(v.isfinite().all()) for v in net.latents(x).values())
        assert bool(net(x).isfinite().all())
        # The first row's problem does not depend on the others: its own objective never rises.
        net.iterations = 0
        bound, steps = net.dictionary(x), list(net.step_sizes(x).values())
        start = list(net.latents(x).values())
        name, values = bound.names[0], []
        for count in range(4):
            w = SOLVERS["layered"].last(SolverInput(bound, start, steps, None, count))
            named = dict(zip(bound.names, w, strict=True))
            residual = bound.residual(named)[name].flatten(1).square().sum(1) / 2
            linear = (bound.thresholds[name] * named[name]).flatten(1).sum(1)
            values.append(residual + linear)
    assert not rises(values)


@pytest.mark.parametrize("layout", LAYOUTS)
@examples(20, 100, drawn=random_net())
def test_dictionary_adjoint(layout: Any, drawn: tuple[nn.Module, Tensor]) -> None:
    model, x = drawn
    net = pursuitify(model, layout=layout)
    with torch.no_grad():
        bound = net.dictionary(x)
        w = {k: torch.randn_like(v) for k, v in net.latents(x).items()}
        image = bound.apply(w)
        r = {k: torch.randn_like(v) for k, v in image.items()}
        left = sum(float((image[k] * r[k]).sum()) for k in image)
        right = sum(float((w[k] * v).sum()) for k, v in bound.adjoint(r).items())
    norms = math.prod(sum(float(v.square().sum()) for v in d.values()) ** 0.5 for d in (image, r))
    assert abs(left - right) <= 1e-12 * max(1.0, norms)


@pytest.mark.parametrize("layout", LAYOUTS)
@cases
def test_objective_from_the_dense_matrix(case: Case, layout: Any) -> None:
    net, x = pursuitify(case.build(), iterations=2, layout=layout), case.input()
    slopes = {"leaky_chain": (0.2, 0.2, 0.2), "leaky_conv": (0.1, 0.3)}.get(case.name)
    with torch.no_grad():
        latents = net.latents(x)
        B, y, lam = net.dictionary(x).materialize()
        w = torch.cat([v.reshape(-1) for v in latents.values()])
        value = 0.5 * (B @ w - y).square().sum() + lam @ w
        for a, v in zip(slopes or (), latents.values(), strict=False):
            value = value + 0.5 * (1 / a - 1) * v.clamp(max=0).square().sum()
        assert B.shape[1] == w.numel() == lam.numel()
        assert error(net.objective(x, latents), value[None]) <= 1e-12
        # Outside the domain of an activation F is infinite.
        if slopes is None and "shared" not in case.name:
            outside = {k: v - 1e9 for k, v in latents.items()}
            assert net.objective(x, outside).isinf().all()


def test_materialize_needs_a_batch_of_one() -> None:
    case = BY_NAME["linear_chain"]
    net, x = pursuitify(case.build()), case.input(batch=2)
    with pytest.raises(package.InputError, match=r"batch of one.*net\.dictionary\(x\[:1\]\)"):
        net.dictionary(x).materialize()
    assert net.dictionary(x[:1]).materialize()[0].dim() == 2, "the advice works"


def test_dictionary_refuses_latents_that_do_not_fit() -> None:
    case = BY_NAME["linear_chain"]
    net, x = pursuitify(case.build()), case.input()
    bound, latents = net.dictionary(x), net.latents(x)
    with pytest.raises(package.InputError, match="act2"):
        bound.apply({k: v for k, v in latents.items() if k != "act2"})
    with pytest.raises(package.InputError, match="act3"):
        bound.apply({**latents, "act3": latents["act3"][:, :1]})
    with pytest.raises(package.InputError, match="act1"):
        net.objective(x, {})
    rows = bound.apply(latents)
    with pytest.raises(package.InputError, match="act2"):
        bound.adjoint({k: v for k, v in rows.items() if k != "act2"})
    with pytest.raises(package.InputError, match="act3"):
        bound.adjoint({**rows, "act3": rows["act3"][:, :1]})


# ---------------------------------------------------------------- derivatives


def check_derivatives(net: PursuitNetwork, x: Tensor) -> None:
    x = x.clone().requires_grad_()
    net.pursuit.alpha.requires_grad_()
    torch.manual_seed(0)
    net(x).square().sum().backward()
    assert x.grad is not None
    assert bool(x.grad.any())
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.isfinite().all()), name
    assert bool(net.pursuit.beta.grad.any()), "beta"
    assert bool(net.pursuit.alpha.grad.any()), "alpha"


@modes
@cases
def test_derivatives_reach_everything(case: Case, training: bool) -> None:
    seed = 1 if case.name in ("conv_chain", "separable") else 0  # where not all is dead
    net = pursuitify(case.build(seed).train(training), iterations=3)
    check_derivatives(net, case.input(batch=4))


@modes
@references
def test_derivatives_reach_everything_in_reference_nets(reference: str, training: bool) -> None:
    check_derivatives(pursuitify(build(reference).train(training), iterations=3), images())


@modes
def test_inspected_values_can_be_differentiated(training: bool) -> None:
    net = pursuitify(build("ResidualNet-bn").train(training), iterations=2)
    x = images().requires_grad_()
    latents = net.latents(x)
    total = sum(v.square().sum() for v in latents.values())
    total = (
        total + net.objective(x, latents).sum() + sum(v.sum() for v in net.step_sizes(x).values())
    )
    total.backward()
    assert x.grad is not None
    assert net.pursuit.beta.grad is not None


@pytest.mark.parametrize(
    ("name", "solver"),
    [
        ("linear_residual", "global"),
        ("leaky_chain", "global"),
        ("leaky_chain", "layered"),
        ("conv_residual", "global"),
        ("conv_chain", "layered"),
        ("conv_residual", "synchronous"),
    ],
)
def test_derivatives_are_right(name: str, solver: str) -> None:
    """By finite differences in evaluation mode, the derivative of the step sizes included."""
    case = BY_NAME[name]
    net, x = pursuitify(case.build(1), iterations=2, solver=solver), case.input(batch=2)
    with torch.no_grad():
        net.pursuit.beta.fill_(0.8)
        net.pursuit.alpha.fill_(0.3)
    parameters = {k: v.detach().clone() for k, v in net.named_parameters()}
    if solver != "global":
        del parameters["pursuit.alpha"]
    if solver == "synchronous":
        del parameters["pursuit.beta"]
    names = list(parameters)

    def run(x: Tensor, *values: Tensor) -> Tensor:
        given = dict(zip(names, values, strict=True))
        net._norms.clear()  # gradcheck writes through .data, which no version counts
        return torch.func.functional_call(net, given, (x,), strict=False)

    inputs = [t.requires_grad_() for t in (x, *parameters.values())]
    assert torch.autograd.gradcheck(run, inputs, eps=1e-6, atol=1e-6, rtol=1e-4, fast_mode=True)


def test_step_sizes_have_a_derivative() -> None:
    case = BY_NAME["conv_residual"]
    net = pursuitify(case.build(), iterations=2)
    sum(net.step_sizes(case.input()).values()).backward()
    assert bool(net.get_parameter("block1.conv1.weight").grad.any())


# ---------------------------------------------------------------- API


def test_iterations_and_solver_can_be_set() -> None:
    case = BY_NAME["linear_chain"]
    model, x = case.build(), case.input(batch=2)
    net = pursuitify(model, iterations=0)
    assert torch.equal(net(x), model(x))
    outputs = {}
    for solver, sweeps in [("global", 1), ("global", 3), ("layered", 3), ("feedforward", 3)]:
        net.solver, net.iterations = solver, sweeps
        assert (net.solver, net.iterations) == (solver, sweeps)
        outputs[solver, sweeps] = net(x)
        made = pursuitify(model, iterations=sweeps, solver=solver)
        assert torch.equal(outputs[solver, sweeps], made(x))
    assert torch.equal(outputs["feedforward", 3], model(x))
    values = list(outputs.values())
    assert all(not torch.equal(a, b) for a, b in itertools.combinations(values, 2))


@pytest.mark.parametrize("value", [-1, 1.5, "3", None, True])
def test_bad_iterations(value: Any) -> None:
    model = BY_NAME["linear_chain"].build()
    with pytest.raises(OptionError, match="iterations"):
        pursuitify(model, iterations=value)
    net = pursuitify(model, iterations=2)
    with pytest.raises(OptionError, match="iterations"):
        net.iterations = value
    assert net.iterations == 2


@pytest.mark.parametrize("value", ["Global", "", None, 3, []])
def test_bad_solver_lists_the_valid_ones(value: Any) -> None:
    model = BY_NAME["linear_chain"].build()
    with pytest.raises(OptionError, match="'global', 'layered', 'synchronous', 'feedforward'"):
        pursuitify(model, solver=value)
    net = pursuitify(model)
    with pytest.raises(OptionError, match="'global', 'layered', 'synchronous', 'feedforward'"):
        net.solver = value
    assert net.solver == "global"


def test_paper_range_of_beta() -> None:
    case = BY_NAME["linear_chain"]
    x = case.input()
    safe, paper = pursuitify(case.build()), pursuitify(case.build(), paper=True)
    for net in (safe, paper):
        with torch.no_grad():
            net.pursuit.beta.fill_(0.25)
    for name, step in safe.step_sizes(x).items():
        ratio = float((paper.step_sizes(x)[name] / step).detach())
        assert abs(ratio - 0.501 / 0.25) <= 1e-9


@modes
def test_deepcopy(training: bool) -> None:
    net, x = pursuitify(build("ResidualNet-bn").train(training), iterations=2), images()
    net(x)  # fills what is cached
    twin = copy.deepcopy(net)
    assert torch.equal(twin(x), net(x))
    own = {p.data_ptr() for p in net.parameters()}
    assert all(p.data_ptr() not in own for p in twin.parameters())
    before = net.eval()(x)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.mul_(0.5)
    assert torch.equal(net(x), before)
    assert not torch.equal(twin.eval()(x), before)


@references
def test_state_dict(reference: str) -> None:
    model = build(reference)
    net = pursuitify(model)
    own, added = list(model.state_dict()), {"pursuit.beta", "pursuit.alpha"}
    assert set(net.state_dict()) == {*own, *added}
    other = randomise(copy.deepcopy(model), 3)
    loaded = net.load_state_dict(other.state_dict(), strict=False)
    assert set(loaded.missing_keys) == added
    assert not loaded.unexpected_keys
    net.iterations = 0
    assert torch.equal(net(images()), other(images()))
    assert not torch.equal(net(images()), model(images()))
    net.load_state_dict(net.state_dict())


def test_shared_weights_without_copy() -> None:
    model = build("ChainNet-bn")
    shared, copied = pursuitify(model, copy=False), pursuitify(model)
    pointers = {p.data_ptr() for p in model.parameters()}
    assert {p.data_ptr() for p in shared.parameters()} >= pointers
    assert not {p.data_ptr() for p in copied.parameters()} & pointers


def test_to_dtype() -> None:
    net, x = pursuitify(build("ResidualNet-bn", torch.float32), iterations=3), images()
    with torch.no_grad():
        single = net(x.float())
        net = net.to(torch.float64)
        double = net(x)
    assert double.dtype == torch.float64
    assert net.pursuit.beta.dtype == torch.float64
    assert all(v.dtype == torch.float64 for v in net.latents(x).values())
    assert error(single.double(), double) <= 1e-4
    exact = pursuitify(build("ResidualNet-bn"), iterations=3)
    assert error(double, exact(x)) <= 1e-5


def test_to_channels_last() -> None:
    x = images(dtype=torch.float64)
    net = pursuitify(build("DenselyConnectedNet-bn"), iterations=3)
    expected = net(x)
    net = net.to(memory_format=torch.channels_last)
    last = x.to(memory_format=torch.channels_last)
    assert error(net(last), expected) <= 1e-12
    kept = [v.is_contiguous(memory_format=torch.channels_last) for v in net.latents(last).values()]
    assert all(kept)


@modes
@cases
def test_source_is_the_way_back(case: Case, training: bool) -> None:
    model = case.build().train(training)
    net, x = pursuitify(model, iterations=4), case.input(batch=3)
    source = net.source
    assert isinstance(source, fx.GraphModule)
    assert source.training is training
    own = dict(source.named_parameters())
    for name, parameter in model.named_parameters():
        assert own[name].data_ptr() == net.get_parameter(name).data_ptr() != parameter.data_ptr()
    torch.manual_seed(0)
    expected = model(x)
    torch.manual_seed(0)
    assert torch.equal(source(x), expected)


@pytest.mark.parametrize("layout", LAYOUTS)
@cases
def test_graph(case: Case, layout: Any) -> None:
    net = pursuitify(case.build(), layout=layout)
    graph = net.graph
    assert isinstance(graph, nx.DiGraph)
    assert nx.is_directed_acyclic_graph(graph)
    nodes = list(graph)
    assert nodes == ["input", *case.order]
    assert [graph.nodes[n]["index"] for n in nodes] == list(range(-1, len(case.order)))
    assert list(net.latents(case.input())) == list(case.order)
    for n in case.order:
        data = graph.nodes[n]
        assert data["layout"] in ("decoder", "encoder")
        assert isinstance(data["activation"], str)
        assert isinstance(data["source"], str)
        assert graph.in_degree(n) > 0
    position = {n: i for i, n in enumerate(nodes)}
    for a, b, data in graph.edges(data=True):
        assert position[a] < position[b]
        assert set(data["kind"].split("+")) <= {"identity", "linear", "diagonal", "weighted"}
        assert data["paths"] == len(data["kind"].split("+"))
    if layout == "encoder":
        reads_input = set(graph.successors("input"))
        assert all(graph.nodes[n]["layout"] == "encoder" for n in set(case.order) - reads_input)


def test_graph_of_a_residual_net_in_detail() -> None:
    torch.manual_seed(0)
    net = pursuitify(ResidualNet(2, 5, depth=1, width=2))
    data: dict[str, Any] = dict(net.graph.nodes(data=True))
    assert [data[n]["layout"] for n in list(net.graph)[1:]] == ["decoder", "encoder"] * 3
    first, second = (f"blocks_0_0_relu{i}" for i in (1, 2))
    assert data[second]["source"] == "blocks.0.0.relu2"
    assert data[second]["activation"] == "ReLU"
    assert net.graph.edges[first, second]["kind"] == "weighted"
    assert net.graph.edges["input", second]["kind"] == "identity"
    assert net.graph.edges[second, "blocks_1_0_relu2"]["kind"] == "linear"


def check_independence(net: PursuitNetwork, x: Tensor, tolerance: float = 1e-12) -> None:
    with torch.no_grad():
        together, output, values = net.latents(x), net(x), net.objective(x, net.latents(x))
        for i in range(len(x)):
            one = x[i : i + 1]
            latents = net.latents(one)
            assert error(net(one), output[i : i + 1]) <= tolerance
            assert error(net.objective(one, latents), values[i : i + 1]) <= tolerance
            for name, value in latents.items():
                assert error(value, together[name][i : i + 1]) <= tolerance, name


@cases
def test_samples_do_not_see_each_other(case: Case) -> None:
    net, x = pursuitify(case.build(), iterations=3), case.input(batch=3)
    x[1] *= 100.0
    check_independence(net, x)


def test_samples_do_not_see_each_other_through_gates() -> None:
    torch.manual_seed(0)
    net, x = pursuitify(randomise(Gated()).double().eval(), iterations=3), images()
    x[1] *= 100.0
    check_independence(net, x)
    assert not rises(objectives(net, x, 8))


@examples(20, 100, drawn=random_net(batch=3))
def test_samples_do_not_see_each_other_in_random_nets(drawn: tuple[nn.Module, Tensor]) -> None:
    model, x = drawn
    check_independence(pursuitify(model, iterations=2), x, 1e-10)


class Pair(nn.Module):
    """Two inputs, the second with an awkward name, and an output of many parts."""

    def __init__(self, form: str = "tensor") -> None:
        super().__init__()
        self.form, self.left, self.right = form, nn.Linear(4, 5), nn.Linear(3, 5)

    def forward(self, x_mask: Tensor, x: Tensor, scale: float = 2.0) -> Any:
        a = F.relu(self.left(x_mask))
        b = F.relu(self.right(x) + a) * scale
        forms = {"dict": {"a": a, "b": {"c": b}}, "tuple": (a, b), "list": [b, (a, x)]}
        return forms.get(self.form, b)


def pair() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(3, n, generator=generator, dtype=torch.float64) for n in (4, 3))
    return a, b


@pytest.mark.parametrize("sweeps", [0, 2])
def test_arguments_by_position_and_name(sweeps: int) -> None:
    net = pursuitify(Pair().double().eval(), iterations=sweeps)
    a, b = pair()
    expected = net(a, b)
    for value in (net(a, x=b), net(x_mask=a, x=b), net(x=b, x_mask=a), net(a, b, scale=2.0)):
        assert torch.equal(value, expected)
    assert torch.equal(net(a, b, 2.0), expected)
    assert list(net.latents(x=b, x_mask=a)) == list(net.latents(a, b))
    for args, kwargs, message in [
        ((a,), {}, "needs the argument 'x'"),
        ((a, b), {"x": b}, "given twice"),
        ((a, b), {"y": b}, "unexpected argument 'y'"),
        ((a, b, 2.0, b), {}, "takes 3 arguments"),
        ((a, b), {"scale": 3.0}, "scale"),
    ]:
        with pytest.raises(package.InputError, match=message):
            net(*args, **kwargs)


def test_two_inputs() -> None:
    a, b = pair()
    net = pursuitify(Pair().double().eval(), iterations=3)
    graph = net.graph
    assert [n for n, i in graph.nodes(data="index") if i < 0] == ["x_mask", "x"]
    assert graph.edges["x_mask", "relu"]["kind"] == "identity"
    latents = net.latents(a, b)
    assert net.objective((a, b), latents).shape == (3,)
    record = net.diagnose(a, b)
    assert (
        abs(record.sweeps[-1].objective - float(net.objective((a, b), latents).detach().mean()))
        <= 1e-12
    )
    values = [s.objective for s in record.sweeps]
    assert all(after <= before + 1e-9 for before, after in itertools.pairwise(values))


@pytest.mark.parametrize("form", ["dict", "tuple", "list"])
def test_outputs_keep_their_form(form: str) -> None:
    a, b = pair()
    model = Pair(form).double().eval()
    net = pursuitify(model, iterations=0)

    def leaves(value: Any) -> list[Tensor]:
        if isinstance(value, dict):
            return [t for v in value.values() for t in leaves(v)]
        return (
            [t for v in value for t in leaves(v)] if isinstance(value, (tuple, list)) else [value]
        )

    expected = model(a, b)
    for sweeps in (0, 3):
        net.iterations = sweeps
        value = net(a, b)
        assert type(value) is type(expected)
        shapes = [v.shape for v in leaves(value)]
        assert shapes == [v.shape for v in leaves(expected)]
        same = [torch.equal(v, e) for v, e in zip(leaves(value), leaves(expected), strict=True)]
        assert all(same) is (sweeps == 0)
    assert any(torch.equal(v, net.latents(a, b)["relu"]) for v in leaves(net(a, b)))


@pytest.mark.parametrize("solver", ["global", "layered", "synchronous", "feedforward"])
def test_inspection_leaves_running_statistics_alone(solver: str) -> None:
    net = pursuitify(build("ResidualNet-bn").train(), iterations=2, solver=solver)
    x = images()
    state = {k: v.clone() for k, v in net.state_dict().items()}
    pointers = {k: b.data_ptr() for k, b in net.named_buffers()}
    latents = net.latents(x)
    net.dictionary(x)
    net.step_sizes(x)
    net.objective(x, latents)
    net.diagnose(x)
    assert net.training
    assert {k: b.data_ptr() for k, b in net.named_buffers()} == pointers
    assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())
    net.eval()
    next(m for m in net.modules() if isinstance(m, nn.BatchNorm2d)).train()
    net.latents(x)
    net.diagnose(x)
    assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items()), "one in training"
    net.train()
    with pytest.raises(package.InputError):
        net.latents(x[:, :1])
    assert {k: b.data_ptr() for k, b in net.named_buffers()} == pointers
    net(x)
    changed = [k for k, v in net.state_dict().items() if not torch.equal(v, state[k])]
    assert changed
    assert all(k.rsplit(".", 1)[-1].startswith(("running", "num_batches")) for k in changed)


def test_step_sizes_follow_the_weights() -> None:
    case = BY_NAME["conv_residual"]
    net, x = pursuitify(case.build()), case.input()
    with torch.no_grad():
        before = net.step_sizes(x)
        assert list(before) == list(case.order)
        assert all(v.shape == () and v > 0 for v in before.values())
        for parameter in net.parameters():
            if parameter is not net.pursuit.beta:
                parameter.mul_(2.0)
        after = net.step_sizes(x)
    assert all(after[k] < before[k] for k in list(before)[:-1])


def test_repr_says_what_it_is() -> None:
    net = pursuitify(BY_NAME["linear_chain"].build(), iterations=7, solver="layered")
    assert "solver='layered', steps='certified', iterations=7, " in repr(net)
    assert "layout='auto', offsets='signal', latents=3\n" in repr(net)
    model = BY_NAME["linear_chain"].build()
    other = pursuitify(model, layout="encoder", offsets="threshold")
    assert "layout='encoder', offsets='threshold'" in repr(other)


def test_a_training_step_lowers_the_loss() -> None:
    net, x = pursuitify(build("ResidualNet-bn").train(), iterations=2), images(8)
    labels = torch.arange(8) % 5
    optimiser = torch.optim.Adam(net.parameters(), 1e-2)
    losses = []
    for _ in range(8):
        optimiser.zero_grad()
        loss = F.cross_entropy(net(x), labels)
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]


# ---------------------------------------------------------------- cost


class _Count(TorchDispatchMode):
    """Counts weighted operators, however they are spelled."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        # Two columns: the sums that tell whether a kernel has changed, one reading of the weights.
        self.found["contents" if name == "mm" and args[1].shape[1] == 2 else name] += 1
        return func(*args, **(kwargs or {}))


# A decoder row costs a forward in the feed-forward pass, an adjoint at the start, then forward and
# adjoint per sweep, less the adjoint in the last that only a next sweep would read. An encoder row
# costs the feed-forward pass, then forward and adjoint of its path per sweep.
COSTS = {
    "ChainNet-bn": {"decoder": 12, "encoder": 0},
    "ResidualNet-bn": {"decoder": 6, "encoder": 6},
    "DenselyConnectedNet-bn": {"decoder": 12, "encoder": 0},
}


@pytest.mark.parametrize("alpha", [0.0, 0.3])
@pytest.mark.parametrize("reference", COSTS)
def test_each_weighted_operator_runs_once_forward_and_once_adjoint(
    reference: str, alpha: float
) -> None:
    decoder, encoder = COSTS[reference]["decoder"], COSTS[reference]["encoder"]
    operators = decoder + encoder
    net, x = pursuitify(build(reference)), images()
    layouts = Counter(v for _, v in net.graph.nodes(data="layout"))
    assert (layouts["decoder"], layouts["encoder"]) == (decoder, encoder)
    with torch.no_grad():
        net.pursuit.alpha.fill_(alpha)
        net(x)  # norm bounds are kept from here on
        with FlopCounterMode(display=False) as flops:
            net.source(x)
        convolution = torch.ops.aten.convolution
        source = flops.get_flop_counts()["Global"][convolution]
        for sweeps in (1, 2, 5):
            net.iterations = sweeps
            with _Count() as count, FlopCounterMode(display=False) as flops:
                net(x)
            assert count.found["convolution"] == (1 + 2 * sweeps) * operators
            assert count.found["addmm"] == 1, "the head runs once"
            work = flops.get_flop_counts()["Global"][convolution]
            # Adjoints of strided convolutions may be computed phase by phase, with padded kernels.
            assert work <= 1.1 * (1 + 2 * sweeps) * source


def test_each_dense_layer_runs_once_forward_and_once_adjoint() -> None:
    case = BY_NAME["linear_chain"]
    net, x = pursuitify(case.build()), case.input(batch=2)
    with torch.no_grad():
        net(x)
        for sweeps in (1, 4):
            net.iterations = sweeps
            with _Count() as count:
                net(x)
            assert count.found["mm"] + count.found["addmm"] == 3 * (1 + 2 * sweeps) + 1


def test_layered_cost() -> None:
    net, x = pursuitify(build("ResidualNet-bn"), solver="layered"), images()
    with torch.no_grad():
        net(x)
        for sweeps in (1, 4):
            net.iterations = sweeps
            with _Count() as count:
                net(x)
            # The feed-forward pass; decoder rows: forward and adjoint per step; encoder rows:
            # one forward for u_j.
            assert count.found["convolution"] == 12 + 2 * 6 * sweeps + 6


def test_nothing_on_the_way_is_called_like_a_derivative() -> None:
    """AutoAttack counts frames named grad or backward and then refuses the model."""
    net, x = pursuitify(build("ResidualNet-bn"), iterations=3), images()
    home = str(Path(package.__file__).parent)
    seen: set[tuple[str, str]] = set()

    def profile(frame: Any, event: str, _: Any) -> None:
        if event == "call":
            seen.add((frame.f_code.co_filename, frame.f_code.co_name))

    x.requires_grad_()
    sys.setprofile(profile)
    try:
        net(x)
    finally:
        sys.setprofile(None)
    assert any(
        (file.startswith(home) and name == "descend") or name == "sweep" for file, name in seen
    )
    own = [name for file, name in seen if file.startswith((home, "<eval_with_key>"))]
    assert not [n for n in own if "grad" in n.lower() or "backward" in n.lower()]
    assert not [n for _, n in seen if n in ("grad", "backward", "_make_grads")]


def test_import_is_light() -> None:
    code = (
        "import sys, pursuitify\n"
        "heavy = {'torchvision', 'matplotlib', 'sklearn', 'scipy', 'torch._dynamo', 'sympy'}\n"
        "heavy &= set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(package.__file__).parents[1])


# ---------------------------------------------------------------- norm bounds that go stale


class Masked(nn.Module):
    """A factor per sample behind a reshape: what a gate is, or dropout in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.last = nn.Conv2d(2, 3, 3), nn.Linear(48, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.flatten(F.relu(self.conv(x)), 1)
        return F.relu(self.last(x * torch.sigmoid(x.mean(1, keepdim=True))))


@pytest.mark.parametrize("batch", [3, 4])  # 4 is the latent's height: it broadcasts, wrongly
def test_step_sizes_behind_a_factor_per_sample_and_a_reshape(batch: int) -> None:
    torch.manual_seed(0)
    net, x = pursuitify(Masked().double().eval(), iterations=2), images(batch, 6)
    check_independence(net, x * torch.arange(1, batch + 1)[:, None, None, None])


def test_step_sizes_follow_batch_statistics_in_evaluation_mode() -> None:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(3, track_running_stats=False)
    model = nn.Sequential(nn.Conv2d(2, 3, 3), norm, nn.ReLU(), nn.Conv2d(3, 3, 3), nn.ReLU())
    net, x = pursuitify(model.double().eval()), images(4, 6)
    assert not rises(objectives(net, x, 4))
    assert not rises(objectives(net, 1e-2 * x, 4))


def test_step_sizes_follow_weights_written_through_data() -> None:
    net = pursuitify(BY_NAME["linear_chain"].build())
    x = BY_NAME["linear_chain"].input()
    with torch.no_grad():
        before = net.step_sizes(x)
        for parameter in net.parameters():
            parameter.data.mul_(3.0 if parameter.dim() == 2 else 1.0)
        after = net.step_sizes(x)
    assert all(after[k] < 0.5 * before[k] for k in before)


@pytest.mark.parametrize("sweeps", [0, 3])
@pytest.mark.parametrize("training", [False, True])
def test_infer_is_one_pass(sweeps: int, training: bool) -> None:
    net = pursuitify(build("ResidualNet-bn").train(training), iterations=sweeps)
    twin, x = copy.deepcopy(net), torch.rand(3, 2, 8, 8, dtype=torch.float64)
    expected = copy.deepcopy(net).latents(x)
    output, latents, dictionary = net.infer(x)
    assert torch.allclose(output, twin(x), rtol=1e-12, atol=1e-12)
    moved = zip(net.buffers(), twin.buffers(), strict=True)
    assert all(torch.equal(a, b) for a, b in moved), "running statistics moved once"
    assert all(torch.allclose(v, expected[k], rtol=1e-12) for k, v in latents.items())
    assert dictionary.names == tuple(latents)
    if sweeps:
        output.square().sum().backward()
        assert all(p.grad is not None for n, p in net.named_parameters() if n != "pursuit.alpha")


def _private_access(code: str, names: set[str]) -> list[str]:
    """Return the accesses to some attributes of anything but ``self``, with their lines."""
    return [
        f"{node.lineno}: {ast.unparse(node)}"
        for node in ast.walk(ast.parse(code))
        if isinstance(node, ast.Attribute)
        and node.attr in names
        and not (isinstance(node.value, ast.Name) and node.value.id in {"self", "cls"})
    ]


def _private_names() -> set[str]:
    return {n for n in RESERVED if n.startswith("_") and not n.endswith("__")}


def test_the_rest_of_the_package_uses_methods_of_the_network() -> None:
    names, home = _private_names(), Path(package.__file__).parent
    assert {"_program", "_programs", "_bind", "_steps", "_alphas", "_norms", "_kernels"} <= names
    found = {}
    for path in sorted(home.rglob("*.py")):
        place = path.relative_to(home)
        if place.parts[0] != "network":
            accesses = _private_access(path.read_text(encoding="utf-8"), names)
            if accesses:
                found[str(place)] = accesses
    assert found == {}


@pytest.mark.parametrize("code", ["net._bind(x)", "self.net._norms.state()", "f(x)._program.rows"])
def test_private_access_is_found(code: str) -> None:
    assert _private_access(code, _private_names())
    assert not _private_access(code.replace("._", "."), _private_names())


def test_the_inner_interface_is_the_network_s_own_state() -> None:
    """What other parts of the package read is what the network itself works with."""
    torch.manual_seed(0)
    net = pursuitify(ResidualNet(3, 5, width=4), iterations=2)
    x = torch.rand(2, 3, 16, 16)
    assert net.compiled_programs[True] is net.compiled_program
    net.eval()
    assert net.compiled_programs[False] is net.compiled_program
    with pytest.raises(TypeError):
        net.compiled_programs[True] = net.compiled_program  # type: ignore[index]
    net.iterations = 0  # with sweeps the memory format may be another
    bound = net.bind_batch(x)
    output = net.compiled_program.head(net, bound.first.latents, bound.first, bound.values)
    torch.testing.assert_close(output, net.source_output(x), rtol=0, atol=0)
    torch.testing.assert_close(output, net(x), rtol=0, atol=0)
    net.iterations = 2
    net.train()(x)
    state = {name: value.clone() for name, value in net.norm_state().items()}
    assert state
    steps = net.step_sizes(x)
    net.restore_norm_state({})
    assert not net.norm_state()
    net.restore_norm_state(state)
    again = net.step_sizes(x)
    assert all(torch.equal(again[name], steps[name]) for name in steps)


def at_each(net: PursuitNetwork, counts: list[int], x: Tensor) -> dict[int, Tensor]:
    found = {}
    for count in counts:
        twin = copy.deepcopy(net)
        twin.iterations = count
        found[count] = twin(x)
    return found


@pytest.mark.parametrize("step_scale", [1.0, 0.0])
@pytest.mark.parametrize("solver", [n for n, s in SOLVERS.items() if s.passes_through])
def test_outputs_at_are_those_of_as_many_sweeps(solver: str, step_scale: float) -> None:
    net = pursuitify(build("ResidualNet-bn").eval(), solver=solver, step_scale=step_scale)
    x = torch.rand(3, 2, 8, 8, dtype=torch.float64)
    for counts in ([4, 0, 2], [0], [3], []):
        found, expected = net.outputs_at(counts, x), at_each(net, counts, x)
        assert list(found) == sorted(counts)
        for count in counts:
            assert torch.allclose(found[count], expected[count], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("count", [-1, 1.5, True, "2"])
def test_outputs_at_no_number_of_sweeps(count: Any) -> None:
    net = pursuitify(build("ResidualNet-bn").eval())
    with pytest.raises(OptionError, match="is not a whole number >= 0"):
        net.outputs_at([2, count], torch.rand(3, 2, 8, 8, dtype=torch.float64))


def test_outputs_at_are_proven_and_held_to_their_range() -> None:
    x = torch.rand(3, 2, 8, 8, dtype=torch.float64)
    net = pursuitify(build("ResidualNet-bn").eval())
    calls: list[object] = []
    prove = net._self_prove
    net._self_prove = lambda *a: calls.append(prove(*a))  # type: ignore[method-assign, func-returns-value]
    for _ in range(2):
        net.outputs_at([1, 2], x)
    assert len(calls) == 1

    class Grows(nn.Module):
        """Its feed-forward pass fits float16; the signal of its first row does not."""

        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(self.b(F.relu(self.a(x))))

    torch.manual_seed(0)
    grows = Grows()
    with torch.no_grad():
        grows.a.weight.copy_(torch.tensor([[300.0, 300.0], [300.0, 300.0]]))
        grows.b.weight.copy_(torch.tensor([[0.5, 0.0], [0.0, 0.5]]))
    net = pursuitify(grows.half().eval(), iterations=2)
    x = torch.full((2, 2), 100.0, dtype=torch.float16)
    for run in (lambda: net(x), lambda: net.outputs_at([2], x)):
        with pytest.raises(package.errors.InputError, match="overflow float16"):
            run()


def test_a_constant_of_another_precision_goes_with_the_network() -> None:
    class Shift(nn.Module):
        """It keeps a plain tensor, which ``double()`` does not reach."""

        def __init__(self) -> None:
            super().__init__()
            self.mean = torch.tensor([0.25, 0.5]).view(1, 2, 1, 1)

        def forward(self, x: Tensor) -> Tensor:
            return (x - self.mean) / 0.5

    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shift = Shift()
            self.conv, self.head = nn.Conv2d(2, 3, 3), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(F.relu(self.conv(self.shift(x))).mean((2, 3)))

    torch.manual_seed(0)
    model, x = Shifted().eval(), torch.rand(2, 2, 6, 6)
    net = pursuitify(model, iterations=3)
    expected = net(x)
    assert torch.allclose(net.double()(x.double()), expected.double(), rtol=1e-5, atol=1e-6)
    net.iterations = 0
    assert torch.equal(net(x.double()), model.double()(x.double()))


@pytest.mark.parametrize("paper", [False, True])
def test_extrapolation_is_trained_where_it_is_asked_for(paper: bool) -> None:
    """The paper trains alpha; else it is frozen, through copies and files of weights too."""
    case = BY_NAME["conv_residual"]
    net, x = pursuitify(case.build(1), iterations=3, paper=paper), case.input(batch=2)
    again = copy.deepcopy(net)
    again.load_state_dict(net.state_dict())
    for one in (net, again):
        assert one.pursuit.alpha.requires_grad is paper
        one(x).square().sum().backward()
        assert (one.pursuit.alpha.grad is not None) is paper
        assert bool(one.pursuit.beta.grad.any())
        one.zero_grad()
        one.pursuit.alpha.requires_grad_()
        one(x).square().sum().backward()
        assert bool(one.pursuit.alpha.grad.any())
