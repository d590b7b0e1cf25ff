"""Training keeps its memory flat and repeats itself; no check for dynamic defences is set off."""

from __future__ import annotations

import gc
import resource
import warnings
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torchvision")
import torch
from torch import Tensor, nn

from benchmarks.common import saved_bytes
from pursuitify import PursuitNetwork, pursuitify
from pursuitify.solvers.differentiation.modes import MODES
from tests.support.nets import BY_NAME

CASE = "linear_residual"
BATCH = 256  # what a step keeps is then far above the noise of the resident set

#: Every way to keep what derivatives need.
WAYS: list[dict[str, Any]] = [
    *({"memory": mode} for mode in MODES),
    {"memory": "recompute", "recompute_levels": 2},
]
ways = pytest.mark.parametrize("way", WAYS, ids=lambda way: "-".join(map(str, way.values())))


def network(way: dict[str, Any]) -> PursuitNetwork:
    return pursuitify(BY_NAME[CASE].build(dtype=torch.float32), iterations=2, **way).train()


def images() -> Tensor:
    return torch.rand(BATCH, *BY_NAME[CASE].shape)


def train(net: PursuitNetwork, steps: int, seed: int = 1) -> list[float]:
    """Return the losses of some training steps on random images."""
    torch.manual_seed(seed)
    optimiser = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    losses = []
    for _ in range(steps):
        x, labels = images(), torch.randint(2, (BATCH,))
        optimiser.zero_grad()
        loss = nn.functional.cross_entropy(net(x), labels)
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    return losses


def living() -> tuple[int, int]:
    """Return how many tensors are reachable, and their bytes."""
    gc.collect()
    found = [o for o in gc.get_objects() if issubclass(type(o), Tensor)]
    return len(found), sum(t.numel() * t.element_size() for t in found)


def resident() -> int:
    """Return the bytes of the process that are in memory; 0 where nothing tells."""
    statm = Path("/proc/self/statm")
    pages = int(statm.read_text().split()[1]) if statm.exists() else 0
    return pages * resource.getpagesize()


@ways
def test_training_steps_leave_no_tensor_behind(way: dict[str, Any]) -> None:
    net = network(way)
    train(net, 5)
    before = living()
    train(net, 15)
    after = living()  # fewer, where what a failed test before this one held was let go meanwhile
    assert after[0] <= before[0]
    assert after[1] <= before[1]


@pytest.mark.parametrize(
    "way",
    [WAYS[0], *(pytest.param(way, marks=pytest.mark.slow) for way in WAYS[1:])],
    ids=lambda way: "-".join(map(str, way.values())),
)
def test_200_training_steps_leave_no_memory_behind(way: dict[str, Any]) -> None:
    """Of what no Python object shows: memory that only autograd's own graph would hold."""
    net = network(way)
    kept = saved_bytes(lambda: net(images()))
    train(net, 20)
    size = resident()
    train(net, 200)
    gc.collect()
    assert resident() - size <= 0.2 * 200 * kept, "steps leave a fifth of what they keep, or more"


@ways
def test_the_same_seed_gives_the_same_losses(way: dict[str, Any]) -> None:
    first, again = (train(network(way), 8) for _ in range(2))
    assert first == again
    assert train(network(way), 8, seed=2) != first


@ways
@pytest.mark.parametrize("recorded", [False, True])
def test_no_dynamic_defence_is_seen(
    way: dict[str, Any], recorded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """AutoAttack counts frames called grad, backward or _make_grads in a forward pass."""
    checks = pytest.importorskip("pyautoattack.checks")
    monkeypatch.setattr(checks, "funcs", dict.fromkeys(checks.funcs, 0))
    net, x = network(way).eval(), images()
    with warnings.catch_warnings(), torch.set_grad_enabled(recorded):
        warnings.simplefilter("error")
        checks.check_dynamic(net, x)
    assert not any(checks.funcs.values())


def test_a_dynamic_defence_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    checks = pytest.importorskip("pyautoattack.checks")
    monkeypatch.setattr(checks, "funcs", dict.fromkeys(checks.funcs, 0))

    def dynamic(x: Tensor) -> Tensor:
        x = x.clone().requires_grad_()
        return torch.autograd.grad(x.square().sum(), x)[0]

    with pytest.warns(Warning, match="dynamic defense"):
        checks.check_dynamic(dynamic, torch.rand(2))
