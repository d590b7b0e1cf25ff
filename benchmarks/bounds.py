"""The least frame potential against depth, width and skips; the zoo's frame potential and bound.

    python benchmarks/bounds.py --output docs/pictures

Writes pictures and ``bounds.json`` with the values; ``--parts`` renews some. No data is read: by
depth, width and skips it is minima over the weights, the zoo's are of random models (seed 0).
With one unit per block the densely connected network is the chain; it is left out by width.
"""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path
from typing import Any

import torch

from pursuitify import pursuitify
from pursuitify.analysis import coherence
from pursuitify.analysis.families import Points, ReadsBack, minima
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


def by_size(part: str, seeds: int, steps: int) -> Points:
    """Return the minima of one picture."""
    if part == "skips":
        made = {
            "added": lambda n: ReadsBack(n, "add"),
            "concatenated": lambda n: ReadsBack(n, "cat"),
        }
        sizes = (1, 2, 3, 4)
    elif part == "depth":
        made = {n: lambda k, m=m: m(width=4, depth=k) for n, m in PAPER.items()}
        sizes = (1, 2, 3)
    else:
        made = {n: lambda k, m=m: m(width=k, depth=1) for n, m in PAPER.items() if n != "dense"}
        sizes = (2, 3, 4, 6)
    return minima(made, sizes, SHAPE, seeds=seeds, steps=steps, advance=say)


AXES = {
    "depth": "units per block, width 4",
    "width": "width, 1 unit per block",
    "skips": "latents that a layer reads (1: a chain); 6 layers, width 4",
}


def draw(record: dict[str, Any], output: Path) -> None:
    """Draw the pictures whose values are in the record."""
    for part in (p for p in AXES if p in record):
        points, note = record[part]["points"], record[part]["rules"]
        plot_families(points, output / f"bound-by-{part}.png", size=AXES[part], note=note)
    if "zoo" not in record:
        return
    points = {
        family: [
            (r["parameters_million"], r["frame_potential"])
            for r in record["zoo"]
            if r["family"] == family
        ]
        for family in ZOO
    }
    plot_families(
        points,
        output / "zoo.png",
        size="million parameters",
        value="frame potential",
        note="torchvision, random weights (seed 0); layout auto, interior, pooling at its centres",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, default=Path("docs/pictures"))
    parser.add_argument("--parts", nargs="*", choices=[*AXES, "zoo"], default=[*AXES, "zoo"])
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--seeds", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.output.mkdir(parents=True, exist_ok=True)
    file = args.output / "bounds.json"
    record = json.loads(file.read_text()) if file.exists() else {}
    record["environment"] = {"torch": torch.__version__, "python": platform.python_version()}
    rules = f"best of {args.seeds} starts of {args.steps} steps; layout auto, interior"
    for part in args.parts:
        if part == "zoo":
            record[part] = zoo()
        else:
            record[part] = {"rules": rules, "points": by_size(part, args.seeds, args.steps)}
        file.write_text(json.dumps(record, indent=1) + "\n")
    draw(record, args.output)


if __name__ == "__main__":
    main()
