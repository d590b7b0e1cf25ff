"""The pictures of the benchmarks, from the committed JSON alone; ``render.py`` draws them all.

The exponents in the titles of the scaling picture are those of the table beside it.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import common, scaling
from pursuitify import plots

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: How networks are written; other names are shown as they are.
NAMES = {
    "resnet18": "ResNet-18",
    "resnet34": "ResNet-34",
    "resnet50": "ResNet-50",
    "densenet121": "DenseNet-121",
    "vgg11": "VGG-11",
    "vgg13": "VGG-13",
    "vgg16": "VGG-16",
    "vgg11_bn": "VGG-11 with BatchNorm",
    "mobilenet_v2": "MobileNetV2",
    "mnasnet0_5": "MNASNet 0.5",
    "mnasnet1_0": "MNASNet 1.0",
    "googlenet": "GoogLeNet",
    "regnet_x_400mf": "RegNetX-400MF",
    "regnet_x_800mf": "RegNetX-800MF",
    "regnet_x_1_6gf": "RegNetX-1.6GF",
    "digits": "digits",
    "fashion": "Fashion-MNIST",
}
#: Of the modes in memory.json, the options that ask for them.
MODES = {
    "store": "store",
    "recompute": "recompute",
    "recompute-2": "recompute, recompute_levels=2",
    "implicit": "implicit",
    "implicit-last-1": "implicit, implicit_last=1",
}
#: Curves that may lie on each other: one that is drawn later has gaps.
DASHES = ("-", (0, (5, 3)), (0, (2, 2)))


def name(network: str) -> str:
    """Return the name of a network as it is written."""
    return NAMES.get(network, network)


def logarithmic(axes: Axes) -> None:
    """Make the vertical axis of a finished panel logarithmic, with ticks at plain numbers."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.set_yscale("log")
    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 300 * low else (1,)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())


def _below(figure: Figure, axes: Axes, columns: int) -> None:
    """Put the legend of one panel below all."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=columns)


def time_by_sweeps(rows: Sequence[common.Row]) -> Figure:
    """Draw time against T, one panel per model and one line per way, with the floor."""
    from matplotlib.figure import Figure

    models = list(dict.fromkeys(row["model"] for row in rows))
    figure = Figure(figsize=(plots.WIDE, 3.6))
    panels = figure.subplots(1, len(models), squeeze=False)[0]
    for axes, model in zip(panels, models, strict=True):
        mine = sorted((r for r in rows if r["model"] == model), key=lambda r: r["sweeps"])
        for way in dict.fromkeys(row["way"] for row in mine):
            line = [(r["sweeps"], r["sources"]) for r in mine if r["way"] == way]
            axes.plot(*zip(*line, strict=True), label=way)
        counts = sorted({r["sweeps"] for r in mine})
        floor = [common.floor(t) for t in counts]
        axes.plot(counts, floor, "k--", marker="", linewidth=1, label="1 + 2T")
        axes.set_xticks(counts)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("T, the number of sweeps")
        axes.set_title(name(model))
    panels[0].set_ylabel("time, in passes of the source")
    _below(figure, panels[0], 5)
    return figure


def memory_by_sweeps(rows: Sequence[common.Row]) -> Figure:
    """Draw memory against T: what a training step saves, and what inference holds."""
    figure, axes = plots.panel(None)
    mine = sorted((r for r in rows if r["factor"] == "T"), key=lambda r: r["value"])
    counts = [r["value"] for r in mine]
    lines = {
        "training step": "saved_mib",
        "source's training step": "source_saved_mib",
        "inference:\nlatents and residuals": "state_mib",
    }
    for label, field in lines.items():
        axes.plot(counts, [r[field] for r in mine], label=label)
    logarithmic(axes)
    axes.set_xticks(counts)
    axes.set_xlabel("T, the number of sweeps")
    axes.set_ylabel("MiB, logarithmic")
    axes.set_title("ResNet-18, batch 2, 64 px")
    plots.legend(axes)
    return figure


#: Fields of a row of scaling.json, and what they are called.
FIELDS = (
    ("source_seconds", "source (first exponent)"),
    ("seconds", "pursuit network (second exponent)"),
)


def by_factor(rows: Sequence[common.Row]) -> Figure:
    """Draw time against every factor, log-log, of the source and of the network."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(plots.WIDE, 5.8))
    panels = figure.subplots(2, 3)
    for axes, factor in zip(panels.flat, scaling.VALUES, strict=True):
        points = sorted((r for r in rows if r["factor"] == factor), key=lambda r: r["value"])
        xs = [r["value"] for r in points]
        powers = []
        for field, label in FIELDS:
            ys = [1000 * r[field] for r in points]
            axes.loglog(xs, ys, label=label)
            powers.append(f"{scaling.fit(xs, ys)[0]:.2f}")
        logarithmic(axes)
        axes.set_xticks(xs, [str(x) for x in xs])
        axes.minorticks_off()
        axes.set_title(f"{factor}\nexponents {' and '.join(powers)}")
    for axes in panels[:, 0]:
        axes.set_ylabel("CPU ms")
    _below(figure, panels[0, 0], 2)
    return figure


