"""estimate_memory(): against the allocator's own records of a step that really runs."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from pursuitify import OptionError, estimate_memory, memory, pursuitify
from pursuitify.errors import EstimateError
from pursuitify.memory import StepPlan, free_memory, smallest_change
from pursuitify.models import ChainNet, DenselyConnectedNet, ResidualNet
from tests.support.nets import BY_NAME

MODES: dict[str, dict[str, Any]] = {
    "store": {},
    "recompute": {"memory": "recompute"},
    "recompute-2": {"memory": "recompute", "recompute_levels": 2},
    "implicit": {"memory": "implicit"},
    "last": {"memory": "implicit", "implicit_last": 1},
}
SHAPE, BATCH = (3, 24, 24), 16


def allocated(call: Callable[[], object]) -> tuple[int, int]:
    """Return the peak of what torch's CPU allocator handed out, and its largest single tensor."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        call()
    alive = peak = largest = 0
    for event in found.profiler.kineto_results.events():
        if event.name() == "[memory]":
            alive += event.nbytes()
            peak, largest = max(peak, alive), max(largest, event.nbytes())
    return peak, largest


def step_of(net: nn.Module, x: Tensor) -> Callable[[], object]:
    """Return a training step as a call that has run once: what is made once is there."""

    def step() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            net(x).square().mean().backward()

    step()
    net.zero_grad()
    return step


def build(kind: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return kind(in_channels=3, num_classes=5, width=8).train()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", [ChainNet, ResidualNet, DenselyConnectedNet])
def test_a_training_step_takes_what_was_counted(kind: type[nn.Module], mode: str) -> None:
    """Seven sweeps: most modes continue the line of three and four of them."""
    net = pursuitify(build(kind), iterations=7, verify="off", **MODES[mode])
    peak, _ = allocated(step_of(net, torch.rand(BATCH, *SHAPE)))
    assert estimate_memory(net, SHAPE, batch=BATCH).peak == pytest.approx(peak, rel=0.08)


@pytest.mark.parametrize("name", ["mix", "separable", "conv_dense", "conv_chain"])
def test_other_networks_likewise(name: str) -> None:
    case = BY_NAME[name]
    net = pursuitify(case.build().train(), iterations=3, verify="off")
    x = case.input(batch=64)
    peak, _ = allocated(step_of(net, x))
    assert estimate_memory(net, x.shape[1:], batch=64).peak == pytest.approx(peak, rel=0.15)


def test_a_plain_module_likewise() -> None:
    model = build(ResidualNet)
    peak, _ = allocated(step_of(model, torch.rand(BATCH, *SHAPE)))
    found = estimate_memory(model, SHAPE, batch=BATCH)
    assert found.peak == pytest.approx(peak, rel=0.15)
    assert found.resident == pytest.approx(1.25 * found.peak, abs=1)
    assert found.weights == sum(t.nbytes for t in (*model.parameters(), *model.buffers()))
    assert found.gradients == sum(p.nbytes for p in model.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["store", "recompute"])
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "densenet121"])
def test_networks_of_torchvision_likewise(name: str, mode: str) -> None:
    models = pytest.importorskip("torchvision").models
    torch.manual_seed(0)
    net = pursuitify(models.get_model(name, weights=None), iterations=2, verify="off")
    net.train().memory = mode
    peak, _ = allocated(step_of(net, torch.rand(8, 3, 64, 64)))
    assert estimate_memory(net, (3, 64, 64), batch=8).peak == pytest.approx(peak, rel=0.15)


