"""Smooth activations: roots by bisection, derivatives, penalties, whole networks."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from pursuitify import ConversionError, explain, pursuitify
from pursuitify.operators.activations import (
    ELU,
    Activation,
    Hardsigmoid,
    Sigmoid,
    Softplus,
    Softsign,
    Tanh,
)
from tests.support.agreement import assert_adjoint, assert_descends, compare
from tests.support.compare_modes import assert_same, assert_same_outputs, differentiate

D = torch.float64
#: name -> activation, torch's own, and what makes f(b) - f(a) an integral: phi^-1.
ACTIVATIONS: dict[str, tuple[Activation, Callable[[Tensor], Tensor], Callable[[Any], Any]]] = {
    "tanh": (Tanh(), torch.tanh, np.arctanh),
    "sigmoid": (Sigmoid(), torch.sigmoid, lambda w: np.log(w / (1 - w))),
    "elu": (ELU(1.0, 1.0), F.elu, lambda w: np.where(w < 0, np.log1p(np.minimum(w, 0)), w)),
    "elu 0.3": (
        ELU(0.3, 1.0),
        lambda z: F.elu(z, 0.3),
        lambda w: np.where(w < 0, np.log1p(np.minimum(w, 0) / 0.3), w),
    ),
    "celu 2": (
        ELU(2.0, 2.0),
        lambda z: F.celu(z, 2.0),
        lambda w: np.where(w < 0, 2 * np.log1p(np.minimum(w, 0) / 2), w),
    ),
    "softplus": (Softplus(), F.softplus, lambda w: np.log(np.expm1(w))),
    "softplus 3": (Softplus(3.0), lambda z: F.softplus(z, 3.0),
                   lambda w: np.log(np.expm1(3 * w)) / 3),
    "logsigmoid": (Softplus(mirrored=True), F.logsigmoid, lambda w: -np.log(np.expm1(-w))),
    "softsign": (Softsign(), F.softsign, lambda w: w / (1 - abs(w))),
    "hardsigmoid": (Hardsigmoid(), F.hardsigmoid, lambda w: 6 * w - 3),
}  # fmt: skip
every = pytest.mark.parametrize("name", ACTIVATIONS)
STEPS = (1e-3, 1e-2, 0.1, 0.5, 0.97, 1.0)


def arguments() -> Tensor:
    """Values of both signs and all sizes, and many about the border of a range."""
    size = torch.logspace(-6, 4, 120, dtype=D)
    near = torch.logspace(-9, -1, 30, dtype=D)
    ends = [1 + near, 1 - near, -1 + near, -1 - near, near - 0.3, -near - 0.3, near - 2, -near - 2]
    return torch.cat([-size, torch.zeros(1, dtype=D), size, *ends])


def by_bisection(phi: Callable[[Tensor], Tensor], v: Tensor, g: float) -> Tensor:
    """phi at the root of g z + (1 - g) phi(z) = v, which is increasing in z."""
    u = v - (1 - g) * phi(torch.zeros(1, dtype=D))
    low, high = torch.minimum(u, u / g) - 1e-9, torch.maximum(u, u / g) + 1e-9
    for _ in range(140):
        middle = (low + high) / 2
        below = g * middle + (1 - g) * phi(middle) < v
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return phi((low + high) / 2)


@every
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_proximal_operator_is_as_exact_as_is_said(name: str, dtype: torch.dtype) -> None:
    """Errors relative to max(|w|, |phi(0)|, min(|v|, 1)): 1e-14 in float64, 2e-6 in float32."""
    activation, phi, _ = ACTIVATIONS[name]
    v = arguments().to(dtype)
    tolerance = 1e-14 if dtype is D else 2e-6
    for g in STEPS:
        found = activation.prox(v, g)
        assert found.dtype is dtype
        wanted = by_bisection(phi, v.double(), g)
        zero = float(phi(torch.zeros(1, dtype=D)).abs())
        size = torch.maximum(wanted.abs(), v.double().abs().clamp_max(1))
        size = size.clamp_min(max(zero, 1e-30))
        error = ((found.double() - wanted).abs() / size).max()
        assert float(error) <= tolerance, (g, float(error))
    assert torch.equal(activation(v), phi(v))
    assert torch.allclose(activation.prox(v, 1.0), phi(v), rtol=4 * torch.finfo(dtype).eps, atol=0)
    assert torch.isfinite(activation.penalty(activation(v).double())).all()  # at the border, too


@every
def test_steps_above_one_and_steps_per_sample(name: str) -> None:
    activation, phi, _ = ACTIVATIONS[name]
    v = arguments()
    for g in (1.5, 30.0):
        size = v.abs().clamp_min(1)
        assert float(((activation.prox(v, g) - by_bisection(phi, v, g)).abs() / size).max()) < 1e-13
    steps = torch.tensor([[1e-3], [0.4], [2.0]], dtype=D)
    whole = activation.prox(v.expand(3, -1), steps)
    for row, g in zip(whole, (1e-3, 0.4, 2.0), strict=True):
        torch.testing.assert_close(row, activation.prox(v, g), rtol=1e-13, atol=1e-15)
    kept = v.clone()
    activation.prox_(kept, 0.4)
    assert activation.prox(v.bfloat16(), 0.4).dtype is torch.bfloat16


@every
def test_derivatives_of_both_orders(name: str) -> None:
    activation = ACTIVATIONS[name][0]
    v = torch.tensor([-4.1, -1.3, -0.6, -0.2, 0.15, 0.7, 1.4, 3.7], dtype=D, requires_grad=True)
    step = torch.tensor(0.3, dtype=D, requires_grad=True)
    assert torch.autograd.gradcheck(activation.prox, (v, step))
    assert torch.autograd.gradgradcheck(activation.prox, (v, step))
    slopes = torch.func.vmap(torch.func.grad(lambda a: activation.prox(a, 0.3)))(v.detach())
    (wanted,) = torch.autograd.grad(activation.prox(v, 0.3).sum(), v)
    torch.testing.assert_close(slopes, wanted)
    forward = torch.func.jvp(
        lambda a: activation.prox(a, 0.3), (v.detach(),), (torch.ones_like(v),)
    )[1]
    torch.testing.assert_close(forward, wanted)


@every
def test_the_penalty_is_the_integral_of_the_inverse(name: str) -> None:
    activation, phi, inverse = ACTIVATIONS[name]
    w = phi(torch.linspace(-2.9, 2.9, 30, dtype=D)).numpy()
    nodes, weights = np.polynomial.legendre.leggauss(40)
    f = activation.penalty(torch.from_numpy(w)).numpy()
    for a, b, fa, fb in zip(w, w[1:], f, f[1:], strict=False):
        cuts = [a, 0.0, b] if a < 0 < b else [a, b]
        total = 0.0
        for low, high in itertools.pairwise(cuts):
            s = (low + high) / 2 + (high - low) / 2 * nodes
            total += (high - low) / 2 * float(weights @ (inverse(s) - s))
        assert abs(fb - fa - total) <= 1e-13 * (1 + abs(fa))


@given(st.sampled_from(sorted(ACTIVATIONS)), st.integers(0, 2**16), st.booleans())
@settings(max_examples=40, deadline=None)
def test_the_penalty_is_convex_to_the_border(name: str, seed: int, single: bool) -> None:
    """What the line search needs: f(w + t d) <= (1 - t) f(w) + t f(w + d)."""
    activation, phi, _ = ACTIVATIONS[name]
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.tensor([0.1, 1.0, 10.0, 1e3], dtype=D)[:, None]
    z = torch.randn(2, 4, 50, generator=generator, dtype=D) * sizes
    a, b = (phi(z.float() if single else z)).double()
    t = torch.rand(4, 50, generator=generator, dtype=D)
    fa, fb = activation.penalty(a), activation.penalty(b)
    assert torch.isfinite(fa).all()
    middle = activation.penalty(a + t * (b - a))
    assert (middle <= (1 - t) * fa + t * fb + 1e-14 * (1 + fa.abs() + fb.abs())).all()


def test_penalties_end_where_the_domain_does() -> None:
    w = torch.tensor([-1.1, -1.0, -0.5, 0.0, 0.5, 1.0, 1.1], dtype=D)
    inside = {
        "tanh": (-1, 1), "sigmoid": (0, 1), "elu": (-1, 9), "softplus": (0, 9),
        "logsigmoid": (-9, 0), "softsign": (-1, 1), "hardsigmoid": (0, 1),
    }  # fmt: skip
    for name, (low, high) in inside.items():
        found = ACTIVATIONS[name][0].penalty(w)
        assert torch.equal(found.isfinite(), (w >= low) & (w <= high)), name
    assert float(Tanh().penalty(w[1])) == pytest.approx(math.log(2) - 0.5, rel=1e-14)


NETS: dict[str, tuple[Callable[[], nn.Module], Activation]] = {
    "tanh": (nn.Tanh, Tanh()),
    "sigmoid": (nn.Sigmoid, Sigmoid()),
    "elu": (lambda: nn.ELU(0.7, inplace=True), ELU(0.7, 1.0)),
    "celu": (lambda: nn.CELU(1.6), ELU(1.6, 1.6)),
    "softplus": (lambda: nn.Softplus(2.0), Softplus(2.0)),
    "logsigmoid": (nn.LogSigmoid, Softplus(mirrored=True)),
    "softsign": (nn.Softsign, Softsign()),
    "hardsigmoid": (nn.Hardsigmoid, Hardsigmoid()),
}


class Net(nn.Module):
    """conv, activation, a residual sum, activation, weights after it."""

    def __init__(self, act: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.one, self.two, self.fc = act(), act(), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        z = self.one(self.a(x))
        return self.fc(self.two(self.b(z) + z).mean((2, 3)))


def made(act: Callable[[], nn.Module]) -> tuple[Net, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Net(act).double().eval(), 2 * torch.randn(2, 2, 4, 5, dtype=D)


@pytest.mark.parametrize("offsets", ["threshold", "signal"])
@pytest.mark.parametrize("name", NETS)
def test_sweeps_of_a_network_are_those_of_a_dense_matrix(name: str, offsets: Any) -> None:
    """Algorithm 2 written out in NumPy on the dense B, y and lam; roots by bisection."""
    build, activation = NETS[name]
    model, x = made(build)
    net = pursuitify(model, offsets=offsets)
    matrix, y, lam = (t.detach().numpy() for t in net.dictionary(x[:1]).materialize())
    steps = {k: float(v.detach().reshape(-1)[0]) for k, v in net.step_sizes(x[:1]).items()}
    net.iterations = 0
    start = net.latents(x[:1])
    w = np.concatenate([v.detach().numpy().ravel() for v in start.values()])
    for _ in range(5):
        at = 0
        for key, value in start.items():
            part = slice(at, at + value.numel())
            at += value.numel()
            slope = matrix[:, part].T @ (matrix @ w - y) + lam[part]
            v = torch.from_numpy(w[part] - steps[key] * slope)
            w[part] = by_bisection(activation, v, steps[key]).numpy()
    net.iterations = 5
    found = np.concatenate([v.detach().numpy().ravel() for v in net.latents(x[:1]).values()])
    assert np.abs(found - w).max() <= 1e-10 * max(1.0, np.abs(w).max())


@pytest.mark.parametrize("name", NETS)
def test_networks_are_exact_descend_and_differentiate(name: str) -> None:
    model, x = made(NETS[name][0])
    for training in (True, False):
        compare(pursuitify, model, x, training=training, tolerance=1e-12)
    model.eval()
    net = pursuitify(model, iterations=2)
    assert torch.equal(pursuitify(model, iterations=0)(x), model(x))
    net.verify(x)
    assert_adjoint(net, x)
    expected, theirs = differentiate(net, x, memory="store")
    outputs, mine = differentiate(net, x, memory="recompute")
    assert_same_outputs(outputs, expected, 1e-11)
    assert_same(mine, theirs, 1e-10)
    for steps in ("certified", "adaptive"):
        net = pursuitify(model)
        net.steps = steps
        net.iterations = 4
        values = [sweep.objective for sweep in net.diagnose(x).sweeps]
        assert all(math.isfinite(v) for v in values)
        assert all(b <= a + 1e-12 * max(1, abs(a)) for a, b in itertools.pairwise(values))
    assert_descends(net, x)


def test_outputs_and_gates_stay_what_they_were() -> None:
    class Gated(nn.Module):
        """A gate beside, a gate of the value itself, and a sigmoid at the output."""

        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(2, 3, 3, padding=1)
            self.c, self.d = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 1, 1)

        def forward(self, x: Tensor) -> Tensor:
            z = F.relu(self.a(x) * torch.sigmoid(self.b(x)).clone())
            z = F.relu(self.c(z * torch.tanh(z.mean((2, 3), keepdim=True))))
            return torch.sigmoid(self.d(z))

    model = Gated().double()
    roles = {e.node: e.role for e in explain(model).entries}
    assert (roles["sigmoid"], roles["tanh"], roles["sigmoid_1"]) == ("frozen", "frozen", "head")
    assert explain(model).latents == 2
    compare(pursuitify, model, torch.randn(2, 2, 4, 4, dtype=D), training=False, tolerance=1e-12)
    with pytest.raises(ConversionError, match="no activation"):
        pursuitify(nn.Sequential(nn.Linear(3, 3), nn.Sigmoid()))


@pytest.mark.parametrize(
    ("layer", "match"),
    [
        (nn.ELU(1.5), "not in"),
        (nn.ELU(-0.5), "not in"),
        (nn.CELU(-1.0), "not above 0"),
        (nn.Softplus(1.0, 2.0), "jumps"),
        (nn.Softplus(-1.0), "not above 0"),
    ],
    ids=str,
)
def test_what_is_not_proximal_is_refused(layer: nn.Module, match: str) -> None:
    with pytest.raises(ConversionError, match=match):
        pursuitify(nn.Sequential(nn.Linear(3, 3), layer, nn.Linear(3, 3), nn.ReLU()))


@pytest.mark.slow
def test_compiled_sweeps_read_nothing_on_the_host() -> None:
    model, x = made(nn.Tanh)
    net = pursuitify(model, iterations=2)
    with torch.no_grad():
        wanted = net(x)
        found = torch.compile(net, fullgraph=True)(x)
    torch.testing.assert_close(found, wanted)
