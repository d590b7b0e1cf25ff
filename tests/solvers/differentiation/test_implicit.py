"""memory="implicit": agreement with a long unroll where both are right, and a warning elsewhere."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pursuitify import OptionError, PursuitNetwork, pursuitify
from pursuitify.solvers.differentiation import ImplicitWarning
from pursuitify.solvers.differentiation.conjugate_residuals import conjugate_residuals
from tests.support.compare_modes import assert_same, assert_same_outputs, differentiate
from tests.support.nets import CASES, Case

modes = pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
EXACT = {"implicit_iterations": 300, "implicit_tolerance": 1e-8}


class Chain(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 3))

    shape = (10,)


class Residual(nn.Module):
    shape = (9,)

    def __init__(self) -> None:
        super().__init__()
        self.first, self.inner, self.outer = nn.Linear(9, 6), nn.Linear(6, 6), nn.Linear(6, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.first(x))
        return self.head(F.relu(self.outer(F.relu(self.inner(y))) + y))


class Dense(nn.Module):
    shape = (2, 6, 6)

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(3, 2, 3, padding=1)
        self.norm, self.third = nn.BatchNorm2d(2), nn.Conv2d(5, 2, 3, padding=1)
        self.head = nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.first(x))
        z = F.relu(self.norm(self.second(y)))
        u = F.relu(self.third(torch.cat([y, z], 1)))
        return self.head(torch.cat([y, z, u], 1).mean((2, 3)))


class Gated(nn.Module):
    """PReLU, a gate, frozen max-pool switches, a clipped activation."""

    shape = (3, 6, 6)

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 2, 3, 2)
        self.gate, self.act, self.head = nn.Conv2d(3, 3, 1), nn.PReLU(), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.first(x))
        y = y * torch.sigmoid(self.gate(y.mean((2, 3), keepdim=True)))
        y = F.max_pool2d(y, 2, 1, 1)
        return self.head(F.relu6(self.second(y)).flatten(1)[:, :8])


#: Operations on latents (batch, 4, 6, 6).
OPERATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gather": lambda z: z.gather(2, z.argsort(2)[:, :, ::2]),
    "masked": lambda z: torch.where(z.mean(1, keepdim=True) > 0.5, z, 0.5 * z.flip(1)),
    "cumulative": lambda z: z.cumsum(2).diff(dim=3) / 6,
    "product of samples": lambda z: torch.bmm((z[:, 0] > 0.5).to(z.dtype) / 6, z[:, 1]),
    "unpooled overlapping": lambda z: F.max_unpool2d(
        *F.max_pool2d(z, 3, 1, 1, return_indices=True), 3, 1, 1, output_size=z.size()
    ),
    "sent": lambda z: torch.zeros_like(z).index_add(1, torch.tensor([1, 1, 0, 3]), z),
    "contraction": lambda z: torch.einsum("nchw,hk->nckw", z, torch.eye(6).roll(1, 0).to(z)),
}


class Conditioned(nn.Module):
    """An operation behind an orthogonal layer: in the encoder layout F is strongly convex."""

    def __init__(self, operation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first = nn.Conv2d(4, 4, 1)
        with torch.no_grad():
            nn.init.orthogonal_(self.first.weight.view(4, 4))
        self.first.bias.data += 0.3
        size = operation(torch.rand(1, 4, 6, 6)).numel()
        self.second, self.head, self.operation = nn.Linear(size, 5), nn.Linear(5, 3), operation
        self.second.weight.data *= 0.5

    def forward(self, x: Tensor) -> Tensor:
        z = self.operation(F.relu(self.first(x)))
        return self.head(F.relu(self.second(z.flatten(1))))


def network(build: Callable[[], Any], training: bool = False, **options: Any) -> PursuitNetwork:
    torch.manual_seed(1)
    return pursuitify(build().double().train(training), **options)


def points(build: Any) -> Tensor:
    return torch.randn(4, *build.shape, generator=torch.Generator().manual_seed(2)).double()


@modes
@pytest.mark.parametrize(
    ("build", "options"),
    [
        (Chain, {"iterations": 200}),
        # With offsets in the signal 6,000 sweeps leave this network 1e-4 from its fixed point.
        (Residual, {"iterations": 600, "offsets": "threshold"}),
        (Dense, {"iterations": 600}),
        (Gated, {"iterations": 400}),
        (Chain, {"iterations": 1500, "solver": "synchronous"}),
    ],
)
def test_agrees_with_a_long_unroll(build: Any, options: dict[str, Any], training: bool) -> None:
    net, x = network(build, training, **options), points(build)
    with torch.no_grad():
        net.pursuit.alpha.fill_(0.4)
    expected, theirs = differentiate(net, x, memory="recompute", recompute_levels=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        outputs, mine = differentiate(net, x, memory="implicit", **EXACT)
    assert_same_outputs(outputs, expected, 1e-11)
    assert_same(mine, theirs, 1e-4)


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_mode_has_the_derivatives_of_the_minimiser(name: str) -> None:
    """Unrolled, recomputed, implicit, and by differences of the output: all are the same."""
    torch.manual_seed(3)
    model = Conditioned(OPERATIONS[name]).double().eval()
    net = pursuitify(model, iterations=40, layout="encoder", verify="off")
    x = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(4)).double()
    expected, theirs = differentiate(net, x)
    for options in ({"memory": "recompute"}, {"memory": "implicit", **EXACT}):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            outputs, mine = differentiate(net, x, **options)
        assert_same_outputs(outputs, expected, 1e-9)
        assert_same(mine, theirs, 1e-6)
    weight, bar = net.get_parameter("first.weight"), theirs["first.weight"]
    assert bar is not None
    direction, values = torch.ones_like(weight), []
    factor = torch.cos(expected[0] + 1)
    with torch.no_grad():
        for step in (1e-6, -1e-6):
            weight.add_(direction, alpha=step)
            values.append(float((net(x) * factor).sum()))
            weight.sub_(direction, alpha=step)
    slope = (values[0] - values[1]) / 2e-6
    assert slope == pytest.approx(float((bar * direction).sum()), rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("build", [Chain, Residual, Dense, Gated])
@pytest.mark.parametrize("solver", ["global", "synchronous"])
def test_last_sweeps_tend_to_the_whole(build: Any, solver: str) -> None:
    net, x = network(build, iterations=60, solver=solver), points(build)
    with torch.no_grad():
        net.pursuit.alpha.fill_(0.4)
    expected, theirs = differentiate(net, x)
    errors = []
    for last in (1, 10, 40, 60, 99):
        outputs, mine = differentiate(net, x, memory="implicit", implicit_last=last)
        assert_same_outputs(outputs, expected, 1e-11)
        total = 0.0
        for name, value in theirs.items():
            if value is not None and "pursuit" not in name:
                found = mine[name]  # one sweep may not reach the first layers at all
                gap = value if found is None else found - value
                total += float(gap.norm() / value.norm().clamp_min(1e-12))
        errors.append(total)
    assert errors[0] > errors[1] > errors[2], errors
    assert errors[3] == errors[4] == 0, "at k >= T it is plain unrolling"


def test_last_sweep_by_hand() -> None:
    """k = 1 of synchronous pursuit: the derivative of one proximal step at constant latents."""
    net, x = network(Chain, iterations=7, solver="synchronous"), points(Chain)
    net.iterations = 6
    before = {k: v.detach() for k, v in net.latents(x).items()}
    net.iterations = 7
    net.memory, net.implicit_last = "implicit", 1
    weight = net.get_parameter("0.weight")
    (found,) = torch.autograd.grad(sum(w.sum() for w in net.latents(x).values()), weight)
    bound, steps = net.dictionary(x), net.step_sizes(x)
    slope = bound.adjoint(bound.residual(before))
    lam = bound.thresholds
    total = sum(F.relu(w - steps[k] * (slope[k] + lam[k])).sum() for k, w in before.items())
    (expected,) = torch.autograd.grad(total, weight)
    assert torch.allclose(found, expected, rtol=1e-10, atol=1e-12)


def test_reports_and_warns() -> None:
    net, x = network(Residual, iterations=3, memory="implicit"), points(Residual)
    assert net.solves is None
    with pytest.warns(ImplicitWarning, match="sweeps have not reached a fixed point") as seen:
        net(x).sum().backward()
    assert "adjoint" not in str(seen[0].message)
    assert net.solves is not None
    assert net.solves.forward > 1e-3 >= net.solves.adjoint
    net.implicit_iterations = 1
    with pytest.warns(ImplicitWarning, match="the adjoint solve left up to"):
        net(x).sum().backward()
    assert net.solves.iterations == 1
    assert net.solves.adjoint > 1e-3
    net.iterations, net.implicit_iterations = 500, 100
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        net(x).sum().backward()
    assert net.solves.forward < 1e-3
    net.implicit_tolerance = 0.0
    with pytest.warns(ImplicitWarning):
        net(x).sum().backward()


def test_python_shows_the_warning_once() -> None:
    """Residuals differ at every step; five hundred steps of training are not five hundred lines."""
    net, x = network(Residual, iterations=3, memory="implicit"), points(Residual)
    texts, exact = set(), set()
    for scale in (1.0, 0.99, 1.01):
        with pytest.warns(ImplicitWarning) as seen:
            net(scale * x).sum().backward()
        texts |= {str(warning.message) for warning in seen}
        exact.add(net.solves.forward)
    assert len(exact) == 3
    assert len(texts) == 1
    assert "up to 1e-" in texts.pop()


def test_reported_distance_is_that_of_one_step() -> None:
    net, x = network(Residual, iterations=4, memory="implicit"), points(Residual)
    net.implicit_tolerance = 10.0
    net(x).sum().backward()
    with torch.no_grad():
        bound, steps, w = net.dictionary(x), net.step_sizes(x), net.latents(x)
        slope, lam = bound.adjoint(bound.residual(w)), bound.thresholds
        after = {k: F.relu(v - steps[k] * (slope[k] + lam[k])) for k, v in w.items()}
        gap = sum((w[k] - after[k]).square().sum() for k in w).sqrt()
        expected = float(gap / sum(v.square().sum() for v in w.values()).sqrt())
    assert net.solves is not None
    assert net.solves.forward == pytest.approx(expected, rel=1e-10)


def test_layered_pursuit_is_refused() -> None:
    net, x = network(Chain, iterations=2, memory="implicit", solver="layered"), points(Chain)
    with pytest.raises(OptionError, match="layered"):
        net(x)
    with torch.no_grad():
        net(x)


@pytest.mark.parametrize("case", CASES, ids=str)
@modes
@pytest.mark.parametrize("last", [None, 2])
def test_outputs_are_the_same_and_derivatives_reach_everything(
    case: Case, training: bool, last: int | None
) -> None:
    seed = 1 if case.name in ("conv_chain", "separable") else 0  # where not all is dead
    net, x = pursuitify(case.build(seed).train(training), iterations=4), case.input(batch=4)
    expected, theirs = differentiate(net, x)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        outputs, mine = differentiate(net, x, memory="implicit", implicit_last=last)
    assert_same_outputs(outputs, expected, 1e-11)
    for name, value in theirs.items():
        found = mine[name]
        assert (found is None) == (value is None), name
        assert found is None or bool(found.isfinite().all()), name


@pytest.mark.parametrize("rank", [6, 4])
def test_conjugate_residuals(rank: int) -> None:
    """Against a dense solve; of a singular system, the best that can be had."""
    generator = torch.Generator().manual_seed(0)
    half = torch.randn(6, rank, generator=generator, dtype=torch.float64)
    matrix, g = half @ half.T, torch.randn(6, generator=generator, dtype=torch.float64)
    ones = [torch.ones(2, dtype=torch.float64), torch.ones(4, dtype=torch.float64)]

    def apply(v: list[Tensor]) -> list[Tensor]:
        return list((matrix @ torch.cat(v)).split([2, 4]))

    v, left, count = conjugate_residuals(apply, ones, list(g.split([2, 4])), 50, 1e-10)
    residual = (matrix @ torch.cat(v) - g).norm() / g.norm()
    best = (matrix @ torch.linalg.pinv(matrix) @ g - g).norm() / g.norm()
    assert float(residual) == pytest.approx(left, rel=1e-3, abs=1e-9)
    assert left == pytest.approx(float(best), rel=1e-3, abs=1e-9)
    assert count <= 50


def test_options_are_checked() -> None:
    net = network(Chain)
    assert copy.deepcopy(net).memory == "store"
    wrong = {
        "memory": "less",
        "recompute_levels": 3,
        "implicit_last": 0,
        "implicit_iterations": 0,
        "implicit_tolerance": -1.0,
    }
    for name, value in wrong.items():
        with pytest.raises(OptionError, match=name):
            setattr(net, name, value)
