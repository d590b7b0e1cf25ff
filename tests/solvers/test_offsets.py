"""The values of ``offsets`` (mathematics.md, section 1), wherever they are read.

The signal is the default, which the other tests of solvers compare with the oracle; here the
others are, and what only one of them has.
"""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pursuitify import backends, coherence, load, pursuitify, save
from pursuitify.errors import OptionError
from pursuitify.models import DenselyConnectedNet, ResidualNet
from pursuitify.operators.activations import Clip
from pursuitify.robust import certified_radius
from pursuitify.solvers.inplace.shared_concats import shared
from tests.support.against_oracle import assert_close, extrapolate, joined
from tests.support.agreement import bound_pass, rows_error
from tests.support.compare_modes import assert_same, assert_same_outputs, differentiate
from tests.support.nets import CASES, Case, randomise
from tests.support.oracle import Oracle
from tests.support.randomnets import general_net

cases = pytest.mark.parametrize("case", CASES, ids=[str(c) for c in CASES])


@pytest.mark.parametrize(
    ("layout", "offsets"),
    [("auto", "threshold"), ("encoder", "threshold"), ("encoder", "stationary")],
)
@cases
def test_everything_is_that_of_the_oracle(case: Case, layout: Any, offsets: str) -> None:
    model, x = case.build(), case.input()
    share = (1.0, 0.4)[CASES.index(case) % 2]
    net = pursuitify(model, layout=layout, offsets=offsets, stationary_share=share)
    oracle = Oracle(case.rows(model, layout, x), x, offsets=offsets, share=share)
    matrix, signal, thresholds = (t.detach().numpy() for t in net.dictionary(x).materialize())
    assert_close(thresholds, oracle.lam)
    assert_close(matrix.T @ matrix, oracle.B.T @ oracle.B)
    assert_close(matrix.T @ signal, oracle.B.T @ oracle.y)
    assert_close(signal @ signal, oracle.y @ oracle.y)
    net.iterations = 0
    assert_close(joined(net.latents(x)), oracle.w0)
    assert_close(net(x).detach().numpy(), model(x).detach().numpy(), 1e-12)
    steps = {k: float(v) for k, v in net.step_sizes(x).items()}
    for alpha, count in itertools.product((0.0, 0.3), (1, 4)):
        with torch.no_grad():
            net.pursuit.alpha.fill_(alpha)
        net.iterations = count
        latents = net.latents(x)
        expected = oracle.sweeps(count, steps, alpha)
        assert_close(joined(latents), expected)
        assert_close(
            net.objective(x, latents).detach().numpy(), np.array([oracle.objective(expected)])
        )
    with torch.no_grad():
        net.pursuit.alpha.zero_()
    net.steps = "adaptive"
    estimates = {k: float(v) for k, v in net.step_sizes(x).items()}
    assert_close(joined(net.latents(x)), oracle.adaptive(4, estimates))
    net.steps = "certified"
    net.solver = "layered"
    steps = {k: float(v) for k, v in net.step_sizes(x).items()}
    assert_close(joined(net.latents(x)), oracle.layered(4, steps))


signs = settings(deadline=None, max_examples=20, suppress_health_check=list(HealthCheck))
layouts = st.sampled_from(["auto", "encoder"])


@signs
@given(
    general_net(), layouts, st.sampled_from(["signal", "stationary"]), st.integers(0, 2**16)
)  # fmt: skip
def test_the_objective_never_rises_and_rows_start_without_residual(
    drawn: tuple[nn.Module, Tensor], layout: Any, offsets: str, seed: int
) -> None:
    model, x = drawn
    net = pursuitify(
        randomise(model, seed).eval(), iterations=6, layout=layout, offsets=offsets
    ).double()
    values = [sweep.objective for sweep in net.diagnose(x).sweeps]
    assert all(b <= a + 1e-9 * max(1.0, abs(a)) for a, b in itertools.pairwise(values))
    net.verify(x)
    net.iterations = 0
    latents, dictionary = net.latents(x), net.dictionary(x)
    for row in dictionary.rows:
        if row.diagonal is not None:
            continue
        w, lam = latents[row.name].detach(), dictionary.thresholds[row.name].detach()
        left = dictionary.residual(latents)[row.name]
        if offsets == "stationary":  # of every entry, and the row's terms are least at the start
            assert float(left.detach().abs().max()) <= 1e-12 * (1 + float(lam.abs().max()))
            assert_close(row.activation.prox(w - 0.3 * lam, torch.tensor(0.3)), w, 1e-11)
        elif row.activation.nonnegative:
            left = left * (w > 0)
            upper = w.max() if isinstance(row.activation, Clip) else math.inf
            left = left * (w < upper)
            assert float(left.detach().abs().max()) <= 1e-12
            assert not lam.any()


