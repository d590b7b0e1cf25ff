"""steps="adaptive": the dense oracle, descent whatever the step, independence within a batch."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from pursuitify import OptionError, PursuitNetwork, load, pursuitify, save
from pursuitify.errors import RangeError
from pursuitify.models import ChainNet
from pursuitify.operators.activations import Activation
from pursuitify.rules import activation
from pursuitify.solvers.global_pursuit import GlobalPursuit
from pursuitify.solvers.inplace.shared_concats import shared
from pursuitify.solvers.line_search import LineSearch
from pursuitify.solvers.solver import SolverInput
from tests.support.examples import examples
from tests.support.nets import BY_NAME, CASES, LAYOUTS, Case, Gated, random_net, randomise
from tests.support.oracle import Oracle, row
from tests.support.randomnets import general_net

cases = pytest.mark.parametrize("case", CASES, ids=str)
layouts = pytest.mark.parametrize("layout", LAYOUTS)


def adaptive(model: nn.Module, **options: Any) -> PursuitNetwork:
    return pursuitify(model, **{"steps": "adaptive", "iterations": 4, "verify": "off", **options})


def close(a: Any, b: Any, tolerance: float = 1e-10) -> None:
    a, b = np.asarray(a), np.asarray(b)
    assert a.shape == b.shape
    assert np.max(np.abs(a - b), initial=0.0) <= tolerance * max(1.0, np.max(np.abs(b), initial=0))


def numbers(values: dict[str, Tensor]) -> dict[str, float]:
    return {name: float(value.detach()) for name, value in values.items()}


def flat(values: dict[str, Tensor]) -> Any:
    return np.concatenate([v.detach().reshape(-1).numpy() for v in values.values()])


# ---------------------------------------------------------------- agreement with the formulas


@layouts
@cases
def test_sweeps_are_those_of_the_dense_rule(case: Case, layout: Any) -> None:
    model, x = case.build(), case.input()
    net, oracle = adaptive(model, layout=layout), Oracle(case.rows(model, layout, x), x)
    estimates = numbers(net.step_sizes(x))
    for count in (1, 2, 5):
        net.iterations = count
        expected = oracle.adaptive(count, estimates)
        close(flat(net.latents(x)), expected)
        with torch.no_grad():
            close(flat(net.latents(x)), expected)


@pytest.mark.parametrize("scale", [0.05, 0.5])
@pytest.mark.parametrize("name", ["conv_residual", "linear_dense", "leaky_conv", "relu6_chain"])
def test_scales_and_betas_are_in_the_steps(name: str, scale: float) -> None:
    case = BY_NAME[name]
    model, x = case.build(), case.input()
    net, oracle = adaptive(model, step_scale=scale), Oracle(case.rows(model, "auto", x), x)
    plain = adaptive(model).step_sizes(x)
    with torch.no_grad():
        net.pursuit.beta.fill_(0.6)
        estimates = numbers(net.step_sizes(x))
        close(list(estimates.values()), scale / 0.6 * flat(plain), 1e-14)
        close(flat(net.latents(x)), oracle.adaptive(4, estimates, scale))


class Shrink(nn.Module):
    """Softshrink, as a module with a rule of the tests' own."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.nn.functional.softshrink(x, 0.2)


class Soft(Activation):
    """An activation that says nothing of its penalty but what it is."""

    def __call__(self, z: Tensor) -> Tensor:
        return torch.nn.functional.softshrink(z, 0.2)

    def prox(self, v: Tensor, step: Tensor | float) -> Tensor:
        return v.sign() * (v.abs() - 0.2 * step).clamp_min(0.0)

    def penalty(self, w: Tensor) -> Tensor:
        return 0.2 * w.abs()


def test_a_penalty_that_is_finite_everywhere_is_in_the_line_search() -> None:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(7, 9), Shrink(), nn.Linear(9, 5), Shrink(), nn.Linear(5, 2))
    model = model.double().eval()
    x = torch.randn(1, 7, dtype=torch.float64)
    rows = [
        row("_1", "x", diag=model[0], activation=("soft", 0.2)),
        row("_3", "_1", diag=model[2], activation=("soft", 0.2)),
    ]
    oracle = Oracle(rows, x)
    net = adaptive(model, rules={Shrink: activation(lambda module, x: Soft())}, iterations=6)
    estimates = dict(zip(oracle.names, numbers(net.step_sizes(x)).values(), strict=True))
    close(flat(net.latents(x)), oracle.adaptive(6, estimates))
    with torch.no_grad():
        values = [sweep.objective for sweep in net.diagnose(x).sweeps]
    assert all(b < a for a, b in itertools.pairwise(values))


