"""Time and memory of coherence() on torchvision models, at two image sizes; and of the penalty.

    python benchmarks/coherence.py --output coherence.json [--models resnet18 resnet50 ...]

Seconds are process CPU time. Each measurement runs in a process of its own, so that the peak memory
is that model's; it includes torch and the model. ``base_mib`` is the peak before the analysis.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from pathlib import Path

MODELS = ["resnet18", "resnet50", "densenet121", "mobilenet_v2", "googlenet", "vgg16"]


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def one(name: str, size: int, boundary: str) -> dict[str, object]:
    import torch
    import torchvision

    from pursuitify import pursuitify
    from pursuitify.analysis import coherence

    torch.manual_seed(0)
    torch.set_num_threads(1)
    options = {"init_weights": True} if name == "googlenet" else {}
    net = pursuitify(torchvision.models.get_model(name, weights=None, **options).eval(), copy=False)
    base = peak()
    start = time.process_time()
    report = coherence(net, (3, size, size), boundary, switches="centre")
    return {
        "model": name,
        "size": size,
        "boundary": boundary,
        "cpu_seconds": round(time.process_time() - start, 2),
        "peak_mib": round(peak()),
        "base_mib": round(base),
        "columns": report.columns,
        "mutual_coherence": report.mutual_coherence,
        "frame_potential": report.frame_potential,
        "welch_bound": report.welch_bound,
    }


def penalty() -> dict[str, object]:
    import torch
    import torchvision

    from pursuitify import pursuitify
    from pursuitify.analysis import FramePotentialPenalty

    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = torchvision.models.resnet18().train()
    net = pursuitify(model)
    term = FramePotentialPenalty(net)
    x = torch.randn(16, 3, 160, 160)

    def timed(run: object, times: int) -> float:
        found = []
        for _ in range(times):
            start = time.process_time()
            run()  # type: ignore[operator]
            found.append(time.process_time() - start)
        return sorted(found)[len(found) // 2]

    step = timed(lambda: model(x).square().mean().backward(), 4)
    extra = timed(lambda: term().backward(), 15)
    return {
        "source_step_cpu_s": round(step, 3),
        "penalty_cpu_s": round(extra, 3),
        "share": extra / step,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", nargs="*", default=MODELS)
    parser.add_argument("--sizes", nargs="*", type=int, default=[224, 448])
    parser.add_argument("--output", type=Path, default=Path("benchmarks/coherence.json"))
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        name, size, boundary = args.one
        print(json.dumps(penalty() if name == "penalty" else one(name, int(size), boundary)))
        return
    rows = []
    runs = [(n, s, "interior") for n in args.models for s in args.sizes]
    runs += [(n, args.sizes[0], "exact") for n in args.models]
    for name, size, boundary in [*runs, ("penalty", 0, "")]:
        command = [sys.executable, __file__, "--one", name, str(size), boundary]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        print(
            "  ".join(
                f"{k} {v:.5g}" if isinstance(v, float) else f"{k} {v}" for k, v in rows[-1].items()
            )
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
