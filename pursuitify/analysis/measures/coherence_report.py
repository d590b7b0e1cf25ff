"""The report of coherence(): the measures, and every rule they stand on."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from os import PathLike
from typing import TYPE_CHECKING, Any

from pursuitify.analysis.measures import min_frame_potential, plots
from pursuitify.analysis.measures.block_measures import N_RULE, Block, ColumnNorms, Pair
from pursuitify.analysis.measures.min_frame_potential import MinimumFramePotential
from pursuitify.utils.terminal import Shown

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SCALE_RULE = (
    "columns of the global B have unit norm, identity parts included; weights as they are, no "
    "scale constraint"
)


@dataclass(frozen=True)
class CoherenceReport(Shown):
    """Coherence of the global dictionary; ``str()`` is the printed report.

    Attributes:
        model: Name of the network's source.
        layout: Numbers of decoder and encoder rows.
        boundary: ``interior`` or ``exact``.
        input_shape: Shape of one input.
        assumptions: What was assumed of batch-dependent pieces.
        blocks: Measures per block of the Gram matrix that is not structurally zero.
        column_norms: Statistics of the global column norms per latent.
        columns: Number of columns of B.
        rows: Number of rows of B.
        excess: Lower bound of the sum of squared off-diagonal entries (a Welch bound).
        seconds: Time the analysis took, the forward pass that binds the dictionary apart.
    """

    model: str
    layout: tuple[int, int]
    boundary: str
    input_shape: tuple[int, ...]
    assumptions: tuple[str, ...]
    blocks: tuple[Block, ...]
    column_norms: tuple[ColumnNorms, ...]
    columns: int
    rows: int
    excess: float
    seconds: float
    _network: Any = field(repr=False, compare=False, default=None)

    @property
    def count(self) -> float:
        """N(G)."""
        return math.fsum(b.count for b in self.blocks)

    @property
    def mutual_coherence(self) -> float:
        """Largest absolute off-diagonal entry."""
        return max((b.maximum for b in self.blocks), default=0.0)

    @property
    def pair(self) -> Pair | None:
        """The pair of atoms that attains the mutual coherence."""
        return max(self.blocks, key=lambda b: b.maximum).pair if self.blocks else None

    @property
    def frame_potential(self) -> float:
        """The deep frame potential, which is the RMS over the N(G) entries."""
        return math.sqrt(self._squares / self.count) if self.count else 0.0

    @property
    def _squares(self) -> float:
        return math.fsum(b.squares for b in self.blocks)

    @property
    def frame_potential_mean_abs(self) -> float:
        """Mean absolute value over the N(G) entries; never mixed with the RMS."""
        total = math.fsum(b.total_abs for b in self.blocks)
        return total / self.count if self.count else 0.0

    @property
    def welch_bound(self) -> float:
        """The Welch-type lower bound of the frame potential, of the best split into frames."""
        return math.sqrt(self.excess / self.count) if self.count else 0.0

    @property
    def local_coherence(self) -> dict[str, float]:
        """Mutual coherence within each latent's own atoms."""
        found = {n.latent: 0.0 for n in self.column_norms}
        found |= {b.latents[0]: b.maximum for b in self.blocks if b.latents[0] == b.latents[1]}
        return found

    def minimum_frame_potential(
        self,
        *,
        method: str = "auto",
        seeds: int | None = None,
        steps: int | None = None,
        budget: float | None = None,
        progress: bool = False,
    ) -> MinimumFramePotential:
        """Return the least frame potential of the network's architecture, whatever its weights.

        It searches, unless the network is a chain: the options are those of
        ``pursuitify.analysis.minimum_frame_potential``.
        """
        return min_frame_potential.minimum_frame_potential(
            self._network,
            self.input_shape,
            method=method,
            seeds=seeds,
            steps=steps,
            budget=budget,
            progress=progress,
        )

    def plot(
        self,
        path: str | PathLike[str] | None = None,
        *,
        measure: str = "maximum",
        ax: Axes | None = None,
    ) -> Figure:
        """Draw a measure of every block of the Gram matrix, and return the figure.

        Args:
            path: File to write; the suffix chooses the format. Nothing is written if None.
            measure: ``maximum``, ``rms``, ``mean_abs`` or ``count``.
            ax: Axes to draw into; None for a figure of its own.
        """
        return plots.plot_gram_blocks(self, path, measure, ax=ax)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain numbers, for machines."""
        return {
            "model": self.model,
            "layout": {"decoder": self.layout[0], "encoder": self.layout[1]},
            "boundary": self.boundary,
            "input_shape": list(self.input_shape),
            "assumptions": list(self.assumptions),
            "scale_rule": SCALE_RULE,
            "n_rule": N_RULE,
            "columns": self.columns,
            "rows": self.rows,
            "entries": self.count,
            "mutual_coherence": self.mutual_coherence,
            "pair": str(self.pair),
            "frame_potential": self.frame_potential,
            "frame_potential_mean_abs": self.frame_potential_mean_abs,
            "welch_bound": self.welch_bound,
            "seconds": self.seconds,
            "blocks": [
                {
                    "latents": list(b.latents),
                    "maximum": b.maximum,
                    "rms": b.rms,
                    "mean_abs": b.mean_abs,
                    "count": b.count,
                }
                for b in self.blocks
            ],
            "column_norms": [vars(n) for n in self.column_norms],
        }

    def __str__(self) -> str:
        """Return the report: the numbers, and what each of them stands on."""
        rule = {
            "interior": "interior: atoms as on an image without borders, border effects ignored",
            "exact": "exact: atoms truncated by zero padding, every border class enumerated",
        }[self.boundary]
        lines = [
            f"Coherence of {self.model}'s dictionary for inputs {self.input_shape}",
            f"  {self.rows} rows, {self.columns} columns, {len(self.column_norms)} latents, "
            f"{self.count:.6g} structural entries",
            f"  mutual coherence            {self.mutual_coherence:.4f}",
            f"    attained by {self.pair}",
            f"  frame potential (RMS)       {self.frame_potential:.6f}",
            f"  mean absolute entry         {self.frame_potential_mean_abs:.6f}",
            f"  Welch-type lower bound      {self.welch_bound:.6f}",
            f"  layout    {self.layout[0]} decoder and {self.layout[1]} encoder rows",
            f"  scale     {SCALE_RULE}",
            f"  boundary  {rule}",
            f"  entries   {N_RULE}",
        ]
        lines += [f"  assumed   {a}" for a in self.assumptions]
        lines.append("  Blocks of the Gram matrix with the largest entries:")
        lines.append(f"    {'latents':<44}{'max':>8}{'RMS':>10}{'entries':>12}")
        for b in sorted(self.blocks, key=lambda b: -b.maximum)[:8]:
            names = " x ".join(b.latents)
            lines.append(f"    {names:<44}{b.maximum:>8.4f}{b.rms:>10.5f}{b.count:>12.4g}")
        zero = sum(n.zero for n in self.column_norms)
        low = min(self.column_norms, key=lambda n: n.minimum)
        high = max(self.column_norms, key=lambda n: n.maximum)
        lines.append(
            f"  column norms from {low.minimum:.4g} ({low.latent}) to {high.maximum:.4g} "
            f"({high.latent})" + (f"; {zero:.6g} columns are zero" if zero else "")
        )
        return "\n".join(lines)
