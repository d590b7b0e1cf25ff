"""Synchronous pursuit against dense proximal gradient descent in NumPy, and its two bounds."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings

from pursuitify import pursuitify
from pursuitify.analysis.certificates.certified_radius import lipschitz_in_x
from pursuitify.dictionary.norm_bounds import Norms, block_norms, operator_bound
from tests.support.nets import BY_NAME, CASES, LAYOUTS, Case
from tests.support.oracle import Oracle, prox
from tests.support.randomnets import general_net

SETUPS = [(case, layout) for case in CASES for layout in LAYOUTS]
setups = pytest.mark.parametrize(
    ("case", "layout"), SETUPS, ids=[f"{c}-{layout}" for c, layout in SETUPS]
)
#: Networks without a value frozen from data: for these the bounds in x hold.
SMOOTH = ["linear_chain", "linear_residual", "linear_dense", "conv_residual", "conv_dense"]


def pair(case: Case, layout: str, count: int) -> tuple[Any, Any, Oracle]:
    model, x = case.build(), case.input()
    net = pursuitify(model, iterations=count, layout=layout, solver="synchronous")
    return net, x, Oracle(case.rows(model, layout, x), x)


def dense(oracle: Oracle, step: float, count: int) -> np.ndarray:
    """Return w after ``count`` proximal gradient steps from zero, on the dense problem."""
    w = np.zeros(oracle.B.shape[1])
    for _ in range(count):
        v = w - step * (oracle.B.T @ (oracle.B @ w - oracle.y) + oracle.lam)
        w = np.concatenate(
            [prox(r.activation, v[oracle.columns[r.name]], step) for r in oracle.rows]
        )
    return w


@setups
@pytest.mark.parametrize("count", [1, 2, 7])
def test_it_is_dense_proximal_gradient_descent(case: Case, layout: str, count: int) -> None:
    net, x, oracle = pair(case, layout, count)
    steps = {float(s.detach()) for s in net.step_sizes(x).values()}
    assert len(steps) == 1, "one step size"
    step = steps.pop()
    exact = 1 / np.linalg.norm(oracle.B, 2) ** 2
    assert 0.3 * exact <= step <= exact * (1 + 1e-12)
    w = oracle.join({k: v.detach() for k, v in net.latents(x).items()})
    expected = dense(oracle, step, count)
    assert np.max(np.abs(w - expected)) <= 1e-10 * max(1.0, np.max(np.abs(expected)))


@setups
def test_the_objective_never_rises(case: Case, layout: str) -> None:
    net, x, oracle = pair(case, layout, 60)
    with torch.no_grad():
        values = [s.objective for s in net.diagnose(x).sweeps]
    w = np.zeros(oracle.B.shape[1])
    assert values[0] == pytest.approx(oracle.objective(w), rel=1e-12)
    for before, after in itertools.pairwise(values):
        assert after <= before + 1e-12 * max(1.0, abs(before))
    assert values[-1] < values[1]


@settings(max_examples=15, deadline=None)
@given(general_net())
def test_the_objective_never_rises_on_random_networks(drawn: Any) -> None:
    model, x = drawn
    net = pursuitify(model.eval(), iterations=12, solver="synchronous")
    with torch.no_grad():
        values = [s.objective for s in net.diagnose(x).sweeps]
    for before, after in itertools.pairwise(values):
        assert after <= before + 1e-10 * max(1.0, abs(before))


@pytest.mark.parametrize("name", SMOOTH)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("count", [1, 3, 40])
def test_the_bound_in_x_holds_and_is_not_idle(name: str, layout: str, count: int) -> None:
    """The largest slope found between two inputs stays below the bound, within a few times."""
    net, x, _ = pair(BY_NAME[name], layout, count)
    bound = bound_of(net, x)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(0)
        worst, here = 0.0, net.latents(x).values()
        for trial in range(40):
            e = torch.randn(x.shape, generator=generator, dtype=x.dtype)
            e = e * (0.01 if trial % 2 else 1.0)
            pieces = zip(net.latents(x + e).values(), here, strict=True)
            moved = sum(float((a - b).square().sum()) for a, b in pieces) ** 0.5
            worst = max(worst, moved / float(e.norm()))
    assert worst <= bound * (1 + 1e-9)
    assert bound <= 12 * worst


@pytest.mark.parametrize("name", SMOOTH)
def test_the_bound_holds_for_the_linear_recursion(name: str) -> None:
    """Where every activation is the identity the worst direction is known: it stays below."""
    net, x, oracle = pair(BY_NAME[name], "auto", 9)
    step = float(next(iter(net.step_sizes(x).values())).detach())
    bound = bound_of(net, x)
    shrink = np.eye(oracle.B.shape[1]) - step * oracle.B.T @ oracle.B
    source = np.zeros((oracle.B.shape[0], x.numel()))
    model = BY_NAME[name].build()
    for k in range(x.numel()):
        e = torch.zeros_like(x).reshape(-1)
        e[k] = 1.0
        e = e.reshape(x.shape)  # the thresholds' form: no offset in y
        moved = Oracle(BY_NAME[name].rows(model, "auto", e), e, "threshold")
        source[:, k] = moved.y
    total = sum(np.linalg.matrix_power(shrink, t) for t in range(9)) @ oracle.B.T @ source * step
    assert np.linalg.norm(total, 2) <= bound * (1 + 1e-9)
    exact = lipschitz_in_x(
        step, np.linalg.norm(oracle.B.T @ source, 2), np.linalg.norm(source, 2), 9
    )
    assert exact <= bound * (1 + 1e-9)


def bound_of(net: Any, x: Any) -> float:
    with torch.no_grad():
        dictionary = net.dictionary(x)
        norms = Norms()
        blocks, direct = block_norms(dictionary, norms)
        step = 1 / float(operator_bound(dictionary, norms)) ** 2
    reach = float((blocks.T @ direct).norm())
    return lipschitz_in_x(step, reach, float(direct.norm()), net.iterations)


def test_the_bound_takes_the_better_of_linear_and_root() -> None:
    assert lipschitz_in_x(0.25, 2.0, 1.0, 1) == pytest.approx(0.5)  # both: g a = sqrt(g) p
    assert lipschitz_in_x(0.25, 1.0, 1.0, 1) == pytest.approx(0.25)  # linear
    assert lipschitz_in_x(0.25, 2.0, 1.0, 100) == pytest.approx(5.0)  # root
    assert lipschitz_in_x(0.25, 1.0, 1.0, 4) < min(4 * 0.25, 2 * 0.5)  # two linear, two root


def test_no_sweep_is_the_source_and_a_sweep_is_not() -> None:
    case = BY_NAME["conv_residual"]
    model, x = case.build(), case.input(batch=2)
    net = pursuitify(model, iterations=0, solver="synchronous")
    with torch.no_grad():
        assert torch.equal(net(x), model(x))
        net.iterations = 1
        assert not torch.allclose(net(x), model(x))


def test_it_trains() -> None:
    case = BY_NAME["conv_residual"]
    net, x = pursuitify(case.build().train(), iterations=3, solver="synchronous"), case.input(0, 4)
    net(x).square().sum().backward()
    given = [p.grad for n, p in net.named_parameters() if not n.startswith("pursuit.")]
    assert all(g is not None and bool(torch.isfinite(g).all()) for g in given)


def test_step_scale_is_a_factor_on_the_step() -> None:
    case = BY_NAME["conv_residual"]
    net, x = pursuitify(case.build(), iterations=3, solver="synchronous"), case.input()
    full = {k: v.detach() for k, v in net.step_sizes(x).items()}
    net.step_scale = 0.5
    assert all(torch.equal(v.detach(), 0.5 * full[k]) for k, v in net.step_sizes(x).items())
