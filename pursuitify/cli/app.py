"""The command line: what can be done with a model by name.

Exit code 0 means done (``explain``: the model converts), 1 a refusal with its reason, 2 a wrong
call, 3 an audit that raised flags.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.markup import escape

from pursuitify import coherence as measure
from pursuitify import explain as dry_run
from pursuitify import save
from pursuitify.analysis import compare as compare_models
from pursuitify.checkpoints.save_load import save_source
from pursuitify.cli import audit_command, calibrate_command, training_commands
from pursuitify.cli.model_sources import load_model
from pursuitify.cli.options import (
    CLASSES,
    FILE,
    JSON,
    LAYOUT,
    NAME,
    SEED,
    SHAPE,
    SWEEPS,
    WEIGHTS,
    converted,
    diverged,
    model_of,
    own_classes,
    shape_of,
    show,
)
from pursuitify.errors import OptionError, PursuitifyError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Deep pursuit networks from existing ReLU networks. Models are torchvision names, "
    "timm:NAME, or path/to/file.py:factory (the file is run as Python code).",
)
for command in (
    calibrate_command.calibrate,
    training_commands.finetune,
    training_commands.evaluate,
    training_commands.demo,
    audit_command.audit,
):
    app.command()(command)


@app.command()
def explain(name: NAME, layout: LAYOUT = None, shape: str = "", as_json: JSON = False) -> None:
    """Say what every node of a model becomes, or why it cannot be converted.

    Example: pursuitify explain regnet_y_400mf --shape 3,224,224
    """
    size = shape_of(shape) if shape else None
    chosen: Any = "auto" if layout is None else layout  # checked by explain() itself
    report = dry_run(load_model(name), chosen, input_shape=size)
    problems = [vars(p) for p in report.problems]
    facts = {
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
    show(facts, report, as_json)
    if not report.ok:
        raise typer.Exit(1)


@app.command()
def convert(
    name: NAME,
    output: Annotated[Path | None, typer.Option(help="Where to write the checkpoint.")] = None,
    layout: LAYOUT = None,
    iterations: SWEEPS = None,
    classes: CLASSES = None,
    weights: WEIGHTS = None,
    checkpoint: FILE = None,
    to_source: Annotated[
        Path | None,
        typer.Option(help="Write the source's own weights, for the plain model to load."),
    ] = None,
    seed: SEED = 0,
) -> None:
    """Write a model's checkpoint, or a checkpoint's weights back for the plain model.

    Examples:
      pursuitify convert resnet18 --output resnet18.safetensors
      pursuitify convert resnet18 --weights my.pth --output net.safetensors
      pursuitify convert resnet18 --checkpoint net.safetensors --to-source my.safetensors
    """
    if output is None and to_source is None:
        raise OptionError("say what to write: --output for a checkpoint, --to-source for weights")
    model = model_of(
        name, seed=seed, classes=own_classes(name, classes), weights=weights, checkpoint=checkpoint
    )
    net = converted(model, checkpoint, layout, iterations)
    if output is not None:
        save(net, output)
        latents = len(net.graph) - 1
        Console().print(f"wrote {output}: {latents} latents, {net.iterations} sweeps")
    if to_source is not None:
        save_source(net, to_source)
        Console().print(f"wrote {to_source}: the source's weights")


@app.command()
def diagnose(
    name: NAME,
    shape: SHAPE = "3,224,224",
    iterations: SWEEPS = None,
    layout: LAYOUT = None,
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
    model = model_of(
        name, seed=seed, classes=own_classes(name, classes), weights=weights, checkpoint=checkpoint
    )
    net = converted(model, checkpoint, layout, iterations)
    trace = net.diagnose(torch.rand(batch, *shape_of(shape)))
    show(trace.to_dict(), str(trace), as_json)
    diverged(trace.to_dict(), "what a sweep does")


@app.command()
def coherence(
    name: NAME,
    shape: SHAPE = "3,224,224",
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

    Example: pursuitify coherence resnet50 --json
    """
    model = model_of(
        name, seed=seed, classes=own_classes(name, classes), weights=weights, checkpoint=checkpoint
    )
    net = converted(model, checkpoint, layout, None)
    report = measure(
        net, shape_of(shape), boundary, switches=switches or None, progress=not as_json
    )
    show(report.to_dict(), str(report), as_json)


@app.command()
def compare(
    names: Annotated[
        list[str], typer.Argument(metavar="MODEL...", help="Models, named as for the others.")
    ],
    shape: SHAPE = "3,224,224",
    layout: LAYOUT = None,
    budget: Annotated[float, typer.Option(help="Seconds to search per model.")] = 10.0,
    seeds: Annotated[int, typer.Option(help="Starts of the search.")] = 3,
    plot: Annotated[Path | None, typer.Option(help="Write a picture, e.g. bounds.png.")] = None,
    latex: Annotated[bool, typer.Option("--latex", help="Print a LaTeX table.")] = False,
    as_json: JSON = False,
) -> None:
    """Bound the least frame potential of several models by one method, before training.

    Example: pursuitify compare resnet18 densenet121 vgg16 --budget 15
    """
    if latex and as_json:
        raise OptionError("--latex and --json: give one of them")
    if len(set(names)) < len(names):
        raise OptionError(f"a model is named twice: {' '.join(names)}")
    chosen: Any = "auto" if layout is None else layout  # checked by the conversion itself
    report = compare_models(
        {name: load_model(name) for name in names},
        shape_of(shape),
        layout=chosen,
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


def main() -> None:
    """Run the command line; a refusal is a message and exit code 1, never a traceback."""
    try:
        app()
    except PursuitifyError as error:
        Console(stderr=True).print(f"[bold red]error:[/] {escape(str(error))}", highlight=False)
        sys.exit(1)


if __name__ == "__main__":
    main()