# ---------------------------------------------------------------- F never rises


def size_of_objective(dictionary: Any, latents: dict[str, Tensor]) -> float:
    """Return the sum of the sizes of F's terms: its rounding is a share of that, not of F."""
    total, lam = 0.0, dictionary.thresholds
    for own, r in zip(dictionary.rows, dictionary.residual(latents).values(), strict=True):
        w = latents[own.name]
        total += 0.5 * float(r.square().sum()) + float((lam[own.name] * w).abs().sum())
        total += float(own.activation.penalty(w).sum())
    return total / len(dictionary.inputs[0])


def assert_descends(net: PursuitNetwork, x: Tensor, tolerance: float = 1e-12) -> None:
    with torch.no_grad():
        dictionary = net.dictionary(x)
        before = None
        for count in range(net.iterations + 1):
            other = pursuitify_at(net, count)
            latents = other.latents(x)
            assert all(bool(w.isfinite().all()) for w in latents.values())
            value = float(dictionary.mean_objective(latents))
            size = size_of_objective(dictionary, latents)
            if before is not None:
                assert value <= before[0] + tolerance * max(size, before[1])
            before = value, size


def pursuitify_at(net: PursuitNetwork, count: int) -> PursuitNetwork:
    net.iterations = count
    return net


def scaled(model: nn.Module, powers: list[float], zero: int) -> nn.Module:
    """Scale every weighted operation by a power of ten of its own, and make one zero."""
    weights = [p for n, p in model.named_parameters() if n.endswith("weight") and p.dim() > 1]
    with torch.no_grad():
        for n, weight in enumerate(weights):
            weight.mul_(10.0 ** powers[n % len(powers)])
        if weights and zero >= 0:
            weights[zero % len(weights)].zero_()
    return model


powers = st.lists(st.floats(-6, 6), min_size=1, max_size=4)


@examples(20, 100, random_net(), powers, st.integers(-3, 6))
def test_the_objective_never_rises(drawn: Any, powers: list[float], zero: int) -> None:
    model, x = drawn
    assert_descends(adaptive(scaled(model.eval(), powers, zero), iterations=5), x)


@examples(20, 100, general_net(), powers, st.integers(-3, 6))
def test_the_objective_never_rises_with_any_operation(
    drawn: Any, powers: list[float], zero: int
) -> None:
    model, x = drawn
    assert_descends(adaptive(scaled(model.eval(), powers, zero), iterations=5), x)


@examples(20, 100, random_net(), st.lists(st.floats(-8, 8), min_size=1, max_size=5))
def test_the_objective_never_rises_whatever_the_step(drawn: Any, factors: list[float]) -> None:
    model, x = drawn
    net = adaptive(model.eval())
    with torch.no_grad():
        bound, estimates = net.dictionary(x), list(net.step_sizes(x).values())
        net.iterations = 0
        start = net.latents(x)
        steps = [e * 10.0 ** factors[n % len(factors)] for n, e in enumerate(estimates)]
        search = LineSearch(bound.samples or 1)
        run = SolverInput(bound, list(start.values()), steps, None, 5, search=search)
        before = float(bound.mean_objective(start))
        size = size_of_objective(bound, start)
        for latents in GlobalPursuit().sweeps(run):
            named = dict(zip(bound.names, latents, strict=True))
            value = float(bound.mean_objective(named))
            size = max(size, size_of_objective(bound, named))
            assert value <= before + 1e-12 * size
            before = value


@pytest.mark.parametrize("zero", ["first", "last", "all", "thresholds too"])
@cases
def test_kernels_of_zero_give_no_nan(case: Case, zero: str) -> None:
    model = case.build()
    weights = [p for p in model.parameters() if p.dim() > 1]
    chosen = {"first": weights[:1], "last": weights[-2:], "all": weights}.get(
        zero, list(model.parameters())
    )
    with torch.no_grad():
        for weight in chosen:
            weight.zero_()
    net, x = adaptive(model), case.input(batch=2).requires_grad_()
    net(x).square().sum().backward()
    found = [p.grad for p in net.parameters() if p.grad is not None]
    assert x.grad is not None
    assert all(bool(g.isfinite().all()) for g in [x.grad, *found])
    assert_descends(net, x.detach())


