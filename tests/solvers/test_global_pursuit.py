"""The solvers' own promises; agreement with the oracle is in test_against_oracle.py."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from pursuitify import backends, pursuitify
from pursuitify.solvers.global_pursuit import GlobalPursuit
from pursuitify.solvers.solver import SolverInput
from tests.support.nets import BY_NAME, CASES, Case

cases = pytest.mark.parametrize("case", CASES, ids=str)


def close(a: Tensor, b: Tensor, tolerance: float = 1e-12) -> None:
    assert float((a - b).detach().abs().max()) <= tolerance * max(
        1.0, float(b.detach().abs().max())
    )


@cases
@pytest.mark.parametrize("alpha", [0.0, 0.4])
@pytest.mark.parametrize("solver", ["global", "layered", "synchronous"])
def test_in_place_and_recorded_paths_agree(case: Case, alpha: float, solver: str) -> None:
    net = pursuitify(case.build(), iterations=4, solver=solver)
    x = case.input(batch=3)
    with torch.no_grad():
        net.pursuit.alpha.fill_(alpha)
    recorded, latents = net(x), net.latents(x)
    kept = x.clone()
    with torch.no_grad():
        close(net(x), recorded)
        for name, value in net.latents(x).items():
            close(value, latents[name])
    assert torch.equal(x, kept), "the input was overwritten"


@pytest.mark.parametrize("alpha", [0.0, 0.4])
@cases
def test_calls_do_not_disturb_each_other(case: Case, alpha: float) -> None:
    """Memory that is used again must never be memory somebody holds."""
    net, x = pursuitify(case.build(), iterations=3), case.input(batch=2)
    with torch.no_grad():
        net.pursuit.alpha.fill_(alpha)
        first, dictionary = net.latents(x), net.dictionary(x)
        held = {k: v.clone() for k, v in first.items()}
        signal = {k: v.clone() for k, v in dictionary.signal.items()}
        net(x), net.diagnose(x)
        assert all(torch.equal(first[k], held[k]) for k in held)
        assert all(torch.equal(v, signal[k]) for k, v in dictionary.signal.items())
        close(net.objective(x, first), dictionary.objective(held))


@pytest.mark.parametrize("alpha", [0.0, 0.4])
@cases
def test_the_start_is_left_as_it_was(case: Case, alpha: float) -> None:
    """Nobody observes the sweeps, but the feed-forward latents are the caller's."""
    net, x = pursuitify(case.build(), iterations=3), case.input(batch=2)
    with torch.no_grad():
        net.pursuit.alpha.fill_(alpha)
        bound, steps = net.dictionary(x), list(net.step_sizes(x).values())
        net.iterations = 0
        start = list(net.latents(x).values())
        kept = [value.clone() for value in start]
        alphas = [torch.tensor(alpha, dtype=x.dtype)] * len(start) if alpha else None
        given = SolverInput(bound, start, steps, alphas, 3)
        for _ in GlobalPursuit().sweeps(given, observed=False):
            pass
        assert all(torch.equal(a, b) for a, b in zip(start, kept, strict=True))


@pytest.mark.parametrize("alpha", [0.0, 0.4])
@cases
def test_diagnose_sees_every_sweep_as_it_was(case: Case, alpha: float) -> None:
    net, x = pursuitify(case.build(), iterations=4), case.input()
    with torch.no_grad():
        net.pursuit.alpha.fill_(alpha)
        trace = net.diagnose(x)
        for count, sweep in enumerate(trace.sweeps):
            net.iterations = count
            value = float(net.objective(x, net.latents(x)).mean())
            assert sweep.objective == pytest.approx(value, rel=1e-12, abs=1e-12)


class _Gathers(TorchDispatchMode):
    """Counts gathers and scatters."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        kinds = {"aten::gather", "aten::scatter", "aten::scatter_add", "aten::scatter_add_"}
        self.count += func._schema.name in kinds
        return func(*args, **(kwargs or {}))


class _SharedPool(nn.Module):
    """Three rows inline the same max pooling of one latent."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 3, 3, padding=1)
        self.a, self.b, self.c = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))
        self.head = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.max_pool2d(torch.relu(self.stem(x)), 2)
        y = torch.relu(self.a(x)) + torch.relu(self.b(x)) + torch.relu(self.c(x))
        return self.head(y.mean((2, 3)))


@pytest.mark.parametrize("sweeps", [1, 3])
def test_a_pool_that_several_rows_inline_runs_once_each_way(sweeps: int) -> None:
    net = pursuitify(_SharedPool().double().eval(), iterations=sweeps, verify="off")
    with torch.no_grad(), _Gathers() as counter:
        net(torch.randn(2, 2, 6, 6, dtype=torch.float64))
    held = 1 if backends.inplace_enabled() else 0  # the fast path holds it from the start
    assert counter.count == held + 2 * sweeps


@pytest.mark.parametrize("name", ["linear_chain", "linear_residual", "linear_dense", "leaky_chain"])
def test_nonnegative_thresholds_are_the_network_without_positive_biases(name: str) -> None:
    case = BY_NAME[name]
    model, x = case.build(), case.input(batch=3)
    assert any(bool((p > 0).any()) for n, p in model.named_parameters() if n.endswith("bias"))
    clipped = copy.deepcopy(model)
    net = pursuitify(model, iterations=0, nonnegative_thresholds=True)
    plain = pursuitify(clipped, iterations=0)
    last = list(model.named_modules())[-1][0]
    with torch.no_grad():
        for path, module in clipped.named_modules():
            if isinstance(module, nn.Linear) and path not in {last, "head"}:
                module.bias.clamp_(max=0)
        plain = pursuitify(clipped, iterations=0)
        for sweeps in (0, 3):
            net.iterations = plain.iterations = sweeps
            close(net(x), plain(x))
            assert all(float(v.min()) >= 0 for v in net.dictionary(x).thresholds.values())


def test_nonnegative_thresholds_leave_identity_latents_alone() -> None:
    case = BY_NAME["preact_residual"]
    net = pursuitify(case.build(), iterations=2, nonnegative_thresholds=True)
    thresholds = net.dictionary(case.input()).thresholds
    rows = net.graph.nodes(data="activation")
    kinds = {name: kind for name, kind in rows if name in thresholds}
    assert any(kind == "identity" for kind in kinds.values())
    assert any(float(thresholds[n].min()) < 0 for n, k in kinds.items() if k == "identity")
    assert all(float(thresholds[n].min()) >= 0 for n, k in kinds.items() if k != "identity")
