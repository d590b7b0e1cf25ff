"""Fine-tune with Lightning: the network is a module of a LightningModule, and needs nothing else.

Lightning is not installed by any extra of this library: pip install lightning
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from common import accuracy, digits, fit, loop_options
from rich.console import Console
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from pursuitify import PursuitNetwork, pursuitify
from pursuitify.models import ResidualNet

console = Console()


def pursued(L: Any, net: PursuitNetwork, epochs: int) -> Any:
    """Return a LightningModule that fine-tunes a network with step scales from 1 / epochs to 1.

    Args:
        L: The module ``lightning``, imported where it is known to be there.
        net: The network; trained in place.
        epochs: The number of epochs after which the steps are whole.
    """

    class Pursued(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def on_train_epoch_start(self) -> None:
            self.net.step_scale = min(1.0, (self.current_epoch + 1) / epochs)

        def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
            images, labels = batch
            loss = F.cross_entropy(self.net(images), labels)
            self.log("loss", loss)
            return loss

        def validation_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
            images, labels = batch
            right = (self.net(images).argmax(1) == labels).float().mean()
            self.log("accuracy", right, prog_bar=True)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.net.parameters(), 2e-3)

    return Pursued()


def main(argv: list[str] | None = None) -> int:
    options = loop_options(__doc__, argv)
    try:
        import lightning as L
    except ImportError:
        console.print("lightning is not installed: pip install lightning")
        return 1

    torch.manual_seed(0)
    x, y, x_test, y_test = digits(options.images)
    source = ResidualNet(1, 10, width=6)
    fit(source, x, y, epochs=2 * options.epochs)
    console.print(f"source {accuracy(source, x_test, y_test):.1%}")

    net = pursuitify(source, iterations=options.sweeps).train()  # Lightning keeps the mode it finds
    trainer = L.Trainer(
        max_epochs=options.epochs, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_model_summary=False,
    )  # fmt: skip
    train = DataLoader(TensorDataset(x, y), batch_size=128, shuffle=True)
    test = DataLoader(TensorDataset(x_test, y_test), batch_size=500)
    trainer.fit(pursued(L, net, options.epochs), train, test)
    net.eval()
    console.print(f"fine-tuned, T = {options.sweeps}: {accuracy(net, x_test, y_test):.1%}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
