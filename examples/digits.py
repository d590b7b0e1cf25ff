"""From a small residual network to its pursuit network, on scikit-learn's handwritten digits.

Trains, converts, fine-tunes and attacks; prints tables, writes two pictures. Run `make demo`.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from pursuitify import pursuitify
from pursuitify.models import ResidualNet
from pursuitify.plots import plot_objective, plot_structure
from pursuitify.robust import fgsm, pgd

SEED = 0
EPS = 0.1
BATCH = 128
console = Console()


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return training and test images in [0, 1] with their labels, split 4 to 1."""
    bunch = load_digits()
    x = torch.from_numpy(bunch.images).float().div(16).unsqueeze(1)
    y = torch.from_numpy(bunch.target).long()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(SEED))
    train, test = order[: len(x) * 4 // 5], order[len(x) * 4 // 5 :]
    return x[train], y[train], x[test], y[test]


def fit(net: nn.Module, x: Tensor, y: Tensor, *, epochs: int, lr: float, title: str) -> None:
    """Train in place with a progress bar; the same loop serves source and pursuit network."""
    generator = torch.Generator().manual_seed(SEED)
    optimizer = torch.optim.AdamW(net.parameters(), lr=lr)
    steps = epochs * -(-len(x) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps)
    columns = [
        TextColumn("{task.description:<28}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("loss {task.fields[loss]:.3f}  accuracy {task.fields[accuracy]:.1%}"),
    ]
    net.train()
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(title, total=steps, loss=float("nan"), accuracy=0.0)
        for _ in range(epochs):
            total, right, seen = 0.0, 0, 0
            for part in torch.randperm(len(x), generator=generator).split(BATCH):
                optimizer.zero_grad()
                logits = net(x[part])
                loss = F.cross_entropy(logits, y[part])
                loss.backward()
                optimizer.step()
                schedule.step()
                total += loss.item() * len(part)
                right += int((logits.argmax(1) == y[part]).sum())
                seen += len(part)
                bar.update(task, advance=1, loss=total / seen, accuracy=right / seen)
    net.eval()


@torch.no_grad()
def accuracy(net: nn.Module, x: Tensor, y: Tensor) -> float:
    return float((net(x).argmax(1) == y).float().mean())


@torch.no_grad()
def difference(a: nn.Module, b: nn.Module, x: Tensor) -> tuple[float, float]:
    """Return the largest difference of the outputs, absolute and relative to b's largest."""
    first, second = a(x), b(x)
    gap = float((first - second).abs().max())
    return gap, gap / float(second.abs().max())


def attack_table(nets: dict[str, nn.Module], x: Tensor, y: Tensor, *, steps: int) -> Table:
    """Attack every network with the same budget, each through all of its own sweeps."""
    table = Table(
        title=f"Accuracy on {len(x)} test digits, attacks within ±{EPS:g} of each pixel (linf)",
        caption="Two gradient attacks are no evidence of robustness; none is claimed.",
    )
    for heading in ("network", "clean", "FGSM", f"PGD-{steps}"):
        table.add_column(heading, justify="left" if heading == "network" else "right")
    for name, net in nets.items():
        found = [
            x,
            fgsm(net, x, y, eps=EPS),
            pgd(net, x, y, eps=EPS, steps=steps, seed=SEED, progress=console.is_terminal),
        ]
        table.add_row(name, *(f"{accuracy(net, points, y):.1%}" for points in found))
    return table


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
    epochs, tuning, sweeps, steps = (4, 1, 4, 5) if options.quick else (20, 6, 10, 20)
    start = time.perf_counter()
    torch.manual_seed(SEED)
    x, y, x_test, y_test = digits()

    source = ResidualNet(1, 10, depth=1, width=8)
    fit(source, x, y, epochs=epochs, lr=1e-2, title="train the source")

    net = pursuitify(source, iterations=sweeps).eval()
    net.iterations = 0
    gap, _ = difference(net, source, x_test)
    console.print(f"T = 0 is the source network: largest difference {gap:.1e}")
    net.iterations = sweeps
    trace = net.diagnose(x_test[:64])
    console.print(f"\nThe converted network, sweep by sweep (T = {sweeps}):")
    console.print(str(trace), highlight=False, soft_wrap=True)
    options.output.mkdir(parents=True, exist_ok=True)
    plot_structure(net, options.output / "structure.png")
    plot_objective(trace, options.output / "objective.png")
    console.print(f"\nwrote {options.output}/structure.png and {options.output}/objective.png\n")

    tuned, twin = copy.deepcopy(net), copy.deepcopy(source)
    fit(tuned, x, y, epochs=tuning, lr=2e-3, title=f"fine-tune, T = {sweeps}")
    fit(twin, x, y, epochs=tuning, lr=2e-3, title="fine-tune the source, alike")
    nets = {
        "source": source,
        "source, fine-tuned alike": twin,
        f"converted, T = {sweeps}, not tuned": net,
        f"converted, T = {sweeps}, fine-tuned": tuned,
    }
    console.print(attack_table(nets, x_test, y_test, steps=steps))

    from torchvision import models

    for name in ("resnet18",) if options.quick else ("resnet18", "resnet50"):
        convert_torchvision(name, getattr(models, name))
    console.print(f"done in {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
