"""The commands plot and export, which write a network in a form that others read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer

from pursuitify.cli import options as shared
from pursuitify.cli.subject import Subject, subject_of
from pursuitify.errors import OptionError
from pursuitify.export import export_onnx, export_program
from pursuitify.network.pursuit_network import PursuitNetwork
from pursuitify.plots import plot_objective, plot_structure
from pursuitify.utils.atomic_files import whole

OUTPUT = Annotated[Path, typer.Option(help="File to write; its suffix chooses the format.")]


def plot(
    name: shared.NAME,
    output: OUTPUT,
    what: Annotated[
        str, typer.Option(help="structure of the dictionary, or objective per sweep.")
    ] = "structure",
    shape: shared.SHAPE = None,
    size: shared.SIDE = None,
    iterations: shared.SWEEPS = None,
    layout: shared.LAYOUT = None,
    solver: shared.SOLVER = None,
    steps: shared.RULE = None,
    device: shared.DEVICE = None,
    checkpoint: shared.FILE = None,
    weights: shared.WEIGHTS = None,
    classes: shared.CLASSES = None,
    seed: shared.SEED = 0,
    as_json: shared.JSON = False,
) -> None:
    """Draw the block structure of a network's dictionary, or its objective per sweep.

    The objective is that of a random input.

    Examples:
      pursuitify plot resnet18 --output structure.png
      pursuitify plot run --what objective --output objective.pdf
    """
    inputs = {
        "--shape": shape,
        "--size": size,
        "--iterations": iterations,
        "--solver": solver,
        "--steps": steps,
        "--device": device,
        "--weights": weights,
    }
    given = [option for option, value in inputs.items() if value is not None]
    if what not in ("structure", "objective"):
        raise OptionError(f"--what {what!r} is neither structure nor objective")
    if what == "structure" and given:
        raise OptionError(
            f"{', '.join(given)} would have no effect: the structure of the dictionary depends on "
            "no input, no sweep and no weights. Leave it out, or give --what objective"
        )
    subject = subject_of(name, checkpoint)
    net = _network(subject, classes, seed, iterations, layout, solver, steps, weights, device)
    if what == "structure":
        plot_structure(net, output)
    else:
        x = torch.rand(2, *subject.shape(shape, size)).to(shared.device_of(device))
        plot_objective(net.diagnose(x), output)
    shared.show({"output": str(output), "what": what}, f"wrote {output}: the {what}", as_json)


def export(
    name: shared.NAME,
    output: OUTPUT,
    shape: shared.SHAPE = None,
    size: shared.SIDE = None,
    iterations: shared.SWEEPS = None,
    layout: shared.LAYOUT = None,
    solver: shared.SOLVER = None,
    steps: shared.RULE = None,
    checkpoint: shared.FILE = None,
    classes: shared.CLASSES = None,
    weights: shared.WEIGHTS = None,
    seed: shared.SEED = 0,
    as_json: shared.JSON = False,
) -> None:
    """Export a network that runs without this library, for batches of any size.

    To .onnx, compared with the network in onnxruntime, or to .pt2 (torch.export).

    Examples:
      pursuitify export run --output net.onnx
      pursuitify export resnet18 --weights my.pth --iterations 4 --output net.pt2
    """
    if output.suffix not in (".onnx", ".pt2"):
        raise OptionError(f"{output} names no format: its suffix must be .onnx or .pt2")
    subject = subject_of(name, checkpoint)
    net = _network(subject, classes, seed, iterations, layout, solver, steps, weights)
    example = torch.rand(2, *subject.shape(shape, size))
    facts = {"output": str(output), "iterations": net.iterations}
    text = f"wrote {output}: {net.iterations} sweeps"
    if output.suffix == ".onnx":
        facts["difference"] = difference = export_onnx(net, example, output)
        text += f", largest relative difference in onnxruntime {difference:.1e}"
    else:
        program = export_program(net, example)
        with whole(output) as written:
            torch.export.save(program, written)
    shared.show(facts, text, as_json)


def _network(
    subject: Subject,
    classes: int | None,
    seed: int,
    iterations: int | None,
    layout: str | None,
    solver: str | None,
    steps: str | None,
    weights: Path | None,
    device: str | None = None,
) -> PursuitNetwork:
    model = shared.own_model(subject, classes, seed, weights)
    return shared.converted(
        model,
        subject.checkpoint,
        layout,
        iterations,
        solver=solver,
        steps=steps,
        device=device,
    )
