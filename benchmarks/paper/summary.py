"""Means over seeds with 95 % intervals, and effects against a baseline, from finished cells."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from scipy import stats

from benchmarks.paper import cell
from benchmarks.paper.grids import Cell

Result = dict[str, Any]


@dataclass(frozen=True)
class Estimate:
    """A mean with the half-width of its 95 % interval.

    Attributes:
        mean: Mean over seeds.
        half: Student's interval over seeds; of one seed the binomial one over test images, which
            says nothing about other seeds; of one seed's training images there is none.
        seeds: How many.
    """

    mean: float
    half: float | None
    seeds: int

    def __str__(self) -> str:
        if self.half is None:
            return f"{100 * self.mean:.1f}"
        star = "*" if self.seeds == 1 else ""
        return f"{100 * self.mean:.1f} ± {100 * self.half:.1f}{star}"


def estimate(values: Sequence[float], images: int | None) -> Estimate:
    """Return mean and interval of accuracies, one per seed.

    ``images`` is how many test images each is a share of; None if it is of no test images.
    """
    n = len(values)
    mean = sum(values) / n
    if n == 1 and images is None:
        return Estimate(mean, None, 1)
    if n == 1:
        return Estimate(mean, 1.96 * math.sqrt(mean * (1 - mean) / images), 1)
    spread = math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1))
    return Estimate(mean, float(stats.t.ppf(0.975, n - 1)) * spread / math.sqrt(n), n)


def finished(cells: Sequence[Cell], results: Any) -> list[tuple[Cell, Result]]:
    """Return the cells that have a result, with it."""
    found = ((one, cell.cached(one.configuration, results)) for one in cells)
    return [(one, result) for one, result in found if result is not None]


def grouped(pairs: Sequence[tuple[Cell, Result]]) -> dict[str, dict[int, Result]]:
    """Return results by label and seed."""
    groups: dict[str, dict[int, Result]] = {}
    for one, result in pairs:
        groups.setdefault(one.label, {})[one.training.seed] = result
    return groups


def metric(group: dict[int, Result], key: str) -> Estimate | None:
    values = [r["found"][key] for r in group.values() if r["found"].get(key) is not None]
    if not values:
        return None
    return estimate(values, next(iter(group.values()))["found"]["images"])


def effect(group: dict[int, Result], base: dict[int, Result], key: str) -> Estimate | None:
    """Return the difference to a baseline, paired by seed.

    Of one seed the interval is that of two independent shares of the test images: wider than the
    truth, since the images are the same.
    """
    seeds = [s for s in group if s in base]
    if not seeds:
        return None
    ours = [group[s]["found"][key] for s in seeds]
    theirs = [base[s]["found"][key] for s in seeds]
    images = group[seeds[0]]["found"]["images"]
    if len(seeds) == 1:
        variance = sum(p * (1 - p) / images for p in (ours[0], theirs[0]))
        return Estimate(ours[0] - theirs[0], 1.96 * math.sqrt(variance), 1)
    return estimate([a - b for a, b in zip(ours, theirs, strict=True)], images)


def table(groups: dict[str, dict[int, Result]], base: str | None = None) -> str:
    """Return a Markdown table: clean, FGSM, PGD-40, strongest; budgets; the effect on the last."""
    heads = ["network", "seeds", "clean", "FGSM", "PGD-40", "strongest"]
    heads += [f"strongest against {base!r}"] if base else []
    heads += ["training, CPU s (torch)"]
    lines = ["| " + " | ".join(heads) + " |", "| " + " | ".join(["---"] * len(heads)) + " |"]
    for label, group in groups.items():
        row = [label, str(len(group))]
        for key in ("clean", "fgsm", "pgd", "worst"):
            row.append(str(metric(group, key) or ""))
        if base:
            found = effect(group, groups[base], "worst") if base in groups else None
            row.append("" if found is None or label == base else str(found))
        row.append(_seconds(group))
        lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines) + "\n"


def tables(groups: dict[str, dict[int, Result]], bases: dict[str, str]) -> str:
    """Return a table for each beginning of labels, against the baseline that ``bases`` names."""
    return "\n".join(
        table(chosen, base)
        for start, base in bases.items()
        if (chosen := {label: g for label, g in groups.items() if label.startswith(start)})
    )


def _seconds(group: dict[int, Result]) -> str:
    """Return the mean training time per torch version: each stands for a machine of its own."""
    machines: dict[str, list[float]] = {}
    for result in group.values():
        version = ".".join(result["environment"]["torch"].split(".")[:2])
        machines.setdefault(version, []).append(result["training"]["cpu_seconds"])
    means = {version: sum(found) / len(found) for version, found in machines.items()}
    return ", ".join(f"{mean:.0f} ({version})" for version, mean in sorted(means.items()))
