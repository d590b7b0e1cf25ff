"""Accuracy of converted networks against T, with and without each means to keep it.

python benchmarks/conversion_accuracy.py --json out.json

Trains the reference networks (chain, residual, dense) on scikit-learn's digits and on Fashion-MNIST
(where Debian's dataset-fashion-mnist is installed; averaged to 14 x 14), a small network with
max-pooling and dense layers on Fashion-MNIST as it is, or networks of torchvision on Fashion-MNIST
at 32 x 32 in three channels; converts them without any fine-tuning, and measures
test accuracy at every T. Gains and scales are calibrated on images held out of training, without
their labels. Nothing is timed.
"""

from __future__ import annotations

import argparse
import gzip
import itertools
import json
import platform
import statistics
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pursuitify import PursuitNetwork, pursuitify
from pursuitify.conversion.calibration import calibrate
from pursuitify.models import ChainNet, DenselyConnectedNet, ResidualNet

FASHION = Path("/usr/share/datasets/fashion-mnist")
REFERENCE = {"chain": ChainNet, "residual": ResidualNet, "dense": DenselyConnectedNet}
TORCHVISION = ("resnet18", "vgg11_bn", "mobilenet_v2", "densenet121", "small densenet")
#: Two convolutions with BatchNorm and max-pooling, two dense layers.
POOLED = "max-pooling"
#: Largest learning rates of networks that do not train at 0.01.
RATES = {"vgg11_bn": 1e-3, POOLED: 3e-3}
CONSOLE = Console()
Data = tuple[Tensor, Tensor, Tensor, Tensor]
#: Images that are kept out of training, for calibration.
HELD = 200
STEPS = (1 / 32, 1 / 8, 1 / 4, 1 / 2, 1.0)


@dataclass(frozen=True)
class Means:
    """One way to convert, and to calibrate afterwards.

    Attributes:
        options: Options of ``pursuitify``.
        thresholds: Threshold scales calibrated together with the step scale; none: no calibration.
        gains: Whether decoder rows get atom gains.
    """

    options: dict[str, Any] = field(default_factory=dict)
    thresholds: tuple[float, ...] = ()
    gains: bool = False


ENCODER, SIGNAL, PAPER = {"layout": "encoder"}, {"offsets": "signal"}, {"offsets": "threshold"}
STATIONARY = {"offsets": "stationary"}
MEANS = {
    "thresholds": Means(PAPER),
    "offsets in the signal": Means(SIGNAL),
    "encoder layout, thresholds": Means({**ENCODER, **PAPER}),
    "encoder layout, offsets in the signal": Means({**ENCODER, **SIGNAL}),
    "offsets in the signal, gains": Means(SIGNAL, gains=True),
    "encoder layout, offsets in the signal, gains": Means({**ENCODER, **SIGNAL}, gains=True),
    "stationary": Means(STATIONARY),
    "encoder layout, stationary": Means({**ENCODER, **STATIONARY}),
    "encoder layout, half stationary": Means({**ENCODER, **STATIONARY, "stationary_share": 0.5}),
    "encoder layout, 0.4 stationary": Means({**ENCODER, **STATIONARY, "stationary_share": 0.4}),
    "encoder layout, 0.3 stationary": Means({**ENCODER, **STATIONARY, "stationary_share": 0.3}),
    "encoder layout, stationary, gains": Means({**ENCODER, **STATIONARY}, gains=True),
    "balance": Means({**PAPER, "balance": True}),
    "step scale": Means(PAPER, thresholds=(1.0,)),
    "step and threshold scale": Means(PAPER, thresholds=(0.5, 1.0, 2.0)),
    "balance and step scale": Means({**PAPER, "balance": True}, (1.0,)),
}


def digits(_count: int) -> Data:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    x = torch.from_numpy(bunch.images).float().div(16).unsqueeze(1)
    y = torch.from_numpy(bunch.target).long()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    x, y = x[order], y[order]
    return x[:1400], y[:1400], x[1400:], y[1400:]


