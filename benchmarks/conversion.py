"""CPU seconds a conversion takes beyond a copy of the weights, over torchvision's ReLU family.

python benchmarks/conversion.py

The models are those that docs/coverage.md says convert. The median of ``--repeats`` conversions.
"""

from __future__ import annotations

import copy
import gc
import statistics
import sys
import time
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import common, coverage
from pursuitify import pursuitify

KEY = ("model",)
COLUMNS = ("model", "latents", "edges", "convert_cpu_seconds", "ms_per_latent")


def timed(model: nn.Module) -> float:
    """Return the CPU seconds a conversion takes beyond a copy of the weights."""
    start = time.process_time()
    copied = copy.deepcopy(model)
    copying = time.process_time() - start
    del copied
    start = time.process_time()
    pursuitify(model)
    return max(0.0, time.process_time() - start - copying)


def measure(name: str, repeats: int) -> common.Row:
    cells = dict(zip(coverage.COLUMNS, coverage.committed()[name], strict=True))
    latents = int(cells["latents"]) + int(cells["identity"])
    model = coverage.build(name).eval()
    took = statistics.median(timed(model) for _ in range(repeats))
    del model
    gc.collect()
    return {
        "model": name,
        "latents": latents,
        "edges": int(cells["edges"]),
        "convert_cpu_seconds": took,
        "ms_per_latent": 1000 * took / latents,
    }


def main(argv: list[str] | None = None) -> int:
    known = [name for name, cells in coverage.committed().items() if cells[1] == "yes"]
    parser = common.options(__doc__, "conversion")
    parser.add_argument(
        "--models", nargs="+", default=[name for name in known if name not in coverage.LARGE]
    )
    given = parser.parse_args(argv)
    torch.set_num_threads(given.threads)
    rows = []
    for name in given.models:
        rows.append(measure(name, min(3, given.repeats)))
        common.write(given.json, rows, KEY)
    common.show("conversion", rows, COLUMNS)
    return 0


if __name__ == "__main__":
    sys.exit(main())
