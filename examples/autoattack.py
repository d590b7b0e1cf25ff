"""Two outside libraries on a converted network: it is a plain module that returns logits.

Needs `pip install 'pursuitify[robust,demo]'`. The libraries are called here directly; through
`pursuitify.robust.autoattack` and `foolbox` their results are verified as well.
"""

from __future__ import annotations

import sys

import torch
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from pursuitify import pursuitify
from pursuitify.models import ChainNet
from pursuitify.robust import apgd, pgd

EPS = 0.1


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


@torch.no_grad()
def accuracy(net: nn.Module, x: Tensor, y: Tensor) -> str:
    return f"{float((net(x).argmax(1) == y).float().mean()):.1%}"


def main() -> int:
    try:
        import foolbox
        from pyautoattack import AutoAttack
    except ImportError as error:
        print(f"{error.name} is not installed: pip install 'pursuitify[robust]'")
        return 1

    torch.manual_seed(0)
    x, y = digits()
    source = ChainNet(1, 10, width=6)
    fit(source, x[:1400], y[:1400], epochs=10, lr=1e-2)
    net = pursuitify(source, iterations=3)
    fit(net, x[:1400], y[:1400], epochs=3, lr=2e-3)
    x, y = x[1400:1528], y[1400:1528]

    judge = AutoAttack(net, attacks=["apgd-ce"], eps=EPS, norm="Linf", seed=0, version="custom")
    judge.apgd.n_restarts = 1
    outside, _ = judge.run_standard_evaluation(x, y, batch_size=len(x))
    model = foolbox.PyTorchModel(net, bounds=(0, 1), device="cpu")
    _, pushed, _ = foolbox.attacks.LinfPGD(rel_stepsize=0.125, steps=20)(model, x, y, epsilons=EPS)

    table = Table(title=f"T = {net.iterations}, {len(x)} digits, linf ball of {EPS:g}")
    table.add_column("attack")
    table.add_column("accuracy", justify="right")
    table.add_row("none", accuracy(net, x, y))
    table.add_row("foolbox LinfPGD, 20 steps", accuracy(net, pushed, y))
    table.add_row("ours: PGD, 20 steps", accuracy(net, pgd(net, x, y, eps=EPS, seed=0), y))
    table.add_row("pyautoattack APGD-CE", accuracy(net, outside, y))
    table.add_row("ours: APGD-CE", accuracy(net, apgd(net, x, y, eps=EPS, seed=0), y))
    Console().print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
