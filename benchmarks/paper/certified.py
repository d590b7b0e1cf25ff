"""Certified accuracy of the synchronous solver beside what an attack leaves, and feed-forward.

The same weights are certified twice: pursued from zero, and fed forward by the product of the
layers' norms. Each network is trained by its own solver.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.common import environment
from benchmarks.paper import cell
from benchmarks.paper.configuration import Training
from benchmarks.paper.data import images
from benchmarks.paper.evaluate import accuracy
from pursuitify.robust import certified_radius, pgd

RADII = (0.003, 0.01, 0.03, 0.1)
SWEEPS = 24
STEPS = 10


def cells(quick: bool, full: bool) -> dict[str, Training]:
    """Return what is certified, by label.

    Without BatchNorm: its statistics are those of the feed-forward pass, and a pursuit from zero
    trained with them did not learn.
    """
    found: dict[str, Training] = {}
    sizes = {"digits": (1437, 12), "fashion16": (2000, 6)}
    for data, (count, epochs) in sizes.items():
        base = Training(data=data, images=count, epochs=epochs, batch=64, batch_norm=False)
        if quick:
            base = replace(base, epochs=2)
        if full:
            base = replace(base, images=60000, epochs=20)
        pursued = replace(base, solver="synchronous", iterations=SWEEPS)
        found[f"{data}, trained pursued, T = {SWEEPS}"] = pursued
        plain = replace(base, solver="feedforward", iterations=0)
        found[f"{data}, trained fed forward"] = plain
    return found


def measure(c: Training, count: int, weights: Path) -> dict[str, Any]:
    """Certify one network; one trained fed forward is pursued too."""
    net, record = cell.trained(c, weights)
    net = net.double()
    net.requires_grad_(False)
    net.solver, net.iterations = "synchronous", c.iterations or SWEEPS
    x, y = images(c.data, False)
    x, y = x[:count].double(), y[:count]
    near, far = certified_radius(net, x), certified_radius(net, x, local=False)
    found: dict[str, Any] = {
        "images": len(x),
        "clean": near.accuracy(y, 0.0),
        "clean_feedforward": near.feedforward_accuracy(y, 0.0),
        "lipschitz": near.lipschitz,
        "lipschitz_feedforward": max(near.feedforward_lipschitz.values()),
        "median_radius": float(near.radius.median()),
        "median_radius_without_local": float(far.radius.median()),
        "median_radius_feedforward": float(near.feedforward_radius.median()),
        "training_cpu_seconds": record["cpu_seconds"],
        "points": [],
    }
    for eps in RADII:
        point = {
            "eps": eps,
            "certified": near.accuracy(y, eps),
            "certified_feedforward": near.feedforward_accuracy(y, eps),
        }
        points = pgd(net, x, y, eps=eps, norm="l2", steps=STEPS, seed=0, loss="margin")
        point["attacked"] = accuracy(net, points, y)
        sweeps, net.iterations = net.iterations, 0
        points = pgd(net, x, y, eps=eps, norm="l2", steps=STEPS, seed=0, loss="margin")
        point["attacked_feedforward"] = accuracy(net, points, y)
        net.iterations = sweeps
        assert point["attacked"] >= point["certified"] - 1e-9, "an attack beat the certificate"
        assert point["attacked_feedforward"] >= point["certified_feedforward"] - 1e-9
        found["points"].append(point)
    return found


def report(where: Path, *, quick: bool, full: bool) -> str:
    """Measure everything, write JSON and a table, return the table."""
    results: dict[str, Any] = {}
    for label, c in cells(quick, full).items():
        results[label] = measure(c, 50 if quick else 100, cell.WEIGHTS)
        cell.write(where / "certified.json", {"environment": environment(), "networks": results})
    lines = [
        "| network | sweeps: clean; certified / under PGD at l2 0.01, 0.03, 0.1 | fed forward: "
        "the same | Lipschitz, sweeps / fed forward | median radius, sweeps (without local) / "
        "fed forward |",
        "| --- | --- | --- | --- | --- |",
    ]
    for label, r in results.items():
        shown = [p for p in r["points"] if p["eps"] in (0.01, 0.03, 0.1)]
        ours = ", ".join(f"{p['certified']:.0%} / {p['attacked']:.0%}" for p in shown)
        keys = ("certified_feedforward", "attacked_feedforward")
        plain = ", ".join(f"{p[keys[0]]:.0%} / {p[keys[1]]:.0%}" for p in shown)
        lines.append(
            f"| {label} | {r['clean']:.1%}; {ours} | {r['clean_feedforward']:.1%}; {plain} | "
            f"{r['lipschitz']:.3g} / {r['lipschitz_feedforward']:.3g} | "
            f"{r['median_radius']:.2g} ({r['median_radius_without_local']:.2g}) / "
            f"{r['median_radius_feedforward']:.2g} |"
        )
    text = "\n".join(lines) + "\n"
    (where / "certified.md").write_text(text)
    return text
