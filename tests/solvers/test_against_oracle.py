"""The package agrees with the independent dense NumPy oracle (float64, 1e-10)."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, fx

from pursuitify import PursuitNetwork, pursuitify
from tests.support.against_oracle import assert_close, joined
from tests.support.nets import CASES, LAYOUTS, Case
from tests.support.oracle import Oracle

SETUPS = [(case, layout) for case in CASES for layout in LAYOUTS]
setups = pytest.mark.parametrize(
    ("case", "layout"), SETUPS, ids=[f"{c}-{layout}" for c, layout in SETUPS]
)


def pair(case: Case, layout: Any, solver: str = "global") -> tuple[PursuitNetwork, Tensor, Oracle]:
    model, x = case.build(), case.input()
    net = pursuitify(model, iterations=5, layout=layout, solver=solver)
    return net, x, Oracle(case.rows(model, layout, x), x)


@setups
def test_latents_and_feed_forward(case: Case, layout: str) -> None:
    net, x, oracle = pair(case, layout)
    net.iterations = 0
    latents = net.latents(x)
    assert tuple(latents) == case.order == oracle.names
    assert_close(joined(latents), oracle.w0)


@setups
def test_dictionary(case: Case, layout: str) -> None:
    net, x, oracle = pair(case, layout)
    matrix, signal, thresholds = (t.detach().numpy() for t in net.dictionary(x).materialize())
    assert matrix.shape[1] == oracle.B.shape[1]
    assert_close(thresholds, oracle.lam)
    # Rows of a split row may stand in another order: what does not depend on it must agree.
    assert_close(matrix.T @ matrix, oracle.B.T @ oracle.B)
    assert_close(matrix.T @ signal, oracle.B.T @ oracle.y)
    assert_close(signal @ signal, oracle.y @ oracle.y)
    columns, lines, start = (
        np.cumsum([0, *(v.size for v in oracle.split(oracle.w0).values())]),
        0,
        0,
    )
    for j, name in enumerate(oracle.names):
        rows = oracle.lines[name].stop - oracle.lines[name].start
        lines, start = start + rows, start
        assert not matrix[start:lines, columns[j + 1] :].any(), "not block lower triangular"
        start = lines


@setups
def test_apply_and_adjoint(case: Case, layout: str) -> None:
    net, x, _ = pair(case, layout)
    dictionary = net.dictionary(x)
    generator = torch.Generator().manual_seed(3)

    def noise(values: dict[str, Tensor]) -> dict[str, Tensor]:
        return {
            k: torch.randn(v.shape, generator=generator, dtype=v.dtype) for k, v in values.items()
        }

    w = noise(net.latents(x))
    image = dictionary.apply(w)
    r = noise(image)
    left = sum(float((image[k] * r[k]).sum().detach()) for k in image)
    right = sum(float((w[k] * v).sum().detach()) for k, v in dictionary.adjoint(r).items())
    assert abs(left - right) <= 1e-12 * max(1.0, abs(left))


@setups
def test_objective(case: Case, layout: str) -> None:
    net, x, oracle = pair(case, layout)
    for sweeps in (0, 1, 4):
        net.iterations = sweeps
        latents = net.latents(x)
        value = oracle.objective(oracle.join({k: v.detach() for k, v in latents.items()}))
        assert_close(net.objective(x, latents).detach().numpy(), np.array([value]))


@setups
def test_step_sizes_are_safe_and_tight(case: Case, layout: str) -> None:
    net, x, oracle = pair(case, layout)
    steps = net.step_sizes(x)
    exact = oracle.lipschitz()
    for name, step in steps.items():
        assert float(step) * exact[name] <= 1.0 + 1e-9, name
        assert float(step) > 0


@setups
@pytest.mark.parametrize("alpha", [0.0, 0.3])
def test_global_pursuit(case: Case, layout: str, alpha: float) -> None:
    net, x, oracle = pair(case, layout)
    with torch.no_grad():
        net.pursuit.alpha.fill_(alpha)
    steps = {k: float(v) for k, v in net.step_sizes(x).items()}
    for count in (1, 2, 5):
        net.iterations = count
        assert_close(joined(net.latents(x)), oracle.sweeps(count, steps, alpha))


@setups
def test_extrapolation_and_steps_per_latent(case: Case, layout: str) -> None:
    net, x, oracle = pair(case, layout)
    n = len(oracle.names)
    with torch.no_grad():
        net.pursuit.alpha[:n] = torch.linspace(0.0, 0.6, n)
        net.pursuit.beta[:n] = torch.linspace(0.6, 1.0, n)
    steps = {k: float(v) for k, v in net.step_sizes(x).items()}
    alphas = dict(zip(oracle.names, net.pursuit.alphas().tolist(), strict=False))
    assert_close(joined(net.latents(x)), oracle.sweeps(5, steps, alphas))


@setups
def test_layered_pursuit(case: Case, layout: str) -> None:
    net, x, oracle = pair(case, layout, solver="layered")
    steps = {k: float(v) for k, v in net.step_sizes(x).items()}
    exact = oracle.row_lipschitz()
    assert all(steps[k] * exact[k] <= 1 + 1e-9 for k in steps)
    for count in (1, 3):
        net.iterations = count
        assert_close(joined(net.latents(x)), oracle.layered(count, steps))


@pytest.mark.parametrize("name", ["linear_chain", "linear_residual", "linear_dense", "leaky_conv"])
def test_three_thousand_sweeps_reach_the_optimum(name: str) -> None:
    case = next(c for c in CASES if c.name == name)
    net, x, oracle = pair(case, "auto")
    net.iterations = 3000
    with torch.no_grad():
        w = oracle.join(net.latents(x))
    _, best = oracle.optimum()
    assert oracle.objective(w) - best <= 1e-6 * max(1.0, abs(best))


@pytest.mark.parametrize("variant", ["unscaled_threshold", "extrapolation_as_printed"])
def test_the_paper_as_printed_misses_the_optimum(variant: str) -> None:
    case = next(c for c in CASES if c.name == "linear_residual")
    net, x, oracle = pair(case, "auto")
    steps = {k: float(v) for k, v in net.step_sizes(x).items()}
    _, best = oracle.optimum()
    literal = oracle.literal_paper(3000, variant, steps)
    assert oracle.objective(literal) - best > 1e-3 * max(1.0, abs(best))


class _Substitute(fx.Interpreter):
    """Runs the source with the latents' values replaced."""

    def __init__(self, module: fx.GraphModule, latents: dict[str, Tensor]) -> None:
        super().__init__(module)
        self.latents = latents

    def run_node(self, n: fx.Node) -> Any:
        return self.latents[n.name] if n.name in self.latents else super().run_node(n)


@setups
def test_output_is_the_head_on_the_pursued_latents(case: Case, layout: str) -> None:
    net, x, _ = pair(case, layout)
    model = case.build()
    with torch.no_grad():
        net.iterations = 0
        assert_close(net(x).numpy(), model(x).numpy(), 1e-12)
        net.iterations = 3
        expected = _Substitute(net.source, net.latents(x)).run(x)
        assert_close(net(x).numpy(), expected.numpy(), 1e-12)


def test_descent_from_any_start_is_strict_enough_to_fail() -> None:
    """Steps twice too long break descent somewhere: the descent tests can fail."""
    broken = 0
    for case in CASES:
        net, x, oracle = pair(case, "auto")
        steps = {k: 2.5 * float(v) for k, v in net.step_sizes(x).items()}
        states = itertools.islice(oracle.trajectory(steps), 12)
        values = [oracle.objective(w, 1e-12) for w in states]
        broken += any(b > a * (1 + 1e-9) + 1e-9 for a, b in itertools.pairwise(values))
    assert broken > 0
