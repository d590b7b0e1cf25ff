"""Pictures of coherence: Gram block heat map, block sparsity, bound against a family's size.

matplotlib is imported by the functions, never by importing pursuitify.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING

import numpy as np

from pursuitify.analysis.measures.coherence_report import CoherenceReport
from pursuitify.errors import OptionError
from pursuitify.utils import option_checks
from pursuitify.utils.atomic_files import write_picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MEASURES = ("maximum", "rms", "mean_abs", "count")
_LABELS = {
    "maximum": "largest absolute entry",
    "rms": "root mean square entry",
    "mean_abs": "mean absolute entry",
    "count": "structural entries",
}
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_MARKS = "osD^vP"


def plot_gram_blocks(
    report: CoherenceReport, path: str | PathLike[str], measure: str = "maximum"
) -> Figure:
    """Draw one measure of every block of the Gram matrix; structurally zero blocks stay white.

    Args:
        report: What ``coherence()`` returns.
        path: File to write; the suffix chooses the format.
        measure: ``maximum``, ``rms``, ``mean_abs`` or ``count``.
    """
    option_checks.one_of("measure", measure, tuple(MEASURES))
    names = [n.latent for n in report.column_norms]
    index = {name: i for i, name in enumerate(names)}
    grid = np.full((len(names), len(names)), np.nan)
    for block in report.blocks:
        a, b = (index[n] for n in block.latents)
        grid[a, b] = grid[b, a] = getattr(block, measure)
    figure, axes = _square(len(names))
    from matplotlib.colors import LogNorm

    norm = LogNorm() if measure == "count" else None
    image = axes.imshow(grid, cmap="cividis", norm=norm, vmin=None if norm else 0)
    figure.colorbar(image, ax=axes, label=_LABELS[measure], shrink=0.8)
    _label(axes, names)
    axes.set_title(
        f"Gram matrix by latents, {report.model}\n{report.boundary}, input {report.input_shape}",
        loc="left",
        fontsize=10,
    )
    return write_picture(path, figure)


def plot_block_sparsity(report: CoherenceReport, path: str | PathLike[str]) -> Figure:
    """Draw which blocks of the Gram matrix hold off-diagonal entries, and what share those are.

    Args:
        report: What ``coherence()`` returns.
        path: File to write.
    """
    names = [n.latent for n in report.column_norms]
    index = {name: i for i, name in enumerate(names)}
    figure, axes = _square(len(names))
    grid = np.zeros((len(names), len(names)))
    for block in report.blocks:
        a, b = (index[n] for n in block.latents)
        grid[a, b] = grid[b, a] = 1
    from matplotlib.colors import ListedColormap

    axes.imshow(grid, cmap=ListedColormap(["#FFFFFF", "#0072B2"]), vmin=0, vmax=1)
    _label(axes, names)
    share = report.count / max(report.columns * (report.columns - 1), 1)
    axes.set_title(
        f"Blocks of the Gram matrix with off-diagonal entries: {int(grid.sum())} of {grid.size}, "
        f"{report.model}\n{100 * share:.2g} % of its off-diagonal entries are structural",
        loc="left",
        fontsize=10,
    )
    return write_picture(path, figure)


def plot_families(
    families: Mapping[str, Sequence[tuple[float, float]]],
    path: str | PathLike[str],
    *,
    size: str,
    value: str = "minimum frame potential",
    note: str = "",
    lower: Mapping[str, Sequence[tuple[float, float]]] | None = None,
) -> Figure:
    """Draw a bound or a measure against depth, width or parameters, one curve per family.

    Args:
        families: Per family its (size, value) points.
        path: File to write.
        size: What the horizontal axis is.
        value: What the vertical axis is.
        note: Rules the numbers stand on, printed below the title.
        lower: Lower bounds of the values, likewise: dashed, with hollow marks.
    """
    option_checks.extra("plots", "matplotlib")
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter

    if not any(families.values()):
        raise OptionError("there are no points to draw")
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    for i, (name, points) in enumerate(families.items()):
        for drawn, bound in ((points, False), ((lower or {}).get(name, ()), True)):
            ordered = sorted(drawn)
            axes.plot(
                [x for x, _ in ordered],
                [y for _, y in ordered],
                marker=_MARKS[i % len(_MARKS)],
                color=_COLOURS[i % len(_COLOURS)],
                linestyle="--" if bound else "-",
                markerfacecolor="white" if bound else None,
                linewidth=0.9 if bound else 1.4,
                markersize=5,
                clip_on=False,
                label=None if bound else name,
            )
    sizes = sorted({x for points in families.values() for x, _ in points})
    if sizes[0] > 0 and sizes[-1] / sizes[0] >= 8:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
    if len(sizes) <= 8:
        axes.set_xticks(sizes, [f"{x:g}" for x in sizes])
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_ylim(bottom=0)
    axes.set_xlabel(size)
    axes.set_ylabel(value)
    axes.set_title(f"{value[0].upper()}{value[1:]}\n{note}".strip(), loc="left", fontsize=10)
    axes.grid(color="#E5E5E5", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    return write_picture(path, figure)


def plot_intervals(
    bounds: Mapping[str, tuple[float, float]],
    path: str | PathLike[str] | None,
    *,
    value: str,
    note: str = "",
) -> Figure:
    """Draw a bar from the lower to the upper bound of each name, the first on top.

    Args:
        bounds: Per name its lower and upper bound.
        path: File to write; none if None.
        value: What the horizontal axis is.
        note: Rules the numbers stand on, printed below the title.
    """
    option_checks.extra("plots", "matplotlib")
    from matplotlib.figure import Figure

    if not bounds:
        raise OptionError("there are no bounds to draw")
    names = list(bounds)
    figure = Figure(figsize=(6.4, 1.2 + 0.32 * len(names)), layout="constrained")
    axes = figure.subplots()
    for place, (low, high) in enumerate(bounds.values()):
        axes.plot(
            [low, high],
            [place, place],
            color=_COLOURS[0],
            linewidth=5,
            alpha=0.35,
            solid_capstyle="butt",
        )
        axes.plot([low], [place], "|", color=_COLOURS[0], markersize=12, markeredgewidth=1.6)
        axes.plot([high], [place], "o", color=_COLOURS[0], markersize=6)
    axes.set_yticks(range(len(names)), names, fontsize=9)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlim(left=0)
    axes.set_xlabel(f"{value} (line: proven lower bound, dot: best weights met)")
    axes.set_title(f"{value[0].upper()}{value[1:]}\n{note}".strip(), loc="left", fontsize=10)
    axes.grid(color="#E5E5E5", linewidth=0.6, axis="x")
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    return figure if path is None else write_picture(path, figure)


def _square(count: int) -> tuple[Figure, Axes]:
    option_checks.extra("plots", "matplotlib")
    from matplotlib.figure import Figure

    side = min(4.5 + 0.12 * count, 9.0)
    figure = Figure(figsize=(side + 1.2, side), layout="constrained")
    return figure, figure.subplots()


def _label(axes: Axes, names: Sequence[str]) -> None:
    if len(names) <= 24:
        axes.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
        axes.set_yticks(range(len(names)), names, fontsize=7)
    else:
        axes.set_xlabel("latent")
        axes.set_ylabel("latent")
    axes.tick_params(length=0)
    axes.spines[:].set_color("#BBBBBB")
