"""Time and memory of coherence() on torchvision models, and the cost of the penalty.

    python benchmarks/coherence.py --output coherence.json [--models resnet18 resnet50 ...]

Seconds are process CPU time of one thread. Each measurement runs in a process of its own, so that
the peak memory is that model's; it includes torch and the model. ``base_mib`` is the peak before
the analysis. ``penalty``: a training step of resnet18 (160 pixels, batch 16, forward and backward)
and one of the penalty by turns, medians.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

#: (model, size of the image, boundary, switches)
RUNS = [
    ("resnet18", 224, "interior", "centre"),
    ("resnet50", 224, "interior", "centre"),
    ("resnet50", 448, "interior", "centre"),
    ("resnet50", 224, "exact", "centre"),
    ("resnet50", 224, "interior", "worst"),
    ("densenet121", 224, "interior", "centre"),
    ("densenet121", 448, "interior", "centre"),
    ("densenet121", 224, "exact", "centre"),
    ("googlenet", 224, "interior", "centre"),
    ("googlenet", 224, "interior", "worst"),
    ("inception_v3", 299, "exact", "centre"),
    ("mobilenet_v2", 224, "exact", "centre"),
    ("vgg16", 224, "interior", "centre"),
    ("vgg16", 448, "interior", "centre"),
    ("vgg16", 224, "exact", "centre"),
    ("vgg16", 224, "interior", "worst"),
]
MODELS = list(dict.fromkeys(name for name, *_ in RUNS))


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def one(name: str, size: int, boundary: str, switches: str) -> dict[str, object]:
    import torch
    import torchvision

    from pursuitify import pursuitify
    from pursuitify.analysis import coherence

    torch.manual_seed(0)
    torch.set_num_threads(1)
    options = {"init_weights": True} if name in ("googlenet", "inception_v3") else {}
    net = pursuitify(torchvision.models.get_model(name, weights=None, **options).eval(), copy=False)
    base = peak()
    start = time.process_time()
    report = coherence(net, (3, size, size), boundary, switches=switches)
    return {
        "model": name,
        "size": size,
        "boundary": boundary,
        "switches": switches,
        "cpu_seconds": round(time.process_time() - start, 2),
        "peak_mib": round(peak()),
        "base_mib": round(base),
        "columns": report.columns,
        "mutual_coherence": report.mutual_coherence,
        "frame_potential": report.frame_potential,
        "welch_bound": report.welch_bound,
    }


def penalty(turns: int = 9) -> dict[str, object]:
    import torch
    import torchvision

    from pursuitify import pursuitify
    from pursuitify.analysis import FramePotentialPenalty

    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = torchvision.models.resnet18().train()
    term = FramePotentialPenalty(pursuitify(model))
    x = torch.randn(16, 3, 160, 160)

    def timed(run: Callable[[], object]) -> float:
        start = time.process_time()
        run()
        return time.process_time() - start

    def step() -> None:
        model(x).square().mean().backward()

    def extra() -> None:
        term().backward()

    for run in (step, extra):
        run()
    steps, extras = zip(*((timed(step), timed(extra)) for _ in range(turns)), strict=True)
    return {
        "model": "penalty on resnet18",
        "turns": turns,
        "source_step_cpu_s": round(statistics.median(steps), 3),
        "penalty_cpu_s": round(statistics.median(extras), 3),
        "share": statistics.median(e / s for s, e in zip(steps, extras, strict=True)),
        "shares": [round(e / s, 4) for s, e in zip(steps, extras, strict=True)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", nargs="*", choices=[*MODELS, "penalty"], default=None)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/coherence.json"))
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        name, size, boundary, switches = args.one
        found = penalty() if name == "penalty" else one(name, int(size), boundary, switches)
        print(json.dumps(found))
        return
    rows = []
    wanted = args.models or [*MODELS, "penalty"]
    for run in [*RUNS, ("penalty", 0, "", "")]:
        if run[0] not in wanted:
            continue
        command = [sys.executable, __file__, "--one", *map(str, run)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        print(
            "  ".join(
                f"{k} {v:.5g}" if isinstance(v, float) else f"{k} {v}" for k, v in rows[-1].items()
            ),
            flush=True,
        )
    import torch

    record = {
        "environment": {
            "torch": torch.__version__,
            "python": platform.python_version(),
            "machine": platform.machine(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
        },
        "rows": rows,
    }
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
