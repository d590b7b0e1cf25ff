"""Inference time at T sweeps, as a multiple of (1 + 2 T) forward passes of the source.

python benchmarks/inference.py --models resnet18 densenet121 --sweeps 10 --json out.json

Source and network run in turn, so that a drift of the machine's speed hits both; medians of the
ratios of each turn. Run it on an idle machine. The first call, which certifies the norms, is timed
apart.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torchvision import models

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pursuitify import pursuitify

DEFAULT = ("resnet18", "resnet50", "vgg16", "densenet121", "mobilenet_v2")


def seconds(call: Any, device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


@torch.inference_mode()
def measure(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    torch.manual_seed(0)
    device = torch.device(arguments.device)
    source = models.get_model(name, weights=None).eval()
    source = source.to(device, memory_format=torch.channels_last)
    net = pursuitify(source, iterations=arguments.sweeps)
    shape = (arguments.batch, 3, arguments.size, arguments.size)
    x = torch.rand(shape, device=device).to(memory_format=torch.channels_last)
    seconds(lambda: source(x), device)
    first = seconds(lambda: net(x), device)
    run = torch.compile(net, fullgraph=True) if arguments.compile else net
    compiling = seconds(lambda: run(x), device) if arguments.compile else 0.0
    floor = 1 + 2 * arguments.sweeps
    ratios, own, theirs = [], [], []
    for _ in range(arguments.repeats):
        theirs.append(min(seconds(lambda: source(x), device) for _ in range(3)))
        own.append(seconds(lambda: run(x), device))
        ratios.append(own[-1] / theirs[-1] / floor)
    return {
        "model": name,
        "source_seconds": statistics.median(theirs),
        "pursuit_seconds": statistics.median(own),
        "ratio": statistics.median(ratios),
        "spread": [min(ratios), max(ratios)],
        "first_call_seconds": first,
        "compile_seconds": compiling,
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=list(DEFAULT))
    parser.add_argument("--sweeps", type=int, default=10)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--size", type=int, default=160)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    table = Table(title=f"T = {arguments.sweeps}, multiples of {1 + 2 * arguments.sweeps} sources")
    for heading in ("model", "source s", "pursuit s", "ratio", "min", "max", "first call s"):
        table.add_column(heading)
    rows = []
    for name in arguments.models:
        row = measure(name, arguments)
        rows.append(row)
        cells = [row["source_seconds"], row["pursuit_seconds"], row["ratio"], *row["spread"]]
        table.add_row(name, *(f"{c:.3f}" for c in [*cells, row["first_call_seconds"]]))
    Console().print(table)
    if arguments.json:
        environment = {
            "torch": torch.__version__,
            "python": platform.python_version(),
            "machine": platform.machine(),
            "threads": arguments.threads,
        }
        settings = {k: str(v) for k, v in vars(arguments).items()}
        content = {"environment": environment, "settings": settings, "rows": rows}
        arguments.json.write_text(json.dumps(content, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
