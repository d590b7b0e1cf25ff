"""An audit that was interrupted goes on as if it had not been, or is refused: never a mixture."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pursuitify.errors import OptionError
from pursuitify.robust import AuditReport, Protocol, Step, audit
from pursuitify.robust.auditing import attack_registry

TINY = Protocol(
    name="tiny",
    steps=(
        Step("FGSM", "fgsm", "one-step"),
        Step("PGD", "pgd", "white-box", {"steps": 2}),
        Step("Square", "square", "black-box", {"queries": 4}, survivors=True),
    ),
    twin=(Step("PGD", "pgd", "white-box", {"steps": 2}),),
    curve=(Step("PGD", "pgd", "white-box", {"steps": 2}),),
    factors=(1.0,),
)
SHIFT = 0.25


class Model(nn.Module):
    """A network whose state_dict does not hold all that it computes with."""

    def __init__(self, mean: float = 0.0, negative: bool = False, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.body = nn.Sequential(nn.Flatten(), nn.Linear(16, 6), nn.ReLU(), nn.Linear(6, 3))
        self.mean = mean
        self.map: Callable[[Tensor], Tensor] = torch.neg if negative else torch.positive
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1  # state that a pass changes is no setting
        y: Tensor = self.body(self.map(x - self.mean))
        return y


def step_of(size: float) -> Callable[..., Tensor]:
    def attack(model: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
        return (x + size * eps).clamp(0, 1)

    return attack


def default_of(size: float) -> Callable[..., Tensor]:
    def attack(model: nn.Module, x: Tensor, y: Tensor, eps: float, part: float = size) -> Tensor:
        return (x + part * eps).clamp(0, 1)

    return attack


def global_step(model: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
    return (x + SHIFT * eps).clamp(0, 1)


def other_code(model: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
    return (x - SHIFT * eps).clamp(0, 1)


@dataclass
class Setup:
    """Everything an audit is given."""

    model: dict[str, Any] = field(default_factory=dict)
    pixel: float = 0.5
    label: int = 0
    order: bool = False
    attack: Callable[..., Tensor] = field(default_factory=lambda: step_of(1.0))
    twin: int = 7
    eps: float = 0.1
    norm: str = "linf"
    seed: int = 0
    batch_size: int | None = 5
    protocol: Protocol = TINY

    def run(self, **options: Any) -> AuditReport:
        draw = torch.Generator().manual_seed(3)
        x = torch.rand(12, 1, 4, 4, generator=draw)
        y = torch.randint(0, 3, (12,), generator=draw)
        x[0, 0, 0, 0], y[0] = self.pixel, self.label
        if self.order:
            x, y = x.flip(0), y.flip(0)
        return audit(
            Model(**self.model).eval(),
            (x, y),
            eps=self.eps,
            norm=self.norm,
            seed=self.seed,
            batch_size=self.batch_size,
            protocol=self.protocol,
            twins={"other": Model(seed=self.twin).eval()},
            attacks={"mine": self.attack, "after": step_of(0.5)},
            progress=False,
            **options,
        )


#: What is another in the second half. The function's changes are found by its code, its closure,
#: its defaults and the globals it reads.
CHANGES: dict[str, dict[str, Any]] = {
    "nothing": {},
    "an attribute": {"model": {"mean": 0.3}},
    "a tiny change of an attribute": {"model": {"mean": 1e-7}},
    "a function of the model": {"model": {"negative": True}},
    "the weights": {"model": {"seed": 1}},
    "a pixel": {"pixel": 0.5001},
    "a label": {"label": 1},
    "the order": {"order": True},
    "the closure of an attack": {"attack": step_of(-1.0)},
    "the defaults of an attack": {"attack": default_of(-1.0)},
    "the code of an attack": {"attack": other_code},
    "an attack with a global": {"attack": global_step},
    "a twin": {"twin": 8},
    "eps": {"eps": 0.2},
    "the norm": {"norm": "l2"},
    "the seed": {"seed": 1},
    "the batch size": {"batch_size": 4},
    "the protocol": {"protocol": replace(TINY, factors=(1.0, 2.0))},
}


def facts(report: AuditReport) -> Any:
    """Everything in a report but how long it took."""
    found = json.loads(json.dumps(report.to_dict()))
    found.pop("seconds")
    for result in found["results"]:
        result.pop("seconds")
    return found


@settings(
    max_examples=25,
    deadline=None,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(change=st.sampled_from(sorted(CHANGES)), stop=st.integers(0, 9))
def test_the_second_half_is_that_of_a_fresh_run_or_refused(
    tmp_path_factory: pytest.TempPathFactory, change: str, stop: int
) -> None:
    path = tmp_path_factory.mktemp("audit") / "record.json"
    first, second = Setup(), Setup(**CHANGES[change])
    kept = interrupted(first, path, stop)
    calls: list[str] = []
    with watched(calls):
        fresh = second.run()
        whole = len(calls)
        try:
            resumed = second.run(resume=path)
        except OptionError as error:
            assert change not in ("nothing", "a twin")
            text = str(error)
            assert "differs in" in text
            assert "attack" not in change, "an attack that was changed runs again"
            return
    assert facts(resumed) == facts(fresh)
    if change == "nothing":
        assert len(calls) - whole == whole - kept, "and nothing that was finished runs again"


def interrupted(setup: Setup, path: Path, stop: int) -> int:
    """Run an audit into a key press before its ``stop``-th attack; return how many finished."""
    calls: list[str] = []
    with watched(calls, stop):
        try:
            setup.run(resume=path)
        except KeyboardInterrupt as error:
            text = str(error)
            assert str(path) in text
            return stop
    return len(calls)


class watched:  # noqa: N801  (used as a function)
    """While entered, attacks note that they run; the one after ``stop`` meets a key press."""

    def __init__(self, calls: list[str], stop: int | None = None) -> None:
        self.calls, self.stop = calls, stop
        self.patch = pytest.MonkeyPatch()

    def __enter__(self) -> None:
        for name, attack in list(attack_registry.ATTACKS.items()):

            def noted(
                *args: Any, name: str = name, attack: Callable[..., Tensor] = attack, **kwargs: Any
            ) -> Tensor:
                if len(self.calls) == self.stop:
                    raise KeyboardInterrupt
                self.calls.append(name)
                return attack(*args, **kwargs)

            self.patch.setitem(attack_registry.ATTACKS, name, noted)

    def __exit__(self, *_: object) -> None:
        self.patch.undo()


def test_a_changed_global_is_another_attack(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "record.json"
    setup = Setup(attack=global_step)
    setup.run(resume=path)
    monkeypatch.setitem(globals(), "SHIFT", -1.0)
    assert facts(setup.run(resume=path)) == facts(setup.run())


def test_a_key_press_without_a_record_leaves_one(tmp_path: Path) -> None:
    calls: list[str] = []
    with watched(calls, 3), pytest.raises(KeyboardInterrupt, match=r"resume='(.*)'") as stop:
        Setup().run()
    path = Path(str(stop.value).split("'")[1])
    try:
        calls.clear()
        with watched(calls):
            resumed = Setup().run(resume=path)
        assert facts(resumed) == facts(Setup().run())
    finally:
        path.unlink()


@pytest.mark.parametrize(
    "kind", [RuntimeError, TypeError, MemoryError, AssertionError, SystemExit, RecursionError]
)
def test_one_attack_that_raises_costs_no_other(tmp_path: Path, kind: type[BaseException]) -> None:
    def broken(model: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
        raise kind("out of luck")

    good = Setup().run()
    path = tmp_path / "record.json"
    report = Setup(attack=broken).run(resume=path)
    failed = {r.name: r.error for r in report.results if r.error}
    assert failed == {"mine": f"{kind.__name__}: out of luck"}
    assert report.accuracy("mine") is None
    assert any("mine could not run" in flag.detail for flag in report.flags)
    others = [[r.fooled for r in made.results if r.name != "mine"] for made in (good, report)]
    assert others[0] == others[1]
    # It is tried again, not remembered as failed: with a mended function all is as it should be.
    assert facts(Setup().run(resume=path)) == facts(good)


def test_a_step_that_raises_costs_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any, **kwargs: Any) -> Tensor:
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setitem(attack_registry.ATTACKS, "pgd", broken)
    report = Setup().run()
    failed = [(r.subject, r.name) for r in report.results if r.error]
    assert failed == [("network", "PGD"), ("other", "PGD")]
    told = [flag.detail for flag in report.flags if "could not run" in flag.detail]
    assert len(told) == 4  # and both points of the epsilon sweep
    assert all("no room" in text for text in told)


class Stochastic(nn.Module):
    """Draws from a generator of its own: two passes never agree."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(16, 3)
        self._draw = torch.Generator().manual_seed(0)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(x.flatten(1))
        return y + torch.randn(y.shape, generator=self._draw)


def test_a_network_that_does_not_repeat_itself_can_be_resumed(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, path = Stochastic().eval(), tmp_path / "record.json"
    data = torch.rand(8, 1, 4, 4), torch.randint(0, 3, (8,))
    options: dict[str, Any] = {"eps": 0.1, "protocol": TINY, "progress": False, "resume": path}
    one, two = audit(net, data, **options), audit(net, data, **options)
    assert [r.fooled for r in one.results] == [r.fooled for r in two.results]
