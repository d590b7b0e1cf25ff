"""This script fits exponents of time and memory in depth, width, T, image size and batch.

python benchmarks/scaling.py

One factor is varied at a time. Time is CPU time of the process with one thread, source and network
in turn, in inference. Memory is counted, not sampled: the latents and residuals that the sweeps
hold, and what autograd keeps for one training step (storages counted once, parameters apart).
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import common
from pursuitify import PursuitNetwork, pursuitify
from pursuitify.models import ResidualNet

KEY = ("factor", "value")
COLUMNS = (
    "factor", "value", "source_seconds", "seconds", "sources", "floors", "spread", "state_mib",
    "saved_mib", "saved_sources",
)  # fmt: skip
#: What is fitted: the row's field, by the name of the curve.
CURVES = {
    "source time": "source_seconds",
    "time": "seconds",
    "state": "state_mib",
    "source saved": "source_saved_mib",
    "saved": "saved_mib",
}
BASIC = {10: (1, 1, 1, 1), 18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 66: (6, 8, 12, 6)}
BOTTLENECKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
VALUES = {
    "depth (basic blocks)": tuple(BASIC),
    "depth (bottlenecks)": tuple(BOTTLENECKS),
    "width": (4, 8, 16, 32, 64),
    "T": (1, 2, 4, 8, 16),
    "image side": (32, 64, 96, 128),
    "batch": (1, 2, 4, 8),
}


def fit(xs: Sequence[float], ys: Sequence[float]) -> tuple[float, float]:
    """Return the exponent of y = c x^p and r^2, by least squares in log-log.

    r^2 is 1 where y is constant, which the fit then meets exactly.
    """
    u, v = ([math.log(t) for t in values] for values in (xs, ys))
    du, dv = ([t - sum(w) / len(w) for t in w] for w in (u, v))
    slope = sum(a * b for a, b in zip(du, dv, strict=True)) / sum(a * a for a in du)
    total = sum(b * b for b in dv)
    left = sum((b - slope * a) ** 2 for a, b in zip(du, dv, strict=True))
    return slope, 1 - left / total if total > 1e-12 else 1.0


def fits(rows: Sequence[common.Row]) -> Iterator[tuple[str, dict[str, tuple[float, float]]]]:
    """Yield each factor with the (exponent, r^2) of every curve."""
    for factor in VALUES:
        points = sorted((r for r in rows if r["factor"] == factor), key=lambda r: r["value"])
        if len(points) > 1:
            xs = [r["value"] for r in points]
            yield factor, {c: fit(xs, [r[f] for r in points]) for c, f in CURVES.items()}


@torch.no_grad()
def state_bytes(net: PursuitNetwork, x: torch.Tensor) -> int:
    """Return the bytes of all latents and all residuals."""
    latents = net.latents(x)
    residuals = net.dictionary(x).residual(latents)
    return sum(t.numel() * t.element_size() for t in (*latents.values(), *residuals.values()))


@torch.inference_mode()
def times(source: nn.Module, net: PursuitNetwork, x: torch.Tensor, repeats: int) -> common.Row:
    """Return the CPU seconds of inference, as multiples of the source's and of the floor."""
    calls = {"source": lambda: source(x), "ours": lambda: net(x)}
    found = common.in_turns(calls, repeats, best_of={"source": 3}, clock=common.CLOCKS["CPU"])
    return common.per_floor(common.ratio(found, "ours"), net.iterations)


def saved(source: nn.Module, net: PursuitNetwork, x: torch.Tensor) -> common.Row:
    """Return what autograd keeps for one training step, parameters apart."""
    kept = [
        common.saved_bytes(lambda m=model: m.train()(x), model.parameters()) / 2**20
        for model in (source, net)
    ]
    source.eval(), net.eval()
    return {"source_saved_mib": kept[0], "saved_mib": kept[1], "saved_sources": kept[1] / kept[0]}


def setting(factor: str, value: int, given: argparse.Namespace) -> tuple[nn.Module, int, int, int]:
    """Return source, batch, size and T of one point."""
    torch.manual_seed(0)
    batch, size, sweeps = given.batch, given.size, given.sweeps[0]
    if factor == "T":
        sweeps = value
    elif factor == "image side":
        size = value
    elif factor == "batch":
        batch = value
    return network(factor, value).eval().to(memory_format=torch.channels_last), batch, size, sweeps


def network(factor: str, value: int) -> nn.Module:
    """Return the source: resnet18 unless the factor is one of the network's own."""
    if factor == "depth (bottlenecks)":
        return ResNet(Bottleneck, list(BOTTLENECKS[value]))
    if factor == "width":
        return ResidualNet(depth=2, width=value)
    return ResNet(BasicBlock, list(BASIC[value if factor == "depth (basic blocks)" else 18]))


def measure(factor: str, value: int, given: argparse.Namespace) -> common.Row:
    source, batch, size, sweeps = setting(factor, value, given)
    net = pursuitify(source, iterations=sweeps)
    x = common.images(batch, size)
    row: common.Row = {"factor": factor, "value": value}
    row |= {"batch": batch, "size": size, "sweeps": sweeps, "latents": len(net.graph) - 1}
    row |= times(source, net, x, given.repeats)
    return row | {"state_mib": state_bytes(net, x) / 2**20, **saved(source, net, x)}


def main(argv: list[str] | None = None) -> int:
    parser = common.options(__doc__, "scaling", sweeps=(4,), batch=2, size=64)
    parser.set_defaults(threads=1)
    parser.add_argument("--factors", nargs="+", choices=list(VALUES), default=list(VALUES))
    given = parser.parse_args(argv)
    if given.device != "cpu":
        parser.error("CPU time is measured: --device must be cpu")
    if len(given.sweeps) > 1:
        parser.error("--sweeps takes one value here, for the factors other than T")
    torch.set_num_threads(given.threads)
    rows = []
    for factor in given.factors:
        rows += [measure(factor, value, given) for value in VALUES[factor]]
        common.write(given.json, rows, KEY)
    common.show("scaling", rows, COLUMNS)
    exponents = [
        {"factor": factor, **{c: f"{p:.2f} ({r2:.3f})" for c, (p, r2) in curves.items()}}
        for factor, curves in fits(rows)
    ]
    common.show("exponents (r^2)", exponents, ("factor", *CURVES))
    return 0


if __name__ == "__main__":
    sys.exit(main())
