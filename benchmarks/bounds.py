"""The least frame potential against depth, width and skips; the zoo's frame potential and bound.

    python benchmarks/bounds.py --output docs/pictures

Writes pictures and ``bounds.json`` with the values; ``--parts`` renews some, and without a name
draws from ``bounds.json`` alone. No data is read: by
depth, width and skips it is minima over the weights, the zoo's are of random models (seed 0), and
so are the blocks' (resnet18's Gram matrix, densenet121's dictionary and Gram matrix).
With one unit per block the densely connected network is the chain; it is left out by width.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.pictures import name
from pursuitify import pursuitify
from pursuitify.analysis import coherence
from pursuitify.analysis.measures.architecture_families import Points, ReadsBack, minima
from pursuitify.analysis.measures.plots import (
    plot_block_sparsity,
    plot_families,
    plot_gram_blocks,
    plot_intervals,
)
from pursuitify.models import ChainNet, DenselyConnectedNet, ResidualNet
from pursuitify.network.pursuit_network import PursuitNetwork
from pursuitify.plots import plot_structure

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


def say(family: str, size: int, value: float) -> None:
    print(f"{family:<24}{size:>4}  {value:.6f}", flush=True)


def made(model: str) -> PursuitNetwork:
    """Return a network of torchvision's with random weights."""
    import torchvision

    torch.manual_seed(0)
    options = {"init_weights": True} if model == "googlenet" else {}
    return pursuitify(torchvision.models.get_model(model, weights=None, **options).eval())


def blocks(output: Path) -> None:
    """Draw block pictures of two networks."""
    net = made("resnet18")
    report = dataclasses.replace(coherence(net, (3, 224, 224)), model=name("resnet18"))
    plot_gram_blocks(report, output / "gram-resnet18.png")
    net = made("densenet121")
    report = dataclasses.replace(coherence(net, (3, 224, 224)), model=name("densenet121"))
    plot_block_sparsity(report, output / "gram-densenet121.png")
    plot_structure(net, output / "dictionary-densenet121.png")


def zoo() -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for family, names in ZOO.items():
        for model in names:
            net = made(model)
            size = sum(p.numel() for p in net.parameters()) / 1e6
            report = coherence(net, (3, 224, 224))
            rows.append(
                {
                    "family": family,
                    "model": model,
                    "parameters_million": size,
                    "mutual_coherence": report.mutual_coherence,
                    "frame_potential": report.frame_potential,
                    "welch_bound": report.welch_bound,
                }
            )
            print(
                f"{model:<16} {report.frame_potential:.5f} >= {report.welch_bound:.5f}", flush=True
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


PARTS = [*AXES, "zoo", "blocks"]


def draw(record: dict[str, Any], output: Path) -> None:
    """Draw the pictures whose values are in the record."""
    for part in (p for p in AXES if p in record):
        points, note = record[part]["points"], record[part]["rules"]
        plot_families(points, output / f"bound-by-{part}.png", size=AXES[part], note=note)
    if "zoo" not in record:
        return

    rows = sorted(record["zoo"], key=lambda row: row["parameters_million"])
    families = list(ZOO)
    plot_intervals(
        {
            f"{name(r['model'])}, {r['parameters_million']:.3g} M": (
                r["welch_bound"],
                r["frame_potential"],
            )
            for r in rows
        },
        output / "zoo.png",
        value="frame potential",
        ends="line: Welch-type lower bound, dot: this network",
        note="torchvision, random weights (seed 0); a colour per family\n"
        "layout auto, interior, pooling at its centres; M: million parameters",
        groups=[families.index(r["family"]) for r in rows],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, default=Path("docs/pictures"))
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=PARTS)
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
        if part == "blocks":
            blocks(args.output)
        elif part == "zoo":
            record[part] = zoo()
        else:
            record[part] = {"rules": rules, "points": by_size(part, args.seeds, args.steps)}
        file.write_text(json.dumps(record, indent=1) + "\n")
    draw(record, args.output)


if __name__ == "__main__":
    main()