def fashion(count: int, factor: int = 2) -> Data:
    def read(name: str, header: int) -> Tensor:
        raw = gzip.decompress((FASHION / name).read_bytes())
        return torch.from_numpy(np.frombuffer(raw, np.uint8, offset=header).copy())

    def images(name: str) -> Tensor:
        x = read(f"{name}-images-idx3-ubyte.gz", 16).reshape(-1, 1, 28, 28)
        return F.avg_pool2d(x.float() / 255, factor)

    def labels(name: str) -> Tensor:
        return read(f"{name}-labels-idx1-ubyte.gz", 8).long()

    return (
        images("train")[:count],
        labels("train")[:count],
        images("t10k")[:1000],
        labels("t10k")[:1000],
    )


def large_fashion(count: int) -> Data:
    """Return Fashion-MNIST as torchvision's networks take it, 3 x 32 x 32; 500 test images."""

    def enlarged(x: Tensor) -> Tensor:
        return F.pad(x, (2, 2, 2, 2)).expand(-1, 3, -1, -1)

    x, y, x_test, y_test = fashion(count, 1)
    return enlarged(x), y, enlarged(x_test[:500]), y_test[:500]


DATA = {
    "digits": digits,
    "fashion": fashion,
    "fashion at 28 px": lambda count: fashion(count, 1),
    "fashion at 32 px": large_fashion,
}


def network(data: str, name: str, width: int) -> nn.Module:
    if name in REFERENCE:
        return REFERENCE[name](1, 10, width=width)
    if name == POOLED:
        return pooled()
    from torchvision import models

    if name == "small densenet":
        return models.DenseNet(12, (4, 4, 4), 24, num_classes=10)
    return models.get_model(name, num_classes=10)


def pooled() -> nn.Module:
    """Return a network of two convolutions with max-pooling and two dense layers, for 28 x 28."""

    def block(before: int, after: int) -> list[nn.Module]:
        convolution = nn.Conv2d(before, after, 3, padding=1)
        return [convolution, nn.BatchNorm2d(after), nn.ReLU(), nn.MaxPool2d(2)]

    dense = [nn.Flatten(), nn.Linear(32 * 7 * 7, 128), nn.ReLU(), nn.Linear(128, 10)]
    return nn.Sequential(*block(1, 16), *block(16, 32), *dense)


def fits(data: str, name: str) -> bool:
    """Whether a network is measured on this data."""
    if name in REFERENCE:
        return data in ("digits", "fashion")
    return data == ("fashion at 28 px" if name == POOLED else "fashion at 32 px")


