"""memory="recompute": the same outputs and derivatives as plain unrolling, from less."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn

from pursuitify import OptionError, PursuitNetwork, pursuitify
from pursuitify.operators import LinearMap
from pursuitify.operators.activations import Activation
from pursuitify.rules import activation, linear
from tests.support.compare_modes import assert_same, assert_same_outputs, differentiate
from tests.support.examples import examples
from tests.support.nets import BY_NAME, CASES, Case, random_net
from tests.support.randomnets import general_net

cases = pytest.mark.parametrize("case", CASES, ids=str)
modes = pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
levels = pytest.mark.parametrize("levels", [1, 2])


def check(
    net: PursuitNetwork,
    x: Tensor,
    levels: int,
    tolerance: float = 1e-12,
    extrapolation: bool = True,
) -> None:
    expected, theirs = differentiate(net, x, extrapolation, memory="store")
    outputs, mine = differentiate(
        net, x, extrapolation, memory="recompute", recompute_levels=levels
    )
    assert_same_outputs(outputs, expected, tolerance)
    assert_same(mine, theirs, tolerance)


def extrapolate(net: PursuitNetwork, alpha: float) -> PursuitNetwork:
    with torch.no_grad():
        net.pursuit.beta.fill_(0.8)
        net.pursuit.alpha.fill_(alpha)
    return net


@levels
@modes
@cases
def test_derivatives_are_those_of_plain_unrolling(case: Case, training: bool, levels: int) -> None:
    net = pursuitify(case.build(1).train(training), iterations=5)
    check(extrapolate(net, 0.3), case.input(batch=3), levels)


@levels
@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 10])
@pytest.mark.parametrize("alpha", [None, 0.0, 0.4])
def test_every_number_of_sweeps(count: int, alpha: float | None, levels: int) -> None:
    case = BY_NAME["conv_residual"]
    net = extrapolate(pursuitify(case.build(1), iterations=count), alpha or 0.0)
    check(net, case.input(batch=2), levels, extrapolation=alpha is not None)


@levels
def test_single_precision(levels: int) -> None:
    case = BY_NAME["conv_residual"]
    net = pursuitify(case.build(1).float(), iterations=10)
    check(extrapolate(net, 0.3), case.input(batch=4, dtype=torch.float32), levels, 1e-5)


#: Numbers of sweeps, extrapolation, training, two levels.
SETTINGS = (st.integers(1, 5), st.sampled_from([0.0, 0.4]), st.booleans(), st.booleans())


@examples(20, 100, random_net(), *SETTINGS)
def test_random_networks(
    drawn: tuple[nn.Module, Tensor], count: int, alpha: float, training: bool, two: bool
) -> None:
    model, x = drawn
    net = pursuitify(model.train(training), iterations=count)
    check(extrapolate(net, alpha), x, 1 + two, 1e-11)


@examples(20, 100, general_net(), *SETTINGS)
def test_random_networks_of_every_operation(
    drawn: tuple[nn.Module, Tensor], count: int, alpha: float, training: bool, two: bool
) -> None:
    model, x = drawn
    net = pursuitify(model.train(training), iterations=count)
    check(extrapolate(net, alpha), x, 1 + two, 1e-11)


@modes
@pytest.mark.parametrize("solver", ["layered", "synchronous"])
@pytest.mark.parametrize("name", ["leaky_chain", "conv_residual", "conv_dense", "tied"])
def test_other_solvers(name: str, solver: str, training: bool) -> None:
    case = BY_NAME[name]
    net = pursuitify(case.build(1).train(training), iterations=3, solver=solver)
    check(extrapolate(net, 0.0), case.input(batch=3), 1)


def test_only_what_wants_a_derivative_gets_one() -> None:
    case = BY_NAME["conv_residual"]
    net = pursuitify(case.build(1), iterations=3)
    for name, parameter in net.named_parameters():
        parameter.requires_grad_("conv1" in name or name == "pursuit.beta")
    check(net, case.input(batch=2), 1)
    for parameter in net.parameters():
        parameter.requires_grad_(False)
    check(net, case.input(batch=2), 2)  # what an attack asks for: the input alone


@levels
def test_a_weight_used_twice(levels: int) -> None:
    """By several latents, and with another role outside the network."""
    case = BY_NAME["tied"]
    net, x = pursuitify(case.build(1), iterations=4, memory="recompute"), case.input(batch=2)
    net.recompute_levels = levels
    weight = net.get_parameter("conv.weight")
    results = []
    for memory in ("store", "recompute"):
        net.memory = memory
        net.zero_grad()
        (net(x).square().sum() + net(-x).sum() + weight.square().sum()).backward()
        results.append(weight.grad.clone())
    assert torch.allclose(results[0], results[1], rtol=1e-12, atol=1e-12)


@levels
def test_latents_of_every_layer_have_derivatives(levels: int) -> None:
    case = BY_NAME["conv_dense"]
    net, x = pursuitify(case.build(1), iterations=4, recompute_levels=levels), case.input(batch=2)
    found = []
    for memory in ("store", "recompute"):
        net.memory = memory
        z = x.clone().requires_grad_()
        sum(w.square().sum() for w in net.latents(z).values()).backward()
        found.append(z.grad)
    assert torch.allclose(found[0], found[1], rtol=1e-11, atol=1e-12)


@dataclass(frozen=True, eq=False)
class Soft(Activation):
    """Soft thresholding: a user's activation, which names no preimage."""

    by: Tensor

    def __call__(self, z: Tensor) -> Tensor:
        return z.sign() * F.relu(z.abs() - self.by)

    def prox(self, v: Tensor, step: Tensor | float) -> Tensor:
        return v.sign() * F.relu(v.abs() - step * self.by)

    def penalty(self, w: Tensor) -> Tensor:
        return self.by * w.abs()


