"""The library end to end on scikit-learn's handwritten digits: what ``pursuitify demo`` runs."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from pursuitify.conversion.convert import pursuitify
from pursuitify.data import Images, load_data
from pursuitify.models import ResidualNet
from pursuitify.robust import fgsm, pgd
from pursuitify.training import evaluate, finetune
from pursuitify.utils import option_checks
from pursuitify.utils.atomic_files import make_folder

SEED = 0
EPS = 0.1


def digits(output: Path | None, *, quick: bool, console: Console) -> dict[str, Any]:
    """Train a small residual network, convert it, fine-tune it, evaluate all.

    Args:
        output: Folder for two pictures, or None.
        quick: Fewer epochs, sweeps and attack steps.
        console: Where to print.

    Returns:
        The numbers that are printed.
    """
    drawing = () if output is None else ("matplotlib",)
    option_checks.extra("demo", "accelerate", "sklearn", *drawing)
    if output is not None:
        make_folder(output)  # now, rather than after the training
    epochs, tuning, sweeps, steps = (4, 1, 4, 5) if quick else (20, 6, 10, 20)
    shown = console.is_terminal and not console.quiet
    data = load_data("digits", seed=SEED)
    assert isinstance(data.test, Images)
    x, y = data.test.tensors()
    options: dict[str, Any] = {"progress": shown, "weight_decay": 0.01, "seed": SEED}

    torch.manual_seed(SEED)
    source = ResidualNet(1, 10, depth=1, width=8)
    trained = finetune(source, data.train, data.val, epochs=epochs, lr=1e-2, **options)
    console.print(f"trained the source: {_best(trained.best)}")

    net = pursuitify(source, iterations=sweeps).eval()
    source.eval()
    net.iterations = 0
    gap, _ = difference(net, source, x)
    console.print(f"T = 0 is the source network: largest difference {gap:.1e}")
    net.iterations = sweeps
    trace = net.diagnose(x[:64])
    console.print(f"\nThe converted network, sweep by sweep (T = {sweeps}):")
    console.print(str(trace), highlight=False, soft_wrap=True)
    if output is not None:
        from pursuitify.plots import plot_objective, plot_structure

        plot_structure(net, output / "structure.png")
        plot_objective(trace, output / "objective.png")
        console.print(f"\nwrote {output}/structure.png and {output}/objective.png\n")

    tuned, twin = copy.deepcopy(net), copy.deepcopy(source)
    for title, one in ((f"fine-tuned, T = {sweeps}", tuned), ("fine-tuned the source alike", twin)):
        result = finetune(one, data.train, data.val, epochs=tuning, lr=2e-3, **options)
        console.print(f"{title}: {_best(result.best)}")
    nets = {
        "source": source,
        "source, fine-tuned alike": twin,
        f"converted, T = {sweeps}, not tuned": net,
        f"converted, T = {sweeps}, fine-tuned": tuned,
    }
    scores = attacked(nets, x, y, steps=steps)
    console.print(table(scores, len(x)))
    return {"gap": gap, "validation": trained.best["val_accuracy"], "networks": scores}


def _best(entry: Mapping[str, Any]) -> str:
    return f"validation accuracy {entry['val_accuracy']:.1%} after epoch {entry['epoch']}"


@torch.no_grad()
def difference(a: nn.Module, b: nn.Module, x: Tensor) -> tuple[float, float]:
    """Return the largest difference of the outputs, absolute and relative to b's largest."""
    first, second = a(x), b(x)
    gap = float((first - second).abs().max())
    return gap, gap / float(second.abs().max())


def attacked(
    nets: Mapping[str, nn.Module], x: Tensor, y: Tensor, *, steps: int
) -> dict[str, dict[str, float]]:
    """Return every network's accuracy, clean and attacked through all of its own sweeps."""
    found = {}
    for name, net in nets.items():
        points = {
            "clean": x,
            "FGSM": fgsm(net, x, y, eps=EPS),
            f"PGD-{steps}": pgd(net, x, y, eps=EPS, steps=steps, seed=SEED),
        }
        found[name] = {attack: evaluate(net, (p, y)).accuracy for attack, p in points.items()}
    return found


def table(scores: Mapping[str, Mapping[str, float]], count: int) -> Table:
    """Return the accuracies as a table."""
    rows = Table(
        title=f"Accuracy on {count} test digits, attacks within ±{EPS:g} of each pixel (linf)",
        caption="Two gradient attacks are no evidence of robustness; none is claimed.",
    )
    rows.add_column("network")
    for heading in next(iter(scores.values())):
        rows.add_column(heading, justify="right")
    for name, row in scores.items():
        rows.add_row(name, *(f"{value:.1%}" for value in row.values()))
    return rows
