"""Fine-tune in a plain PyTorch loop: from the source (step scale 0) to full steps.

A pursuit network is a module like any other, so any training loop will do. Raising step_scale
from 0, where the network is its source, spares it the loss of accuracy at the start.
"""

from __future__ import annotations

import sys

import torch
from common import accuracy, digits, fit, loop_options
from rich.console import Console
from torch.nn import functional as F

from pursuitify import pursuitify
from pursuitify.models import ResidualNet

console = Console()


def main(argv: list[str] | None = None) -> int:
    options = loop_options(__doc__, argv)
    torch.manual_seed(0)
    x, y, x_test, y_test = digits(options.images)
    source = ResidualNet(1, 10, width=6)
    fit(source, x, y, epochs=2 * options.epochs)
    console.print(f"source {accuracy(source, x_test, y_test):.1%}")

    net = pursuitify(source, iterations=options.sweeps)
    console.print(f"converted, T = {options.sweeps}: {accuracy(net, x_test, y_test):.1%}")

    optimizer = torch.optim.AdamW(net.parameters(), 2e-3)
    for epoch in range(options.epochs):
        net.train()
        net.step_scale = min(1.0, (epoch + 1) / max(1, options.epochs - 1))
        for part in torch.randperm(len(x)).split(128):
            optimizer.zero_grad()
            loss = F.cross_entropy(net(x[part]), y[part])
            loss.backward()
            optimizer.step()
        net.eval()
        reached = accuracy(net, x_test, y_test)
        console.print(f"epoch {epoch}: step scale {net.step_scale:.2f}, accuracy {reached:.1%}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