def test_a_latent_leaves_its_domain_by_no_rounding() -> None:
    torch.manual_seed(0)
    model = randomise(BY_NAME["relu6_chain"].build().float())
    net, x = (
        adaptive(model, iterations=8),
        3 * torch.randn(64, *BY_NAME["relu6_chain"].input().shape[1:]),
    )
    for recorded in (False, True):
        with torch.set_grad_enabled(recorded):
            latents = net.latents(x)
            assert bool(net.objective(x, latents).isfinite().all())


def test_numbers_out_of_range_are_refused_not_a_latent_that_stands_still() -> None:
    case = BY_NAME["conv_chain"]
    model = case.build().float()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1e7)
    net, x = adaptive(model), case.input(dtype=torch.float32)
    with torch.no_grad(), pytest.raises(RangeError, match="overflow float32"):
        net.latents(x)


# ---------------------------------------------------------------- samples do not meet


def assert_independent(net: PursuitNetwork, x: Tensor, tolerance: float = 1e-9) -> None:
    with torch.no_grad():
        if net.dictionary(x).samples is None:
            return
        together = net.latents(x)
        others = torch.cat([x[:1], 100 * torch.randn_like(x[1:])])
        among_others = net.latents(others)
        alone = net.latents(x[:1])
        for name, value in alone.items():
            size = max(1.0, float(value.abs().max()))
            for found in (together[name], among_others[name]):
                assert float((found[: len(value)] - value).abs().max()) <= tolerance * size, name


@layouts
@cases
def test_an_answer_does_not_depend_on_the_rest_of_the_batch(case: Case, layout: Any) -> None:
    assert_independent(adaptive(case.build(), layout=layout), case.input(batch=3))


@examples(20, 100, random_net())
def test_samples_of_random_networks_do_not_meet(drawn: Any) -> None:
    model, x = drawn
    assert_independent(adaptive(model.eval()), torch.cat([x, x + 1, x - 1]))


def test_gates_that_differ_between_samples() -> None:
    torch.manual_seed(0)
    net, x = adaptive(Gated().double().eval()), torch.randn(3, 2, 6, 6, dtype=torch.float64)
    assert_independent(net, x)
    assert_descends(net, x)


class TokensFirst(nn.Module):
    """A network that moves the batch to dimension 1: nothing is known per sample."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.a(x)).transpose(0, 1)
        return self.head(torch.relu(self.b(y)).mean(0))


def test_a_network_that_moves_its_batch_takes_one_step_for_all() -> None:
    torch.manual_seed(0)
    net, x = adaptive(TokensFirst().double().eval()), torch.randn(3, 5, 4, dtype=torch.float64)
    assert net.dictionary(x).samples is None
    recorded = flat(net.latents(x))
    with torch.no_grad():
        close(flat(net.latents(x)), recorded, 1e-12)
    assert_descends(net, x)


# ---------------------------------------------------------------- one answer on every path


@examples(20, 100, general_net(), st.booleans())
def test_in_place_and_recorded_paths_agree(drawn: Any, training: bool) -> None:
    model, x = drawn
    net = adaptive(model.train(training))
    if training:  # statistics of the batch are frozen, running ones would move between the calls
        for module in net.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
    torch.manual_seed(0)
    recorded = net.latents(x)
    with torch.no_grad():
        torch.manual_seed(0)
        found = net.latents(x)
    for name, value in recorded.items():
        size = max(1.0, float(value.detach().abs().max()))
        assert float((found[name] - value.detach()).abs().max()) <= 1e-9 * size, name


@cases
def test_the_start_and_what_was_yielded_are_left_as_they_were(case: Case) -> None:
    net, x = adaptive(case.build(), iterations=3), case.input(batch=2)
    with torch.no_grad():
        bound, estimates = net.dictionary(x), list(net.step_sizes(x).values())
        net.iterations = 0
        start = list(net.latents(x).values())
        kept = [value.clone() for value in start]
        for observed in (False, True):
            run = SolverInput(bound, start, estimates, None, 4, search=LineSearch(2))
            seen: list[tuple[Tensor, Tensor]] = []
            for latents in GlobalPursuit().sweeps(run, observed=observed):
                if observed:
                    assert all(torch.equal(a, b) for a, b in seen)
                    seen += [(w, w.clone()) for w in latents]
            assert all(torch.equal(a, b) for a, b in zip(start, kept, strict=True))


@pytest.mark.parametrize("name", ["preact_dense", "densenet"])
def test_rows_that_share_a_concat_in_place(name: str) -> None:
    """The direction's effect on all of them is one weighted norm."""
    if name == "densenet":
        torch.manual_seed(0)
        model: nn.Module = randomise(DenseNet()).double().eval()
        x = torch.randn(3, 2, 6, 6, dtype=torch.float64)
    else:
        model, x = BY_NAME[name].build(), BY_NAME[name].input(batch=3)
    net = adaptive(model, iterations=5)
    start = adaptive(model, iterations=0).latents(x)
    assert shared(net.dictionary(x), list(start.values())).runs
    recorded = net.latents(x)
    with torch.no_grad():
        for key, value in net.latents(x).items():
            close(value.numpy(), recorded[key].detach().numpy(), 1e-11)
    assert_independent(net, x)


