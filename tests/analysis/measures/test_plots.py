"""Pictures of coherence: what they show is what the report and the points hold."""

from __future__ import annotations

import math

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from matplotlib.figure import Figure

from pursuitify import pursuitify
from pursuitify.analysis import coherence
from pursuitify.analysis.measures.plots import (
    MEASURES,
    plot_block_sparsity,
    plot_families,
    plot_gram_blocks,
    plot_intervals,
)
from pursuitify.errors import OptionError
from tests.support.nets import BY_NAME


@pytest.fixture(scope="module")
def report():
    case = BY_NAME["conv_residual"]
    return coherence(pursuitify(case.build()), case.shape)


@pytest.mark.parametrize("measure", MEASURES)
def test_the_heat_map_holds_every_block(report, measure, tmp_path):
    path = tmp_path / "deeper" / "gram.png"
    figure = plot_gram_blocks(report, path, measure)
    assert path.stat().st_size > 1000
    grid = np.ma.filled(figure.axes[0].images[0].get_array(), np.nan)
    names = [n.latent for n in report.column_norms]
    seen = np.zeros_like(grid, dtype=bool)
    for block in report.blocks:
        a, b = (names.index(n) for n in block.latents)
        assert grid[a, b] == grid[b, a] == getattr(block, measure)
        seen[a, b] = seen[b, a] = True
    assert np.isnan(grid[~seen]).all()
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == names


def test_block_sparsity_counts_blocks_and_entries(report, tmp_path):
    figure = plot_block_sparsity(report, tmp_path / "sparsity.svg")
    grid = figure.axes[0].images[0].get_array()
    number = sum(1 if b.latents[0] == b.latents[1] else 2 for b in report.blocks)
    assert int(grid.sum()) == number
    title = figure.axes[0].get_title("left")
    assert f": {number} of {grid.size}, ConvResidual" in title
    share = 100 * report.count / (report.columns * (report.columns - 1))
    assert f"{share:.2g} % of its off-diagonal" in title


def test_families_are_drawn_in_order_with_their_lower_bounds(tmp_path):
    points = {"one": [(8.0, 0.1), (1.0, 0.2)], "two": [(2.0, 0.3)]}
    figure = plot_families(
        points, tmp_path / "families.png", size="layers", lower={"one": [(1.0, 0.05)]}
    )
    (axes,) = figure.axes
    curves = {line.get_label(): line.get_xydata().tolist() for line in axes.lines}
    assert curves["one"] == [[1.0, 0.2], [8.0, 0.1]]
    assert curves["two"] == [[2.0, 0.3]]
    assert [[1.0, 0.05]] in list(curves.values())
    assert [t.get_text() for t in axes.get_legend().get_texts()] == ["one", "two"]
    assert axes.get_xscale() == "log"
    assert math.isclose(axes.get_ylim()[0], 0)


def test_wrong_options_are_refused(report, tmp_path):
    with pytest.raises(OptionError, match="measure"):
        plot_gram_blocks(report, tmp_path / "gram.png", "median")
    with pytest.raises(OptionError, match="no points"):
        plot_families({"one": []}, tmp_path / "families.png", size="layers")


def test_a_report_draws_itself_into_axes_that_are_given(report):
    figure = Figure()
    left, right = figure.subplots(1, 2)
    assert report.plot(measure="rms", ax=right) is figure
    assert right.images
    assert not left.images
    assert plot_block_sparsity(report, ax=left) is figure
    assert left.images


def test_curves_that_lie_on_each_other_are_told_apart():
    points = [(1.0, 0.1), (2.0, 0.2)]
    (axes,) = plot_families({"one": points, "two": points, "three": points}, size="layers").axes
    assert len({(line.get_color(), line.get_marker()) for line in axes.lines}) == 3
    assert [line.get_linestyle() for line in axes.lines] == ["-", "--", "--"]
    assert [line.is_dashed() for line in axes.lines] == [False, True, True]


def test_intervals_have_a_colour_per_group():
    bounds = {"a": (0.0, 1.0), "b": (0.5, 2.0), "c": (0.0, 0.5)}
    (axes,) = plot_intervals(bounds, value="potential", groups=[0, 1, 0]).axes
    dots = [line for line in axes.lines if line.get_marker() == "o"]
    assert [line.get_xdata()[0] for line in dots] == [1.0, 2.0, 0.5]
    colours = [line.get_color() for line in dots]
    assert colours[0] == colours[2] != colours[1]
    assert axes.get_xlim()[0] == 0
