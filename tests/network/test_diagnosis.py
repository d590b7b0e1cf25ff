"""diagnose(): what every sweep did, as numbers, table and dictionary."""

from __future__ import annotations

import itertools
import json
from typing import Literal

import numpy as np
import pytest
import torch
from rich.table import Table
from scipy.optimize import linprog
from torch import nn

from pursuitify import pursuitify
from pursuitify.models import ResidualNet
from tests.support.nets import BY_NAME, CASES, Case


@pytest.mark.parametrize("case", CASES, ids=str)
def test_numbers(case: Case) -> None:
    net, x = pursuitify(case.build(), iterations=3), case.input(batch=2)
    record = net.diagnose(x)
    assert record.latents == list(case.order)
    assert len(record.sweeps) == 4
    steps = [float(v.detach()) for v in net.step_sizes(x).values()]
    states = []
    with torch.no_grad():
        for t, sweep in enumerate(record.sweeps):
            net.iterations = t
            latents = net.latents(x)
            states.append(latents)
            assert sweep.objective == pytest.approx(float(net.objective(x, latents).mean()), 1e-9)
            residual = net.dictionary(x).residual(latents)
            for j, name in enumerate(case.order):
                expected = float(residual[name].flatten(1).norm(dim=1).mean())
                assert sweep.residual[j] == pytest.approx(expected, rel=1e-9, abs=1e-12)
                zeros = float((latents[name] == 0).double().mean())
                assert sweep.sparsity[j] == pytest.approx(zeros)
                change = (latents[name] - states[max(t - 1, 0)][name]).flatten(1).norm(dim=1)
                assert sweep.change[j] == pytest.approx(float(change.mean()), rel=1e-6, abs=1e-12)
            assert sweep.step == pytest.approx(steps)
    values = [s.objective for s in record.sweeps]
    assert all(b <= a + 1e-9 * abs(a) for a, b in itertools.pairwise(values))


def test_table_text_and_dictionary() -> None:
    case = BY_NAME["conv_residual"]
    record = pursuitify(case.build(), iterations=3).diagnose(case.input())
    assert isinstance(record.table(), Table)
    assert record.table().row_count == 4
    text = str(record)
    for word in ("sweep", "objective", "residual", "sparsity", "change"):
        assert word in text
    assert f"{record.sweeps[3].objective:.6g}" in text
    found = json.loads(json.dumps(record.to_dict()))
    assert found["latents"] == list(case.order)
    assert len(found["sweeps"]) == 4
    assert found["sweeps"][2]["residual"] == record.sweeps[2].residual
    assert set(found["sweeps"][0]) == {"objective", "residual", "sparsity", "change", "step"}
    assert found["warnings"] == []


@pytest.mark.parametrize(("solver", "count"), [("layered", 2), ("feedforward", 1), ("global", 6)])
def test_solvers(solver: str, count: int) -> None:
    case = BY_NAME["linear_residual"]
    net = pursuitify(case.build(), iterations=5, solver=solver)
    record = net.diagnose(case.input())
    assert len(record.sweeps) == count
    last = net.objective(case.input(), net.latents(case.input()))
    assert record.sweeps[-1].objective == pytest.approx(float(last.detach().mean()), 1e-9)


def test_no_sweeps() -> None:
    case = BY_NAME["linear_residual"]
    record = pursuitify(case.build(), iterations=0).diagnose(case.input())
    assert len(record.sweeps) == 1
    assert record.sweeps[0].change == [0.0] * len(case.order)
    assert "-" in str(record)


def test_no_derivative_is_recorded() -> None:
    case = BY_NAME["linear_residual"]
    x = case.input().requires_grad_()
    pursuitify(case.build(), iterations=2).diagnose(x)
    assert x.grad is None


@pytest.mark.parametrize("bias", [-1.0, 1.0])
def test_a_latent_that_runs_away(bias: float) -> None:
    """A positive bias is a negative threshold: F is not bounded below along the null space."""
    model = nn.Sequential(nn.Linear(3, 9), nn.ReLU()).double().eval()
    with torch.no_grad():
        model[0].bias.fill_(bias)
    record = pursuitify(model, iterations=2).diagnose(torch.randn(2, 3, dtype=torch.float64))
    assert bool(record.warnings) is (bias > 0)
    assert ("terminal and overcomplete" in str(record)) is (bias > 0)
    if bias > 0:
        assert "'_1'" in record.warnings[0]


@pytest.mark.parametrize("layout", ["auto", "encoder"])
@pytest.mark.parametrize("bias", [-1.0, 1.0])
def test_entries_that_no_later_row_reads_run_away(
    bias: float, layout: Literal["auto", "encoder"]
) -> None:
    """F has no minimum where some d >= 0 with B d = 0 has <lam, d> < 0: a linear program."""
    torch.manual_seed(0)
    body = [nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 4, 3)]
    model = nn.Sequential(*body, nn.ReLU(), nn.Flatten(), nn.LazyLinear(3)).double().eval()
    x = torch.randn(1, 1, 6, 6, dtype=torch.float64)
    model(x)
    with torch.no_grad():
        for conv in (model[0], model[3]):
            conv.bias.copy_(bias * torch.rand_like(conv.bias))
    net = pursuitify(model, iterations=1, layout=layout)
    matrix, _, thresholds = (part.detach().numpy() for part in net.dictionary(x).materialize())
    falls = linprog(thresholds, A_eq=matrix, b_eq=np.zeros(len(matrix)), bounds=(0, 1)).fun
    assert (falls < -1e-6) is (bias > 0)
    warnings = net.diagnose(x).warnings
    assert bool(warnings) is (bias > 0)
    assert all("'_1'" in text and "no later row reads" in text for text in warnings)


def test_a_penalty_or_a_border_that_holds_a_latent_is_no_warning() -> None:
    """A bounded latent cannot run away, nor one whose penalty grows faster than lam falls."""
    for held, warns in ((nn.ReLU(), True), (nn.ReLU6(), False), (nn.LeakyReLU(0.1), True),
                        (nn.Softshrink(0.5), True), (nn.Softshrink(2.0), False)):  # fmt: skip
        model = nn.Sequential(nn.Linear(3, 9), held).double().eval()
        with torch.no_grad():
            model[0].bias.fill_(1.0)
        record = pursuitify(model, iterations=1).diagnose(torch.randn(2, 3, dtype=torch.float64))
        assert bool(record.warnings) is warns, held


def test_no_warning_where_every_latent_is_pinned() -> None:
    net = pursuitify(ResidualNet(2, 5).eval(), iterations=1)
    assert not net.diagnose(torch.randn(1, 2, 8, 8)).warnings
