"""Coherence of a network's dictionary, and architectures compared before training.

    python examples/coherence.py --output coherence-output

Prints the report of a small residual network, its certificate at one input, the least frame
potential of chains and residual networks of several depths, and writes the pictures.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from pursuitify import pursuitify
from pursuitify.analysis import certify, coherence, minimum_frame_potential
from pursuitify.analysis.measures.plots import plot_block_sparsity, plot_families, plot_gram_blocks
from pursuitify.models import ChainNet, ResidualNet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, default=Path("coherence-output"))
    parser.add_argument("--steps", type=int, default=20, help="optimiser steps per network")
    args = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)

    net = pursuitify(ResidualNet(width=4, depth=2).eval())
    report = coherence(net, (3, 32, 32))
    print(report, end="\n\n")
    plot_gram_blocks(report, args.output / "gram-blocks.png")
    plot_block_sparsity(report, args.output / "block-sparsity.png")

    small = pursuitify(ResidualNet(width=2, depth=1).double().eval())
    print(certify(small, torch.randn(1, 3, 8, 8).double()), end="\n\n")

    families: dict[str, list[tuple[float, float]]] = {"chain": [], "residual": []}
    for depth in (1, 2, 3):
        for name, model in (
            ("chain", ChainNet(width=4, depth=depth)),
            ("residual", ResidualNet(width=4, depth=depth)),
        ):
            found = minimum_frame_potential(
                model, (3, 32, 32), method="optimise", seeds=1, steps=args.steps
            )
            families[name].append((6 * depth, found.value))
            print(f"{name:<10} depth {6 * depth:>2}: {found.value:.5f}")
    plot_families(
        families,
        args.output / "bound-against-depth.png",
        size="layers",
        note=f"width 4, interior, best after {args.steps} steps of one seed, layout auto",
    )
    print(f"\npictures in {args.output}/")


if __name__ == "__main__":
    main()
