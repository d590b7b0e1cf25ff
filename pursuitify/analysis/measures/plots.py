"""Pictures of coherence: Gram block heat map, block sparsity, bound against a family's size.

matplotlib is imported by the functions, never by importing pursuitify.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING

import numpy as np

from pursuitify import plots
from pursuitify.errors import OptionError
from pursuitify.utils import option_checks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from pursuitify.analysis.measures.coherence_report import CoherenceReport

MEASURES = ("maximum", "rms", "mean_abs", "count")
_LABELS = {
    "maximum": "largest absolute entry",
    "rms": "root mean square entry",
    "mean_abs": "mean absolute entry",
    "count": "structural entries",
}


def plot_gram_blocks(
    report: CoherenceReport,
    path: str | PathLike[str] | None = None,
    measure: str = "maximum",
    *,
    ax: Axes | None = None,
) -> Figure:
    """Draw one measure of every block of the Gram matrix; structurally zero blocks stay white.

    Args:
        report: What ``coherence()`` returns.
        path: File to write; the suffix chooses the format. Nothing is written if None.
        measure: ``maximum``, ``rms``, ``mean_abs`` or ``count``.
        ax: Axes to draw into; None for a figure of its own.
    """
    option_checks.one_of("measure", measure, tuple(MEASURES))
    names = [n.latent for n in report.column_norms]
    index = {name: i for i, name in enumerate(names)}
    grid = np.full((len(names), len(names)), np.nan)
    for block in report.blocks:
        a, b = (index[n] for n in block.latents)
        grid[a, b] = grid[b, a] = getattr(block, measure)
    with plots.style():
        from matplotlib.colors import LogNorm

        figure, axes = _square(len(names), ax)
        norm = LogNorm() if measure == "count" else None
        image = axes.imshow(grid, cmap="cividis", norm=norm, vmin=None if norm else 0)
        figure.colorbar(image, ax=axes, label=_LABELS[measure], shrink=0.8)
        _label(axes, names)
        axes.set_title(
            f"Gram matrix by latents, {report.model}\n{report.boundary}, input {report.input_shape}"
        )
        return plots.finished(figure, path)


def plot_block_sparsity(
    report: CoherenceReport, path: str | PathLike[str] | None = None, *, ax: Axes | None = None
) -> Figure:
    """Draw which blocks of the Gram matrix hold off-diagonal entries, and what share those are.

    Args:
        report: What ``coherence()`` returns.
        path: File to write; none if None.
        ax: Axes to draw into; None for a figure of its own.
    """
    names = [n.latent for n in report.column_norms]
    index = {name: i for i, name in enumerate(names)}
    grid = np.zeros((len(names), len(names)))
    for block in report.blocks:
        a, b = (index[n] for n in block.latents)
        grid[a, b] = grid[b, a] = 1
    with plots.style():
        from matplotlib.colors import ListedColormap

        figure, axes = _square(len(names), ax)
        axes.imshow(grid, cmap=ListedColormap(["#FFFFFF", plots.COLOURS[0]]), vmin=0, vmax=1)
        _label(axes, names)
        share = report.count / max(report.columns * (report.columns - 1), 1)
        axes.set_title(
            f"Blocks of the Gram matrix with off-diagonal entries: {int(grid.sum())} of "
            f"{grid.size}, {report.model}\n{100 * share:.2g} % of its off-diagonal entries are "
            "structural"
        )
        return plots.finished(figure, path)


def plot_families(
    families: Mapping[str, Sequence[tuple[float, float]]],
    path: str | PathLike[str] | None = None,
    *,
    size: str,
    value: str = "minimum frame potential",
    note: str = "",
    lower: Mapping[str, Sequence[tuple[float, float]]] | None = None,
    ax: Axes | None = None,
) -> Figure:
    """Draw a bound or a measure against depth, width or parameters, one curve per family.

    Args:
        families: Per family its (size, value) points.
        path: File to write; none if None.
        size: What the horizontal axis is.
        value: What the vertical axis is.
        note: Rules the numbers stand on, printed below the title.
        lower: Lower bounds of the values, likewise: dashed, with hollow marks.
        ax: Axes to draw into; None for a figure of its own.
    """
    if not any(families.values()):
        raise OptionError("there are no points to draw")
    with plots.style():
        from matplotlib.ticker import LogLocator, NullFormatter

        figure, axes = plots.panel(ax)
        for i, (name, points) in enumerate(families.items()):
            for drawn, bound in ((points, False), ((lower or {}).get(name, ()), True)):
                if not drawn:
                    continue
                ordered = sorted(drawn)
                axes.plot(
                    [x for x, _ in ordered],
                    [y for _, y in ordered],
                    marker=plots.MARKS[i % len(plots.MARKS)],
                    color=plots.COLOURS[i % len(plots.COLOURS)],
                    # Curves may lie on each other: one that is drawn later has gaps.
                    linestyle="--" if bound else ("-", (0, (6, 2)), (0, (3, 3)))[i % 3],
                    markerfacecolor="white" if bound else None,
                    linewidth=0.9 if bound else 1.4,
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
        axes.set_title(f"{value[0].upper()}{value[1:]}\n{note}".strip())
        plots.legend(axes)
        return plots.finished(figure, path)


def plot_intervals(
    bounds: Mapping[str, tuple[float, float]],
    path: str | PathLike[str] | None = None,
    *,
    value: str,
    ends: str = "line: proven lower bound, dot: best weights met",
    note: str = "",
    groups: Sequence[int] | None = None,
    ax: Axes | None = None,
) -> Figure:
    """Draw a bar from the lower to the upper bound of each name, the first on top.

    Args:
        bounds: Per name its lower and upper bound.
        path: File to write; none if None.
        value: What the horizontal axis is.
        ends: What the two ends of a bar are.
        note: Rules the numbers stand on, printed below the title.
        groups: A number per name; names of one number share a colour. One colour if None.
        ax: Axes to draw into; None for a figure of its own.
    """
    if not bounds:
        raise OptionError("there are no bounds to draw")
    names = list(bounds)
    with plots.style():
        figure, axes = plots.panel(ax, height=1.3 + 0.3 * len(names))
        for place, (low, high) in enumerate(bounds.values()):
            group = 0 if groups is None else groups[place]
            colour = plots.COLOURS[group % len(plots.COLOURS)]
            axes.plot(
                [low, high],
                [place, place],
                color=colour,
                marker="",
                linewidth=5,
                alpha=0.35,
                solid_capstyle="butt",
            )
            (line,) = axes.plot([low], [place], "|", color=colour, markersize=11)
            line.set(markeredgewidth=1.6, clip_on=False)  # seen whole where the bound is 0
            axes.plot([high], [place], "o", color=colour, markersize=6)
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set_xlim(left=0)
        axes.set_xlabel(f"{value} ({ends})")
        axes.set_title(f"{value[0].upper()}{value[1:]}\n{note}".strip())
        axes.grid(False, axis="y")
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0)
        return plots.finished(figure, path)


def _square(count: int, ax: Axes | None) -> tuple[Figure, Axes]:
    side = min(4.2 + 0.12 * count, 7.6)
    return plots.panel(ax, side + 1.2, side)


def _label(axes: Axes, names: Sequence[str]) -> None:
    if len(names) <= 24:
        axes.set_xticks(range(len(names)), names, rotation=90, fontsize=8)
        axes.set_yticks(range(len(names)), names, fontsize=8)
    else:
        axes.set_xlabel("latent")
        axes.set_ylabel("latent")
    plots.matrix(axes)
