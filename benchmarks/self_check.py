"""Measure what the self-check costs: the first call of a network against later ones.

    python benchmarks/self_check.py --threads 1

The check runs once per program, dtype and size. Everything else that a first call does is done
before (step sizes, packed kernels): the network forgets what it has proven and nothing more. In
each turn the source, a call that proves itself and a call that does not run after one another;
"check" is the difference of the two calls as a multiple of the source's time, the median over the
turns. The peaks (``--peaks``) are the MiB that a first call, and a training step without the check,
hold at most beyond what is held before; they are measured apart from the times.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from common import CLOCKS, Row, options, per_model, seconds, source
from torch import Tensor, nn

from pursuitify import PursuitNetwork, pursuitify
from pursuitify.models import ResidualNet

SMALL = "ResidualNet"
MODELS = ("resnet18", "resnet50", "densenet121", "mobilenet_v2", "vgg11", SMALL)
COLUMNS = (
    "model",
    "size",
    "batch",
    "autograd",
    "source_ms",
    "check",
    "spread",
    "peak",
    "step_peak",
)


def build(name: str) -> nn.Module:
    """Return the source, in evaluation mode; ``SMALL`` is the package's own."""
    if name != SMALL:
        return source(name)
    torch.manual_seed(0)
    return ResidualNet().eval()


def peak(call: Callable[[], object]) -> int:
    """Return the most bytes of tensors that are held at once during a call, beyond those before.

    It follows the CPU's allocator through the profiler, as the process itself shows pages only.
    """
    kinds = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=kinds, profile_memory=True) as profile:
        call()
    held = most = 0
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


def measure(name: str, given: argparse.Namespace) -> list[Row]:
    """Return one row per size and batch."""
    model = build(name)
    net = pursuitify(model, iterations=1)
    clock = CLOCKS[given.clock]
    return [
        {"model": name, "size": size, "batch": batch, "autograd": autograd, **found}
        for size in given.sizes
        for batch in given.batches
        for autograd in given.autograd
        if (
            found := one(
                model, net, inputs(batch, size), bool(autograd), given.repeats, clock, given.peaks
            )
        )
    ]


def inputs(batch: int, size: int) -> Tensor:
    """Return seeded images."""
    generator = torch.Generator().manual_seed(1)
    return torch.rand(batch, 3, size, size, generator=generator)


def one(
    model: nn.Module,
    net: PursuitNetwork,
    x: Tensor,
    autograd: bool,
    repeats: int,
    clock: Any,
    peaked: bool,
) -> Row:
    """Return the cost of the check at one size."""

    def proving() -> None:
        net._proofs.forget()
        net(x)

    with torch.set_grad_enabled(autograd):
        calls = {"source": lambda: model(x), "first": proving, "later": lambda: net(x)}
        for call in calls.values():
            call()
        times: dict[str, list[float]] = {key: [] for key in calls}
        for _ in range(repeats):
            for key, call in calls.items():
                times[key].append(min(seconds(call, clock=clock) for _ in range(2)))
        peaks = {"peak": peak(proving) / 2**20} if peaked else {}
    turns = zip(times["first"], times["later"], times["source"], strict=True)
    checks = [(first - later) / alone for first, later, alone in turns]

    def step() -> None:
        net(x).sum().backward()
        net.zero_grad(set_to_none=True)

    if peaked:
        net.self_check = "off"
        with torch.enable_grad():
            peaks["step_peak"] = peak(step) / 2**20
        net.self_check = "first"
    return {
        "source_ms": 1e3 * statistics.median(times["source"]),
        "later_ms": 1e3 * statistics.median(times["later"]),
        "check": statistics.median(checks),
        "spread": [min(checks), max(checks)],
        **peaks,
    }


def main() -> int:
    """Run the benchmark; return the exit code."""
    parser = options(__doc__ or "", "self_check")
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 224])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2, 8])
    parser.add_argument("--clock", choices=CLOCKS, default="CPU")
    parser.add_argument(
        "--autograd", type=int, nargs="+", default=[0], help="with derivatives (1) or without"
    )
    parser.add_argument("--peaks", action="store_true", help="measure memory, too (slow)")
    given = parser.parse_args()
    key = ("model", "size", "batch", "autograd")
    return per_model("What the self-check costs", measure, given, key, COLUMNS)


if __name__ == "__main__":
    sys.exit(main())
