"""Networks of other libraries: none kills its process, and what converts is its source.

Every network is examined in a child process (tests/support/libraries.py). The slow tests need the
libraries, none of which is a dependency; a library that is not installed is skipped.
"""

from __future__ import annotations

import os
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pursuitify import pursuitify
from tests.support import libraries
from tests.support.libraries import COUNTED, FAULTS, LIBRARIES, Network, Result, examine, sweep

HERE = "tests.conversion.test_other_libraries"


class _Killing(nn.Module):
    """Ends its process in the forward, as C++ does when it is handed what it cannot read."""

    def forward(self, x: Tensor) -> Tensor:
        os.kill(os.getpid(), signal.SIGSEGV)
        return torch.relu(x)


def plain() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1))


def killing() -> nn.Module:
    return _Killing()


def smooth() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.GELU(), nn.Conv2d(4, 2, 1))


def summing() -> nn.Module:
    class Sums(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(torch.cumprod(self.conv(x), 1))

    return Sums()


def small_only() -> nn.Module:
    return nn.Sequential(nn.Conv1d(3, 4, 3), nn.ReLU())


def absent() -> nn.Module:
    raise OSError("no internet")


def _here(name: str) -> Network:
    return Network(HERE, "own", name)


@pytest.mark.parametrize(
    ("name", "outcome", "said"),
    [
        ("plain", "converted", ""),
        ("smooth", "other family", "GELU"),
        ("summing", "refused", "cumprod"),
        ("small_only", "does not run", ""),
        ("absent", "not built", "no internet"),
    ],
)
def test_what_becomes_of_a_network_is_told_apart(name: str, outcome: str, said: str) -> None:
    found = examine(_here(name))
    assert (found.outcome, said in found.detail) == (outcome, True), found


def test_faults_of_a_conversion_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def raising(*_: Any, **__: Any) -> None:
        raise KeyError("a bug")

    def changed(model: nn.Module, **options: Any) -> Any:
        net = convert(model, **options)
        net.get_submodule("2").forward = torch.sigmoid
        return net

    def shifted(model: nn.Module, **options: Any) -> Any:
        net = convert(model, **options)
        with torch.no_grad():
            net.get_parameter("3.bias").add_(1.0)
        model.register_forward_hook(lambda *args: args[2] + 1.0)
        return net

    convert = pursuitify
    for broken, outcome in ((raising, "untyped"), (shifted, "wrong")):
        monkeypatch.setattr(libraries, "pursuitify", broken)
        assert examine(_here("plain")).outcome == outcome
    monkeypatch.setattr(libraries, "pursuitify", changed)
    assert examine(_here("plain")).outcome in {"verify", "late"}


def test_an_explanation_alone_converts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libraries, "pursuitify", None)
    assert examine(_here("plain"), prove=False).outcome == "explained"


def test_networks_outside_the_relu_family_can_be_counted_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(libraries, "explain", None)
    found = examine(_here("smooth"), others=False)
    assert (found.outcome, found.detail) == (COUNTED, "GELU")


@pytest.mark.slow
def test_a_death_costs_one_network_alone() -> None:
    outcomes = [r.outcome for r in sweep([_here(n) for n in ("plain", "killing", "plain")])]
    assert outcomes == ["converted", "died", "converted"]


def _progress(results: list[Result]) -> str:
    counts = Counter(result.outcome for result in results)
    return f"{results[0].network.family}: {', '.join(f'{n} {o}' for o, n in counts.most_common())}"


@pytest.mark.slow
@pytest.mark.parametrize("library", LIBRARIES)
def test_every_network_of(library: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No death, no error of another kind, and every conversion is proven in both modes."""
    pytest.importorskip(library)
    results: list[Result] = []
    family: list[Result] = []
    for found in sweep(libraries.networks(library)):
        if family and found.network.family != family[0].network.family:
            with capsys.disabled():
                print(f"\n{library}, {_progress(family)}", end="", flush=True)
            family = []
        family.append(found)
        results.append(found)
    faults = [f"{r.network.name}: {r.outcome}, {r.detail}" for r in results if r.outcome in FAULTS]
    assert not faults, "\n".join(faults)
    assert any(r.outcome == "converted" for r in results), Counter(r.outcome for r in results)
