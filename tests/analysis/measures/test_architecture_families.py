"""Families of architectures: what their members are, and the minima that are drawn."""

from __future__ import annotations

import pytest
import torch

from pursuitify import pursuitify
from pursuitify.analysis import minimum_frame_potential
from pursuitify.analysis.measures.architecture_families import ReadsBack, minima
from pursuitify.errors import OptionError


@pytest.mark.parametrize("join", ["add", "cat"])
def test_reach_one_is_a_chain_and_more_is_not(join):
    shape = (3, 8, 8)
    assert minimum_frame_potential(ReadsBack(1, join), shape).closed_form is not None
    net = pursuitify(ReadsBack(3, join, depth=4))
    assert net(torch.randn(2, *shape)).shape == (2, 2)
    assert [net.graph.in_degree(n) for n in list(net.graph)[1:]] == [1, 1, 2, 3]
    with pytest.raises(OptionError):
        ReadsBack(0)
    with pytest.raises(OptionError, match="join"):
        ReadsBack(1, "mul")


def test_minima_are_those_of_the_members():
    seen = []
    found = minima(
        {"chain": lambda n: ReadsBack(1, width=n, depth=2)},
        (2, 4),
        (3, 8, 8),
        seeds=1,
        steps=10,
        advance=lambda *row: seen.append(row),
    )
    known = minimum_frame_potential(ReadsBack(1, width=4, depth=2), (3, 8, 8))
    assert [size for size, _ in found["chain"]] == [2.0, 4.0]
    assert found["chain"][1][1] == pytest.approx(known.closed_form, rel=0.01)
    assert found["chain"][1][1] >= known.value
    assert seen[1] == ("chain", 4, found["chain"][1][1])