@pytest.mark.parametrize("mode", MODES)
def test_the_line_in_the_number_of_sweeps_is_what_all_of_them_need(
    mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = pursuitify(build(ResidualNet), iterations=12, **MODES[mode])
    line = estimate_memory(net, SHAPE, batch=BATCH)
    monkeypatch.setattr(memory, "_SWEEPS_RUN", 12)
    whole = estimate_memory(net, SHAPE, batch=BATCH)
    assert line.peak == pytest.approx(whole.peak, rel=0.01)
    assert line.kept == pytest.approx(whole.kept, rel=0.01)


def test_arguments_go_before_the_settings_of_the_network() -> None:
    net = pursuitify(build(ResidualNet), iterations=6)
    found = {
        name: estimate_memory(net, SHAPE, batch=BATCH, **options) for name, options in MODES.items()
    }
    peaks = [found[name].peak for name in ("store", "recompute", "recompute-2")]
    assert peaks == sorted(peaks, reverse=True)
    assert peaks[0] > 1.3 * peaks[1]
    less = estimate_memory(net, SHAPE, batch=BATCH, iterations=2)
    assert less.peak < 0.6 * found["store"].peak
    assert estimate_memory(net, SHAPE, batch=2 * BATCH).peak > 1.9 * found["store"].peak
    inference = estimate_memory(net, SHAPE, training=False, batch=BATCH)
    assert inference.peak < 0.5 * found["recompute-2"].peak
    assert inference.gradients == 0
    assert str(BATCH) in str(inference)


def test_nothing_is_allocated_and_nothing_changed() -> None:
    model = nn.Sequential(nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Conv2d(64, 256, 3), nn.ReLU())
    net = pursuitify(model.eval(), iterations=3)
    net(torch.rand(2, 3, 9, 9)).sum().backward()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    grads = {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}
    settings, norms = net.settings(), copy.deepcopy(net.norm_state())
    peak, largest = allocated(lambda: estimate_memory(net, (3, 64, 64), batch=512))
    assert largest < 2**14
    assert peak < 2**18
    assert not net.training
    assert net.settings() == settings
    assert net.norm_state().keys() == norms.keys()
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(torch.equal(dict(net.named_parameters())[n].grad, g) for n, g in grads.items())


class Reads(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * float(x.sum())


def test_what_cannot_be_counted_says_so() -> None:
    with pytest.raises(EstimateError, match="Reads cannot be counted"):
        estimate_memory(Reads(), (3,))
    with pytest.raises(OptionError, match="memory, iterations apply to a PursuitNetwork"):
        estimate_memory(build(ChainNet), SHAPE, memory="recompute", iterations=3)
    with pytest.raises(OptionError, match="batch"):
        estimate_memory(build(ChainNet), SHAPE, batch=0)
    net = pursuitify(build(ChainNet))
    with pytest.raises(OptionError, match="memory"):
        estimate_memory(net, SHAPE, memory="none")


@pytest.mark.parametrize("limit", range(0, 330, 7))
@pytest.mark.parametrize("least", [1, 2])
def test_the_first_way_that_fits_is_taken(limit: int, least: int) -> None:
    """A step of 16 samples needs 320, 160 or 80, and a fixed part of 3 with any settings."""
    sizes = {"a": 20, "b": 10, "c": 5}

    def needed(options: Mapping[str, Any], rows: int) -> int:
        return 3 + sizes[options["way"]] * rows

    choices = [{"way": way} for way in sizes]
    plan, fits = smallest_change(needed, choices, 16, least, limit)
    whole = [options for options in choices if needed(options, 16) <= limit]
    if whole:
        assert (plan.options, plan.parts, fits) == (whole[0], 1, True)
        return
    rows = -(-16 // plan.parts)
    assert plan.options == {"way": "c"}
    assert plan.needed == needed(plan.options, rows)
    assert fits == (plan.needed <= limit)
    assert fits == (limit >= needed({"way": "c"}, least))
    fewer = -(-16 // (plan.parts - 1))
    assert not fits or needed(plan.options, fewer) > limit
    assert rows >= least


def test_a_plan_is_noted_without_what_was_counted() -> None:
    assert StepPlan({"memory": "recompute"}, 2, 7).to_dict() == {
        "options": {"memory": "recompute"},
        "parts": 2,
    }


def test_a_control_group_has_its_limit_less_what_is_used(tmp_path: Path) -> None:
    assert memory._group_memory(tmp_path) is None
    (tmp_path / "memory.current").write_text("700\n")
    (tmp_path / "memory.stat").write_text("anon 500\ninactive_file 150\n")
    for limit, expected in (("max", None), ("1000", 450), ("600", 50), ("100", 0)):
        (tmp_path / "memory.max").write_text(f"{limit}\n")
        assert memory._group_memory(tmp_path) == expected


def test_free_memory_is_what_the_system_says() -> None:
    psutil = pytest.importorskip("psutil")
    found = free_memory(torch.device("cpu"))
    assert found is not None
    assert 0 < found <= 1.2 * psutil.virtual_memory().available
    assert free_memory(torch.device("meta")) is None
