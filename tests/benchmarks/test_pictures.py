"""The benchmarks' pictures show the committed measurements, readably."""

from __future__ import annotations

import json
import struct
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("torchvision")

from benchmarks import common, pictures
from pursuitify import plots

DOCS = Path(__file__).resolve().parents[2] / "docs"


def rows(name: str) -> list[common.Row]:
    return json.loads((common.RESULTS / f"{name}.json").read_text())["rows"]


@pytest.mark.parametrize("file", sorted(DOCS.rglob("*.png")), ids=lambda path: path.name)
def test_a_picture_fits_on_a_page(file: Path) -> None:
    """By the width in the file's header: a wider one is shrunk, and its text with it."""
    (width,) = struct.unpack(">I", file.read_bytes()[16:20])
    assert width <= 900


@pytest.mark.parametrize("name", pictures.PICTURES)
def test_ticks_and_legends_cover_nothing(name: str) -> None:
    source, make = pictures.PICTURES[name]
    with plots.style():
        figure = make(rows(source))
        figure.draw_without_rendering()  # places everything
    legends = [*figure.legends, *(axes.get_legend() for axes in figure.axes)]
    boxes = [legend.get_window_extent() for legend in legends if legend is not None]
    assert len(boxes) == 1, "one legend for all panels"
    for axes in figure.axes:
        assert not any(box.overlaps(axes.get_window_extent()) for box in boxes)
        near = axes.get_window_extent().padded(20)  # labels out of the limits are not drawn
        for axis in (axes.xaxis, axes.yaxis):
            ticks = [tick for tick in axis.get_ticklabels(which="both") if tick.get_text()]
            places = [place for t in ticks if near.overlaps(place := t.get_window_extent())]
            for one, next_one in pairwise(sorted(places, key=lambda place: (place.x0, place.y0))):
                assert not one.overlaps(next_one), (name, axes.get_title("left"))


def test_every_network_has_a_name() -> None:
    bounds = json.loads((DOCS / "pictures" / "bounds.json").read_text())
    found = [*rows("baselines"), *rows("step_rules"), *bounds["zoo"]]
    assert {row["model"] for row in found} <= set(pictures.NAMES)


def test_memory_stands_at_the_sweeps_that_were_measured() -> None:
    with plots.style():
        figure = pictures.memory_modes(rows("memory"))
    (axes,) = figure.axes
    assert list(axes.get_xticks()) == [1, 4, 10]
    lines = {line.get_label(): np.asarray(line.get_xydata()) for line in axes.lines}
    mine = {(r["mode"], r["sweeps"]): r["saved"] for r in rows("memory")}
    for mode, label in pictures.MODES.items():
        for sweeps, drawn in lines[label]:
            assert drawn == mine[mode, sweeps] / mine["source", 0]


def test_the_objective_stands_at_the_times_that_were_measured() -> None:
    timed = [{"needed": 50, "seconds": 6.0}, {"needed": 10, "seconds": 2.0}]
    at = pictures.clock(timed)
    assert (at(10), at(50), at(20)) == (2.0, 6.0, 3.0)
    found = rows("step_rules")
    with plots.style():
        figure = pictures.objective_by_time(found)
    one = next(r for r in found if r["rule"] == "adaptive" and r["sweeps"] == 50)
    line = figure.axes[0].lines[1]
    seconds, share = np.asarray(line.get_xydata())[one["needed"] - 1]
    assert seconds == pytest.approx(one["seconds"])
    assert share == one["objective"] / one["curve"][0]
