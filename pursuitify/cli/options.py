"""Common parts of the commands: options by name, making a network, printing results."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from torch import Tensor, nn

from pursuitify import load, pursuitify
from pursuitify.checkpoints.files import read_checkpoint
from pursuitify.checkpoints.origin import Origin
from pursuitify.cli.model_sources import is_normalised, load_model, load_weights, names_like
from pursuitify.cli.subject import Subject
from pursuitify.data import NAMES, Data, Normalised
from pursuitify.errors import CheckpointError, InputError, OptionError
from pursuitify.network.pursuit_network import PursuitNetwork
from pursuitify.solvers.differentiation.modes import MODES
from pursuitify.solvers.registry import SOLVERS
from pursuitify.solvers.settings import STEPS
from pursuitify.training.run_identity import answers
from pursuitify.utils import option_checks
from pursuitify.utils.atomic_files import as_json as as_json_text
from pursuitify.utils.atomic_files import is_finite

NAME = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        autocompletion=names_like,
        help="resnet50, timm:NAME, file.py:factory, or a run: its folder or a checkpoint, which "
        "names its model and its data.",
    ),
]
SHAPE = Annotated[
    str | None,
    typer.Option(help="Shape of one input, e.g. 3,64,64; the run's own, else 3,224,224."),
]
SIDE = Annotated[int | None, typer.Option("--size", help="Side of square inputs, for --shape.")]
LAYOUT = Annotated[
    str | None, typer.Option(help="auto, encoder or decoder; a checkpoint has its own.")
]
SOLVER = Annotated[
    str | None, typer.Option(help=f"{', '.join(SOLVERS)}; the checkpoint's own, else global.")
]
RULE = Annotated[
    str | None,
    typer.Option(
        "--steps", help=f"Rule of the step sizes: {', '.join(STEPS)}; the checkpoint's own."
    ),
]
MEMORY = Annotated[
    str | None, typer.Option(help=f"For derivatives: {', '.join(MODES)}; the checkpoint's own.")
]
DEVICE = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps; cpu by default.")]
JSON = Annotated[bool, typer.Option("--json", help="Print JSON, for machines.")]
SWEEPS = Annotated[
    int | None, typer.Option(help="T, the number of sweeps; the checkpoint's own, else 10.")
]
FILE = Annotated[
    Path | None,
    typer.Option("--checkpoint", help="What `pursuitify convert` or `finetune` wrote."),
]
SEED = Annotated[int, typer.Option(help="Seed of weights and input.")]
DATA_SEED = Annotated[
    int | None,
    typer.Option("--seed", help="Of splits and all that is drawn; the run's own, else 0."),
]
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
    str | None,
    typer.Option(
        help="digits, fashion-mnist, cifar10, cifar100, or a folder of images; the run's own, "
        "else digits."
    ),
]
ROOT = Annotated[Path | None, typer.Option(help="Folder of torchvision's data sets; data.")]
DOWNLOAD = Annotated[bool, typer.Option("--download", help="Download the data if it is not there.")]
SKIP_BAD = Annotated[
    bool, typer.Option("--skip-bad", help="Leave out image files that cannot be read; list them.")
]
SIZE = Annotated[int | None, typer.Option(help="Resize images to this side; the run's own.")]
CHANNELS = Annotated[
    int | None, typer.Option(help="3 repeats a grey channel, 1 reads a folder as grey.")
]
NORMALISE = Annotated[
    bool,
    typer.Option(
        "--normalise", help="Put the data's normalisation in front of the model, as part of it."
    ),
]
#: Mean and standard deviation per channel.
Moments = tuple[tuple[float, ...], tuple[float, ...]]


def model_of(
    subject: Subject,
    *,
    seed: int | None,
    classes: int | None,
    weights: Path | None = None,
    moments: Moments | None = None,
) -> nn.Module:
    """Return a model in evaluation mode, its weights seeded or read; normalised by moments.

    Where the weights of a model by name are random, that is said on standard error; with
    ``seed=None`` it is not, for commands whose answer does not depend on weights.

    Raises:
        OptionError: If weights come from two files, of which one would be ignored.
    """
    name, checkpoint = subject.name, subject.checkpoint
    if weights is not None and checkpoint is not None:
        raise OptionError(f"--weights {weights} and --checkpoint {checkpoint}: give one of them")
    torch.manual_seed(seed or 0)
    model = load_model(name, classes, published=weights == _PUBLISHED)
    if weights is not None and weights != _PUBLISHED:
        load_weights(model, weights)
    if weights is None and checkpoint is None and seed is not None and ".py:" not in name:
        typer.echo(
            f"warning: the weights of {name} are random (seed {seed}): --weights FILE reads your "
            "own, --weights DEFAULT takes the published ones",
            err=True,
        )
    return (model if moments is None else Normalised(model, *moments)).eval()


def own_model(
    subject: Subject, classes: int | None, seed: int | None, weights: Path | None = None
) -> nn.Module:
    """Return the model of a subject, of the classes asked for, normalised as it was trained."""
    made = subject.classes(classes)
    return model_of(subject, seed=seed, classes=made, weights=weights, moments=subject.moments)


def model_for(
    subject: Subject, data: Data, origin: Origin, weights: Path | None, normalise: bool
) -> tuple[nn.Module, Origin]:
    """Return the model of a subject for its data, and the origin with the normalisation around it.

    A line on standard error says so where published weights, which were trained on normalised
    images, are used without a normalisation.

    Args:
        subject: The subject.
        data: The data.
        origin: The origin of a network for that data.
        weights: The model's own weights, if any.
        normalise: Whether to put the data's normalisation in front of the model; one that the
            checkpoint remembers is there anyway.
    """
    if normalise:
        origin = replace(origin, mean=data.mean, std=data.std)
    if weights == _PUBLISHED and not origin.mean:
        typer.echo(
            f"note: the published weights of {subject.name} were trained on normalised images: "
            "--normalise puts the data's normalisation in front of the model",
            err=True,
        )
    model = model_of(
        subject,
        seed=origin.seed,
        classes=subject.classes_for(data),
        weights=weights,
        moments=(origin.mean, origin.std) if origin.mean else None,
    )
    return model, origin


def converted(
    model: nn.Module,
    checkpoint: Path | None,
    layout: str | None,
    iterations: int | None,
    *,
    solver: str | None = None,
    steps: str | None = None,
    memory: str | None = None,
    device: str | None = None,
) -> PursuitNetwork:
    """Return the model's network: from a checkpoint, or fresh.

    Args:
        model: The model.
        checkpoint: The checkpoint, or None.
        layout: The layout, for a fresh network.
        iterations: The number of sweeps; None for the checkpoint's, or 10.
        solver: The solver; None for the checkpoint's, or the global one.
        steps: The rule of the step sizes; None for the checkpoint's, or certified ones.
        memory: What is kept for derivatives; None for the checkpoint's, or everything.
        device: Where to; None for the CPU.

    Raises:
        OptionError: If a layout is asked for beside a checkpoint, which has one, or there is no
            such device.
        CheckpointError: If the checkpoint is not of this model; says so where it is of a normalised
            one.
    """
    place = device_of(device)
    settings: dict[str, Any] = {
        "iterations": iterations,
        "solver": solver,
        "steps": steps,
        "memory": memory,
    }
    given = {name: value for name, value in settings.items() if value is not None}
    if checkpoint is None:
        chosen: Any = layout  # the command line's text is checked by pursuitify() itself
        return pursuitify(model, layout=chosen, **{"iterations": 10, **given}).to(place)
    if layout is not None:
        raise OptionError(f"--layout {layout}: {checkpoint} was converted in a layout of its own")
    try:
        net = load(checkpoint, model).eval()
    except CheckpointError as error:
        if isinstance(model, Normalised) or not is_normalised(read_checkpoint(checkpoint)[1]):
            raise
        raise CheckpointError(
            f"{checkpoint} is of a model with a normalisation in front, and does not say which: "
            "give --normalise (calibrate, finetune, evaluate, audit), or name the run that it is of"
        ) from error
    for name, value in given.items():
        setattr(net, name, value)
    return net.to(place)


def device_of(text: str | None) -> torch.device:
    """Return the device that a text like ``cuda:1`` names, the CPU for None.

    Raises:
        OptionError: If torch knows no such device, or this machine has none.
    """
    try:
        found = torch.device("cpu" if text is None else text)
    except RuntimeError as error:
        raise OptionError(f"--device {text!r} is none of cpu, cuda, cuda:1, mps, xpu") from error
    if found.type == "cpu":
        return found
    here = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    count = torch.accelerator.device_count()
    if here is None or here.type != found.type or (found.index or 0) >= count:
        has = "the CPU alone" if here is None else f"the CPU and {count} x {here.type}"
        raise OptionError(f"--device {text}: torch has no such device on this machine, but {has}")
    return found


def radius(text: str, shape: Sequence[int], norm: str = "linf") -> float:
    """Return the radius of an attack that a text like 0.1 or 8/255 states.

    Args:
        text: What ``--eps`` says.
        shape: Shape of one image, whose pixels lie in [0, 1].
        norm: The norm of the ball.

    Raises:
        OptionError: If it is no positive number, or larger than any two images are apart.
    """
    try:
        value = float(Fraction(text))
    except (ValueError, ZeroDivisionError, OverflowError):
        value = 0.0
    if value <= 0:
        raise OptionError(f"--eps {text!r} is not a positive number like 0.1 or 8/255")
    option_checks.radius("--eps", value, shape, norm)
    return value


def check_outputs(net: nn.Module, name: str, data: Data) -> None:
    """Compare the number of outputs with that of the data's classes, on one image, at T = 0.

    A line on standard error says so where there are more outputs than classes.

    Args:
        net: The network, in evaluation mode.
        name: Name of the model.
        data: The data.

    Raises:
        OptionError: If there are fewer outputs than classes.
        InputError: If the network does not take the images; says so where it takes them with
            another number of channels.
    """
    image = data.test[0][0].unsqueeze(0)
    try:
        found = answers(net, image).shape[1]
    except InputError as error:
        raise InputError(f"{error}{_channels_hint(net, image, data.name)}") from error
    wanted = len(data.classes)
    if found < wanted:
        own = ".py:" in name
        hint = "let the function make as many" if own else "let --classes or the data decide"
        raise OptionError(
            f"{name} has {found} outputs, and {data.name} has {wanted} classes: no image of the "
            f"last {wanted - found} could ever be right; {hint}"
        )
    if found > wanted:
        typer.echo(
            f"note: {name} has {found} outputs, and {data.name} has {wanted} classes: it was made "
            "for other labels, or the last outputs are idle",
            err=True,
        )


def _channels_hint(net: nn.Module, image: Tensor, name: str) -> str:
    """Return which --channels the network takes the image with, if that is all there is to it."""
    if image.shape[1] == 1:
        channels, other = 3, image.expand(-1, 3, -1, -1)
    elif image.shape[1] == 3 and name not in NAMES:  # grey is for folders alone
        channels, other = 1, image.mean(1, keepdim=True)
    else:
        return ""
    try:
        answers(net, other)
    except InputError:
        return ""
    return f". Give --channels {channels}"


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
