"""Inference time at T sweeps, as a multiple of (1 + 2 T) forward passes of the source.

python benchmarks/inference.py --models resnet18 densenet121 --sweeps 10

In turn, the source runs 1 + 2 T times and the network once: both take as long, so that a machine
whose speed varies hits them alike. Run it on an idle machine. The first call, which certifies the
norms, is timed apart. Several calls of this script fill one file, model by model.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import common
from pursuitify import pursuitify

MODELS = ("resnet18", "resnet50", "vgg16", "densenet121", "mobilenet_v2")
KEY = ("model", "batch", "size", "sweeps", "compiled")
COLUMNS = (
    "model", "sweeps", "source_seconds", "seconds", "sources", "floors", "spread",
    "first_call_seconds",
)  # fmt: skip


@torch.inference_mode()
def measure(name: str, given: argparse.Namespace) -> list[common.Row]:
    source = common.source(name, given.device)
    x = common.images(given.batch, given.size, given.device)
    net = pursuitify(source, iterations=given.sweeps[0])
    common.seconds(lambda: source(x), given.device)
    first = common.seconds(lambda: net(x), given.device)
    rows = []
    for sweeps in given.sweeps:
        net.iterations = sweeps
        run = torch.compile(net, fullgraph=True) if given.compile else net
        passes = common.floor(sweeps)
        calls = {
            "source": lambda passes=passes: [source(x) for _ in range(passes)],
            "ours": lambda run=run: run(x),
        }
        times = common.in_turns(calls, given.repeats, given.device)
        times["source"] = [t / passes for t in times["source"]]
        rows.append(
            {
                "model": name,
                "batch": given.batch,
                "size": given.size,
                "sweeps": sweeps,
                "compiled": given.compile,
                **common.per_floor(common.ratio(times, "ours"), sweeps),
                "first_call_seconds": first,
            }
        )
    return rows


def main(argv: list[str] | None = None) -> int:
    parser = common.options(__doc__, "inference")
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--compile", action="store_true")
    given = parser.parse_args(argv)
    return common.per_model("inference", measure, given, KEY, COLUMNS)


if __name__ == "__main__":
    sys.exit(main())
