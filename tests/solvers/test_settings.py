"""step_scale and threshold_scale: 0 and 1 are the ends that must be exact."""

from __future__ import annotations

import copy
import inspect
import itertools
import typing
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pursuitify import OptionError, load, pursuitify, save
from pursuitify.models import ChainNet, DenselyConnectedNet, ResidualNet
from pursuitify.solvers.settings import OPTIONS, NetworkOptions
from tests.support.nets import CASES, Case, randomise

cases = pytest.mark.parametrize("case", CASES, ids=str)
modes = pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
solvers = pytest.mark.parametrize("solver", ["global", "layered"])
references = pytest.mark.parametrize("build", [ChainNet, ResidualNet, DenselyConnectedNet])


def seeded(call: Any) -> Any:
    torch.manual_seed(7)
    return call()


def reference(build: type[nn.Module]) -> nn.Module:
    """A reference network with a dropout in front of its classifier."""
    torch.manual_seed(0)
    net = build(2, 3, width=3)
    net.classifier = nn.Sequential(nn.Dropout(0.3), net.classifier)
    return net


# ---------------------------------------------------------------- step_scale


@modes
@solvers
@cases
def test_no_step_is_the_source_bit_for_bit(case: Case, solver: str, training: bool) -> None:
    model = case.build().train(training)
    net = pursuitify(model, iterations=3, solver=solver, step_scale=0)
    x = case.input(batch=3)
    with torch.no_grad():
        assert torch.equal(seeded(lambda: net(x)), seeded(lambda: model(x)))
    for key, value in model.state_dict().items():
        assert torch.equal(net.state_dict()[key], value), key


@references
def test_finetuning_without_steps_is_training_the_source(build: type[nn.Module]) -> None:
    source = reference(build)
    net = pursuitify(source, iterations=4, step_scale=0.0).train()
    source.train()
    generator = torch.Generator().manual_seed(1)
    batches = [torch.randn(4, 2, 8, 8, generator=generator) for _ in range(5)]
    losses = []
    for model in (source, net):
        optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
        torch.manual_seed(3)
        own = []
        for x in batches:
            optimiser.zero_grad()
            loss = F.cross_entropy(model(x), torch.arange(4) % 3)
            loss.backward()
            optimiser.step()
            own.append(loss.item())
        losses.append(own)
    assert losses[0] == losses[1], "not even the rounding may differ"
    assert len(set(losses[0])) == 5
    state = net.state_dict()
    for key, value in source.state_dict().items():
        assert torch.equal(state[key], value), key
    assert torch.equal(net.pursuit.beta, torch.ones_like(net.pursuit.beta))


@solvers
@cases
def test_every_step_is_scaled_and_steps_of_zero_move_nothing(case: Case, solver: str) -> None:
    net = pursuitify(case.build(), iterations=2, solver=solver)
    x = case.input(batch=2)
    with torch.no_grad():
        full, fed = net.step_sizes(x), net.source
        recorded = net.diagnose(x).sweeps[-1].step
        net.step_scale = 0.25
        for (name, step), before, seen in zip(
            net.step_sizes(x).items(), full.values(), net.diagnose(x).sweeps[-1].step, strict=True
        ):
            assert torch.equal(step, 0.25 * before), name
            assert seen == pytest.approx(float(step.double().mean()), rel=1e-12)
        assert recorded != net.diagnose(x).sweeps[-1].step
        partial = net.latents(x)
        net.step_scale = 1.0
        moved = [not torch.equal(partial[n], w) for n, w in net.latents(x).items()]
        assert solver == "layered" or any(moved)
        net.step_scale = 0.0
        assert torch.equal(net(x), fed(x))
        assert all(c == 0 for sweep in net.diagnose(x).sweeps for c in sweep.change)
        for name, value in net.latents(x).items():
            assert torch.equal(value, latents_of_source(net, x)[name])


def latents_of_source(net: Any, x: Tensor) -> dict[str, Tensor]:
    twin = copy.deepcopy(net)
    twin.iterations = 0
    return twin.latents(x)


@cases
def test_a_scaled_step_is_a_larger_beta(case: Case) -> None:
    x = case.input(batch=2)
    scaled = pursuitify(case.build(), iterations=3, step_scale=0.8)
    larger = pursuitify(case.build(), iterations=3)
    larger.pursuit.beta_range = (0.5, 2.0)
    with torch.no_grad():
        larger.pursuit.beta.fill_(1 / 0.8)
        assert torch.allclose(scaled(x), larger(x), rtol=1e-12, atol=1e-12)


# ---------------------------------------------------------------- threshold_scale


@modes
@cases
def test_thresholds_do_not_touch_the_feed_forward_pass(case: Case, training: bool) -> None:
    model = case.build().train(training)
    x = case.input(batch=3)
    for options in ({"iterations": 0}, {"step_scale": 0}, {"solver": "feedforward"}):
        net = pursuitify(model, threshold_scale=3.0, **options)
        twin = copy.deepcopy(model)
        with torch.no_grad():
            expected = seeded(lambda twin=twin: twin(x))
            assert torch.equal(seeded(lambda net=net: net(x)), expected)


