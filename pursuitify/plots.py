"""Two pictures: the dictionary's block structure, and the objective per sweep.

matplotlib is imported by the functions, never by importing pursuitify.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from os import PathLike
from typing import TYPE_CHECKING, Any, Protocol

import networkx as nx
import numpy as np

from pursuitify.errors import OptionError
from pursuitify.utils import option_checks
from pursuitify.utils.atomic_files import write_picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours: told apart with every common colour blindness.
_COLOURS = {
    "decoder": "#0072B2",
    "encoder": "#56B4E9",
    "weighted": "#D55E00",
    "identity": "#009E73",
    "linear": "#E69F00",
    "diagonal": "#CC79A7",
    "mixed": "#5A5A5A",
}
_LABELS = {
    "decoder": "diagonal: weighted operator (decoder)",
    "encoder": "diagonal: identity (encoder)",
    "weighted": "weighted operator",
    "identity": "identity",
    "linear": "pooling, reshape and other parameter-free maps",
    "diagonal": "elementwise scale",
    "mixed": "several kinds of path",
}
_NAMED = 24  # rows that are labelled by name; beyond, by index


class _Trace(Protocol):
    """The part of a PursuitTrace that ``plot_objective`` reads."""

    def to_dict(self) -> Mapping[str, Any]:
        """Return latents and sweeps."""


def plot_structure(net: Any, path: str | PathLike[str]) -> Figure:
    """Draw which blocks of the global dictionary B are not zero.

    Row j is latent j's reconstruction, column k what it reads; the input's column is the signal,
    not part of B.

    Args:
        net: A PursuitNetwork, or its ``graph``.
        path: File to write; the suffix chooses the format.

    Returns:
        The figure; pyplot does not know it, so there is nothing to close.
    """
    graph = net if isinstance(net, nx.DiGraph) else getattr(net, "graph", None)
    if not isinstance(graph, nx.DiGraph):
        raise OptionError(f"net must be a PursuitNetwork or its graph, not {type(net).__name__}")
    latents = sorted(
        (node for node, index in graph.nodes(data="index", default=-1) if index >= 0),
        key=lambda node: graph.nodes[node]["index"],
    )
    if not latents:
        raise OptionError("the graph holds no latents")
    inputs = [node for node in graph.nodes if node not in set(latents)]
    column = {node: i for i, node in enumerate([*inputs, *latents])}
    blocks = list(_blocks(graph, latents, inputs, column))
    return _draw_structure(blocks, latents, inputs, path)


def _blocks(
    graph: nx.DiGraph[str], latents: list[str], inputs: list[str], column: dict[str, int]
) -> Iterator[tuple[int, int, str]]:
    """Yield (row, column, what is there)."""
    for row, name in enumerate(latents):
        yield row, column[name], str(graph.nodes[name]["layout"])
        for source in graph.predecessors(name):
            kinds = set(str(graph.edges[source, name]["kind"]).split("+"))
            found = kinds.pop() if len(kinds) == 1 else "mixed"
            yield row, column[source], found if found in _COLOURS else "mixed"


def _draw_structure(
    blocks: list[tuple[int, int, str]],
    latents: list[str],
    inputs: list[str],
    path: str | PathLike[str],
) -> Figure:
    option_checks.extra("plots", "matplotlib")
    from matplotlib.collections import PatchCollection
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch, Rectangle

    rows, columns = len(latents), len(latents) + len(inputs)
    side = min(4.0 + 0.22 * rows, 9.0)
    line = 20 / (rows + 15) if rows <= 60 else 0
    figure = Figure(figsize=(side + 0.8, side + 1.2), layout="constrained")
    axes = figure.subplots()
    for kind, colour in _COLOURS.items():
        cells = [Rectangle((c, r), 1, 1) for r, c, found in blocks if found == kind]
        axes.add_collection(
            PatchCollection(cells, facecolor=colour, edgecolor="white", linewidth=line)
        )
    axes.set(xlim=(0, columns), ylim=(rows, 0), aspect="equal")
    axes.axvline(len(inputs), color="black", linewidth=0.8, linestyle=":")
    axes.set_xlabel("latent read (left of the dotted line: the input)")
    axes.set_ylabel("row, one per latent")
    axes.set_title(f"Block structure of the global dictionary: {rows} latents", loc="left")
    if rows <= _NAMED:
        size = 9 if rows <= 12 else 7
        axes.set_yticks([r + 0.5 for r in range(rows)], latents, fontsize=size)
        names = [*inputs, *latents]
        axes.set_xticks([c + 0.5 for c in range(columns)], names, fontsize=size, rotation=90)
    else:
        every = range(0, rows, 10 if rows <= 100 else 20)
        axes.set_yticks([r + 0.5 for r in every], [str(r) for r in every], fontsize=9)
        shift = len(inputs) + 0.5
        axes.set_xticks([r + shift for r in every], [str(r) for r in every], fontsize=9)
    axes.tick_params(length=0)
    axes.spines[:].set_color("#BBBBBB")
    present = {kind for _, _, kind in blocks}
    figure.legend(
        handles=[Patch(color=c, label=_LABELS[k]) for k, c in _COLOURS.items() if k in present],
        loc="outside lower left",
        ncols=2 if side > 5 else 1,
        fontsize=8,
        frameon=False,
    )
    return write_picture(path, figure)


def plot_objective(trace: _Trace, path: str | PathLike[str]) -> Figure:
    """Draw the objective and the residual norms per sweep; sweep 0 is the feed-forward pass.

    Args:
        trace: What ``net.diagnose(x)`` returns.
        path: File to write; the suffix chooses the format.

    Returns:
        The figure; pyplot does not know it, so there is nothing to close.
    """
    option_checks.extra("plots", "matplotlib")
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    record = trace.to_dict()
    latents, sweeps = list(record["latents"]), list(record["sweeps"])
    if not sweeps:
        raise OptionError("the trace holds no sweeps")
    figure = Figure(figsize=(9.5, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    ticks = range(len(sweeps))
    left.plot(ticks, [s["objective"] for s in sweeps], "o-", color=_COLOURS["decoder"], ms=4)
    left.set_title("Objective F", loc="left")
    _draw_residuals(right, latents, [s["residual"] for s in sweeps])
    right.set_title("Residual norm by latent", loc="left")
    for axes in (left, right):
        axes.set_xlabel("sweep (0 = feed-forward)")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(color="#E5E5E5", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    return write_picture(path, figure)


def _draw_residuals(axes: Axes, latents: list[str], residuals: list[list[float]]) -> None:
    """Draw one curve per latent, early ones dark; a legend if few, a colour bar if many."""
    import matplotlib as mpl
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap, Normalize
    from matplotlib.ticker import LogLocator, NullFormatter

    count = len(latents)
    last = max(count - 1, 1)
    colours = mpl.colormaps["cividis"]
    ticks = range(len(residuals))
    for j in range(count):
        curve = [sweep[j] for sweep in residuals]
        marker = "o-" if len(residuals) == 1 else "-"
        axes.plot(ticks, curve, marker, color=colours(0.9 * j / last), linewidth=1.2, ms=3)
    if all(value > 0 for sweep in residuals for value in sweep):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
    if count <= 10:
        # By handle, since matplotlib hides labels that begin with "_", as names in Sequentials do.
        axes.legend(
            axes.lines,
            latents,
            loc="center left",
            bbox_to_anchor=(1, 0.5),
            fontsize=7,
            frameon=False,
        )
    elif axes.figure is not None:
        axes.figure.colorbar(
            ScalarMappable(Normalize(0, last), ListedColormap(colours(np.linspace(0, 0.9, 256)))),
            ax=axes,
            label="latent",
        )
