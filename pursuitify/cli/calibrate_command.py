"""The command calibrate: gains and scales that keep what a trained network knows."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from torch.utils.data import DataLoader, Subset

from pursuitify import pursuitify, save
from pursuitify.cli import options as shared
from pursuitify.cli.subject import subject_of
from pursuitify.conversion.calibration import keep_outputs

#: Images at a time.
_BATCH = 64


def calibrate(
    name: shared.NAME,
    data: shared.DATA = None,
    output: Annotated[Path | None, typer.Option(help="Where to write the checkpoint.")] = None,
    checkpoint: shared.FILE = None,
    weights: shared.WEIGHTS = None,
    count: Annotated[int, typer.Option(min=1, help="Images that are looked at.")] = 256,
    iterations: shared.SWEEPS = None,
    layout: Annotated[
        str | None,
        typer.Option(help="auto, encoder (the default) or decoder; a checkpoint has its own."),
    ] = None,
    solver: shared.SOLVER = None,
    steps: shared.RULE = None,
    device: shared.DEVICE = None,
    normalise: shared.NORMALISE = False,
    root: shared.ROOT = None,
    download: shared.DOWNLOAD = False,
    skip_bad: shared.SKIP_BAD = False,
    size: shared.SIZE = None,
    channels: shared.CHANNELS = None,
    seed: shared.DATA_SEED = None,
    as_json: shared.JSON = False,
) -> None:
    """Convert a trained model so that it keeps what it knows, and say what is kept at each T.

    Fits atom gains on images of the validation part, labels unused, with offsets in the signal, and
    lowers the step scale only where outputs would change otherwise; there offsets="stationary" is
    tried as well, and taken if latents move farther. A checkpoint keeps its own layout and offsets.

    Examples:
      pursuitify calibrate nets.py:make --weights my.pth --data digits --output net.safetensors
      pursuitify calibrate run --output calibrated.safetensors
      pursuitify calibrate resnet18 --weights DEFAULT --data photos/ --size 224 --normalise
    """
    subject = subject_of(name, checkpoint)
    found, origin = subject.data(
        data,
        root=root,
        download=download,
        size=size,
        channels=channels,
        seed=seed,
        skip_bad=skip_bad,
    )
    model, origin = shared.model_for(subject, found, origin, weights, normalise)
    held: Any = found.val
    chosen = torch.randperm(len(held), generator=torch.Generator().manual_seed(origin.seed))[:count]
    batches = DataLoader(Subset(held, chosen.tolist()), _BATCH)
    if subject.checkpoint is None:
        form: Any = layout  # the text is checked by pursuitify() itself
        sweeps = 10 if iterations is None else iterations
        options: Any = {"solver": solver, "steps": steps}
        given = {option: value for option, value in options.items() if value is not None}
        net = pursuitify(
            model.to(shared.device_of(device)),
            sweeps,
            layout=form,
            calibrate=batches,
            progress=not as_json,
            **given,
        )
        report = net.calibration
    else:
        net = shared.converted(
            model,
            subject.checkpoint,
            layout,
            iterations,
            solver=solver,
            steps=steps,
            device=device,
        )
        kept = net.compiled_program.layout
        if kept != "encoder":
            normalised = " --normalise" if origin.mean else ""
            typer.echo(
                f"note: {subject.checkpoint} keeps its layout, {kept}. In the encoder layout a "
                "trained model keeps more: pursuitify convert "
                f"{name} --to-source plain.safetensors, then pursuitify calibrate {subject.name} "
                f"--weights plain.safetensors{normalised}",
                err=True,
            )
        report = keep_outputs(net, batches, progress=not as_json)
    shared.show(report.to_dict(), report, as_json)
    if output is not None:
        save(net, output, origin=origin)
        if not as_json:
            Console().print(f"wrote {output}: {net.iterations} sweeps, step {net.step_scale:g}")
