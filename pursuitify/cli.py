"""The command line: explain, convert, diagnose and coherence of a model by name.

Exit code 0 means done (``explain``: the model converts), 1 a refusal with its reason, 2 a wrong
call.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

from pursuitify import coherence as measure
from pursuitify import explain as dry_run
from pursuitify import load, pursuitify, save
from pursuitify.errors import OptionError, PursuitifyError
from pursuitify.network import PursuitNetwork
from pursuitify.sources import load_model

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Deep pursuit networks from existing ReLU networks. Models are torchvision names, "
    "timm:NAME, or path/to/file.py:factory (the file is run as Python code).",
)
_NAME = Annotated[str, typer.Argument(metavar="MODEL", help="resnet50, timm:NAME, file.py:factory")]
_SHAPE = Annotated[str, typer.Option(help="Shape of one input, e.g. 3,224,224.")]
_LAYOUT = Annotated[str, typer.Option(help="auto, encoder or decoder.")]
_JSON = Annotated[bool, typer.Option("--json", help="Print JSON, for machines.")]
_SWEEPS = Annotated[int, typer.Option(help="T, the number of sweeps.")]
_FILE = Annotated[
    Path | None, typer.Option("--checkpoint", help="A file that `pursuitify convert` wrote.")
]
_SEED = Annotated[int, typer.Option(help="Seed of weights and input.")]


def _shape(text: str) -> tuple[int, ...]:
    try:
        shape = tuple(int(n) for n in text.split(","))
    except ValueError:
        shape = ()
    if not shape or min(shape) < 1:
        raise OptionError(f"--shape {text!r} is not like 3,224,224")
    return shape


def _network(
    name: str, checkpoint: Path | None, layout: str, iterations: int, seed: int
) -> PursuitNetwork:
    torch.manual_seed(seed)
    model = load_model(name).eval()
    if checkpoint is not None:
        return load(checkpoint, model).eval()
    return pursuitify(model, iterations=iterations, layout=layout)  # type: ignore[arg-type]


def _print(data: Any, text: Any, as_json: bool) -> None:
    if as_json:
        sys.stdout.write(json.dumps(data) + "\n")
    else:
        Console().print(text)


@app.command()
def explain(name: _NAME, layout: _LAYOUT = "auto", shape: str = "", as_json: _JSON = False) -> None:
    """Say what every node of a model becomes, or why it cannot be converted.

    Example: pursuitify explain regnet_y_400mf --shape 3,224,224
    """
    size = _shape(shape) if shape else None
    report = dry_run(load_model(name), layout, input_shape=size)  # type: ignore[arg-type]
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
    _print(facts, report, as_json)
    if not report.ok:
        raise typer.Exit(1)


@app.command()
def convert(
    name: _NAME,
    output: Annotated[Path, typer.Option(help="Where to write the checkpoint.")],
    layout: _LAYOUT = "auto",
    iterations: _SWEEPS = 10,
    seed: _SEED = 0,
) -> None:
    """Convert a model and write it as a checkpoint.

    Example: pursuitify convert resnet18 --output resnet18.safetensors
    """
    net = _network(name, None, layout, iterations, seed)
    save(net, output)
    Console().print(f"wrote {output}: {len(net.graph) - 1} latents, {iterations} sweeps")


@app.command()
def diagnose(
    name: _NAME,
    shape: _SHAPE = "3,224,224",
    iterations: _SWEEPS = 10,
    layout: _LAYOUT = "auto",
    checkpoint: _FILE = None,
    batch: Annotated[int, typer.Option(help="Samples of the random input.")] = 2,
    seed: _SEED = 0,
    as_json: _JSON = False,
) -> None:
    """Run the pursuit on a random input and print what every sweep does.

    Example: pursuitify diagnose resnet18 --shape 3,64,64
    """
    net = _network(name, checkpoint, layout, iterations, seed)
    trace = net.diagnose(torch.rand(batch, *_shape(shape)))
    _print(trace.to_dict(), str(trace), as_json)


@app.command()
def coherence(
    name: _NAME,
    shape: _SHAPE = "3,224,224",
    layout: _LAYOUT = "auto",
    boundary: Annotated[str, typer.Option(help="interior or exact.")] = "interior",
    switches: Annotated[str, typer.Option(help="Of max pooling: centre, worst or batch.")] = "",
    checkpoint: _FILE = None,
    seed: _SEED = 0,
    as_json: _JSON = False,
) -> None:
    """Measure the coherence of a model's global dictionary.

    Example: pursuitify coherence resnet50 --json
    """
    net = _network(name, checkpoint, layout, 0, seed)
    report = measure(net, _shape(shape), boundary, switches=switches or None, progress=not as_json)
    _print(report.to_dict(), str(report), as_json)


def main() -> None:
    """Run the command line; a refusal is a message and exit code 1, never a traceback."""
    try:
        app()
    except PursuitifyError as error:
        Console(stderr=True).print(f"[bold red]error:[/] {error}", highlight=False)
        sys.exit(1)


if __name__ == "__main__":
    main()
