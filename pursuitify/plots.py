"""The one style of all pictures, and two of them: the dictionary's blocks, the objective per sweep.

matplotlib is imported by the functions, never by importing pursuitify. The style is set within
``style()`` alone; settings of matplotlib's outside stay what they are.
"""

from __future__ import annotations

import contextlib
import functools
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any, Protocol, SupportsIndex

import networkx as nx
import numpy as np

from pursuitify.errors import OptionError
from pursuitify.utils import option_checks
from pursuitify.utils.atomic_files import write_picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Widths of a picture in inches: of one panel, and of several. Pictures are written with 100 pixels
#: per inch, so that the wider ones fill a page of 900 pixels and text has the same size in all.
NARROW, WIDE = 6.4, 8.8
#: Okabe and Ito's colours: told apart with every common colour blindness. Curves differ in their
#: marks as well.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#5A5A5A")
MARKS = ("o", "s", "D", "^", "v", "P", "X")
#: Keys are Any, since matplotlib types them as literals from 3.11 on only.
_STYLE: dict[Any, Any] = {
    "figure.constrained_layout.use": True,
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.labelsize": 9,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": "#E5E5E5",
    "grid.linewidth": 0.6,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "lines.linewidth": 1.4,
    "lines.markersize": 4.5,
}
_KINDS = {
    "decoder": COLOURS[0],
    "encoder": COLOURS[5],
    "weighted": COLOURS[1],
    "identity": COLOURS[2],
    "linear": COLOURS[4],
    "diagonal": COLOURS[3],
    "mixed": COLOURS[6],
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
__all__ = ["plot_objective", "plot_structure"]
_NAMED = 24  # rows that are labelled by name; beyond, by index


class _Trace(Protocol):
    """The part of a PursuitTrace that ``plot_objective`` reads."""

    def to_dict(self) -> Mapping[str, Any]:
        """Return latents and sweeps."""


@contextlib.contextmanager
def style() -> Iterator[None]:
    """Draw what is drawn within the block in the style of this library's pictures.

    Raises:
        MissingExtraError: If matplotlib is not installed.
    """
    option_checks.extra("plots", "matplotlib")
    import matplotlib as mpl
    from cycler import cycler

    cycle = cycler(color=COLOURS, marker=MARKS)
    with mpl.rc_context({**_STYLE, "axes.prop_cycle": cycle}):
        yield


@functools.cache
def _class_of_figures() -> type[Figure]:
    """Return the class of this library's figures, made once matplotlib is wanted."""
    from matplotlib.figure import Figure

    class Picture(Figure):
        """A figure that a notebook shows as a picture although pyplot does not know it."""

        def _repr_png_(self) -> bytes:
            written = io.BytesIO()
            self.canvas.print_figure(written, format="png", dpi=100, bbox_inches="tight")
            return written.getvalue()

        def __reduce_ex__(self, protocol: SupportsIndex) -> tuple[Any, ...]:
            # Pickle finds a class by its name in a module, and this one has none.
            return (new_figure, (), *super().__reduce_ex__(protocol)[2:])

    return Picture


def new_figure(width: float = NARROW, height: float = 3.8, **options: Any) -> Figure:
    """Return a new figure; pyplot does not know it, and a notebook shows it once, as a picture.

    Args:
        width: Its width, in inches.
        height: Its height.
        **options: Further options of matplotlib's.
    """
    return _class_of_figures()(figsize=(width, height), **options)


def panel(
    ax: Axes | None, width: float = NARROW, height: float = 3.8, **options: Any
) -> tuple[Figure, Axes]:
    """Return the figure and the axes to draw into: those given, or new ones.

    Args:
        ax: Axes of the user's, or None for new ones.
        width: Width of a new figure, in inches.
        height: Its height.
        **options: Further options of a new figure.
    """
    if ax is None:
        figure = new_figure(width, height, **options)
        return figure, figure.subplots()
    owner = ax.get_figure(root=True)
    if owner is None:
        raise OptionError("ax belongs to no figure any more: take axes of figure.subplots()")
    return owner, ax


def finished(figure: Figure, path: str | PathLike[str] | None) -> Figure:
    """Return a figure, written to a file if a path is given."""
    return figure if path is None else write_picture(path, figure)


def ordinal(axes: Axes, values: Iterable[float], names: Sequence[str] | None = None) -> None:
    """Label the places 0, 1, 2, ... of the horizontal axis with the values that stand there.

    Evenly spaced places keep apart the labels of values such as 1, 2, 5, 10, 20, 50.

    Args:
        axes: The axes.
        values: One value per place.
        names: The labels; if None, the values.
    """
    names = [f"{value:g}" for value in values] if names is None else list(names)
    axes.set_xticks(range(len(names)), names)
    axes.set_xlim(-0.5, len(names) - 0.5)
    axes.minorticks_off()


def beside(number: int, count: int) -> float:
    """Return by how much series ``number`` of ``count`` moves sideways, so that no bars overlap."""
    return 0.6 * ((number + 0.5) / count - 0.5)


def plot_structure(
    net: Any, path: str | PathLike[str] | None = None, *, ax: Axes | None = None
) -> Figure:
    """Draw which blocks of the global dictionary B are not zero.

    Row j is latent j's reconstruction, column k what it reads; the input's column is the signal,
    not part of B.

    Args:
        net: A PursuitNetwork, or its ``graph``.
        path: File to write; the suffix chooses the format. Nothing is written if None.
        ax: Axes to draw into; None for a figure of its own.

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
    with style():
        return finished(_draw_structure(blocks, latents, inputs, ax), path)


def _blocks(
    graph: nx.DiGraph[str], latents: list[str], inputs: list[str], column: dict[str, int]
) -> Iterator[tuple[int, int, str]]:
    """Yield (row, column, what is there)."""
    for row, name in enumerate(latents):
        yield row, column[name], str(graph.nodes[name]["layout"])
        for source in graph.predecessors(name):
            kinds = set(str(graph.edges[source, name]["kind"]).split("+"))
            found = kinds.pop() if len(kinds) == 1 else "mixed"
            yield row, column[source], found if found in _KINDS else "mixed"


def _draw_structure(
    blocks: list[tuple[int, int, str]], latents: list[str], inputs: list[str], ax: Axes | None
) -> Figure:
    from matplotlib.collections import PatchCollection
    from matplotlib.patches import Patch, Rectangle

    rows, columns = len(latents), len(latents) + len(inputs)
    side = min(3.6 + 0.22 * rows, 7.6)
    line = 20 / (rows + 15) if rows <= 60 else 0
    figure, axes = panel(ax, side + 1.2, side + 1.4)
    for kind, colour in _KINDS.items():
        cells = [Rectangle((c, r), 1, 1) for r, c, found in blocks if found == kind]
        axes.add_collection(
            PatchCollection(cells, facecolor=colour, edgecolor="white", linewidth=line)
        )
    axes.set(xlim=(0, columns), ylim=(rows, 0), aspect="equal")
    axes.axvline(len(inputs), color="black", linewidth=0.8, linestyle=":")
    axes.set_xlabel("latent read (left of the dotted line: the input)")
    axes.set_ylabel("row, one per latent")
    axes.set_title(f"Block structure of the global dictionary: {rows} latents")
    if rows <= _NAMED:
        size = 9 if rows <= 12 else 8
        axes.set_yticks([r + 0.5 for r in range(rows)], latents, fontsize=size)
        names = [*inputs, *latents]
        axes.set_xticks([c + 0.5 for c in range(columns)], names, fontsize=size, rotation=90)
    else:
        every = range(0, rows, 10 if rows <= 100 else 20)
        axes.set_yticks([r + 0.5 for r in every], [str(r) for r in every])
        shift = len(inputs) + 0.5
        axes.set_xticks([r + shift for r in every], [str(r) for r in every])
    matrix(axes)
    present = {kind for _, _, kind in blocks}
    handles = [Patch(color=c, label=_LABELS[k]) for k, c in _KINDS.items() if k in present]
    columns = 2 if side > 5 else 1
    if ax is None:
        figure.legend(handles=handles, loc="outside lower left", ncols=columns)
    else:
        axes.legend(handles=handles, loc="upper right")
    return figure


def legend(axes: Axes) -> None:
    """Put a legend to the right of the axes, where it covers no data."""
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))


def matrix(axes: Axes) -> None:
    """Frame a picture of a matrix on all sides, without grid and tick marks."""
    axes.grid(False)
    axes.tick_params(length=0)
    axes.spines[:].set(color="#BBBBBB", visible=True)


def plot_objective(
    trace: _Trace, path: str | PathLike[str] | None = None, *, ax: Axes | None = None
) -> Figure:
    """Draw the objective and the residual norms per sweep; sweep 0 is the feed-forward pass.

    Args:
        trace: What ``net.diagnose(x)`` returns.
        path: File to write; the suffix chooses the format. Nothing is written if None.
        ax: Axes to draw the objective alone into; None for a figure with both.

    Returns:
        The figure; pyplot does not know it, so there is nothing to close.
    """
    record = trace.to_dict()
    latents, sweeps = list(record["latents"]), list(record["sweeps"])
    if not sweeps:
        raise OptionError("the trace holds no sweeps")
    with style():
        if ax is None:
            figure = new_figure(WIDE, 3.6)
            left, right = figure.subplots(1, 2)
            _draw_residuals(right, latents, [s["residual"] for s in sweeps])
            right.set_title("Residual norm by latent")
            _count_sweeps(right)
        else:
            figure, left = panel(ax)
        left.plot(range(len(sweeps)), [s["objective"] for s in sweeps])
        left.set_title("Objective F, mean per sample")
        _count_sweeps(left)
        return finished(figure, path)


def _count_sweeps(axes: Axes) -> None:
    axes.set_xlabel("sweep (0 = feed-forward)")
    whole_numbers(axes)


def whole_numbers(axes: Axes) -> None:
    """Put the ticks of the horizontal axis at whole numbers."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


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
        marker = "o" if len(residuals) == 1 else ""
        axes.plot(ticks, curve, marker=marker, color=colours(0.9 * j / last), linewidth=1.2)
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
            fontsize=8,
        )
    elif axes.figure is not None:
        axes.figure.colorbar(
            ScalarMappable(Normalize(0, last), ListedColormap(colours(np.linspace(0, 0.9, 256)))),
            ax=axes,
            label="latent",
        )
