"""``pursuitify audit``: attack a network on a data set and judge what the attacks found."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from torch import Tensor, nn

from pursuitify.cli import options as shared
from pursuitify.cli.subject import is_own, subject_of
from pursuitify.errors import OptionError
from pursuitify.robust import AuditReport
from pursuitify.robust import audit as run
from pursuitify.utils import option_checks
from pursuitify.utils.atomic_files import make_folder, write_text

#: Exit code of an audit that is done and raised flags.
FLAGGED = 3


def audit(
    name: shared.NAME,
    eps: Annotated[str, typer.Option(help="Radius of the ball, e.g. 0.1 or 8/255.")],
    data: shared.DATA = None,
    checkpoint: shared.FILE = None,
    weights: shared.WEIGHTS = None,
    plain: Annotated[
        bool, typer.Option("--plain", help="Audit the model as it is, not converted.")
    ] = False,
    protocol: Annotated[str, typer.Option(help="quick, standard or full.")] = "quick",
    norm: Annotated[str, typer.Option(help="linf or l2.")] = "linf",
    count: Annotated[int, typer.Option(help="How many test images, drawn by the seed.")] = 256,
    iterations: shared.SWEEPS = None,
    layout: shared.LAYOUT = None,
    solver: shared.SOLVER = None,
    steps: shared.RULE = None,
    memory: shared.MEMORY = None,
    device: shared.DEVICE = None,
    normalise: shared.NORMALISE = False,
    root: shared.ROOT = None,
    download: shared.DOWNLOAD = False,
    skip_bad: shared.SKIP_BAD = False,
    size: shared.SIZE = None,
    channels: shared.CHANNELS = None,
    batch_size: Annotated[int, typer.Option(help="Images attacked at a time.")] = 256,
    output: Annotated[
        Path | None,
        typer.Option(help="Folder for the report; an interrupted audit goes on from there."),
    ] = None,
    picture: Annotated[
        bool, typer.Option("--picture", help="Draw accuracy against epsilon; needs --output.")
    ] = False,
    seed: shared.DATA_SEED = None,
    as_json: shared.JSON = False,
) -> None:
    """Attack a network through every sweep, compare it with its T = 0 twin, look for red flags.

    Exit code 0: done, no flag raised, which is no proof of anything; 3: done, flags raised;
    1: refused.

    Examples:
      pursuitify audit run --eps 0.1
      pursuitify audit resnet18 --checkpoint net.safetensors --data cifar10 --eps 8/255
    """
    if picture and output is None:
        raise OptionError("--picture needs --output, the folder to draw into")
    if picture:
        option_checks.extra("plots", "matplotlib")
    if count < 1:
        raise OptionError(f"--count {count} leaves nothing to attack")
    subject = subject_of(name, checkpoint)
    if subject.checkpoint is None and weights is None and not is_own(subject.name):
        raise OptionError(
            f"{name} has no weights: there is nothing to audit. Give --checkpoint or --weights"
        )
    found, origin = subject.data(
        data,
        root=root,
        download=download,
        size=size,
        channels=channels,
        seed=seed,
        skip_bad=skip_bad,
    )
    radius = shared.radius(eps, found.shape, norm)
    model, _ = shared.model_for(subject, found, origin, weights, normalise)
    settings = {
        "layout": layout,
        "iterations": iterations,
        "solver": solver,
        "steps": steps,
        "memory": memory,
    }
    net = _network(model, subject.checkpoint, settings, device, plain=plain)
    shared.check_outputs(net, subject.name, found)
    x, y = (part.to(shared.device_of(device)) for part in _drawn(found.test, count, origin.seed))
    try:
        report = run(
            net,
            (x, y),
            eps=radius,
            protocol=protocol,
            norm=norm,
            seed=origin.seed,
            batch_size=batch_size,
            resume=None if output is None else make_folder(output) / "record.json",
            progress=not as_json,
        )
    except KeyboardInterrupt as stop:
        text = str(stop) or "interrupted before an attack was finished"
        if output is None:
            text += ". With --output FOLDER the record is kept as FOLDER/record.json"
        Console(stderr=True).print(text, highlight=False, soft_wrap=True)
        raise typer.Exit(130) from stop
    if output is not None:
        _write(report, output, picture=picture)
    shared.show(report.to_dict(), report, as_json)
    if report.flags:
        raise typer.Exit(FLAGGED)


def _network(
    model: nn.Module,
    checkpoint: Path | None,
    settings: dict[str, Any],
    device: str | None,
    *,
    plain: bool,
) -> nn.Module:
    if not plain:
        return shared.converted(model, checkpoint, device=device, **settings)
    given = [f"--{name}" for name, value in settings.items() if value is not None]
    given += ["a checkpoint"] if checkpoint is not None else []
    if given:
        raise OptionError(f"--plain audits the model itself: leave out {', '.join(given)}")
    return model.to(shared.device_of(device))


def _drawn(images: Any, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return images and labels, drawn without replacement."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    pairs = [images[int(n)] for n in order[:count]]
    return torch.stack([x for x, _ in pairs]), torch.tensor([int(label) for _, label in pairs])


def _write(report: AuditReport, folder: Path, *, picture: bool) -> None:
    report.save(folder / "report.json")
    write_text(folder / "report.txt", str(report))
    if picture:
        report.plot(folder / "accuracy.png")
