"""Accuracy of converted networks against T, with changes of the rows that were tried and not built.

python benchmarks/conversion_variants.py --json out.json

Every variant starts from the encoder layout with offsets in the signal and changes one thing:
weights of the rows that grow or fall with depth, rows of equal energy, lifted rows
r_j = w_j - phi_j(u_j + b_j), thresholds fitted to the residuals, BatchNorm's statistics taken
again at the pursued latents, balanced weights, adaptive steps. The sweeps are written out here, in
plain tensors, for what the library does not have. Networks and data are those of
``conversion_accuracy.py``. Nothing is timed.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.common import environment
from benchmarks.conversion_accuracy import REFERENCE, accuracies, moved, trained
from pursuitify import PursuitNetwork, pursuitify
from pursuitify.dictionary.norm_bounds import Norms, block_norms
from pursuitify.dictionary.structured import StructuredDictionary

SWEEPS = [0, 1, 2, 5, 10, 20, 50]
Latents = list[Tensor]


@dataclass(frozen=True)
class Variant:
    """One change of the rows.

    Attributes:
        growth: Factor of a row's weight per step of depth; the row that reads the image has 1.
        equal: Weigh each row by the mean square of u_j instead.
        lifted: Encoder rows are w_j - phi_j(u_j + b_j), which is not convex.
        thresholds: Encoder rows get thresholds lam_j = mean of w_j - u_j - b_j per channel, and as
            much more in the signal.
        refresh: Scale and shift u_j + b_j so that its mean and variance per channel after so many
            sweeps are those of the feed-forward pass.
    """

    growth: float = 1.0
    equal: bool = False
    lifted: bool = False
    thresholds: bool = False
    refresh: int = 0


VARIANTS: dict[str, Variant] = {
    "encoder, signal": Variant(),
    **{f"row weights {g:g} per level": Variant(growth=g) for g in (0.25, 0.5, 2.0, 4.0)},
    "row weights 1 / mean square of u": Variant(equal=True),
    "lifted rows": Variant(lifted=True),
    "lifted rows, weights 2 per level": Variant(lifted=True, growth=2.0),
    "thresholds fitted": Variant(thresholds=True),
    "BatchNorm refreshed at T = 10": Variant(refresh=10),
}
#: What the library has.
LIBRARY: dict[str, dict[str, Any]] = {
    "balance": {"balance": True},
    "adaptive steps": {"steps": "adaptive"},
}


@dataclass
class Rows:
    """The rows of one batch as a variant has them.

    Attributes:
        dictionary: The dictionary that it starts from.
        variant: The variant.
        weights: Weight of each row.
        steps: Step of each latent.
        shifts: Per row the threshold that stands in the signal too.
        affine: Per row the factor and the shift of u_j + b_j.
    """

    dictionary: StructuredDictionary
    variant: Variant
    weights: list[float]
    steps: list[float]
    shifts: list[Tensor]
    affine: list[tuple[Tensor, Tensor]]

    def residual(self, j: int, w: Tensor, u: list[Tensor]) -> list[Tensor]:
        """Return r_j, in slots."""
        row = self.dictionary.rows[j]
        if row.diagonal is not None:
            return [b - part for b, part in zip(row.decode(w), u, strict=True)]
        value = self._value(j, u)
        if self.variant.lifted:
            value = row.activation(value)
        return list(row.split(w - value - self.shifts[j]))

    def sent(self, j: int, w: Tensor, u: list[Tensor]) -> list[Tensor]:
        """Return what row j sends back to those it reads: minus the derivative of F for u_j."""
        row = self.dictionary.rows[j]
        r = row.join(tuple(self.residual(j, w, u)))
        if row.diagonal is None:
            if self.variant.lifted:
                r = r * (self._value(j, u) > 0)
            r = self.affine[j][0] * r
        return list(row.split(self.weights[j] * r))

    def slope(self, j: int, w: Tensor, u: list[Tensor]) -> Tensor:
        """Return the derivative of row j for its own latent."""
        row = self.dictionary.rows[j]
        found = row.slope(tuple(self.residual(j, w, u)))
        return self.weights[j] * (found + self.shifts[j])

    def _value(self, j: int, u: list[Tensor]) -> Tensor:
        factor, shift = self.affine[j]
        return factor * self.dictionary.rows[j].join(tuple(u)) + shift


def rows_of(net: PursuitNetwork, x: Tensor, variant: Variant, fitted: Any = None) -> Rows:
    """Bind a variant's rows to a batch; ``fitted`` holds what ``fit_rows`` found."""
    dictionary = net.dictionary(x)
    depths: list[int] = []
    for row in dictionary.rows:
        leaves = [p.leaf for slot in row.slots for p in slot if p.leaf >= 0]
        depths.append(1 + max((depths[leaf] for leaf in leaves), default=0))
    weights = [variant.growth ** (depth - 1) for depth in depths]
    if variant.equal:
        energies = [float(row.join(row.u).square().mean()) for row in dictionary.rows]
        weights = [energies[0] / energy for energy in energies]
    norms, _ = block_norms(dictionary, Norms())
    squares = norms.square() * torch.tensor(weights, dtype=norms.dtype)[:, None]
    steps = (1.0 / squares.sum(0)).tolist()
    zero, one = x.new_zeros(()), x.new_ones(())
    count = len(dictionary.rows)
    shifts, affine = fitted or ([zero] * count, [(one, zero)] * count)
    return Rows(dictionary, variant, weights, steps, shifts, affine)


