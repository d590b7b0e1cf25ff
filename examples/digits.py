"""From a small residual network to its pursuit network, on scikit-learn's handwritten digits.

Trains, converts, fine-tunes and attacks (`pursuitify.cli.demo`, which `pursuitify demo` runs too),
then converts two torchvision models. Prints tables, writes two pictures. Run `make demo`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from torch import nn

from pursuitify import pursuitify
from pursuitify.cli.demo import SEED, difference, digits

console = Console()


def convert_torchvision(name: str, build: Callable[..., nn.Module]) -> None:
    """Convert a torchvision model and print how long it took and how exact T = 0 is."""
    model = build(weights=None).eval()
    start = time.perf_counter()
    net = pursuitify(model, iterations=10)
    seconds = time.perf_counter() - start
    net.iterations = 0
    image = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(SEED))
    _, error = difference(net, model, image)
    console.print(f"torchvision {name}: converted in {seconds:.2f} s, T = 0 error {error:.1e}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("demo-output"), help="for pictures")
    parser.add_argument("--quick", action="store_true", help="fewer epochs, sweeps and steps")
    options = parser.parse_args()
    start = time.perf_counter()
    digits(options.output, quick=options.quick, console=console)

    from torchvision import models

    for name in ("resnet18",) if options.quick else ("resnet18", "resnet50"):
        convert_torchvision(name, getattr(models, name))
    console.print(f"done in {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
