"""The least frame potential against depth, width and skips; the zoo's frame potential and bound.

    python benchmarks/bounds.py --output docs/pictures

Writes four pictures and ``bounds.json`` with the values. No data is read: the first three pictures
are minima over the weights; the last is of randomly initialised models (seed 0) of torchvision.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from pathlib import Path

import torch

from pursuitify import pursuitify
from pursuitify.analysis import coherence
from pursuitify.analysis.families import ReadsBack, minima
from pursuitify.analysis.pictures import plot_families
from pursuitify.models import ChainNet, DenselyConnectedNet, ResidualNet

SHAPE = (3, 16, 16)
ZOO = {
    "VGG": ["vgg11", "vgg13", "vgg16"],
    "ResNet": ["resnet18", "resnet34", "resnet50"],
    "RegNetX": ["regnet_x_400mf", "regnet_x_800mf", "regnet_x_1_6gf"],
    "DenseNet": ["densenet121"],
    "MobileNet, MNASNet": ["mnasnet0_5", "mnasnet1_0", "mobilenet_v2"],
    "Inception": ["googlenet"],
}
PAPER = {"chain": ChainNet, "residual": ResidualNet, "dense": DenselyConnectedNet}


def say(name: str, size: int, value: float) -> None:
    print(f"{name:<24}{size:>4}  {value:.6f}", flush=True)


def zoo() -> list[dict[str, object]]:
    import torchvision

    rows: list[dict[str, object]] = []
    for family, names in ZOO.items():
        for name in names:
            torch.manual_seed(0)
            options = {"init_weights": True} if name == "googlenet" else {}
            model = torchvision.models.get_model(name, weights=None, **options).eval()
            size = sum(p.numel() for p in model.parameters()) / 1e6
            report = coherence(pursuitify(model, copy=False), (3, 224, 224))
            rows.append(
                {
                    "family": family,
                    "model": name,
                    "parameters_million": size,
                    "mutual_coherence": report.mutual_coherence,
                    "frame_potential": report.frame_potential,
                    "welch_bound": report.welch_bound,
                }
            )
            print(
                f"{name:<16} {report.frame_potential:.5f} >= {report.welch_bound:.5f}", flush=True
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, default=Path("docs/pictures"))
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--seeds", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(1)
    start = time.process_time()
    rules = f"best of {args.seeds} starts of {args.steps} steps; layout auto, interior"
    options = {"seeds": args.seeds, "steps": args.steps, "advance": say}

    def made(key: str, **fixed: int):  # type: ignore[no-untyped-def]
        return {n: lambda size, m=m: m(**{key: size}, **fixed) for n, m in PAPER.items()}

    depth = minima(made("depth", width=4), (1, 2, 3), SHAPE, **options)  # type: ignore[arg-type]
    width = minima(made("width", depth=1), (2, 3, 4, 6), SHAPE, **options)  # type: ignore[arg-type]
    joins = {
        "added": lambda n: ReadsBack(n, "add"),
        "concatenated": lambda n: ReadsBack(n, "cat"),
    }
    skips = minima(joins, (1, 2, 3, 4), SHAPE, **options)  # type: ignore[arg-type]
    tables = {
        "depth": (depth, "units per block, width 4", rules),
        "width": (width, "width, 1 unit per block", rules),
        "skips": (skips, "latents that a layer reads (1: a chain); 6 layers, width 4", rules),
    }
    for name, (points, axis, note) in tables.items():
        plot_families(points, args.output / f"bound-by-{name}.png", size=axis, note=note)
    models = zoo()
    points = {
        family: [
            (float(r["parameters_million"]), float(r["frame_potential"]))  # type: ignore[arg-type]
            for r in models
            if r["family"] == family
        ]
        for family in ZOO
    }
    plot_families(
        points,
        args.output / "zoo.png",
        size="million parameters",
        value="frame potential",
        note="torchvision, random weights (seed 0); layout auto, interior, pooling at its centres",
    )
    record = {
        "environment": {"torch": torch.__version__, "python": platform.python_version()},
        "cpu_seconds": round(time.process_time() - start, 1),
        "rules": rules,
        **{name: points for name, (points, _, _) in tables.items()},
        "zoo": models,
    }
    (args.output / "bounds.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