@signs
@given(
    general_net(), layouts, st.sampled_from(["threshold", "signal", "stationary"]),
    st.integers(1, 4),
    st.sampled_from([0.0, 0.4]), st.booleans(), st.integers(0, 2**16),
)  # fmt: skip
def test_derivative_modes_and_paths_agree(
    drawn: tuple[nn.Module, Tensor], layout: Any, offsets: str, count: int, alpha: float,
    two: bool, seed: int,
) -> None:  # fmt: skip
    model, x = drawn
    model = randomise(model, seed).double().eval()
    net = pursuitify(model, iterations=count, layout=layout, offsets=offsets)
    net = extrapolate(net, alpha)
    expected, theirs = differentiate(net, x, memory="store")
    outputs, mine = differentiate(net, x, memory="recompute", recompute_levels=1 + two)
    assert_same_outputs(outputs, expected, 1e-11)
    assert_same(mine, theirs, 1e-11)
    with torch.no_grad():
        found = list(net.latents(x).values())
        with backends.inplace(False):
            wanted = list(net.latents(x).values())
    for a, b in zip(found, wanted, strict=True):
        assert_close(a.numpy(), b.numpy())


class BatchNormFirst(nn.Module):
    """DenseNet's units: the BatchNorm of a concat that all of them read."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(4 + 3 * i) for i in range(3))
        self.convs = nn.ModuleList(nn.Conv2d(4 + 3 * i, 3, 3, padding=1) for i in range(3))
        self.last = nn.BatchNorm2d(13)

    def forward(self, x: Tensor) -> Tensor:
        values = [self.stem(x)]
        for norm, conv in zip(self.norms, self.convs, strict=True):
            values.append(conv(torch.relu(norm(torch.cat(values, 1)))))
        return torch.relu(self.last(torch.cat(values, 1))).mean((2, 3))


@pytest.mark.parametrize(
    ("steps", "alpha"), [("certified", 0.0), ("certified", 0.4), ("adaptive", 0.0)]
)
@pytest.mark.parametrize(("batch", "offsets"), [(1, "signal"), (3, "signal"), (3, "stationary")])
def test_shared_concats_hold_offsets(steps: str, alpha: float, batch: int, offsets: str) -> None:
    torch.manual_seed(0)
    model = randomise(BatchNormFirst()).double().eval()
    net = extrapolate(pursuitify(model, iterations=5, offsets=offsets, steps=steps), alpha)
    x = torch.randn(batch, 2, 6, 6, dtype=torch.float64)
    dictionary = net.dictionary(x)
    assert len(shared(dictionary, list(net.latents(x).values())).runs) == 4
    with torch.no_grad():
        found = joined(net.latents(x))
        with backends.inplace(False):
            assert_close(found, joined(net.latents(x)))


@pytest.mark.parametrize("offsets", ["signal", "stationary"])
@pytest.mark.parametrize("memory", ["store", "recompute"])
def test_derivatives_are_those_of_differences(offsets: str, memory: str) -> None:
    torch.manual_seed(0)
    model = randomise(ResidualNet(1, 3, width=2, batch_norm=False)).double().eval()
    net = pursuitify(model, iterations=3, layout="encoder", offsets=offsets, memory=memory)
    x = torch.randn(2, 1, 6, 6, dtype=torch.float64)
    names = [n for n, p in net.named_parameters() if n.endswith("bias")]
    values = tuple(net.get_parameter(n).detach().requires_grad_() for n in names)

    def answer(*biases: Tensor) -> Any:
        named = dict(zip(names, biases, strict=True))
        return torch.func.functional_call(net, named, (x,))

    assert torch.autograd.gradcheck(answer, values, eps=1e-7, atol=1e-5)


@pytest.mark.parametrize("offsets", ["signal", pytest.param("stationary", marks=pytest.mark.slow)])
def test_implicit_derivatives_at_the_minimiser_are_those_of_many_sweeps(offsets: str) -> None:
    torch.manual_seed(0)
    model = randomise(nn.Sequential(
        nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3), nn.ReLU(),
    )).double().eval()  # fmt: skip
    net = pursuitify(model, iterations=4000, layout="encoder", offsets=offsets)
    net.implicit_tolerance = 1e-9
    x, found = torch.randn(2, 5, dtype=torch.float64), []
    for memory in ("recompute", "implicit"):
        net.memory = memory
        net.zero_grad()
        net(x).square().sum().backward()
        found.append({n: p.grad for n, p in net.named_parameters() if p.grad is not None})
    for name, grad in found[0].items():
        if not name.startswith("pursuit."):
            assert_close(found[1][name].numpy(), grad.numpy(), 1e-6)


@pytest.mark.parametrize("name", ["linear_chain", "linear_residual", "linear_dense"])
@pytest.mark.parametrize("solver", ["global", "synchronous"])
def test_many_sweeps_reach_the_optimum(name: str, solver: str) -> None:
    case = next(c for c in CASES if c.name == name)
    model, x = case.build(), case.input()
    net = pursuitify(model, 3000, solver, "encoder", offsets="signal")
    oracle = Oracle(case.rows(model, "encoder", x), x, offsets="signal")
    with torch.no_grad():
        w = oracle.join(net.latents(x))
    _, best = oracle.optimum()
    assert oracle.objective(w) - best <= 1e-6 * max(1.0, abs(best))


def test_files_settings_and_refusals(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = randomise(ResidualNet(1, 3, width=2)).eval()
    x = torch.rand(2, 1, 8, 8)
    net = pursuitify(model, iterations=3, layout="encoder")
    assert net.offsets == "signal"
    save(net, tmp_path / "net")
    again = load(tmp_path / "net", model)
    assert again.offsets == "signal"
    assert torch.equal(again(x), net(x))
    paper = pursuitify(model, iterations=3, layout="encoder", paper=True)
    assert paper.offsets == "threshold"
    paper = pursuitify(model, iterations=3, layout="encoder", offsets="threshold")
    assert not torch.allclose(paper(x), net(x))
    net.offsets = "threshold"
    assert torch.equal(paper(x), net(x))
    assert coherence(again, (1, 8, 8)).blocks == coherence(paper, (1, 8, 8)).blocks
    net.offsets, net.stationary_share = "stationary", 0.0
    assert torch.equal(net(x), again(x)), "no share of it is the signal"
    net.stationary_share = 0.7
    save(net, tmp_path / "stationary")
    kept = load(tmp_path / "stationary", model)
    assert (kept.offsets, kept.stationary_share) == ("stationary", 0.7)
    assert torch.equal(kept(x), net(x))
    assert not torch.allclose(kept(x), again(x))
    assert coherence(kept, (1, 8, 8)).blocks == coherence(paper, (1, 8, 8)).blocks
    with pytest.raises(OptionError, match="offsets"):
        net.offsets = "nowhere"
    with pytest.raises(OptionError, match="paper=True"):
        pursuitify(model, paper=True, offsets="signal")


def test_thresholds_of_the_input_are_refused_a_certified_radius() -> None:
    model = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3))
    x = torch.rand(2, 5)
    net = pursuitify(model.eval(), 4, "synchronous", "encoder", offsets="stationary")
    with pytest.raises(OptionError, match="takes thresholds from the input") as caught:
        certified_radius(net, x)
    for advice in ("signal", "threshold"):
        assert f'"{advice}"' in str(caught.value)
        net.offsets = advice
        certified_radius(net, x)


def test_clipped_units_of_dense_rows_do_not_pull_at_what_they_read() -> None:
    """The first row reconstructs what it reads already: nothing asks any latent to move."""
    torch.manual_seed(0)
    first = nn.Linear(5, 5, bias=False)
    with torch.no_grad():
        first.weight.copy_(torch.eye(5))
    model = nn.Sequential(
        first, nn.ReLU(), nn.Linear(5, 9), nn.ReLU6(), nn.Linear(9, 7), nn.LeakyReLU(0.2),
        nn.Linear(7, 6), nn.Softplus(), nn.Linear(6, 3),
    ).double().eval()  # fmt: skip
    x = torch.rand(4, 5, dtype=torch.float64)
    net = pursuitify(model, iterations=20, layout="encoder", offsets="stationary")
    assert_close(net(x).detach().numpy(), model(x).detach().numpy(), 1e-12)
    net.offsets = "signal"
    assert not torch.allclose(net(x), model(x), atol=1e-3)


def test_nonnegative_thresholds_clamp_what_stands_in_the_signal_too() -> None:
    """The constraint changes the network, at T = 0 too: all forms agree on what it is there."""
    torch.manual_seed(0)
    model = randomise(DenselyConnectedNet(1, 3, width=2)).double().eval()
    x = torch.rand(2, 1, 8, 8, dtype=torch.float64)
    found = []
    for offsets in ("threshold", "signal", "stationary"):
        net = pursuitify(model, 0, layout="encoder", nonnegative_thresholds=True, offsets=offsets)
        found.append(net(x))
        _, first, bound = bound_pass(net, (x,))
        assert rows_error(first, bound) <= 1e-12, "sweeps start from u"
        latents, dictionary = net.latents(x), net.dictionary(x)
        for row in dictionary.rows:
            if row.offset is not None and offsets == "signal":
                assert not (row.offset > 0).any()
                left = dictionary.residual(latents)[row.name] * (latents[row.name] > 0)
                assert float(left.detach().abs().max()) <= 1e-12
            elif row.offset is not None:
                left = dictionary.residual(latents)[row.name]
                assert float(left.detach().abs().max()) <= 1e-12
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
