"""Attacks that change what they attack: the audit's numbers are of the network it was given."""

from __future__ import annotations

import copy
import functools
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pursuitify import pursuitify
from pursuitify.errors import AuditError
from pursuitify.robust import AuditReport, Protocol, Step, audit
from pursuitify.robust.auditing.network_guard import NetworkGuard

TINY = Protocol(
    name="tiny",
    steps=(Step("FGSM", "fgsm", "one-step"), Step("noise", "noise", "noise", {"draws": 2})),
    twin=(Step("FGSM", "fgsm", "one-step"),),
    curve=(Step("FGSM", "fgsm", "one-step"),),
    factors=(1.0,),
)
OUTSIDE = {"factor": 1.0}


class Victim(nn.Module):
    """A network with everything that an attack could change, and a counter that passes change."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.body = nn.Sequential(
                nn.Flatten(), nn.Linear(16, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.5)
            )
            self.head = nn.Linear(6, 3)
        self.register_buffer("count", torch.zeros(()))
        self.mean, self.scales = 0.25, [1.0, {"a": torch.ones(3)}]
        self.shift = torch.zeros(3)  # a tensor that is neither parameter nor buffer
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        with torch.no_grad():
            self.count += 1
        y: Tensor = self.head(self.body(x - self.mean))
        return y * self.scales[1]["a"] * self.scales[0] + self.shift  # type: ignore[index]


def trained(net: Any) -> None:
    net.train()
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
    net(torch.rand(8, 1, 4, 4)).square().sum().backward()
    optimizer.step()


def set_weight(net: Any) -> None:
    net.head.weight.data = torch.zeros_like(net.head.weight)


def set_with_nan(net: Any) -> None:
    with torch.no_grad():
        net.head.bias[0] = torch.nan


def hook(net: Any) -> None:
    net.head.register_forward_hook(lambda module, args, y: -y)


def attribute(net: Any, name: str, value: Any) -> None:
    setattr(net, name, value)


#: What an attack does to the network, and whether the network computes something else then.
CHANGES: dict[str, tuple[Callable[[Any], Any], bool]] = {
    "nothing": (lambda net: None, False),
    "passes": (lambda net: net(torch.rand(2, 1, 4, 4)), False),
    "trains": (trained, True),
    "mode": (lambda net: net.train(), True),
    "mode of a part": (lambda net: net.body[4].train(), True),
    "a weight's memory": (set_weight, True),
    "a weight's entries": (lambda net: net.head.weight.data.mul_(-1), True),
    "another parameter": (lambda net: attribute(net.head, "weight", nn.Parameter(-net.head.weight)),
                          True),
    "NaN": (set_with_nan, True),
    "type": (lambda net: net.double(), True),
    "running statistics": (lambda net: net.body[2].running_mean.add_(5), True),
    "a buffer gone": (lambda net: net.body[2]._buffers.pop("running_mean"), True),
    "a module": (lambda net: attribute(net, "head", nn.Linear(6, 3)), True),
    "a module in its place": (lambda net: net.body.insert(0, nn.Sigmoid()), True),
    "an attribute": (lambda net: attribute(net, "mean", 0.9), True),
    "an attribute of a part": (lambda net: attribute(net.body[2], "eps", 3.0), True),
    "an attribute gone": (lambda net: delattr(net, "mean"), True),
    "a new attribute": (lambda net: attribute(net, "other", 1), True),
    "a list in place": (lambda net: net.scales.__setitem__(0, -1.0), True),
    "a tensor in a dict in a list": (lambda net: net.scales[1]["a"].mul_(-1), True),
    "a tensor in place": (lambda net: net.shift.add_(torch.tensor([9.0, 0, 0])), True),
    "its forward": (lambda net: attribute(net, "forward", lambda x: net.head(x.flatten(1)[:, :6])),
                    True),
    "a hook": (hook, True),
    "requires_grad": (lambda net: net.requires_grad_(False), False),
    "gradients": (lambda net: net(torch.rand(2, 1, 4, 4)).sum().backward(), False),
    "seeds": (lambda net: (torch.manual_seed(5), np.random.seed(5), random.seed(5)), False),
    "no gradients anywhere": (lambda net: torch.set_grad_enabled(False), False),
    "default type": (lambda net: torch.set_default_dtype(torch.float64), False),
}  # fmt: skip


def attack_of(
    change: Callable[[Any], Any], after: bool = False, target: Any = None, raises: bool = False
) -> Callable[..., Tensor]:
    def attack(model: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
        first = copy.deepcopy(model)(x).argmax(1) if after else y
        change(model if target is None else target)
        y.fill_(int(first[0]))  # the labels that it was given are its own
        if raises:
            raise RuntimeError("out of luck")
        return (x + eps).clamp(0, 1)

    return attack


def data() -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(3)
    return torch.rand(12, 1, 4, 4, generator=draw), torch.randint(0, 3, (12,), generator=draw)


def run(net: nn.Module, attack: Callable[..., Tensor], **options: Any) -> AuditReport:
    given = {"eps": 0.1, "protocol": TINY, "progress": False, "batch_size": 5, **options}
    return audit(net, data(), attacks={"mine": attack, "other": attack_of(lambda n: None)}, **given)


def numbers(report: AuditReport) -> Any:
    found = json.loads(json.dumps(report.to_dict()))
    for entry in (found, *found["results"]):
        entry.pop("seconds", None)
    for result in found["results"]:
        result.pop("changed"), result.pop("error")
    return {key: found[key] for key in ("networks", "results", "curve", "gradients")}


def state(net: nn.Module) -> Any:
    """Return all that an audit has to leave alone."""
    parts = []
    for path, module in net.named_modules():
        own = {k: vars(module)[k] for k in sorted(vars(module)) if k not in ("calls", "_buffers")}
        parts.append((path, type(module), module.training, repr(own)))
    for name, tensor in [*net.named_parameters(), *net.named_buffers()]:
        if name != "count":
            grad = None if tensor.grad is None else tensor.grad.tolist()
            kind = (tensor.dtype, tensor.requires_grad, id(tensor), tensor.data_ptr())
            parts.append((name, kind, str(tensor.tolist()), grad))
    return parts


def process() -> Any:
    return (
        torch.get_rng_state().tolist(),
        str(np.random.get_state()),
        random.getstate(),
        torch.is_grad_enabled(),
        torch.get_default_dtype(),
    )


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    name=st.sampled_from(sorted(CHANGES)),
    training=st.booleans(),
    trains=st.booleans(),
    graded=st.booleans(),
    raises=st.booleans(),
    of_twin=st.booleans(),
)
@pytest.mark.filterwarnings("ignore:the model is in training mode")
def test_an_attack_changes_nothing_but_its_own_points(
    name: str, training: bool, trains: bool, graded: bool, raises: bool, of_twin: bool
) -> None:
    check(name, training, trains, graded, raises, of_twin)


@pytest.mark.parametrize("name", CHANGES)
def test_every_change_once(name: str) -> None:
    check(name, False, True, True, False, False)


def check(
    name: str, training: bool, trains: bool, graded: bool, raises: bool, of_twin: bool
) -> None:
    change, differs = CHANGES[name]
    net, twin = Victim().train(training), Victim(1).eval()
    net.head.requires_grad_(trains)
    if graded:
        for parameter in net.parameters():
            parameter.grad = torch.ones_like(parameter)
    victim = twin if of_twin else net
    good = run(net, attack_of(lambda n: None), twins={"twin": twin})
    before, outside = (state(net), state(twin)), process()
    target = twin if of_twin else None
    attack = attack_of(change, target=target, raises=raises)
    report = run(net, attack, twins={"twin": twin})
    assert process() == outside
    assert (state(net), state(twin)) == before
    assert victim.calls > 0, "the counter has gone on"
    wanted, found = numbers(good), numbers(report)
    if raises:  # the attack has no points of its own then; all others are as they were
        for one in (wanted, found):
            one["results"] = [r for r in one["results"] if r["name"] not in ("mine", "other")]
            del one["networks"]["network"]["worst"], one["networks"]["network"]["interval"]
    assert found == wanted
    flags = [flag.detail for flag in report.flags if flag.name == "changes the network"]
    assert len(flags) == differs, (name, flags)
    assert all(flag.startswith("mine changed ") for flag in flags)
    assert all(("of 'twin'" in flag) == of_twin for flag in flags)


def test_settings_of_a_pursuit_network_are_restored() -> None:
    source = nn.Sequential(nn.Flatten(), nn.Linear(16, 6), nn.ReLU(), nn.Linear(6, 3)).eval()
    net = pursuitify(source, iterations=3).eval()
    good = run(net, attack_of(lambda n: None))
    for option, value in (("iterations", 0), ("solver", "layered"), ("step_scale", 0.1)):
        was = net.settings()
        report = run(net, attack_of(functools.partial(attribute, name=option, value=value)))
        assert net.settings() == was
        assert numbers(report) == numbers(good)
        (flag,) = [f for f in report.flags if f.name == "changes the network"]
        assert f"attribute _{option}" in flag.detail


def spoilt(net: Any) -> None:
    OUTSIDE["factor"] = -1.0


class Reading(Victim):
    """A network that reads something outside of itself."""

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = super().forward(x)
        return y * OUTSIDE["factor"]


@pytest.mark.parametrize("raises", [False, True])
def test_what_cannot_be_undone_ends_the_audit_with_its_results_kept(
    raises: bool, tmp_path: Path
) -> None:
    path = tmp_path / "record.json"
    try:
        with pytest.raises(AuditError, match=r"attack 'mine' changed 'network'.*goes on from"):
            run(Reading().eval(), attack_of(spoilt, raises=raises), resume=path)
    finally:
        OUTSIDE["factor"] = 1.0
    kept = json.loads(path.read_text())["results"]
    assert {result["name"] for result in kept.values()} == {"FGSM", "noise"}
    resumed = run(Reading().eval(), attack_of(lambda n: None), resume=path)
    assert numbers(resumed) == numbers(run(Reading().eval(), attack_of(lambda n: None)))


def test_a_changed_result_is_told_again_when_resumed(tmp_path: Path) -> None:
    path, attack = tmp_path / "record.json", attack_of(trained)
    first, second = (run(Victim().eval(), attack, resume=path) for _ in range(2))
    assert [str(flag) for flag in first.flags] == [str(flag) for flag in second.flags]
    assert "changes the network" in second.verdict


def test_memory_of_another_network_is_left_alone() -> None:
    """An attack that points a weight at another network's must not see that one overwritten."""
    net, other = Victim().eval(), Victim(5).eval()
    weights = copy.deepcopy(other.state_dict())
    guard = NetworkGuard({"network": net})
    net.head.weight.data = other.head.weight.data
    net.body[1].weight = other.body[1].weight
    assert guard.restore() == ["parameters of body.1", "weight head.weight"]
    assert all(torch.equal(v, weights[k]) for k, v in other.state_dict().items())
    assert torch.equal(net.head.weight, Victim().head.weight)