class DenseNet(nn.Module):
    """BatchNorm of a growing concat in front of every convolution, then a pool of it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 3, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(3 + 2 * n) for n in range(1, 4))
        self.convs = nn.ModuleList(nn.Conv2d(3 + 2 * n, 2, 3, padding=1) for n in range(1, 4))
        self.first, self.head = nn.Conv2d(3, 2, 3, padding=1), nn.Linear(9, 2)
        self.last = nn.BatchNorm2d(9)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        values = [x, self.first(torch.relu(x))]
        for norm, convolution in zip(self.norms, self.convs, strict=True):
            values.append(convolution(torch.relu(norm(torch.cat(values, 1)))))
        y = torch.relu(self.last(torch.cat(values[:4], 1)))
        return self.head(nn.functional.avg_pool2d(y, 2).mean((2, 3)))


@cases
def test_single_precision_descends(case: Case) -> None:
    net = adaptive(case.build().float(), iterations=12)
    assert_descends(net, case.input(batch=3, dtype=torch.float32), 1e-5)


def test_autocast() -> None:
    case = BY_NAME["conv_residual"]
    net, x = adaptive(case.build().float()), case.input(batch=2, dtype=torch.float32)
    with torch.no_grad():
        expected = net(x)
        with torch.autocast("cpu", torch.bfloat16):
            found = net(x)
    assert float((found - expected).abs().max()) <= 0.1 * max(1.0, float(expected.abs().max()))
    with torch.autocast("cpu", torch.bfloat16):
        net(x).sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in net.parameters() if p.grad is not None)


def test_packed_kernels_give_the_same_answers() -> None:
    torch.manual_seed(0)
    model = BY_NAME["conv_residual"].build().float()
    x = BY_NAME["conv_residual"].input(batch=4, dtype=torch.float32)
    net = adaptive(model, iterations=3)
    with torch.no_grad():
        packed = net(x)
        with torch.backends.mkldnn.flags(enabled=False):
            plain = net(x)
        assert torch.allclose(packed, plain, rtol=1e-4, atol=1e-4)


class _Reads(TorchDispatchMode):
    """Counts values that are read out of tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.count += func._schema.name == "aten::_local_scalar_dense"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("name", ["conv_residual", "leaky_conv", "relu6_chain", "conv_dense"])
