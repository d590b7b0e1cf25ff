"""Draw docs/pictures/method.png: a network, its rows with feedback, and the objective against T.

    python docs/make_method_picture.py

The upper panels show a network of two latents with a skip connection. The lower one
is a real run: a small residual network is trained on scikit-learn's digits (seconds on one
core), converted, and swept under both rules for step sizes.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from pursuitify import plots, pursuitify
from pursuitify.data import Images, load_data
from pursuitify.models import ResidualNet
from pursuitify.training import finetune

TARGET = Path(__file__).resolve().parent / "pictures" / "method.png"
SWEEPS = 15
FORWARD, FEEDBACK = plots.COLOURS[:2]
LATENT, ROW = "#DCEBF5", "#F0F0F0"
Point = tuple[float, float]


def box(axes: Axes, centre: Point, text: str, *, width: float, colour: str = "white") -> None:
    """Draw a text in a rounded box."""
    height = 0.9
    corner = (centre[0] - width / 2, centre[1] - height / 2)
    style = "round,pad=0,rounding_size=0.18"
    patch = FancyBboxPatch(corner, width, height, style, fc=colour, ec="#555555", lw=0.8)
    axes.add_patch(patch)
    axes.text(*centre, text, ha="center", va="center", fontsize=9)


def arrow(axes: Axes, start: Point, end: Point, colour: str, *, bend: float = 0.0) -> None:
    """Draw an arrow, bent to a side by a share of its length."""
    patch = FancyArrowPatch(
        start,
        end,
        arrowstyle="-|>,head_length=4,head_width=2",
        connectionstyle=f"arc3,rad={bend}",
        color=colour,
        lw=1.4,
        shrinkA=0,
        shrinkB=0,
    )
    axes.add_patch(patch)


def plain(axes: Axes, title: str, width: float) -> None:
    """Prepare a panel for boxes and arrows: no axes, all panels of one height."""
    axes.set_xlim(0, width)
    axes.set_ylim(0, 10.2)
    axes.set_aspect("equal")
    axes.axis("off")
    axes.set_title(title)


def draw_network(axes: Axes) -> None:
    """Draw a network as its owner has it: two activations and a skip connection."""
    plain(axes, "1  your network", 5)
    parts = ("x", "conv 1", "ReLU", "conv 2", "+", "ReLU", "classifier")
    heights = [9.5 - 1.45 * place for place in range(len(parts))]
    for part, height in zip(parts, heights, strict=True):
        box(axes, (2, height), part, width=2.2, colour=LATENT if part == "ReLU" else "white")
    for above, below in pairwise(heights):
        arrow(axes, (2, above - 0.45), (2, below + 0.45), FORWARD)
    arrow(axes, (3.1, heights[2]), (3.1, heights[4]), FORWARD, bend=-0.55)
    axes.text(4.1, heights[3], "skip", fontsize=8, color=FORWARD)
    for number, place in ((1, 2), (2, 5)):
        axes.text(0.2, heights[place] - 0.15, f"$w_{number}$", fontsize=11)


def draw_rows(axes: Axes) -> None:
    """Draw the two rows of the dictionary, and what a sweep passes forward and back."""
    plain(axes, "2  one row per activation, inferred jointly", 11)
    above, below = 7.6, 3.1
    box(axes, (1.1, above), "$x$", width=1.2)
    for number, height in ((1, above), (2, below)):
        box(axes, (9.4, height), f"latent $w_{number}$", width=2.4, colour=LATENT)
    row = 4.2
    box(axes, (row + 0.3, above), "$r_1 = W_1^T w_1 - x$", width=4.0, colour=ROW)
    box(axes, (row + 0.3, below), "$r_2 = w_2 - (W_2 + I)\\,w_1$", width=4.6, colour=ROW)
    right, left = 8.2, row + 2.3
    arrow(axes, (1.7, above), (row - 1.7, above), FORWARD)
    arrow(axes, (right, above + 0.2), (left, above + 0.2), FORWARD, bend=0.25)
    arrow(axes, (left, above - 0.2), (right, above - 0.2), FEEDBACK, bend=0.25)
    arrow(axes, (right, below - 0.2), (left + 0.3, below - 0.2), FORWARD, bend=-0.25)
    arrow(axes, (left + 0.3, below + 0.2), (right, below + 0.2), FEEDBACK, bend=-0.25)
    arrow(axes, (8.9, above - 0.45), (4.1, below + 0.45), FORWARD, bend=0.08)
    arrow(axes, (5.6, below + 0.45), (9.8, above - 0.45), FEEDBACK, bend=0.22)
    for height, colour, text in (
        (1.15, FORWARD, "residuals read latents:  $r = B\\,w - y$"),
        (0.35, FEEDBACK, "feedback, also to earlier latents:  $B^T r$,  then ReLU"),
    ):
        arrow(axes, (0.3, height), (1.5, height), colour)
        axes.text(1.8, height - 0.13, text, fontsize=8.5)


def draw_objective(axes: Axes) -> None:
    """Draw the objective of a trained network against T, of both rules for step sizes."""
    torch.manual_seed(0)
    data = load_data("digits", seed=0)
    assert isinstance(data.test, Images)
    source = ResidualNet(1, 10, depth=1, width=8)
    finetune(source, data.train, data.val, epochs=5, lr=1e-2, seed=0, progress=False)
    x = data.test.tensors()[0][:64]
    for steps, colour, label in (
        ("certified", FORWARD, "certified steps (default)"),
        ("adaptive", FEEDBACK, "adaptive steps (line search)"),
    ):
        net = pursuitify(source, iterations=SWEEPS, steps=steps).eval()
        values = [sweep["objective"] for sweep in net.diagnose(x).to_dict()["sweeps"]]
        axes.plot(range(SWEEPS + 1), values, marker="o", color=colour, label=label)
    axes.set_xlabel("T, the number of sweeps")
    axes.annotate(
        "T = 0 is your network",
        (0, values[0]),
        (4, values[0] * 0.97),
        va="center",
        arrowprops={"arrowstyle": "-|>", "color": "#555555", "shrinkB": 4},
    )
    plots.whole_numbers(axes)
    axes.legend(loc="center right")
    axes.set_title("3  objective F of a trained network (digits)")


def main() -> None:
    """Draw the three panels and write the picture."""
    with plots.style():
        figure = Figure(figsize=(plots.WIDE, 6.4))
        panels = figure.subplot_mosaic(
            [["network", "rows"], ["objective", "objective"]],
            width_ratios=(5, 11),
            height_ratios=(10, 6),
        )
        draw_network(panels["network"])
        draw_rows(panels["rows"])
        draw_objective(panels["objective"])
        plots.finished(figure, TARGET)


if __name__ == "__main__":
    main()