@cases
def test_positive_thresholds_of_sparse_latents_alone_are_scaled(case: Case) -> None:
    net = pursuitify(case.build(), iterations=2)
    x = case.input(batch=2)
    with torch.no_grad():
        plain = net.dictionary(x)
        net.threshold_scale = 2.5
        scaled = net.dictionary(x)
        for row in plain.rows:
            before, after = plain.thresholds[row.name], scaled.thresholds[row.name]
            grown = (before > 0) & torch.tensor(row.activation.sparse)
            assert torch.equal(after[grown], 2.5 * before[grown])
            assert torch.equal(after[~grown], before[~grown])


@cases
def test_the_objective_and_the_sweeps_know_the_scale(case: Case) -> None:
    net = pursuitify(case.build(), iterations=4, threshold_scale=3.0)
    x = case.input(batch=2)
    with torch.no_grad():
        w = net.latents(x)
        trace = net.diagnose(x)
        values = [sweep.objective for sweep in trace.sweeps]
        assert values[-1] == pytest.approx(float(net.objective(x, w).mean()), rel=1e-9)
        assert all(b <= a + 1e-9 * max(1.0, abs(a)) for a, b in itertools.pairwise(values))
        scaled, high = net.dictionary(x).thresholds, net.objective(x, w)
        net.threshold_scale = 1.0
        plain, low = net.dictionary(x).thresholds, net.objective(x, w)
        extra = sum(((scaled[n] - plain[n]) * w[n]).flatten(1).sum(1) for n in w)
        assert torch.allclose(high - low, extra, rtol=1e-9, atol=1e-12)


def test_larger_thresholds_leave_fewer_entries() -> None:
    torch.manual_seed(0)
    net = pursuitify(reference(ResidualNet).eval(), iterations=10)
    for name, parameter in net.named_parameters():
        if "norm" in name and "bias" in name:
            nn.init.constant_(parameter, -0.1)
    x = torch.rand(4, 2, 8, 8)
    active = []
    with torch.no_grad():
        for scale in (0.0, 1.0, 4.0):
            net.threshold_scale = scale
            active.append(sum(int((w > 0).sum()) for w in net.latents(x).values()))
    assert active[0] > active[1] > active[2]


# ---------------------------------------------------------------- both


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("step_scale", -0.1),
        ("step_scale", 1.5),
        ("step_scale", float("nan")),
        ("step_scale", True),
        ("step_scale", "half"),
        ("threshold_scale", -1),
        ("threshold_scale", float("inf")),
        ("threshold_scale", None),
    ],
)
def test_wrong_values_are_refused(option: str, value: Any) -> None:
    with pytest.raises(OptionError, match=rf"{option}=.* is not a finite number >= 0"):
        pursuitify(ChainNet(), **{option: value})
    net = pursuitify(ChainNet())
    with pytest.raises(OptionError, match=option):
        setattr(net, option, value)
    assert getattr(net, option) == OPTIONS[option]


def test_a_checkpoint_keeps_them(tmp_path: Any) -> None:
    net = pursuitify(ChainNet(), step_scale=0.5, threshold_scale=2)
    save(net, tmp_path / "net")
    again = load(tmp_path / "net", ChainNet())
    assert (again.step_scale, again.threshold_scale) == (0.5, 2.0)


@pytest.mark.slow
def test_compiled_code_follows_them() -> None:
    torch.compiler.reset()
    torch.manual_seed(0)
    net = pursuitify(randomise(ResidualNet(2, 3, width=3)).double().eval(), iterations=2)
    x = torch.rand(2, 2, 8, 8, dtype=torch.float64)
    compiled = torch.compile(net, fullgraph=True, backend="eager")
    seen = []
    with torch.no_grad():
        for steps, thresholds in ((1.0, 1.0), (0.5, 1.0), (0.25, 2.0), (0.0, 2.0), (1.0, 0.0)):
            net.step_scale, net.threshold_scale = steps, thresholds
            seen.append(compiled(x))
            assert torch.allclose(seen[-1], net(x), rtol=1e-12, atol=1e-12)
    assert all(not torch.equal(a, b) for a, b in itertools.combinations(seen, 2))


def test_the_types_for_signatures_are_those_of_the_options() -> None:
    named = {*inspect.signature(pursuitify).parameters} & OPTIONS.keys()
    types = typing.get_type_hints(NetworkOptions)
    assert types.keys() == OPTIONS.keys() - named
    assert named == {"iterations", "solver"}
    for name, kind in types.items():
        assert isinstance(OPTIONS[name], kind), name
    settings = inspect.signature(pursuitify).parameters["settings"]
    assert settings.annotation == "Unpack[NetworkOptions]"