def per_channel(value: Tensor, of: Callable[..., Tensor]) -> Tensor:
    return of(value, [d for d in range(value.dim()) if d != 1], keepdim=True)


def fit_rows(net: PursuitNetwork, x: Tensor, variant: Variant) -> Any:
    """Fit a variant's thresholds, or its scales and shifts, on unlabelled images."""
    rows = rows_of(net, x, Variant())
    start = list(net.latents(x).values())
    if variant.thresholds:
        found = [
            rows.shifts[j]
            if row.diagonal is not None
            else per_channel(w - row.join(row.u), torch.mean)
            for j, (row, w) in enumerate(zip(rows.dictionary.rows, start, strict=True))
        ]
        return found, rows.affine
    if variant.refresh:
        u = next(u for t, _, u in swept(rows, start, variant.refresh) if t == variant.refresh)
        affine = []
        for row, parts, plain in zip(rows.dictionary.rows, u, rows.affine, strict=True):
            if row.diagonal is not None:
                affine.append(plain)
                continue
            before, after = row.join(row.u), row.join(tuple(parts))
            factor = per_channel(before, torch.std) / per_channel(after, torch.std).clamp_min(1e-6)
            shift = per_channel(before, torch.mean) - factor * per_channel(after, torch.mean)
            affine.append((factor, shift))
        return rows.shifts, affine
    return None


def swept(rows: Rows, start: Latents, last: int) -> Any:
    """Yield the number of sweeps, the latents and u_j + b_j, from 0 to ``last`` sweeps."""
    dictionary = rows.dictionary
    w, u = list(start), [list(row.u) for row in dictionary.rows]
    for t in range(last + 1):
        yield t, list(w), u
        for j, row in enumerate(dictionary.rows):
            # Only the rows that read latent j are asked for what they send back.
            readers = {i for i, _, _ in dictionary.readers[j]}
            back = {i: rows.sent(i, w[i], u[i]) for i in readers}
            slope = rows.slope(j, w[j], u[j])
            slope = dictionary.branches[j].minus_terms(
                slope, lambda at, back=back: back[at[0]][at[1]]
            )
            new = row.activation.prox(w[j] - rows.steps[j] * slope, torch.tensor(rows.steps[j]))
            change, w[j] = new - w[j], new
            for (i, s), product in dictionary.branches[j].products(change):
                u[i][s] = u[i][s] + product


def logits(net: PursuitNetwork, w: Latents) -> Tensor:
    """Return what the reference networks' classifier makes of latents: it reads the last ones."""
    source: Any = net
    count = len(w) - 1
    channels = source.classifier.in_features // source.pool.output_size**2
    while sum(latent.shape[1] for latent in w[count:]) < channels:
        count -= 1
    features: Tensor = source.pool(torch.cat(w[count:], 1))
    found: Tensor = source.classifier(features.flatten(1))
    return found


