"""Several examples share this: data, a fitting loop, accuracy; nothing about pursuit."""

from __future__ import annotations

import argparse

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Data = tuple[Tensor, Tensor, Tensor, Tensor]


def digits(train: int = 1400) -> Data:
    """Return scikit-learn's digits: images in [0, 1] and labels, to train on and to test on."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    x = torch.from_numpy(bunch.images).float().div(16).unsqueeze(1)
    y = torch.from_numpy(bunch.target).long()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    x, y = x[order], y[order]
    return x[:train], y[:train], x[1400:], y[1400:]


def fit(net: nn.Module, x: Tensor, y: Tensor, *, epochs: int, lr: float = 1e-2) -> None:
    """Train in place; leaves the network in evaluation mode."""
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(net.parameters(), lr)
    net.train()
    for _ in range(epochs):
        for part in torch.randperm(len(x), generator=generator).split(128):
            optimizer.zero_grad()
            F.cross_entropy(net(x[part]), y[part]).backward()
            optimizer.step()
    net.eval()


@torch.no_grad()
def accuracy(net: nn.Module, x: Tensor, y: Tensor) -> float:
    """Return the share of right predictions."""
    return float((net(x).argmax(1) == y).float().mean())


def loop_options(text: str | None, argv: list[str] | None) -> argparse.Namespace:
    """Return the options of an example that trains in a loop; ``text`` is its help."""
    parser = argparse.ArgumentParser(description=text)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--sweeps", type=int, default=10)
    parser.add_argument("--images", type=int, default=1400, help="how many to train on")
    return parser.parse_args(argv)
