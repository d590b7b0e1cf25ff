"""The per-sweep record of one pursuit: what ``net.diagnose(x)`` returns."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from os import PathLike
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Group
from rich.table import Table
from rich.text import Text
from torch import Tensor

from pursuitify import plots
from pursuitify.dictionary.structured import StructuredDictionary
from pursuitify.utils.terminal import Shown, as_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Sweep:
    """One sweep; lists hold one number per latent, means over the batch.

    Attributes:
        objective: F, mean per sample (11).
        residual: ||r_j||.
        sparsity: Share of entries that are exactly zero.
        change: ||w_j - w_j of the sweep before||; zero at sweep 0.
        step: gamma_j.
    """

    objective: float
    residual: list[float]
    sparsity: list[float]
    change: list[float]
    step: list[float]


@dataclass(frozen=True)
class PursuitTrace(Shown):
    """The course of a pursuit, sweep by sweep; sweep 0 is where the solver starts.

    Attributes:
        latents: Names of the latents, in graph order.
        sweeps: One record per sweep.
        warnings: What a reader should know, for example a latent that may run away.
    """

    latents: list[str]
    sweeps: list[Sweep]
    warnings: list[str]

    def to_dict(self) -> dict[str, Any]:
        """Return plain lists and numbers."""
        return asdict(self)

    def plot(self, path: str | PathLike[str] | None = None, *, ax: Axes | None = None) -> Figure:
        """Draw objective and residuals per sweep, as ``pursuitify.plots.plot_objective`` does.

        Args:
            path: File to write; the suffix chooses the format. Nothing is written if None.
            ax: Axes to draw the objective alone into; None for a figure with both.
        """
        return plots.plot_objective(self, path, ax=ax)

    def table(self) -> Table:
        """Return a rich table, one line per sweep."""
        table = Table(title="pursuit, mean per sample")
        for heading in ("sweep", "objective", "residual", "sparsity", "change", "largest change"):
            table.add_column(heading, justify="right")
        for t, sweep in enumerate(self.sweeps):
            total = sum(v * v for v in sweep.residual) ** 0.5
            change = sum(v * v for v in sweep.change) ** 0.5
            changes = [math.inf if math.isnan(c) else c for c in sweep.change]
            worst = max(range(len(self.latents)), key=changes.__getitem__)
            table.add_row(
                str(t),
                f"{sweep.objective:.6g}",
                f"{total:.4g}",
                f"{sum(sweep.sparsity) / len(sweep.sparsity):.1%}",
                f"{change:.3g}" if t else "-",
                self.latents[worst] if t else "-",
            )
        return table

    def __rich__(self) -> Group:
        return Group(self.table(), *(Text(f"warning: {warning}") for warning in self.warnings))

    def __str__(self) -> str:
        """Return the table and the warnings as text."""
        return as_text(self, width=100)


def _norm(values: Tensor, samples: int | None, batch: int) -> float:
    """Return the mean norm of a sample's part; the root mean square where samples are not known."""
    if samples is None:
        return float(values.double().norm() / batch**0.5)
    return float(values.reshape(samples, -1).double().norm(dim=1).mean())


def record(
    dictionary: StructuredDictionary,
    start: Sequence[Tensor],
    states: Iterable[Sequence[Tensor]],
    steps: Sequence[Tensor],
) -> PursuitTrace:
    """Watch a pursuit; every quantity is computed afresh from the latents."""
    where = dictionary.samples, dictionary.inputs[0].shape[0]
    gammas = [float(s.double().mean()) for s in steps]
    before = list(start)
    sweeps = []
    for w in [list(start), *(list(s) for s in states)]:
        named = dict(zip(dictionary.names, w, strict=True))
        residual = dictionary.residual(named)
        sweeps.append(
            Sweep(
                objective=float(dictionary.mean_objective(named)),
                residual=[_norm(residual[n], *where) for n in dictionary.names],
                sparsity=[float((v == 0).double().mean()) for v in w],
                change=[_norm(a - b, *where) for a, b in zip(w, before, strict=True)],
                step=gammas,
            )
        )
        before = w
    return PursuitTrace(list(dictionary.names), sweeps, runaways(dictionary))


#: A large value of a latent, at which the growth of a penalty is read off.
_FAR = 1e6


def runaways(dictionary: StructuredDictionary) -> list[str]:
    """Name the latents along which F may be unbounded below (mathematics.md, section 2).

    Those are latents of decoder rows of which more entries are read by no later row than the row
    has entries to explain, where F falls along one of them: all of a terminal latent, and of one
    that max-pooling reads those that the pool did not select.
    """
    found = []
    generator = torch.Generator(dictionary.inputs[0].device).manual_seed(0)
    residuals = [
        [torch.empty_like(part).normal_(generator=generator) for part in row.u]
        for row in dictionary.rows
    ]
    for j, row in enumerate(dictionary.rows):
        if row.diagonal is None or row.threshold is None:
            continue
        shape = dictionary.shapes[j]
        feedback = row.threshold.new_zeros(shape)
        for term in dictionary.branches[j].terms(lambda at: residuals[at[0]][at[1]]):
            feedback = feedback + term
        unread = feedback == 0  # of random residuals: nothing else cancels
        free = int(unread.reshape(shape[0], -1).sum(1).max())
        signal = sum(part[0].numel() for part in row.u)
        far = row.threshold.new_full(shape, _FAR)
        falls = row.activation.penalty(far) / _FAR + row.threshold < 0
        if free <= signal or not bool(torch.any(falls & unread)):
            continue
        kind = "is terminal and overcomplete"
        if dictionary.readers[j]:
            kind = "has more entries that no later row reads than its row has"
        found.append(
            f"latent {row.name!r} {kind} ({free} for {signal}), with negative thresholds (positive "
            "biases): F may have no minimum, and they can grow slowly with the number of sweeps"
        )
    return found
