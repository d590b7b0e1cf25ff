"""compare(): the bounds of several architectures in one table, by one method."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from pursuitify.analysis.measures import min_frame_potential, plots
from pursuitify.analysis.measures.bind_network import sizes
from pursuitify.analysis.measures.block_measures import N_RULE
from pursuitify.compiler.graph.rows import Layout
from pursuitify.errors import ConversionError, InputError, OptionError, Problem
from pursuitify.network.pursuit_network import PursuitNetwork
from pursuitify.utils import option_checks
from pursuitify.utils.terminal import Shown, as_text, bar

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from rich.table import Table


#: Heads of the table's columns; rows are those in decoder and in encoder layout.
_TITLES = ("network", "rows", "edges", "weights", "lower", "upper", "gap", "starts", "steps")


@dataclass(frozen=True)
class ArchitectureBounds:
    """Bounds of the least deep frame potential of one architecture, whatever its weights.

    Attributes:
        name: Its name in the comparison.
        decoder_rows: Number of decoder rows.
        encoder_rows: Number of encoder rows.
        edges: Number of edges of its graph.
        parameters: Number of the model's parameters.
        entries: N(G), the number of structurally non-zero off-diagonal entries.
        lower: Proven lower bound: no weights without zero columns have a smaller frame potential.
        upper: The least frame potential that the search met: some weights have it.
        starts: How many starts of the search were looked at.
        steps: How often the search evaluated the frame potential, the starts included.
        stopped: Whether steps or budget ended the search before it had converged.
        seconds: How long it took.
    """

    name: str
    decoder_rows: int
    encoder_rows: int
    edges: int
    parameters: int
    entries: float
    lower: float
    upper: float
    starts: int
    steps: int
    stopped: bool
    seconds: float

    @property
    def gap(self) -> float:
        """The upper bound minus the lower, which says how closely the minimum is known."""
        return self.upper - self.lower


@dataclass(frozen=True)
class Comparison(Shown):
    """A comparison of architectures; ``str()`` and rich show it as a table.

    Attributes:
        rows: One per architecture, in the order given.
        input_shape: Shape of one input.
        layout: The layout asked for.
        steps: Steps that the search was given per architecture; None where they follow from the
            architecture's size.
        budget: Seconds that it was given; None for no limit.
    """

    rows: tuple[ArchitectureBounds, ...]
    input_shape: tuple[int, ...]
    layout: str
    steps: int | None
    budget: float | None

    @property
    def limits(self) -> str:
        """The limits of the search, in words."""
        if self.steps is None:
            steps = [] if self.budget is not None else ["steps by the architecture's size"]
        else:
            steps = ["1 step" if self.steps == 1 else f"{self.steps} steps"]
        return " and ".join([*steps, *([] if self.budget is None else [f"{self.budget:g} s"])])

    @property
    def rules(self) -> str:
        """The rules by which the numbers were found, in one sentence each."""
        return (
            f"Least deep frame potential (RMS) for inputs {self.input_shape}, layout "
            f"{self.layout}, interior boundary. Lower: Welch-type bound, holds for all weights "
            "without zero columns. Upper: the best weights met in a search of "
            f"{self.limits} (stopped: it had not converged), tight frames "
            f"first. Scale: {min_frame_potential.SCALE_RULE}. N: {N_RULE}."
        )

    def __rich__(self) -> Table:
        from rich.box import SIMPLE
        from rich.table import Table

        table = Table(caption=self.rules, caption_justify="left", box=SIMPLE, padding=(0, 1, 0, 0))
        table.add_column(_TITLES[0], overflow="fold")
        for title in _TITLES[1:]:
            table.add_column(title, justify="right", no_wrap=True)
        for row in self.rows:
            table.add_row(*_cells(row))
        return table

    def __str__(self) -> str:
        """Return the table and the rules its numbers stand on."""
        return as_text(self, width=110)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain numbers, for machines."""
        return {
            "input_shape": list(self.input_shape),
            "layout": self.layout,
            "steps": self.steps,
            "budget": self.budget,
            "rules": self.rules,
            "networks": [{**asdict(row), "gap": row.gap} for row in self.rows],
        }

    def to_latex(self) -> str:
        """Return the table as a LaTeX ``tabular`` (booktabs)."""
        lines = [
            "\\begin{tabular}{lrrrrrrrr}",
            "\\toprule",
            " & ".join(_TITLES) + r" \\",
            "\\midrule",
            *(" & ".join(map(_escaped, _cells(row))) + r" \\" for row in self.rows),
            "\\bottomrule",
            "\\end{tabular}",
        ]
        return "\n".join(lines) + "\n"

    def plot(self, path: str | os.PathLike[str] | None = None, *, ax: Axes | None = None) -> Figure:
        """Draw a bar from the lower to the upper bound of each architecture.

        Args:
            path: File to write; none if not given.
            ax: Axes to draw into; None for a figure of its own.
        """
        bounds = {row.name: (row.lower, row.upper) for row in self.rows}
        note = f"inputs {self.input_shape}, layout {self.layout}; {self.limits}"
        value = "least deep frame potential"
        return plots.plot_intervals(bounds, path, value=value, note=note, ax=ax)


