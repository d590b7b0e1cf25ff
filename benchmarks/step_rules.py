"""Sweeps and CPU time that adaptive steps need for the objective that certified ones reach.

python benchmarks/step_rules.py --models resnet18 --threads 1

Certified steps run for each T; the adaptive rule runs until its objective (the mean of F over the
batch) is no higher, and both are then timed in turn, feed-forward pass and head included. What one
sweep takes is the difference of two numbers of sweeps, as a multiple of two passes of the source.
``curve`` holds the objective after every sweep. The weights are torchvision's random ones.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import common
from pursuitify import PursuitNetwork, pursuitify
from pursuitify.solvers.line_search import LineSearch
from pursuitify.solvers.solver import SolverInput

MODELS = ("resnet18", "resnet50", "densenet121", "vgg11_bn", "mobilenet_v2")
KEY = ("model", "batch", "size", "sweeps", "rule")
COLUMNS = (
    "model", "sweeps", "rule", "needed", "objective", "seconds", "to_certified", "per_sweep",
    "spread",
)  # fmt: skip
#: Between these numbers of sweeps the time of one is measured.
SHORT, LONG = 2, 8


def curve(net: PursuitNetwork, x: Tensor, count: int, target: float | None = None) -> list[float]:
    """Return F after 0, 1, ... sweeps: ``count`` of them, or until it is at most ``target``."""
    batch = net.bind_batch(x)
    bound = batch.dictionary
    found = [bound.mean_objective(dict(zip(bound.names, batch.first.latents, strict=True)))]
    search = LineSearch(bound.samples or 1) if net.adapts_steps else None
    steps = list(net.step_sizes(x).values())
    run = SolverInput(bound, batch.first.latents, steps, None, count, search=search)
    for latents in net.pursuit_solver.sweeps(run, observed=False):
        found.append(bound.mean_objective(dict(zip(bound.names, latents, strict=True))))
        if target is not None and found[-1] <= target:
            break
    return [float(value) for value in found]


def first_at(values: list[float], target: float) -> int | None:
    """Return the first number of sweeps at which the objective is at most ``target``."""
    return next((t for t, value in enumerate(values) if value <= target), None)


@torch.inference_mode()
def measure(name: str, given: argparse.Namespace) -> list[common.Row]:
    source = common.source(name, given.device)
    x = common.images(given.batch, given.size, given.device)
    nets = {rule: pursuitify(source, steps=rule) for rule in ("certified", "adaptive")}
    most = max(given.sweeps)
    curves = {"certified": curve(nets["certified"], x, most)}
    curves["adaptive"] = curve(nets["adaptive"], x, most, curves["certified"][most])
    calls = {"source": lambda: source(x)}
    for rule, net in nets.items():
        for count in (SHORT, LONG):
            calls[f"{rule} {count}"] = lambda net=net, count=count: at(net, count)(x)
    times = common.in_turns(calls, given.repeats, given.device, {"source": 2}, common.CLOCKS["CPU"])
    passes = statistics.median(times["source"])
    rows = []
    for sweeps in given.sweeps:
        target = curves["certified"][sweeps]
        needed = {"certified": sweeps, "adaptive": first_at(curves["adaptive"], target)}
        calls = {
            rule: lambda net=nets[rule], count=count: at(net, count)(x)
            for rule, count in needed.items()
            if count is not None
        }
        timed = common.in_turns(calls, given.repeats, given.device, None, common.CLOCKS["CPU"])
        for rule, count in needed.items():
            long, short = times[f"{rule} {LONG}"], times[f"{rule} {SHORT}"]
            each = [(a - b) / (LONG - SHORT) for a, b in zip(long, short, strict=True)]
            ratio = common.ratio(timed, rule, "certified") if rule in timed else {}
            rows.append(
                {
                    "model": name,
                    "batch": given.batch,
                    "size": given.size,
                    "clock": "CPU",
                    "sweeps": sweeps,
                    "rule": rule,
                    "needed": count,
                    "objective": curves[rule][count] if count is not None else None,
                    "seconds": ratio.get("seconds"),
                    "to_certified": ratio.get("sources"),
                    "spread": ratio.get("spread"),
                    "per_sweep": statistics.median(each) / (2 * passes),
                    "curve": curves[rule],
                }
            )
    return rows


def at(net: PursuitNetwork, count: int) -> PursuitNetwork:
    """Return the network, set to a number of sweeps."""
    net.iterations = count
    return net


def main(argv: list[str] | None = None) -> int:
    parser = common.options(__doc__, "step_rules", sweeps=(10, 50), batch=4, size=96)
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    given = parser.parse_args(argv)
    return common.per_model("step_rules", measure, given, KEY, COLUMNS)


if __name__ == "__main__":
    sys.exit(main())
