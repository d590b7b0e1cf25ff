"""Time of a training step at T sweeps, as a multiple of (1 + 2 T) steps of the source.

python benchmarks/training.py --models resnet18 --sweeps 1 3 10 --modes store recompute implicit

A step is the forward pass, cross entropy, its derivatives and SGD, in training mode. Beside the
time stands what autograd keeps for the derivatives, in multiples of what it keeps for the source.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import common
from pursuitify import pursuitify

MODES: dict[str, dict[str, object]] = {
    "store": {"memory": "store"},
    "recompute": {"memory": "recompute"},
    "recompute twice": {"memory": "recompute", "recompute_levels": 2},
    "implicit": {"memory": "implicit"},
}
KEY = ("model", "batch", "size", "sweeps", "mode")
COLUMNS = (
    "model", "sweeps", "mode", "source_seconds", "seconds", "sources", "floors", "spread",
    "saved_mib", "saved_sources",
)  # fmt: skip


def stepper(model: nn.Module, x: Tensor) -> Callable[[], None]:
    """Return one training step as a call; the learning rate is zero, so that all are alike."""
    optimiser = torch.optim.SGD(model.parameters(), lr=0.0)
    labels = torch.arange(len(x), device=x.device) % 10

    def step() -> None:
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(model(x), labels).backward()
        optimiser.step()

    return step


def measure(name: str, given: argparse.Namespace) -> list[common.Row]:
    source = common.source(name, given.device).train()
    x = common.images(given.batch, given.size, given.device)
    theirs = common.saved_bytes(lambda: source(x))
    rows = []
    for sweeps in given.sweeps:
        calls, saved = {"source": stepper(source, x)}, {}
        for mode in given.modes:
            net = pursuitify(source, iterations=sweeps, **MODES[mode])
            saved[mode] = common.saved_bytes(lambda net=net: net(x))
            calls[mode] = stepper(net, x)
        times = common.in_turns(calls, given.repeats, given.device, best_of={"source": 3})
        rows += [
            {
                "model": name,
                "batch": given.batch,
                "size": given.size,
                "sweeps": sweeps,
                "mode": mode,
                **common.per_floor(common.ratio(times, mode), sweeps),
                "saved_mib": saved[mode] / 2**20,
                "saved_sources": saved[mode] / theirs,
            }
            for mode in given.modes
        ]
    return rows


def main(argv: list[str] | None = None) -> int:
    parser = common.options(__doc__, "training", sweeps=(1, 3, 10), batch=8, size=64)
    parser.add_argument("--models", nargs="+", default=["resnet18"])
    parser.add_argument("--modes", nargs="+", choices=list(MODES), default=list(MODES)[:3])
    given = parser.parse_args(argv)
    return common.per_model("training", measure, given, KEY, COLUMNS)


if __name__ == "__main__":
    sys.exit(main())
