"""Draws the paper's figures from finished cells; beside each picture its numbers as a table."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmarks.paper.grids import Cell
from benchmarks.paper.summary import Estimate, Result, estimate

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


def _panel(axes: Any, lines: Lines, title: str, x: str, percent: bool = True) -> None:
    factor = 100 if percent else 1
    for label, places in lines.items():
        xs = list(places)
        ys = [factor * e.mean for e in places.values()]
        halves = [e.half if percent or e.seeds > 1 else None for e in places.values()]
        bars = [0.0 if half is None else factor * half for half in halves]
        axes.errorbar(xs, ys, yerr=bars, marker="o", capsize=3, label=label)
    axes.set_title(title, fontsize=9)
    axes.set_xlabel(x)
    axes.grid(alpha=0.3)


def _draw(panels: Iterable[Panel], path: Path) -> str:
    shown = [p for p in panels if p[0]]
    figure = Figure(figsize=(4.2 * max(len(shown), 1), 3.6), layout="constrained")
    text = []
    for axes, (lines, title, x, percent) in zip(
        figure.subplots(1, max(len(shown), 1), squeeze=False)[0], shown, strict=False
    ):
        _panel(axes, lines, title, x, percent)
        axes.legend(fontsize=7)
        text.append(_table(lines, title, x, percent))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    return "\n".join(text)


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