class SoftModule(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.by = nn.Parameter(torch.tensor(0.02, dtype=torch.float64))

    def forward(self, z: Tensor) -> Tensor:
        return Soft(self.by)(z)


@levels
@pytest.mark.parametrize("alpha", [0.0, 0.4])
def test_an_activation_that_names_no_preimage(alpha: float, levels: int) -> None:
    torch.manual_seed(0)
    parts = [nn.Conv2d(2, 5, 3), SoftModule(), nn.Conv2d(5, 4, 3, 2), nn.ReLU(), nn.Conv2d(4, 3, 3)]
    model = nn.Sequential(*parts, SoftModule(), nn.Flatten(), nn.Linear(3, 2)).double()
    own = {SoftModule: activation(lambda module, z: Soft(module.by))}
    net = extrapolate(pursuitify(model, iterations=4, rules=own), alpha)
    x = torch.randn(2, 2, 10, 10, dtype=torch.float64)
    _, found = differentiate(net, x)
    assert found["1.by"], "the activation's own parameter must matter here"
    check(net, x, levels)


class Twist(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.angle = nn.Parameter(torch.tensor(0.3, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.cos(self.angle)


class Hidden(LinearMap):
    """A map that keeps its tensor where nobody can find it."""

    def __init__(self, angle: Tensor) -> None:
        self.run = lambda x: x * torch.cos(angle)

    def apply(self, x: Tensor) -> Tensor:
        return self.run(x)

    def adjoint(self, y: Tensor) -> Tensor:
        return self.run(y)

    def norm_bound(self) -> float:
        return 1.0


def test_a_hidden_tensor_is_refused() -> None:
    torch.manual_seed(0)
    parts = [nn.Linear(4, 5), nn.ReLU(), Twist(), nn.Linear(5, 3), nn.ReLU()]
    model = nn.Sequential(*parts).double()
    own = {Twist: linear(lambda module, x: Hidden(module.angle))}
    net, x = pursuitify(model, iterations=2, rules=own), torch.randn(2, 4, dtype=torch.float64)
    net(x).sum().backward()
    net.memory = "recompute"
    with pytest.raises(OptionError, match="cannot find"):
        net(x)
    with torch.no_grad():
        net(x)


def test_backward_twice_over_one_graph() -> None:
    case = BY_NAME["conv_residual"]
    net, x = pursuitify(case.build(1), iterations=3, memory="recompute"), case.input(batch=2)
    net.pursuit.alpha.requires_grad_()
    out = net(x).sum()
    first, second = (
        torch.autograd.grad(out, list(net.parameters()), retain_graph=True) for _ in range(2)
    )
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_derivatives_of_derivatives_are_refused() -> None:
    case = BY_NAME["conv_residual"]
    net, x = pursuitify(case.build(1), iterations=2, memory="recompute"), case.input(batch=2)
    x.requires_grad_()
    (slope,) = torch.autograd.grad(net(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.square().sum().backward()


def test_a_parameter_changed_in_between_is_noticed() -> None:
    case = BY_NAME["conv_residual"]
    net, x = pursuitify(case.build(1), iterations=2, memory="recompute"), case.input(batch=2)
    out = net(x).sum()
    with torch.no_grad():
        net.pursuit.beta.mul_(0.9)
        net.get_parameter("block1.conv1.weight").mul_(0.9)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.backward()


@levels
def test_mixed_precision(levels: int) -> None:
    """Residuals are taken back in the precision they were made in: half of it is lost again."""
    case = BY_NAME["conv_residual"]
    net, x = pursuitify(case.build(1).float(), iterations=5), case.input(batch=4).float()
    net.pursuit.alpha.requires_grad_()
    found: list[dict[str, Any]] = []
    for memory in ("store", "recompute"):
        net.memory, net.recompute_levels = memory, levels
        net.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            out = net(x)
        out.float().square().sum().backward()
        found.append({n: p.grad.clone() for n, p in net.named_parameters()})
    for name, value in found[0].items():
        if "pursuit" not in name:
            scale = value.abs().max().clamp_min(1e-2)
            assert float((value - found[1][name]).abs().max() / scale) < 0.1, name
