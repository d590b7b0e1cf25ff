"""The ways that the benchmarks run beside ours solve the same equations (18)."""

from __future__ import annotations

import pytest

pytest.importorskip("torchvision")
import torch

from benchmarks import baselines, common
from pursuitify import pursuitify
from tests.support.nets import BY_NAME, CASES, Case


@pytest.mark.parametrize("way", baselines.WAYS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_they_find_the_same_latents(case: Case, way: str) -> None:
    net = pursuitify(case.build(), iterations=3, offsets="threshold")
    x = case.input(batch=2)
    assert baselines.disagreement(net, x, way) <= 1e-10


def test_another_sweep_is_noticed() -> None:
    case = BY_NAME["conv_dense"]
    net = pursuitify(case.build(), iterations=3, offsets="threshold")
    x = case.input(batch=2)
    with torch.no_grad():
        net.pursuit.alpha.fill_(0.3)  # the ways know of no extrapolation
    assert all(baselines.disagreement(net, x, way) > 1e-4 for way in baselines.WAYS)


def test_they_apply_more_convolutions() -> None:
    """What the residuals that are kept save: on a dense graph, the more the deeper it is."""
    case = BY_NAME["conv_dense"]
    net = pursuitify(case.build(), iterations=2, offsets="threshold")
    x = case.input(batch=2)
    found = {}
    with torch.no_grad():
        net(x)
        steps = list(net.step_sizes(x).values())
        start = list(baselines.feedforward(net, x).values())
        for way, run in {**baselines.WAYS, "ours": None}.items():
            with common.Operators() as count:
                net(x) if run is None else run(net.dictionary(x), start, steps, 2)
            found[way] = count.convolutions
    assert found["ours"] < found["literal"]
    assert found["ours"] < found["autograd"]
