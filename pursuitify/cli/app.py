"""The command line: what can be done with a model by name.

Exit code 0 means done (``explain``: the model converts), 1 a refusal with its reason, 2 a wrong
call, 3 an audit that raised flags.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.markup import escape

from pursuitify import coherence as measure
from pursuitify import explain as dry_run
from pursuitify import save, save_pretrained
from pursuitify.analysis import compare as compare_models
from pursuitify.checkpoints.save_load import save_source
from pursuitify.cli import audit_command, calibrate_command, output_commands, training_commands
from pursuitify.cli.model_sources import names_like
from pursuitify.cli.options import (
    CLASSES,
    DEVICE,
    FILE,
    JSON,
    LAYOUT,
    NAME,
    RULE,
    SEED,
    SHAPE,
    SIDE,
    SOLVER,
    SWEEPS,
    WEIGHTS,
    converted,
    device_of,
    diverged,
    own_model,
    show,
)
from pursuitify.cli.subject import subject_of
from pursuitify.errors import OptionError, PursuitifyError
from pursuitify.utils import option_checks
from pursuitify.version import VERSION

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Deep pursuit networks from existing ReLU networks. Models are torchvision names, "
    "timm:NAME, path/to/file.py:factory, or the folder or checkpoint of a run, which names such a "
    "model. A file.py is run as Python code, whoever names it.",
)


def _version(wanted: bool) -> None:
    """Print the version and end, where that is asked for."""
    if wanted:
        sys.stdout.write(f"pursuitify {VERSION}, torch {torch.__version__}\n")
        raise typer.Exit()


@app.callback()
def common(
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version.", callback=_version, is_eager=True),
    ] = False,
) -> None:
    """Take the options before the command."""


def explain(
    name: NAME,
    layout: LAYOUT = None,
    shape: Annotated[
        str | None, typer.Option(help="Shape of one input: names the branches taken for it.")
    ] = None,
    size: SIDE = None,
    weights: WEIGHTS = None,
    classes: CLASSES = None,
    as_json: JSON = False,
) -> None:
    """Say what every node of a model becomes, or why it cannot be converted.

    What it says depends on no weights. Those that are given are loaded, to see that they fit.

    Examples:
      pursuitify explain regnet_y_400mf --shape 3,224,224
      pursuitify explain resnet18 --weights my.pth --classes 10
    """
    subject = subject_of(name, None)
    given = shape is not None or size is not None or bool(subject.origin.shape)
    chosen: Any = "auto" if layout is None else layout  # checked by explain() itself
    report = dry_run(
        own_model(subject, classes, None, weights),
        chosen,
        input_shape=subject.shape(shape, size) if given else None,
    )
    problems = [vars(p) for p in report.problems]
    facts: dict[str, Any] = {
        "model": report.model,
        "ok": report.ok,
        "problems": problems,
        "latents": report.latents,
        "identity_latents": report.identity_latents,
        "edges": report.edges,
        "decoder_rows": report.decoder_rows,
        "encoder_rows": report.encoder_rows,
        "gates": report.gates,
        "nodes": [vars(entry) for entry in report.entries],
    }
    if weights is not None:
        facts["weights"] = str(weights)
    show(facts, report, as_json)
    if weights is not None and not as_json:
        sys.stdout.write(f"weights: {weights} fits this model\n")
    if not report.ok:
        raise typer.Exit(1)


def convert(
    name: NAME,
    output: Annotated[Path | None, typer.Option(help="Where to write the checkpoint.")] = None,
    layout: LAYOUT = None,
    iterations: SWEEPS = None,
    solver: SOLVER = None,
    steps: RULE = None,
    classes: CLASSES = None,
    weights: WEIGHTS = None,
    checkpoint: FILE = None,
    to_source: Annotated[
        Path | None,
        typer.Option(help="Write the source's own weights, for the plain model to load."),
    ] = None,
    hub: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Write the checkpoint as the Hugging Face Hub keeps it: config.json and "
            "model.safetensors.",
        ),
    ] = None,
    seed: SEED = 0,
    as_json: JSON = False,
) -> None:
    """Write a model's checkpoint, or a checkpoint's weights back for the plain model.

    Examples:
      pursuitify convert resnet18 --output resnet18.safetensors
      pursuitify convert resnet18 --weights my.pth --output net.safetensors
      pursuitify convert run --to-source plain.safetensors
      pursuitify convert run --hub my-network
    """
    if output is None and to_source is None and hub is None:
        raise OptionError(
            "say what to write: --output for a checkpoint, --hub for a folder with it, --to-source "
            "for weights"
        )
    subject = subject_of(name, checkpoint)
    model = own_model(subject, classes, seed, weights)
    net = converted(model, subject.checkpoint, layout, iterations, solver=solver, steps=steps)
    facts: dict[str, Any] = {"latents": len(net.graph) - 1, "iterations": net.iterations}
    lines = []
    for option, write, target in (("output", save, output), ("hub", save_pretrained, hub)):
        if target is not None:
            write(net, target, origin=subject.named(subject.classes(classes)))
            facts[option] = str(target)
            lines.append(f"wrote {target}: {facts['latents']} latents, {net.iterations} sweeps")
    if to_source is not None:
        # Of a normalised model the plain one is inside.
        save_source(net, to_source, part="" if subject.moments is None else "model")
        facts["to_source"] = str(to_source)
        lines.append(f"wrote {to_source}: the source's weights")
        if subject.moments is not None:
            mean, std = subject.moments
            facts |= {"mean": mean, "std": std}
            lines.append(
                f"it expects images of [0, 1] less {mean}, divided by {std}: with --weights, give "
                "--normalise"
            )
    show(facts, "\n".join(lines), as_json)


def diagnose(
    name: NAME,
    shape: SHAPE = None,
    size: SIDE = None,
    iterations: SWEEPS = None,
    layout: LAYOUT = None,
    solver: SOLVER = None,
    steps: RULE = None,
    device: DEVICE = None,
    checkpoint: FILE = None,
    weights: WEIGHTS = None,
    classes: CLASSES = None,
    batch: Annotated[int, typer.Option(help="Samples of the random input.")] = 2,
    seed: SEED = 0,
    as_json: JSON = False,
) -> None:
    """Run the pursuit on a random input and print what every sweep does.

    Example: pursuitify diagnose resnet18 --shape 3,64,64
    """
    subject = subject_of(name, checkpoint)
    model = own_model(subject, classes, seed, weights)
    net = converted(
        model, subject.checkpoint, layout, iterations, solver=solver, steps=steps, device=device
    )
    x = torch.rand(batch, *subject.shape(shape, size))
    trace = net.diagnose(x.to(device_of(device)))
    show(trace.to_dict(), str(trace), as_json)
    diverged(trace.to_dict(), "what a sweep does")


def coherence(
    name: NAME,
    shape: SHAPE = None,
    size: SIDE = None,
    layout: LAYOUT = None,
    boundary: Annotated[str, typer.Option(help="interior or exact.")] = "interior",
    switches: Annotated[str, typer.Option(help="Of max pooling: centre, worst or batch.")] = "",
    checkpoint: FILE = None,
    weights: WEIGHTS = None,
    classes: CLASSES = None,
    seed: SEED = 0,
    as_json: JSON = False,
) -> None:
    """Measure the coherence of a model's global dictionary.

    Examples:
      pursuitify coherence resnet50 --json
      pursuitify coherence run
    """
    subject = subject_of(name, checkpoint)
    net = converted(own_model(subject, classes, seed, weights), subject.checkpoint, layout, None)
    inputs = subject.shape(shape, size)
    report = measure(net, inputs, boundary, switches=switches or None, progress=not as_json)
    show(report.to_dict(), str(report), as_json)


def compare(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL...", autocompletion=names_like, help="Models, named as for the others."
        ),
    ],
    shape: SHAPE = None,
    size: SIDE = None,
    layout: LAYOUT = None,
    steps: Annotated[
        int | None,
        typer.Option(help="Steps of the search per model; by default as many as take about 10 s."),
    ] = None,
    budget: Annotated[
        float | None,
        typer.Option(help="Seconds to search per model: the numbers then depend on the machine."),
    ] = None,
    seeds: Annotated[int, typer.Option(help="Starts of the search.")] = 3,
    plot: Annotated[Path | None, typer.Option(help="Write a picture, e.g. bounds.png.")] = None,
    latex: Annotated[bool, typer.Option("--latex", help="Print a LaTeX table.")] = False,
    as_json: JSON = False,
) -> None:
    """Bound the least frame potential of several models by one method, before training.

    The models' weights are not read.

    Examples:
      pursuitify compare resnet18 densenet121 mobilenet_v2
      pursuitify compare resnet18 resnet34 --steps 20 --plot bounds.png
    """
    if latex and as_json:
        raise OptionError("--latex and --json: give one of them")
    if plot is not None:
        option_checks.extra("plots", "matplotlib")
    if len(set(names)) < len(names):
        raise OptionError(f"a model is named twice: {' '.join(names)}")
    chosen: Any = "auto" if layout is None else layout  # checked by the conversion itself
    subjects = {name: subject_of(name, None) for name in names}
    shapes = {subject.shape(shape, size) for subject in subjects.values()}
    if len(shapes) > 1:
        raise OptionError(
            f"the runs were trained on inputs of different shapes, {sorted(shapes)}: say which one "
            "to compare for, with --shape"
        )
    report = compare_models(
        {name: own_model(subject, None, None) for name, subject in subjects.items()},
        shapes.pop(),
        layout=chosen,
        steps=steps,
        budget=budget,
        seeds=seeds,
        progress=not as_json,
    )
    if plot is not None:
        report.plot(plot)
    if latex:
        sys.stdout.write(report.to_latex())
    else:
        show(report.to_dict(), report, as_json)


#: In the order of use, as `pursuitify --help` lists them.
COMMANDS: tuple[Callable[..., None], ...] = (
    explain,
    convert,
    calibrate_command.calibrate,
    training_commands.finetune,
    training_commands.evaluate,
    audit_command.audit,
    diagnose,
    coherence,
    compare,
    output_commands.plot,
    output_commands.export,
    training_commands.demo,
)
for command in COMMANDS:
    app.command()(command)


def main() -> None:
    """Run the command line; a refusal is a message and exit code 1, never a traceback."""
    try:
        app()
    except PursuitifyError as error:
        Console(stderr=True).print(f"[bold red]error:[/] {escape(str(error))}", highlight=False)
        sys.exit(1)


if __name__ == "__main__":
    main()
