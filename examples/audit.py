"""Audit a pursuit network, and a network that hides its gradients, on handwritten digits.

Prints the report of both and writes the first as JSON and as a plot.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from rich.console import Console
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from pursuitify import pursuitify
from pursuitify.models import ChainNet
from pursuitify.robust import audit

EPS = 0.1
console = Console()


class Quantised(nn.Module):
    """A defence that is none: rounding the input takes the gradient away, not the weakness."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(torch.round(6 * x) / 6)


def digits() -> tuple[Tensor, Tensor]:
    bunch = load_digits()
    x = torch.from_numpy(bunch.images).float().div(16).unsqueeze(1)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    return x[order], torch.from_numpy(bunch.target).long()[order]


def fit(net: nn.Module, x: Tensor, y: Tensor, *, epochs: int, lr: float) -> None:
    optimizer = torch.optim.AdamW(net.parameters(), lr=lr)
    net.train()
    for _ in range(epochs):
        for part in torch.randperm(len(x)).split(128):
            optimizer.zero_grad()
            F.cross_entropy(net(x[part]), y[part]).backward()
            optimizer.step()
    net.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("demo-output"))
    parser.add_argument("--protocol", default="quick", help="quick, standard or full")
    parser.add_argument("--images", type=int, default=128, help="how many test images")
    options = parser.parse_args()
    torch.manual_seed(0)
    x, y = digits()
    test = (x[1400 : 1400 + options.images], y[1400 : 1400 + options.images])

    source = ChainNet(1, 10, width=6)
    fit(source, x[:1400], y[:1400], epochs=10, lr=1e-2)
    net = pursuitify(source, iterations=5)
    fit(net, x[:1400], y[:1400], epochs=3, lr=2e-3)

    options.output.mkdir(parents=True, exist_ok=True)
    record = options.output / "audit-record.json"
    record.unlink(missing_ok=True)  # keep it, and an interrupted audit goes on where it stopped
    report = audit(
        net, test, eps=EPS, protocol=options.protocol, twins={"source": source}, resume=record
    )
    console.print(report)
    report.save(options.output / "audit.json")
    report.plot(options.output / "audit.png")

    console.rule("the source behind a rounding layer: masked gradients, on purpose")
    masked = audit(Quantised(source).eval(), test, eps=EPS, protocol=options.protocol)
    console.print(masked)
    assert masked.flags, "the audit must not believe a masked network"


if __name__ == "__main__":
    main()