def test_sweeps_read_no_value(name: str, recorded: bool) -> None:
    net, x = adaptive(BY_NAME[name].build()), BY_NAME[name].input(batch=2)
    bound, estimates = net.dictionary(x), list(net.step_sizes(x).values())
    net.iterations = 0
    run = SolverInput(
        bound, list(net.latents(x).values()), estimates, None, 3, search=LineSearch(2)
    )
    with torch.set_grad_enabled(recorded), _Reads() as reads:
        for _ in GlobalPursuit().sweeps(run):
            pass
    assert reads.count == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sixteen_bits_add_up_in_thirty_two(dtype: torch.dtype) -> None:
    """A sum of squares that leaves float16 says nothing of the latents."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4096, 2)
    )
    x = 40 * torch.rand(2, 1, 32, 32)
    wide = adaptive(model.eval(), iterations=2)
    narrow = adaptive(model.to(dtype).eval(), iterations=2)
    for recorded in (False, True):
        with torch.set_grad_enabled(recorded):
            (found,), (expected,) = (
                narrow.latents(x.to(dtype)).values(),
                wide.float().latents(x).values(),
            )
            assert torch.allclose(found.float(), expected, rtol=0.05, atol=0.5)


# ---------------------------------------------------------------- the setting


@pytest.mark.parametrize("solver", ["layered", "synchronous", "feedforward"])
def test_solvers_with_fixed_steps_refuse_them(solver: str) -> None:
    with pytest.raises(OptionError, match=f"solver='{solver}', whose steps are fixed.*'global'"):
        pursuitify(ChainNet(), solver=solver, steps="adaptive")
    net = pursuitify(ChainNet(), steps="adaptive")
    with pytest.raises(OptionError, match="steps='certified'"):
        net.solver = solver
    assert (net.solver, net.steps) == ("global", "adaptive")
    net.steps = "certified"
    net.solver = solver
    with pytest.raises(OptionError, match="whose steps are fixed"):
        net.steps = "adaptive"


def test_another_value_is_refused_and_the_network_says_what_it_has() -> None:
    with pytest.raises(OptionError, match="steps='exact' is not one of 'certified', 'adaptive'"):
        pursuitify(ChainNet(), steps="exact")
    net = pursuitify(ChainNet())
    assert net.steps == "certified"
    assert "steps='certified'" in repr(net)
    net.steps = "adaptive"
    assert "steps='adaptive'" in repr(net)


def test_the_papers_choices_have_certified_steps() -> None:
    assert pursuitify(ChainNet(), paper=True).steps == "certified"


def test_a_checkpoint_keeps_them(tmp_path: Any) -> None:
    save(pursuitify(ChainNet(), steps="adaptive"), tmp_path / "net")
    assert load(tmp_path / "net", ChainNet()).steps == "adaptive"


def test_estimates_follow_the_weights_and_are_not_taken_for_bounds() -> None:
    """Both rules look norms up by the kernels' contents: neither may find the other's."""
    case = BY_NAME["conv_residual"]
    net, x = pursuitify(case.build(), iterations=2), case.input(batch=2)
    with torch.no_grad():
        certified = numbers(net.step_sizes(x))
        net.steps = "adaptive"
        estimates = numbers(net.step_sizes(x))
        assert sum(estimates[name] != certified[name] for name in estimates) > 2
        assert numbers(net.step_sizes(x)) == estimates
        for weight in (p for p in net.parameters() if p.dim() == 4):
            weight.mul_(10)
        smaller = numbers(net.step_sizes(x))
        fresh = numbers(adaptive(case.build()).step_sizes(x))
        assert all(smaller[name] <= estimates[name] for name in estimates)
        assert sum(smaller[name] < estimates[name] for name in estimates) > 2
        assert fresh == estimates
        net.steps = "certified"
        for weight in (p for p in net.parameters() if p.dim() == 4):
            weight.div_(10)
        again = numbers(net.step_sizes(x))
        assert all(again[name] == pytest.approx(certified[name], rel=1e-9) for name in again)


def test_no_norm_is_certified_on_the_way_to_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: Any, **_named: Any) -> Tensor:
        raise AssertionError("a certificate was asked for")

    case = BY_NAME["conv_residual"]
    net, x = adaptive(case.build()), case.input(batch=2)
    monkeypatch.setattr("pursuitify.dictionary.norm_bounds.conv_norm_bound", refuse)
    net(x)
    net.train()(x)
    net.eval().steps = "certified"
    with pytest.raises(AssertionError, match="asked for"):
        net(x)


def test_extrapolation_weights_are_not_used() -> None:
    case = BY_NAME["conv_residual"]
    net, x = adaptive(case.build()), case.input(batch=2)
    before = net(x)
    with torch.no_grad():
        net.pursuit.alpha.fill_(0.4)
    assert torch.equal(net(x), before)