def fit(net: nn.Module, x: Tensor, y: Tensor, epochs: int, seed: int, rate: float = 1e-2) -> None:
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(net.parameters(), rate)
    batches = -(-len(x) // 128)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=epochs * batches)
    net.train()
    for _ in range(epochs):
        for part in torch.randperm(len(x), generator=generator).split(128):
            optimiser.zero_grad()
            F.cross_entropy(net(x[part]), y[part]).backward()
            optimiser.step()
            schedule.step()
    net.eval()


@torch.no_grad()
def accuracies(net: PursuitNetwork, x: Tensor, y: Tensor, counts: list[int]) -> dict[int, float]:
    """Return the accuracy after each number of sweeps, from one pursuit per batch."""
    right = dict.fromkeys(counts, 0)
    for a, b in zip(x.split(250), y.split(250), strict=True):
        for count, output in net.outputs_at(counts, a).items():
            right[count] += int((output.argmax(1) == b).sum())
    return {count: found / len(x) for count, found in right.items()}


def trained(
    data: str, build: str, seed: int, arguments: argparse.Namespace
) -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    """Return a trained network, images to calibrate on, and test images with their labels."""
    x, y, x_test, y_test = DATA[data](arguments.images)
    # Unlabelled, and not trained on: the network is surer of what it has learnt by heart.
    x, y, sample = x[HELD:], y[HELD:], x[:HELD]
    torch.manual_seed(seed)
    source = network(data, build, arguments.width)
    epochs = 4 * arguments.epochs if data == "digits" else arguments.epochs
    fit(source, x, y, epochs, seed, RATES.get(build, 1e-2))
    return source, sample, x_test, y_test


def measure(
    data: str, build: str, seed: int, arguments: argparse.Namespace
) -> list[dict[str, Any]]:
    source, sample, x_test, y_test = trained(data, build, seed, arguments)
    rows = []
    for name in arguments.means:
        means = MEANS[name]
        net = pursuitify(source, **means.options)
        if means.gains:
            calibrate(net, [sample], step_scales=(), gains=True, apply=True)
            net.step_scale = 1.0  # of no trial but that of the source, that one was chosen
        found: dict[int, float] = {}
        if not means.thresholds:
            found = accuracies(net, x_test, y_test, arguments.sweeps)
        for sweeps in arguments.sweeps:
            net.iterations, net.step_scale, net.threshold_scale = sweeps, 1.0, 1.0
            if sweeps and means.thresholds:
                calibrate(
                    net,
                    [sample],
                    agreement=arguments.agreement,
                    step_scales=STEPS,
                    threshold_scales=means.thresholds,
                    apply=True,
                )
            if means.thresholds:
                found |= accuracies(net, x_test, y_test, [sweeps])
            rows.append(
                {
                    "data": data,
                    "net": build,
                    "seed": seed,
                    "means": name,
                    "sweeps": sweeps,
                    "accuracy": found[sweeps],
                    "fall": fall(net, sample),
                    "moved": moved(net, sample),
                    "step_scale": net.step_scale,
                    "threshold_scale": net.threshold_scale,
                }
            )
    return rows


@torch.no_grad()
def fall(net: PursuitNetwork, x: Tensor) -> float:
    """Return by how much F falls from the source's latents to those reached, mean per sample."""
    reached = net.latents(x)
    held, net.threshold_scale = net.threshold_scale, 1.0
    sweeps, net.iterations = net.iterations, 0
    start = net.latents(x)
    change = net.objective(x, start) - net.objective(x, reached)
    net.threshold_scale, net.iterations = held, sweeps
    return float(change.mean())


@torch.no_grad()
def moved(net: PursuitNetwork, x: Tensor) -> float:
    """Return the mean over the latents of ||w_j - w_j at T = 0|| / ||w_j at T = 0||."""
    reached, sweeps = net.latents(x), net.iterations
    net.iterations = 0
    start = net.latents(x)
    net.iterations = sweeps
    changes = [float((reached[n] - w).norm() / w.norm()) for n, w in start.items()]
    return statistics.mean(changes)


def table(rows: list[dict[str, Any]], sweeps: list[int]) -> Table:
    found = Table(title="test accuracy, mean of the seeds (smallest to largest)")
    for heading in ("data", "net", "means", *(f"T = {t}" for t in sweeps)):
        found.add_column(heading)
    keys = dict.fromkeys((r["data"], r["net"], r["means"]) for r in rows)
    for key in keys:
        cells = []
        for t in sweeps:
            values = [
                r["accuracy"]
                for r in rows
                if (r["data"], r["net"], r["means"]) == key and r["sweeps"] == t
            ]
            low, high = min(values), max(values)
            cells.append(f"{statistics.mean(values):.1%} ({low:.1%} to {high:.1%})")
        found.add_row(*key, *cells)
    return found


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", nargs="+", default=["digits", "fashion"], choices=DATA)
    parser.add_argument(
        "--nets", nargs="+", default=list(REFERENCE), choices=[*REFERENCE, POOLED, *TORCHVISION]
    )
    parser.add_argument("--means", nargs="+", default=list(MEANS), choices=list(MEANS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--sweeps", nargs="+", type=int, default=[0, 1, 2, 5, 10, 20, 50])
    parser.add_argument("--agreement", type=float, default=0.99)
    parser.add_argument("--width", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--images", type=int, default=10000, help="Fashion-MNIST training images")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    if arguments.data != ["digits"] and not FASHION.is_dir():
        CONSOLE.print(f"no {FASHION}: Fashion-MNIST is left out (Debian: dataset-fashion-mnist)")
        arguments.data = ["digits"]
    cells = [
        cell
        for cell in itertools.product(arguments.data, arguments.nets, arguments.seeds)
        if fits(*cell[:2])
    ]
    if not cells:
        parser.error(f"none of {arguments.nets} is measured on {arguments.data}")
    rows: list[dict[str, Any]] = []
    for data, net, seed in track(cells, console=CONSOLE, description="train and convert"):
        rows += measure(data, net, seed, arguments)
    Console(width=200).print(table(rows, arguments.sweeps))
    if arguments.json:
        environment = {
            "torch": torch.__version__,
            "python": platform.python_version(),
            "machine": platform.machine(),
            "threads": arguments.threads,
        }
        settings = {k: str(v) for k, v in vars(arguments).items()}
        content = {"environment": environment, "settings": settings, "rows": rows}
        arguments.json.write_text(json.dumps(content, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
