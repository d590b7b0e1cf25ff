"""Common parts of the commands: options by name, making a network, printing results."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from torch import nn

from pursuitify import load, pursuitify
from pursuitify.cli.model_sources import load_model, load_weights
from pursuitify.data import Data, load_data
from pursuitify.errors import OptionError
from pursuitify.network.pursuit_network import PursuitNetwork
from pursuitify.utils.atomic_files import as_json as as_json_text
from pursuitify.utils.atomic_files import is_finite

NAME = Annotated[str, typer.Argument(metavar="MODEL", help="resnet50, timm:NAME, file.py:factory")]
SHAPE = Annotated[str, typer.Option(help="Shape of one input, e.g. 3,224,224.")]
LAYOUT = Annotated[
    str | None, typer.Option(help="auto, encoder or decoder; a checkpoint has its own.")
]
JSON = Annotated[bool, typer.Option("--json", help="Print JSON, for machines.")]
SWEEPS = Annotated[
    int | None, typer.Option(help="T, the number of sweeps; the checkpoint's own, else 10.")
]
FILE = Annotated[
    Path | None, typer.Option("--checkpoint", help="A file that `pursuitify convert` wrote.")
]
SEED = Annotated[int, typer.Option(help="Seed of weights and input.")]
CLASSES = Annotated[
    int | None, typer.Option(help="Number of classes, for torchvision's and timm's models.")
]
WEIGHTS = Annotated[
    Path | None,
    typer.Option(
        help="The model's own weights: .safetensors, or .pth (tensors only); DEFAULT for those "
        "that torchvision or timm publishes."
    ),
]
#: Stands for the weights that a model's own library publishes.
_PUBLISHED = Path("DEFAULT")
DATA = Annotated[
    str, typer.Option(help="digits, fashion-mnist, cifar10, cifar100, or a folder of images.")
]
ROOT = Annotated[Path, typer.Option(help="Folder of torchvision's data sets.")]
DOWNLOAD = Annotated[bool, typer.Option("--download", help="Download the data if it is not there.")]
SKIP_BAD = Annotated[
    bool, typer.Option("--skip-bad", help="Leave out image files that cannot be read; list them.")
]
SIZE = Annotated[int | None, typer.Option(help="Resize images to this side.")]
CHANNELS = Annotated[int | None, typer.Option(help="3 repeats a grey channel.")]
NORMALISE = Annotated[
    bool,
    typer.Option(
        "--normalise", help="Put the data's normalisation in front of the model, as part of it."
    ),
]


def shape_of(text: str) -> tuple[int, ...]:
    """Return the shape that a text like 3,224,224 states."""
    try:
        shape = tuple(int(n) for n in text.split(","))
    except ValueError:
        shape = ()
    if not shape or min(shape) < 1:
        raise OptionError(f"--shape {text!r} is not like 3,224,224")
    return shape


def data_of(
    name: str,
    root: Path,
    download: bool,
    size: int | None,
    channels: int | None,
    seed: int,
    skip_bad: bool = False,
) -> Data:
    """Return a data set; 3 channels mean colour, as torchvision's models want it.

    Files that were left out are listed on standard error.
    """
    data = load_data(
        name,
        root=root,
        download=download,
        size=size,
        channels=channels,
        seed=seed,
        skip_bad=skip_bad,
    )
    if data.skipped:
        typer.echo(f"left out {len(data.skipped)} files:", err=True)
        for reason in data.skipped:
            typer.echo(f"  {reason}", err=True)
    return data


def own_classes(name: str, classes: int | None) -> int | None:
    """Return the number of classes that a user asks for.

    Raises:
        OptionError: If a factory of the user's own makes the model, which decides for itself.
    """
    if classes is not None and ".py:" in name:
        raise OptionError(
            f"--classes {classes} would have no effect: {name} makes the model as it is. Leave it "
            "out, or let the function make as many"
        )
    return classes


def model_of(
    name: str,
    *,
    seed: int,
    classes: int | None = None,
    weights: Path | None = None,
    checkpoint: Path | None = None,
    data: Data | None = None,
) -> nn.Module:
    """Return a model in evaluation mode, its weights seeded or read; behind ``data``'s moments.

    Where the weights of a model by name are random, that is said on standard error.

    Raises:
        OptionError: If weights come from two files, of which one would be ignored.
    """
    if weights is not None and checkpoint is not None:
        raise OptionError(f"--weights {weights} and --checkpoint {checkpoint}: give one of them")
    torch.manual_seed(seed)
    model = load_model(name, classes, published=weights == _PUBLISHED)
    if weights is not None and weights != _PUBLISHED:
        load_weights(model, weights)
    if weights is None and checkpoint is None and ".py:" not in name:
        typer.echo(
            f"warning: the weights of {name} are random (seed {seed}): --weights FILE reads your "
            "own, --weights DEFAULT takes the published ones",
            err=True,
        )
    return (model if data is None else data.normalise(model)).eval()


def converted(
    model: nn.Module, checkpoint: Path | None, layout: str | None, iterations: int | None
) -> PursuitNetwork:
    """Return the model's network: from a checkpoint, or fresh.

    Raises:
        OptionError: If a layout is asked for beside a checkpoint, which has one.
    """
    if checkpoint is None:
        chosen: Any = layout  # the command line's text is checked by pursuitify() itself
        return pursuitify(model, iterations=10 if iterations is None else iterations, layout=chosen)
    if layout is not None:
        raise OptionError(f"--layout {layout}: {checkpoint} was converted in a layout of its own")
    net = load(checkpoint, model).eval()
    if iterations is not None:
        net.iterations = iterations
    return net


def show(data: Any, text: Any, as_json: bool) -> None:
    """Print one of both; in JSON what is not finite is null."""
    if as_json:
        sys.stdout.write(as_json_text(data) + "\n")
    else:
        # A channel in square brackets is text, not markup, and a report has its own lines.
        Console().print(text, markup=False, soft_wrap=isinstance(text, str))


def diverged(data: Any, what: str) -> None:
    """End the command with exit code 1 if a number that was shown is not finite."""
    if not is_finite(data):
        Console(stderr=True).print(
            f"[bold red]error:[/] {what} is not finite: the network diverges on this input, or its "
            "weights are not finite",
            highlight=False,
            soft_wrap=True,
        )
        raise typer.Exit(1)
