"""Proximal operators: minimisers by brute force, and the activation at step 1."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pursuitify import pursuitify
from pursuitify.operators.activations import (
    Activation,
    Clip,
    LeakyReLU,
    Linear,
    ReLU,
    SoftThreshold,
)

PAIRS = {
    "linear": (Linear(), lambda z: z),
    "relu": (ReLU(), F.relu),
    "relu6": (Clip(0.0, 6.0), F.relu6),
    "hardtanh": (Clip(-1.0, 0.5), lambda z: F.hardtanh(z, -1.0, 0.5)),
    "softshrink": (SoftThreshold(0.33), lambda z: F.softshrink(z, 0.33)),
    "softshrink 0": (SoftThreshold(0.0), lambda z: z),
    "leaky": (LeakyReLU(0.2), lambda z: F.leaky_relu(z, 0.2)),
    "leaky 1": (LeakyReLU(1.0), lambda z: z),
    "prelu": (
        LeakyReLU(torch.tensor([[0.1], [0.7]], dtype=torch.float64)),
        lambda z: F.prelu(z[None], torch.tensor([0.1, 0.7], dtype=torch.float64))[0],
    ),
}
every = pytest.mark.parametrize("name", PAIRS)


def points() -> Tensor:
    return torch.linspace(-9.0, 9.0, 73, dtype=torch.float64).expand(2, -1)


@every
@pytest.mark.parametrize("step", [0.05, 0.3, 1.0, 2.5])
def test_prox_is_the_minimiser(name: str, step: float) -> None:
    activation, v = PAIRS[name][0], points()
    spacing = 1 / 400
    grid = torch.arange(-10.0, 10.0, spacing, dtype=torch.float64)
    w = grid.expand(2, -1)
    cost = activation.penalty(w)[:, None] + (w[:, None] - v[..., None]).square() / (2 * step)
    best = grid[cost.argmin(-1)]
    found = activation.prox(v, step)
    assert float((found - best).abs().max()) <= spacing
    value = activation.penalty(found) + (found - v).square() / (2 * step)
    assert bool((value <= cost.amin(-1) + 1e-12).all())


@every
def test_step_one_from_zero_is_the_activation(name: str) -> None:
    activation, function = PAIRS[name]
    z = points()
    expected = function(z)
    assert torch.allclose(activation(z), expected, rtol=0, atol=1e-15)
    # From w = 0 a step of 1 on an encoder row moves to z.
    assert torch.allclose(activation.prox(z, 1.0), expected, rtol=0, atol=1e-14)


@every
def test_prox_is_firmly_nonexpansive(name: str) -> None:
    activation: Activation = PAIRS[name][0]
    a, b = points(), points().flip(1) * 0.7 + 0.1
    p, q = activation.prox(a, 0.4), activation.prox(b, 0.4)
    assert bool(((p - q).square() <= (p - q) * (a - b) + 1e-12).all())


@every
def test_overwriting_gives_the_same(name: str) -> None:
    activation, v = PAIRS[name][0], points().clone()
    expected = activation.prox(v, 0.4)
    assert torch.equal(v, points()), "prox must not write into its argument"
    activation(v)
    assert torch.equal(v, points()), "nor the activation"
    if hasattr(activation, "prox_"):
        assert torch.equal(activation.prox_(v.clone(), 0.4), expected)


@every
@pytest.mark.parametrize("step", [0.05, 0.4, 2.5])
def test_preimage_has_the_same_value_and_slope(name: str, step: float) -> None:
    activation, v = PAIRS[name][0], points().clone().requires_grad_()
    value = activation.prox(v, step)
    (slope,) = torch.autograd.grad(value.sum(), v)
    back = activation.preimage(value.detach(), step)
    assert back is not None
    back.requires_grad_()
    again = activation.prox(back, step)
    (found,) = torch.autograd.grad(again.sum(), back)
    assert torch.allclose(again, value, rtol=0, atol=1e-14)
    inside = slope != 0
    assert torch.equal(found[inside], slope[inside])
    assert not bool(found[~inside].any())
    assert torch.allclose(back[inside], v[inside], rtol=0, atol=1e-13)


@every
def test_penalty_is_infinite_outside_the_domain(name: str) -> None:
    activation, w = PAIRS[name][0], points()
    penalty = activation.penalty(w)
    if isinstance(activation, ReLU):
        assert torch.equal(penalty.isinf(), w < 0)
    elif isinstance(activation, Clip):
        assert torch.equal(penalty.isinf(), (w < activation.low) | (w > activation.high))
    else:
        assert bool(penalty.isfinite().all())
    assert bool((penalty >= 0).all())
    assert float(activation.penalty(activation.prox(w, 0.5)).max()) < torch.inf


@pytest.mark.parametrize("count", [1, 3])
def test_prelu_in_a_network(count: int) -> None:
    torch.manual_seed(0)
    prelu = nn.PReLU(count, init=0.3)
    model = nn.Sequential(nn.Conv1d(2, 3, 3), prelu, nn.Conv1d(3, 2, 2), nn.PReLU()).double().eval()
    x = torch.randn(2, 2, 7, dtype=torch.float64)
    net = pursuitify(model, iterations=0)
    assert torch.equal(net(x), model(x))
    net.iterations = 6
    values = [s.objective for s in net.diagnose(x).sweeps]
    assert all(b <= a + 1e-9 * abs(a) for a, b in itertools.pairwise(values))
    net(x).square().sum().backward()
    assert bool(net.get_parameter("1.weight").grad.ne(0).all())


@pytest.mark.parametrize("slope", [0.0, -0.1, 1.5])
def test_slopes_without_a_convex_penalty_are_refused(slope: float) -> None:
    from pursuitify import ConversionError

    for activation in (nn.LeakyReLU(slope), nn.PReLU(init=slope)):
        with pytest.raises(ConversionError, match=r"\(0, 1\]"):
            pursuitify(nn.Sequential(nn.Linear(2, 2), activation, nn.ReLU()))