@torch.no_grad()
def measure(net: PursuitNetwork, variant: Variant, data: Any) -> list[dict[str, float]]:
    """Return accuracy and relative change of the latents after each number of sweeps."""
    x, y, sample = data
    net.iterations = 0
    fitted = fit_rows(net, sample, variant)
    right, changes = dict.fromkeys(SWEEPS, 0), {}
    for a, b in zip(x.split(250), y.split(250), strict=True):
        start = list(net.latents(a).values())
        for t, w, _ in swept(rows_of(net, a, variant, fitted), start, SWEEPS[-1]):
            if t in right:
                right[t] += int((logits(net, w).argmax(1) == b).sum())
                moves = [float((p - q).norm() / q.norm()) for p, q in zip(w, start, strict=True)]
                changes[t] = statistics.mean(moves)
    return [{"sweeps": t, "accuracy": right[t] / len(x), "moved": changes[t]} for t in SWEEPS]


def changed(
    data: str, build: str, seed: int, arguments: argparse.Namespace
) -> list[dict[str, Any]]:
    """Train one network and measure every variant of it."""
    source, sample, x_test, y_test = trained(data, build, seed, arguments)
    options: dict[str, Any] = {"layout": "encoder", "offsets": "signal"}
    about = {"data": data, "net": build, "seed": seed}
    rows = []
    net = pursuitify(source, **options)
    for name in arguments.variants:
        if name in VARIANTS:
            found = measure(net, VARIANTS[name], (x_test, y_test, sample))
        else:
            own = pursuitify(source, **options, **LIBRARY[name])
            found = []
            for sweeps, accuracy in accuracies(own, x_test, y_test, SWEEPS).items():
                own.iterations = sweeps
                found.append({"sweeps": sweeps, "accuracy": accuracy, "moved": moved(own, sample)})
        rows += [{**about, "variant": name, **row} for row in found]
    return rows


def table(rows: list[dict[str, Any]]) -> Table:
    """Return how many networks each variant keeps, and what it loses on the mean and at worst."""
    found = Table(title="change of the test accuracy against the source, points")
    for heading in (
        "variant", "networks", "T = 10 mean", "worst", "within 1", "moved",
        "T = 20 mean", "worst", "T = 50 mean", "worst", "within 5",
    ):  # fmt: skip
        found.add_column(heading)
    for name in dict.fromkeys(r["variant"] for r in rows):
        own = [r for r in rows if r["variant"] == name]
        source = {(r["data"], r["net"], r["seed"]): r["accuracy"] for r in own if r["sweeps"] == 0}
        lost = {
            t: [
                100 * (r["accuracy"] - source[r["data"], r["net"], r["seed"]])
                for r in own
                if r["sweeps"] == t
            ]
            for t in (10, 20, 50)
        }
        moves = [r["moved"] for r in own if r["sweeps"] == 10]
        cells = [name, str(len(moves))]
        for t, close in ((10, 1.0), (20, None), (50, 5.0)):
            cells += [f"{statistics.mean(lost[t]):.1f}", f"{min(lost[t]):.1f}"]
            if close is not None:
                cells.append(str(sum(value >= -close - 1e-6 for value in lost[t])))
            if t == 10:
                cells.append(f"{statistics.mean(moves):.2f}")
        found.add_row(*cells)
    return found


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    names = [*VARIANTS, *LIBRARY]
    parser.add_argument("--data", nargs="+", default=["fashion"], choices=["digits", "fashion"])
    parser.add_argument("--nets", nargs="+", default=list(REFERENCE), choices=list(REFERENCE))
    parser.add_argument("--variants", nargs="+", default=names, choices=names)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--width", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--images", type=int, default=10000, help="Fashion-MNIST training images")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    cells = list(itertools.product(arguments.data, arguments.nets, arguments.seeds))
    rows: list[dict[str, Any]] = []
    for cell in track(cells, console=Console(stderr=True), description="train and change"):
        rows += changed(*cell, arguments)
    Console(width=160).print(table(rows))
    if arguments.json:
        settings = {k: str(v) for k, v in vars(arguments).items()}
        report = {"environment": environment(), "settings": settings, "rows": rows}
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