def compare(
    models: Mapping[str, nn.Module],
    input_shape: Sequence[int] = (3, 224, 224),
    *,
    layout: Layout = "auto",
    steps: int | None = None,
    budget: float | None = None,
    seeds: int = 3,
    progress: bool | Callable[[str], None] = False,
) -> Comparison:
    """Bound the least frame potential of several architectures by one method, before training.

    The models' weights are not read, and the models are not changed. The minimum over all weights
    lies between the two bounds that are returned of each. The search for the upper one begins at
    nearly tight frames, so that the first steps give most of it. Its length is counted in steps,
    so that every machine gives the same numbers to rounding; seconds (``budget``) do not. Chains
    are searched as all others are, although they have a closed form
    (``minimum_frame_potential``), so that all the numbers can be compared.

    Args:
        models: Models, or networks that ``pursuitify()`` returned, by name.
        input_shape: Shape of one input, without the batch.
        layout: Layout of the rows, ``auto``, ``encoder`` or ``decoder``, of what is not a
            ``PursuitNetwork`` yet.
        steps: Evaluations of the frame potential per architecture: the starts first, then steps of
            the descent. None gives as many as 7e11 floating-point operations allow, counted from
            shapes: about ten CPU seconds, and one evaluation at least, however long it takes.
            With a budget, None sets no number.
        budget: Seconds to search per architecture, by the clock: upper bounds then depend on the
            machine and on what else it does. One evaluation is made whatever they are.
        seeds: Number of starts; those that steps or budget do not reach are left out.
        progress: Whether to show a progress bar, or a function that is called with the name of each
            architecture when it begins.

    Returns:
        The comparison: ``print`` it, or take ``.to_latex()``, ``.plot()``, ``.to_dict()``.

    Raises:
        OptionError: If there is no model, or an option has no such value.
        ConversionError: If models cannot be converted; every problem of every one is listed.
        InputError: If a network does not take such an input, or has no interior form.
    """
    if not isinstance(models, Mapping) or not models:
        raise OptionError('models must name at least one model: {"resnet18": resnet18(), ...}')
    shape = sizes(input_shape)
    if budget is not None:
        budget = option_checks.number("budget", budget, least=0.0)
    if steps is not None:
        steps = option_checks.positive("steps", steps)
    option_checks.positive("seeds", seeds)
    networks = _converted(models, layout)
    rows = []
    with bar(progress is True, "architectures", len(networks)) as advance:
        for name, net in networks.items():
            if callable(progress):
                progress(name)
            try:
                rows.append(_bounds(name, net, shape, steps, budget, seeds))
            except InputError as error:
                raise InputError(f"{name!r}: {error}") from error
            advance()
    return Comparison(tuple(rows), shape, layout, steps, budget)


def _converted(models: Mapping[str, nn.Module], layout: Layout) -> dict[str, PursuitNetwork]:
    """Return the networks; the problems of all models are raised together."""
    found: dict[str, PursuitNetwork] = {}
    problems: list[Problem] = []
    names: list[str] = []
    for name, model in models.items():
        try:
            found[name] = min_frame_potential.converted(model, layout)
        except ConversionError as error:
            problems += error.problems
            names.append(f"{name!r} ({str(error).splitlines()[0]})")
    if names:
        raise ConversionError(f"these models cannot be compared: {'; '.join(names)}", problems)
    return found


def _bounds(
    name: str,
    net: PursuitNetwork,
    shape: tuple[int, ...],
    steps: int | None,
    budget: float | None,
    seeds: int,
) -> ArchitectureBounds:
    began = time.monotonic()
    limit = min_frame_potential.Limit(
        math.inf if budget is None else began + budget, math.inf if steps is None else steps
    )
    search = min_frame_potential.PotentialSearch(net, shape)
    found = search.within(limit, seeds, counts_work=steps is None and budget is None)
    decoder, encoder = search.layouts
    return ArchitectureBounds(
        name=name,
        decoder_rows=decoder,
        encoder_rows=encoder,
        edges=net.graph.number_of_edges(),
        parameters=sum(p.numel() for p in net.source.parameters()),
        entries=search.count,
        lower=search.lower_bound(),
        upper=found.value,
        starts=found.starts,
        steps=found.steps,
        stopped=found.stopped,
        seconds=time.monotonic() - began,
    )


def _cells(row: ArchitectureBounds) -> tuple[str, ...]:
    return (
        row.name,
        f"{row.decoder_rows}+{row.encoder_rows}",
        str(row.edges),
        f"{row.parameters / 1e6:.3g} M",
        f"{row.lower:.5f}",
        f"{row.upper:.5f}",
        f"{row.gap:.5f}",
        str(row.starts),
        f"{row.steps}{', stopped' if row.stopped else ''}",
    )


def _escaped(text: str) -> str:
    """Return a text with what LaTeX reads as a command written out."""
    named = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    return "".join(named.get(c, f"\\{c}" if c in "&%$#_{}" else c) for c in text)
