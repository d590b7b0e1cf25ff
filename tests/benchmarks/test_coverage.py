"""The coverage table holds: some small models here, all of the registry in the slow tests."""

from __future__ import annotations

import dataclasses

import pytest

pytest.importorskip("torchvision")
from benchmarks import coverage

#: Joins, channel shuffles, a refusal.
SMALL = ("squeezenet1_1", "shufflenet_v2_x0_5", "mobilenet_v3_small")


def test_a_part_of_the_table_holds(capsys: pytest.CaptureFixture[str]) -> None:
    assert coverage.main(["--check", "--models", *SMALL]) == 0, capsys.readouterr().out


@pytest.mark.slow
def test_the_whole_table_holds(capsys: pytest.CaptureFixture[str]) -> None:
    assert coverage.main(["--check"]) == 0, capsys.readouterr().out


def test_the_check_notices_what_got_worse() -> None:
    good = coverage.Line("alexnet", True, 7, 0, 7, 7)
    old = {"alexnet": good.cells()}
    assert coverage.worse([good], old) == []
    for change in ({"converts": False}, {"latents": 6}, {"gates": 1}, {"trained": 1e-3}):
        assert coverage.worse([dataclasses.replace(good, **change)], old)
    assert coverage.worse([good], {})
    assert coverage.worse([good], {"alexnet": coverage.Line("alexnet", False).cells()}) == []


def test_the_table_has_the_whole_family() -> None:
    rows = coverage.committed()
    assert sum(cells[1] == "yes" for cells in rows.values()) >= 59
