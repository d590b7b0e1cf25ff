"""The style and the two pictures: files are written, what they show is there."""

from __future__ import annotations

import pickle
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

pytest.importorskip("matplotlib")

import matplotlib.pyplot
from matplotlib.collections import PatchCollection
from matplotlib.figure import Figure

from pursuitify import OptionError, plots, pursuitify
from pursuitify.errors import MissingExtraError
from pursuitify.models import ChainNet
from pursuitify.plots import plot_objective, plot_structure
from tests.support.nets import BY_NAME


def blocks(figure) -> int:
    (axes,) = figure.axes
    found = [c for c in axes.collections if isinstance(c, PatchCollection)]
    return sum(len(c.get_paths()) for c in found)


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
@pytest.mark.parametrize("name", ["linear_chain", "conv_residual"])
def test_structure(name: str, suffix: str, tmp_path: Path) -> None:
    net = pursuitify(BY_NAME[name].build())
    path = tmp_path / "deeper" / f"structure.{suffix}"
    figure = plot_structure(net, path)
    assert path.stat().st_size > 1000
    graph = net.graph
    assert blocks(figure) == len(graph) - 1 + graph.number_of_edges()
    (axes,) = figure.axes
    assert axes.get_xlim() == (0, len(graph))
    assert axes.get_ylim() == (len(graph) - 1, 0)
    labels = [t.get_text() for t in axes.get_yticklabels()]
    assert labels == list(BY_NAME[name].order)
    assert blocks(plot_structure(graph, str(path))) == blocks(figure)


def test_structure_refuses_what_is_no_network(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="not str"):
        plot_structure("net", tmp_path / "a.png")
    assert not (tmp_path / "a.png").exists()


@pytest.mark.parametrize("solver", ["global", "layered", "feedforward"])
def test_objective(solver: str, tmp_path: Path) -> None:
    case = BY_NAME["conv_residual"]
    net = pursuitify(case.build(), iterations=4, solver=solver)
    record, path = net.diagnose(case.input(batch=2)), tmp_path / "objective.png"
    figure = plot_objective(record, path)
    assert path.stat().st_size > 1000
    left, right = figure.axes
    (curve,) = left.lines
    assert list(curve.get_ydata()) == [s.objective for s in record.sweeps]
    assert len(right.lines) == len(case.order)
    for j, line in enumerate(right.lines):
        assert list(line.get_ydata()) == [s.residual[j] for s in record.sweeps]
    assert [t.get_text() for t in right.get_legend().get_texts()] == list(case.order)


def test_names_that_begin_with_an_underscore_are_shown(tmp_path: Path) -> None:
    """matplotlib leaves such labels out of legends, and modules of a Sequential have such names."""
    net = pursuitify(nn.Sequential(nn.Linear(3, 4), nn.ReLU()), iterations=1)
    figure = plot_objective(net.diagnose(torch.rand(2, 3)), tmp_path / "objective.png")
    legend = figure.axes[1].get_legend()
    assert [text.get_text() for text in legend.get_texts()] == ["_1"]


def test_the_style_stays_within_its_block() -> None:
    before = dict(matplotlib.rcParams)
    with plots.style():
        figure, axes = plots.panel(None)
        assert not axes.spines["top"].get_visible()
        assert figure.get_layout_engine() is not None
    assert dict(matplotlib.rcParams) == before


def test_pictures_go_into_axes_that_are_given(tmp_path: Path) -> None:
    """And nothing is written without a path."""
    net = pursuitify(ChainNet(1, 2, width=2), iterations=3).eval()
    trace = net.diagnose(torch.rand(1, 1, 6, 6))
    for draw in (partial(plot_structure, net), partial(plot_objective, trace), trace.plot):
        figure = Figure()
        left, right = figure.subplots(1, 2)
        assert draw(ax=right) is figure
        assert right.has_data()
        assert not left.has_data()
    (curve,) = right.lines
    assert list(curve.get_ydata()) == [sweep.objective for sweep in trace.sweeps]
    trace.plot(tmp_path / "trace.png", ax=right)
    assert [path.name for path in tmp_path.iterdir()] == ["trace.png"]
    right.remove()
    with pytest.raises(OptionError, match="no figure"):
        trace.plot(ax=right)


@pytest.mark.parametrize("count", [1, 2, 3, 6, 20])
def test_bars_beside_each_other_touch_no_other_place(count: int) -> None:
    places = [plots.beside(number, count) for number in range(count)]
    assert sum(places) == pytest.approx(0)
    assert all(abs(place) < 0.31 for place in places)
    assert len(set(places)) == count


@pytest.mark.parametrize("values", [(0, 1, 2, 5, 10, 20, 50), (0.5,), (4, 1, 1024)])
def test_places_are_whole_numbers_with_their_values(values: tuple[float, ...]) -> None:
    with plots.style():
        _, axes = plots.panel(None)
        plots.ordinal(axes, values)
    assert list(axes.get_xticks()) == list(range(len(values)))
    assert [t.get_text() for t in axes.get_xticklabels()] == [f"{v:g}" for v in values]


@pytest.mark.parametrize("sweeps", [1, 2, 3])
def test_sweeps_have_ticks_at_whole_numbers(sweeps: int) -> None:
    net = pursuitify(ChainNet(1, 2, width=2), iterations=sweeps).eval()
    figure = net.diagnose(torch.rand(1, 1, 6, 6)).plot()
    for axes in figure.axes[:2]:
        assert all(tick == round(tick) for tick in axes.get_xticks())


def test_objective_needs_sweeps(tmp_path: Path) -> None:
    class Empty:
        def to_dict(self) -> dict:
            return {"latents": ["a"], "sweeps": []}

    with pytest.raises(OptionError, match="no sweeps"):
        plot_objective(Empty(), tmp_path / "a.png")


def test_without_matplotlib_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = pursuitify(ChainNet(1, 2, width=2), iterations=0).eval()
    trace = net.diagnose(torch.rand(1, 1, 6, 6))
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for draw in (partial(plot_structure, net), partial(plot_objective, trace)):
        with pytest.raises(MissingExtraError, match=r"pursuitify\[plots\]"):
            draw(tmp_path / "a.png")


def test_a_notebook_shows_a_figure_once_as_a_picture() -> None:
    """Its last value has a picture of its own, and pyplot has no figure left to show again."""
    known = matplotlib.pyplot.get_fignums()  # of other tests
    net = pursuitify(ChainNet(1, 3, width=2).eval())
    figures: list[Any] = [plot_structure(net), plot_objective(net.diagnose(torch.rand(1, 1, 8, 8)))]
    figures.append(pickle.loads(pickle.dumps(figures[1])))
    for figure in figures:
        assert figure._repr_png_().startswith(b"\x89PNG")
        assert isinstance(figure, Figure)
    assert figures[2]._repr_png_() == figures[1]._repr_png_(), "a pickled figure is the same"
    assert matplotlib.pyplot.get_fignums() == known
