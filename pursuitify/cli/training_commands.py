"""The commands finetune, evaluate and demo."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from pursuitify.cli import options as shared
from pursuitify.cli.subject import subject_of
from pursuitify.errors import OptionError
from pursuitify.network.pursuit_network import PursuitNetwork
from pursuitify.training import RECIPES, Config, Interrupted
from pursuitify.training import finetune as train
from pursuitify.training import recipe as named

_OWN = Config()


def finetune(
    name: shared.NAME,
    output: Annotated[Path, typer.Option(help="Folder for state, weights and log.")],
    data: shared.DATA = None,
    checkpoint: shared.FILE = None,
    weights: shared.WEIGHTS = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where the run stopped.")] = False,
    iterations: shared.SWEEPS = None,
    layout: shared.LAYOUT = None,
    solver: shared.SOLVER = None,
    steps: shared.RULE = None,
    epochs: Annotated[
        int | None, typer.Option(help=f"Passes over the training data; {_OWN.epochs} by default.")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help=f"Over all processes; {_OWN.batch_size} by default.")
    ] = None,
    lr: Annotated[
        float | None, typer.Option(help=f"Largest learning rate; {_OWN.lr:g} by default.")
    ] = None,
    optimizer: Annotated[
        str | None, typer.Option(help=f"adamw or sgd; {_OWN.optimizer} by default.")
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(help=f"A measured choice of options: {', '.join(RECIPES)}.")
    ] = None,
    objective: Annotated[
        str | None, typer.Option(help="standard (the default), pgd or trades.")
    ] = None,
    eps: Annotated[
        str | None, typer.Option(help="Radius of the attack, e.g. 0.1; 8/255 by default.")
    ] = None,
    memory: shared.MEMORY = None,
    options: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Any other field of training.Config."),
    ] = None,
    augment: Annotated[bool, typer.Option(help="Random crops and flips, but for digits.")] = True,
    normalise: shared.NORMALISE = False,
    root: shared.ROOT = None,
    download: shared.DOWNLOAD = False,
    skip_bad: shared.SKIP_BAD = False,
    size: shared.SIZE = None,
    channels: shared.CHANNELS = None,
    seed: shared.DATA_SEED = None,
    as_json: shared.JSON = False,
) -> None:
    """Convert a model, or take a checkpoint, and fine-tune it on a data set.

    Writes best.safetensors, last.safetensors, log.csv and state.safetensors to the output folder.
    Ctrl-C leaves a state that --resume goes on from. For several processes, machines or mixed
    precision: accelerate launch -m pursuitify.cli.app finetune ...

    Examples:
      pursuitify finetune nets.py:make --data digits --output run
      pursuitify finetune nets.py:make --output run --epochs 10 --resume
      pursuitify finetune resnet18 --data cifar10 --weights my.pth --output run
      pursuitify finetune nets.py:make --output run --set step_ramp=0.3
    """
    given: dict[str, Any] = {
        "epochs": epochs,
        "batch_size": batch_size,
        "lr": lr,
        "optimizer": optimizer,
        "objective": objective,
        "memory": memory,
        "eps": None if eps is None else shared.radius(eps, ()),
    }
    subject = subject_of(name, checkpoint)
    chosen = {option: value for option, value in given.items() if value is not None}
    chosen |= {"seed": subject.origin.seed if seed is None else seed}
    chosen |= {"progress": not as_json, **_settings(options or [])}
    config = Config().with_options(chosen) if recipe is None else named(recipe, **chosen)
    if "eps" in chosen and config.objective == "standard":
        raise OptionError(
            f"--eps {config.eps:g} has no effect: objective 'standard' trains without an attack; "
            "give --objective pgd or trades, or --recipe adversarial"
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
    model, origin = shared.model_for(subject, found, origin, weights, normalise)
    net = shared.converted(
        model, subject.checkpoint, layout, iterations, solver=solver, steps=steps
    )
    shared.check_outputs(net, subject.name, found)
    typer.echo(str(found).splitlines()[0], err=True)  # also which part was split off another one
    try:
        result = train(
            net,
            found.train,
            found.val,
            config,
            output=output,
            resume=resume,
            origin=origin,
            augment=found.augment if augment else None,
        )
    except Interrupted as stop:
        Console(stderr=True).print(f"[bold]{stop}", highlight=False, soft_wrap=True)
        raise typer.Exit(130) from stop
    from accelerate import PartialState

    if PartialState().is_main_process:
        best = result.best
        text = (
            f"best epoch {best['epoch']}: validation accuracy {best['val_accuracy']:.2%}; "
            f"wrote {result.best_path}"
        )
        shared.show(result.to_dict(), text, as_json)


def _settings(options: list[str]) -> dict[str, Any]:
    """Return NAME=VALUE options: values as JSON, else as text."""
    found: dict[str, Any] = {}
    for option in options:
        name, sign, text = option.partition("=")
        if not sign:
            raise OptionError(f"--set {option!r} is not like NAME=VALUE")
        try:
            found[name] = json.loads(text)
        except ValueError:
            found[name] = text
    return found


def evaluate(
    name: shared.NAME,
    data: shared.DATA = None,
    checkpoint: shared.FILE = None,
    weights: shared.WEIGHTS = None,
    sweeps: Annotated[str, typer.Option(help="Values of T; the checkpoint's own too.")] = "0,1,2,5",
    part: Annotated[str, typer.Option(help="test or val.")] = "test",
    limit: Annotated[int | None, typer.Option(help="Only so many samples.")] = None,
    eps: Annotated[
        str | None, typer.Option(help="Attack with PGD of this radius too, e.g. 8/255.")
    ] = None,
    attack_steps: Annotated[int | None, typer.Option(help="Its steps; 20 by default.")] = None,
    batch_size: Annotated[int, typer.Option(help="Samples at a time.")] = 256,
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
    seed: shared.DATA_SEED = None,
    as_json: shared.JSON = False,
) -> None:
    """Measure accuracy against the number of sweeps.

    The accuracy under PGD is an upper bound of the robust accuracy, no evidence of robustness.

    Examples:
      pursuitify evaluate run
      pursuitify evaluate nets.py:make --sweeps 0,10 --eps 0.03 --part val
    """
    from pursuitify.training.evaluation import against_sweeps

    try:
        counts = {int(count) for count in sweeps.split(",")}
    except ValueError as error:
        raise OptionError(f"--sweeps {sweeps!r} is not like 0,1,2,5") from error
    if memory is not None and eps is None:
        raise OptionError(f"--memory {memory} would have no effect without an attack: give --eps")
    if part not in ("test", "val"):
        raise OptionError(f"--part {part!r} is neither test nor val")
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
    ball = 0.0 if eps is None else shared.radius(eps, found.shape)
    model, _ = shared.model_for(subject, found, origin, weights, normalise)
    net: PursuitNetwork = shared.converted(
        model,
        subject.checkpoint,
        layout,
        iterations,
        solver=solver,
        steps=steps,
        memory=memory,
        device=device,
    )
    shared.check_outputs(net, subject.name, found)
    rows = against_sweeps(
        net,
        found.test if part == "test" else found.val,
        sorted(counts | {net.iterations}),
        limit=limit,
        eps=ball,
        attack_steps=attack_steps,
        batch_size=batch_size,
        seed=origin.seed,
    )
    shown = f"PGD-{20 if attack_steps is None else attack_steps}"
    title = f"{rows[0]['samples']} samples of {found.name}, {part} part"
    table = Table(title=title, min_width=len(title))
    for heading in ("sweeps", "accuracy", "loss", *([shown] if ball else [])):
        table.add_column(heading, justify="right")
    for row in rows:
        attacked = [f"{row['attacked']:.2%}"] if ball else []
        table.add_row(str(row["sweeps"]), f"{row['accuracy']:.2%}", f"{row['loss']:.4f}", *attacked)
    shared.show({"data": found.name, "part": part, "eps": ball, "rows": rows}, table, as_json)
    shared.diverged(rows, "a loss")


def demo(
    output: Annotated[Path | None, typer.Option(help="Folder for two pictures.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer epochs, sweeps, steps.")] = False,
    as_json: shared.JSON = False,
) -> None:
    """Train, convert, fine-tune and evaluate a small network on handwritten digits.

    Example: pursuitify demo --output demo-output
    """
    from pursuitify.cli.demo import digits

    facts = digits(output, quick=quick, console=Console(quiet=as_json))
    if as_json:
        shared.show(facts, "", True)
