"""Draws the paper's figures from finished cells; beside each picture its numbers as a table."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.paper.grids import Cell
from benchmarks.paper.summary import Estimate, Result, estimate
from pursuitify import plots

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Pairs = list[tuple[Cell, Result]]
Key = Callable[[Cell], Any]
#: Label -> position -> value.
Lines = dict[str, dict[Any, Estimate]]
#: Lines, title, name of the positions, whether the values are shares.
Panel = tuple[Lines, str, str, bool]


def series(pairs: Pairs, at: Key, read: Callable[[Result], float], *, tested: bool = True) -> Lines:
    """Return per label and position the mean over seeds of what ``read`` finds.

    ``tested`` says whether that is a share of the test images.
    """
    values: dict[str, dict[Any, list[float]]] = {}
    images = None
    for one, result in pairs:
        images = result["found"]["images"] if tested else None
        values.setdefault(one.label, {}).setdefault(at(one), []).append(read(result))
    return {
        label: {place: estimate(found, images) for place, found in sorted(places.items())}
        for label, places in values.items()
    }


def _panel(axes: Axes, lines: Lines, title: str, x: str, percent: bool = True) -> None:
    """Draw one panel: evenly spaced places, and at each the labels' bars beside each other."""
    factor = 100 if percent else 1
    places = sorted({place for found in lines.values() for place in found})
    bars = {
        label: [factor * (e.half or 0.0) if percent or e.seeds > 1 else 0.0 for e in found.values()]
        for label, found in lines.items()
    }
    aside = any(map(any, bars.values()))
    for number, (label, found) in enumerate(lines.items()):
        shift = plots.beside(number, len(lines)) if aside else 0.0
        axes.errorbar(
            [places.index(place) + shift for place in found],
            [factor * e.mean for e in found.values()],
            yerr=bars[label],
            color=plots.COLOURS[number % len(plots.COLOURS)],
            marker=plots.MARKS[number % len(plots.MARKS)],
            elinewidth=1,
            linewidth=0.8,
            label=label,
        )
    if percent:  # an interval may reach beyond 0 and 100, an accuracy does not
        low, high = axes.get_ylim()
        axes.set_ylim(max(low, 0), min(high, 101))
    axes.set_title(f"{title}, %" if percent else title)
    axes.set_xlabel(x)
    plots.ordinal(axes, places)
    plots.legend(axes)


def _draw(panels: Iterable[Panel], path: Path) -> str:
    """Draw panels below each other, and return their numbers as tables."""
    shown = [p for p in panels if p[0]]
    with plots.style():
        from matplotlib.figure import Figure

        figure = Figure(figsize=(plots.WIDE, max(2.7 * len(shown), 3.2)))
        all_axes = figure.subplots(max(len(shown), 1), 1, squeeze=False)[:, 0]
        for axes, panel in zip(all_axes, shown, strict=False):
            _panel(axes, *panel)
        plots.finished(figure, path)
    return "\n".join(_table(*panel) for panel in shown)


def _table(lines: Lines, title: str, x: str, percent: bool) -> str:
    places = sorted({place for found in lines.values() for place in found})
    heads = [f"{title}; {x}:", *map(str, places)]
    rows = ["| " + " | ".join(heads) + " |", "| " + " | ".join(["---"] * len(heads)) + " |"]
    for label, found in lines.items():
        cells = []
        for place in places:
            value = found.get(place)
            cells.append("" if value is None else str(value) if percent else f"{value.mean:.4g}")
        rows.append("| " + " | ".join([label, *cells]) + " |")
    return "\n".join(rows) + "\n"


def _accuracies(pairs: Pairs, at: Key, x: str) -> list[Panel]:
    keys = {"clean": "clean", "fgsm": "FGSM, 8/255", "worst": "strongest attack, 8/255"}
    return [
        (series([p for p in pairs if key in p[1]["found"]], at, lambda r, k=key: r["found"][k]),
         title, x, True)
        for key, title in keys.items()
    ]  # fmt: skip


def figure5(pairs: Pairs, path: Path) -> str:
    """5, 13, 14: accuracy against depth, by skips and width."""
    return _draw(_accuracies(pairs, lambda c: c.training.depth, "units per block"), path)


def figure11(pairs: Pairs, path: Path) -> str:
    """11, 12: do deep chains train?"""
    last, loss = (
        series(
            pairs,
            lambda c: c.training.depth,
            lambda r, k=key: r["training"]["history"][-1][k],
            tested=False,
        )
        for key in ("train", "loss")
    )
    x = "units per block"
    panels = [(last, "training accuracy, last epoch", x, True)]
    return _draw([*panels, (loss, "training loss, last epoch", x, False)], path)


def figure6(pairs: Pairs, path: Path) -> str:
    """6: accuracy against the number of sweeps, by method."""
    return _draw(_accuracies(pairs, lambda c: c.training.iterations, "sweeps T"), path)


def figure7(pairs: Pairs, path: Path) -> str:
    """7: clean, FGSM and PGD-40 accuracy while training."""
    panels = []
    for key, title in (("train", "training"), ("fgsm", "FGSM, 8/255"), ("pgd", "PGD-40, 8/255")):
        lines: Lines = {}
        for one, result in pairs:
            points = [h for h in result["training"]["history"] if key in h and "fgsm" in h]
            images = None if key == "train" else 500
            lines[one.label] = {h["epoch"]: estimate([h[key]], images) for h in points}
        panels.append((lines, title, "epoch", True))
    return _draw(panels, path)


def figure8(pairs: Pairs, path: Path) -> str:
    """8: relative reconstruction error per sweep, mean over rows, of the longest pursuits."""
    most = max((one.training.iterations for one, _ in pairs), default=0)
    errors: dict[str, dict[int, list[float]]] = {}
    for one, result in pairs:
        if one.training.iterations == most and "reconstruction" in result["found"]:
            for t, rows in enumerate(result["found"]["reconstruction"]):
                mean = sum(rows) / len(rows)
                errors.setdefault(one.label, {}).setdefault(t, []).append(mean)
    lines = {
        label: {t: estimate(found, None) for t, found in places.items()}
        for label, places in errors.items()
    }
    return _draw([(lines, "mean over rows of ‖r‖² / ‖u‖²", "sweep", False)], path)


def _coherence(pairs: Pairs, path: Path, key: str, title: str) -> str:
    held = [p for p in pairs if key in p[1]["found"]]
    lines = series(held, lambda c: c.training.iterations, lambda r: r["found"][key])
    return _draw([(lines, title, "sweeps T trained with", False)], path)


def figure9(pairs: Pairs, path: Path) -> str:
    """9: deep frame potential."""
    return _coherence(pairs, path, "frame_potential", "deep frame potential (RMS, interior)")


def figure10(pairs: Pairs, path: Path) -> str:
    """10: mutual coherence."""
    return _coherence(pairs, path, "mutual_coherence", "mutual coherence (interior)")


#: Figure -> (the grid whose cells it draws, how).
FIGURES: dict[str, tuple[str, Callable[[Pairs, Path], str]]] = {
    "figure5": ("figure5", figure5),
    "figure11": ("figure5", figure11),
    "figure6": ("figure6", figure6),
    "figure7": ("figure7", figure7),
    "figure8": ("figure6", figure8),
    "figure9": ("figure6", figure9),
    "figure10": ("figure6", figure10),
}
