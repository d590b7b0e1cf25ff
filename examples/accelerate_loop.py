"""Fine-tune in an own loop of Hugging Face's accelerate, on one process or several.

    python examples/accelerate_loop.py
    accelerate launch --num_processes 2 --cpu examples/accelerate_loop.py

A pursuit network is prepared like any module. What is set on it (iterations, step_scale) is set on
the network itself, which the prepared one may have wrapped. ``pursuitify.training.finetune`` is
such a loop with schedules, resuming and a record; this one is for those who have their own.
"""

from __future__ import annotations

import sys

import torch
from common import accuracy, digits, fit, loop_options
from rich.console import Console
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from pursuitify import pursuitify
from pursuitify.models import ResidualNet

console = Console()


def main(argv: list[str] | None = None) -> int:
    options = loop_options(__doc__, argv)
    try:
        from accelerate import Accelerator
    except ImportError:
        console.print("accelerate is not installed: pip install 'pursuitify[train]'", markup=False)
        return 1

    torch.manual_seed(0)
    accelerator = Accelerator()
    x, y, x_test, y_test = digits(options.images)
    source = ResidualNet(1, 10, width=6)
    fit(source, x, y, epochs=2 * options.epochs)  # every process alike: the seed is the same
    accelerator.print(f"source {accuracy(source, x_test, y_test):.1%}")

    own = pursuitify(source, iterations=options.sweeps)
    optimizer = torch.optim.AdamW(own.parameters(), 2e-3)
    loader = DataLoader(TensorDataset(x, y), batch_size=128, shuffle=True)
    net, optimizer, loader = accelerator.prepare(own, optimizer, loader)
    x_test, y_test = x_test.to(accelerator.device), y_test.to(accelerator.device)
    for epoch in range(options.epochs):
        net.train()
        own.step_scale = min(1.0, (epoch + 1) / max(1, options.epochs - 1))
        for images, labels in loader:
            optimizer.zero_grad()
            accelerator.backward(F.cross_entropy(net(images), labels))
            optimizer.step()
        net.eval()
        reached = accuracy(own, x_test, y_test)
        accelerator.print(f"epoch {epoch}: step scale {own.step_scale:.2f}, accuracy {reached:.1%}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