def memory_modes(rows: Sequence[common.Row], model: str = "resnet18") -> Figure:
    """Draw what autograd keeps of a training step against T, one line per memory mode."""
    figure, axes = plots.panel(None, plots.WIDE)
    mine = [row for row in rows if row["model"] == model]
    source = next(row["saved"] for row in mine if row["mode"] == "source")
    for mode, label in MODES.items():
        points = sorted((r["sweeps"], r["saved"] / source) for r in mine if r["mode"] == mode)
        axes.plot(*zip(*points, strict=True), label=label)
    logarithmic(axes)
    axes.set_xticks(sorted({row["sweeps"] for row in mine if row["mode"] != "source"}))
    axes.set_xlabel("T, the number of sweeps")
    axes.set_ylabel("saved for backward, in sources (logarithmic)")
    axes.set_title(f"{name(model)}: memory of a training step")
    plots.legend(axes)
    return figure


def clock(timed: Sequence[common.Row]) -> Callable[[int], float]:
    """Return the CPU seconds of a call with T sweeps, on the line through the two timed calls.

    Args:
        timed: Rows of one model and rule, with ``needed`` (T) and ``seconds``.
    """
    (few, first), (many, last) = sorted((row["needed"], row["seconds"]) for row in timed)
    return lambda t: first + (last - first) * (t - few) / (many - few)


def objective_by_time(rows: Sequence[common.Row]) -> Figure:
    """Draw the objective against CPU time of both rules for step sizes, one panel per model.

    The objective after each T is measured, and so is the time of two calls per rule, which have
    filled marks; the times between lie on the line through these two.
    """
    from matplotlib.figure import Figure

    models = list(dict.fromkeys(row["model"] for row in rows))
    figure = Figure(figsize=(plots.WIDE, 5.6))
    panels = list(figure.subplots(2, 3).flat)
    rules = tuple(dict.fromkeys(row["rule"] for row in rows))
    for axes, model in zip(panels, models, strict=False):
        for number, rule in enumerate(rules):
            timed = [r for r in rows if (r["model"], r["rule"]) == (model, rule) and r["needed"]]
            if len({row["needed"] for row in timed}) < 2:
                continue
            at, curve = clock(timed), timed[-1]["curve"]
            shown = range(1, max(row["needed"] for row in timed) + 1)
            axes.plot(
                [at(t) for t in shown],
                [curve[t] / curve[0] for t in shown],
                color=plots.COLOURS[number],
                marker=plots.MARKS[number],
                markevery=[row["needed"] - 1 for row in timed],
                label=f"{rule} steps",
            )
        logarithmic(axes)
        axes.set_xlim(left=0)
        axes.set_xlabel("CPU s of the call")
        axes.set_title(name(model))
    for axes in panels[len(models) :]:
        axes.set_axis_off()
    for axes in panels[::3]:
        axes.set_ylabel("F after T sweeps / F at T = 0")
    _below(figure, panels[0], 2)
    return figure


def accuracy(rows: Sequence[common.Row]) -> Figure:
    """Draw test accuracy against T, mean of the seeds, one line per means to keep it."""
    from matplotlib.figure import Figure

    cells = list(dict.fromkeys((r["data"], r["net"]) for r in rows))
    columns = len({net for _, net in cells})
    means = list(dict.fromkeys(r["means"] for r in rows))
    sweeps = sorted({r["sweeps"] for r in rows})
    figure = Figure(figsize=(plots.WIDE, 2.6 * -(-len(cells) // columns) + 0.8))
    panels = figure.subplots(-(-len(cells) // columns), columns, squeeze=False, sharey=True)
    for (data, net), axes in zip(cells, panels.flat, strict=True):
        for number, kept in enumerate(means):
            found = [
                [r["accuracy"] for r in rows
                 if (r["data"], r["net"], r["means"], r["sweeps"]) == (data, net, kept, t)]
                for t in sweeps
            ]  # fmt: skip
            points = [statistics.mean(values) for values in found]
            axes.plot(points, linestyle=DASHES[number % len(DASHES)], label=kept)
        axes.set_title(f"{name(data)}, {name(net)}")
        axes.set_ylim(0, 1.02)
        plots.ordinal(axes, sweeps)
    for axes in panels[:, 0]:
        axes.set_ylabel("test accuracy")
    for axes in panels[-1]:
        axes.set_xlabel("T, the number of sweeps")
    _below(figure, panels[0, 0], 2)
    return figure


#: Per picture: the file of measurements, what draws it.
PICTURES: dict[str, tuple[str, Callable[[Sequence[common.Row]], Figure]]] = {
    "time-by-sweeps": ("baselines", time_by_sweeps),
    "memory-by-sweeps": ("scaling", memory_by_sweeps),
    "scaling": ("scaling", by_factor),
    "memory-modes": ("memory", memory_modes),
    "objective-by-time": ("step_rules", objective_by_time),
    "accuracy": ("conversion_accuracy", accuracy),
}


def draw(results: Path, folder: Path) -> None:
    """Draw every picture whose measurements are in ``results`` into ``folder``."""
    for picture, (source, make) in PICTURES.items():
        file = results / f"{source}.json"
        if file.exists():
            with plots.style():
                figure = make(json.loads(file.read_text())["rows"])
                plots.finished(figure, folder / f"{picture}.png")
