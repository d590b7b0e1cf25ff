"""finetune(): the one call."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from pursuitify import plots
from pursuitify.checkpoints.origin import Origin
from pursuitify.data.forms import Rows, all_labels, tensors
from pursuitify.data.samples import IGNORED, check_labels, labelled
from pursuitify.errors import (
    CheckpointError,
    InputError,
    MissingExtraError,
    OptionError,
)
from pursuitify.network.pursuit_network import PursuitNetwork
from pursuitify.training import loop, run_identity
from pursuitify.training.batches import (
    Batches,
    Share,
    batches,
    makes_batches,
)
from pursuitify.training.config import UNLABELLED, Config, ConfigOptions
from pursuitify.training.objectives import TrainingObjective
from pursuitify.training.optimizer import LearningRateSchedule, make_optimizer
from pursuitify.training.run_folder import Output
from pursuitify.training.state import Generators, Progress, TrainingState
from pursuitify.training.step_plan import step_plan
from pursuitify.utils import fingerprint, option_checks, random_state
from pursuitify.utils.terminal import Shown, as_text

if TYPE_CHECKING:
    from accelerate import Accelerator
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from rich.console import RenderableType
    from typing_extensions import Unpack


def finetune(
    net: nn.Module,
    train: Rows,
    val: Rows,
    config: Config | None = None,
    *,
    output: str | os.PathLike[str] | None = None,
    resume: bool = False,
    augment: Callable[[Tensor], Tensor] | None = None,
    accelerator: Accelerator | None = None,
    origin: Origin | None = None,
    **options: Unpack[ConfigOptions],
) -> Result:
    """Train a network in place.

    Devices, processes, mixed precision and gradient accumulation are Hugging Face accelerate's:
    start the script by ``accelerate launch``, or pass an Accelerator.

    Before the first step its memory is counted (``estimate_memory``). Where it does not fit, the
    network recomputes sweeps during steps, or every batch is cut into micro-batches, with a
    ``MemoryWarning`` that says so; derivatives and results are the same, but for the batch
    statistics of BatchNorm, which are then those of the micro-batches.

    Args:
        net: A pursuit network, or any module that returns logits: it is trained alike. It ends
            with the best weights by validation (``keep="last"``: the last), in its own mode, on
            accelerate's device.
        train: ``(x, y)`` tensors, a Dataset or a list of pairs: shuffled, and put into batches of
            ``batch_size`` by ``workers``. Or a DataLoader, or an iterable of batches with a
            length: read as it is, every epoch to its end. Labels are class numbers, -100 for a
            sample that the loss passes over, or probabilities (objective ``standard``).
        val: Likewise, in order; the only data that anything is chosen by. It needs no length.
        config: The configuration.
        output: Folder for the state, the best and the last weights and the log; without one,
            nothing is written and nothing can be resumed.
        resume: Go on from the state in the folder, if there is one: to the same numbers as if the
            run had never stopped. Another network, other data, options or augmentation than the
            run began with are refused.
        augment: Applied to each training sample: one x in, one x out. Random numbers that it draws
            from torch, NumPy or Python are seeded.
        accelerator: An Accelerator of your own. Make it with
            ``DistributedDataParallelKwargs(find_unused_parameters=True)``.
        origin: The model's name and its data, for the files of a pursuit network to remember (as
            ``save`` takes it).
        **options: Fields of the configuration, by name.

    Raises:
        OptionError: If an argument is unknown or invalid, or would have no effect.
        InputError: If labels do not fit the network: before the first step, as far as they are
            in memory, else at their batch, with the state before it saved.
        MissingExtraError: If accelerate is not installed.
        CheckpointError: If the folder holds another run, or cannot be written.
        TrainingError: If the loss is not finite.
        MemoryLimitError: If no way of running a step was found that fits, before the first step.
        Interrupted: On Ctrl-C, after saving the state.
    """
    if config is not None and not isinstance(config, Config):
        raise OptionError(
            f"config is a {type(config).__name__}, not a Config: give Config(epochs=3), or the "
            "fields by name, finetune(..., epochs=3)"
        )
    config = (config or Config()).with_options({**options})
    output = None if output is None else option_checks.path("output", output)
    _check(net, config, resume, output, origin)
    _check_data_options(train, val, config)
    if accelerator is None:
        accelerator = make_accelerator(config, None if output is None else str(output))
    share = Share(accelerator.process_index, accelerator.num_processes)
    rows = batches(
        train,
        config.batch_size,
        share,
        train=True,
        seed=config.seed,
        workers=config.workers,
        augment=augment,
    )
    held = batches(val, config.batch_size, share, train=False, workers=config.workers, name="val")
    was_training = net.training
    with random_state.kept():
        place = Output.at(output, resume, origin)
        written = place.folder is not None
        sources = run_identity.sources(train, val) if written else {}
        facts = _facts(net, train, val, config, augment) if written else {}
        known = {"train": all_labels(train), "val": all_labels(val)}
        best = None if place.folder is None else place.best
        first = _First(net, rows, held, config, known, augment, best)
        run = _prepared(net, rows, held, config, accelerator, place, facts, sources, first, resume)
        try:
            stopped = loop.train(run)
        finally:
            loop.settle(run)
            net.train(was_training)
        if config.keep == "best":
            place.give_back(net)
        elif run.state.ema is not None:
            net.load_state_dict(run.kept.state_dict())
    if config.tensorboard:
        accelerator.end_training()
    assert run.progress.best is not None
    return Result(
        run.progress.history,
        run.progress.best,
        stopped,
        place.best if written else None,
        place.last if written else None,
        place.log if written else None,
    )


def _check(net: object, config: Config, resume: bool, output: object, origin: object) -> None:
    if not isinstance(net, nn.Module):
        raise OptionError(f"finetune takes a module, not a {type(net).__name__}")
    if origin is not None:
        if not isinstance(origin, Origin):
            raise OptionError(f"origin is a {type(origin).__name__}, not an Origin")
        if output is None or not isinstance(net, PursuitNetwork):
            raise OptionError(
                "origin would have no effect: it is kept in the files of a PursuitNetwork's run. "
                "Leave it out, or convert the network and name an output folder"
            )
        origin.check_tensors(net.state_dict())
    if resume and output is None:
        raise OptionError("resume=True needs the output folder of the run")
    config.check_read()
    if isinstance(net, PursuitNetwork):
        return
    own = Config()
    names = (
        "pursuit_lr", "reconstruction", "frame_potential", "first_sweeps", "step_ramp", "memory",
    )  # fmt: skip
    given = [name for name in names if getattr(config, name) != getattr(own, name)]
    if given:
        raise OptionError(
            f"{', '.join(given)} apply to a PursuitNetwork, not to a {type(net).__name__}: "
            "convert it first"
        )


def _check_data_options(train: Rows, val: Rows, config: Config) -> None:
    """Refuse options about batches where all data comes in batches of its own."""
    if not (makes_batches(train) and makes_batches(val)):
        return
    own = Config()
    sizes = {getattr(rows, "batch_size", None) for rows in (train, val)}
    given = []
    if config.batch_size != own.batch_size and config.batch_size not in sizes:
        given.append(f"batch_size={config.batch_size}")
    if config.workers != own.workers:
        given.append(f"workers={config.workers}")
    if given:
        raise OptionError(
            f"{' and '.join(given)} would have no effect: train and val make batches of their own. "
            "Leave them out, or set them there"
        )


def _facts(net: nn.Module, train: Rows, val: Rows, config: Config, augment: Any) -> dict[str, Any]:
    """Return what tells this run from another one."""
    return {
        **run_identity.data_facts(train, "train", config.seed, augment),
        **run_identity.data_facts(val, "val", 0, None),
        **run_identity.callable_facts(augment),
        **run_identity.module_facts(net),
    }


@dataclass
class _First:
    """The inputs of the checks before the first step, new or resumed.

    Attributes:
        net: The network.
        train: The training data.
        val: The validation data.
        config: The configuration.
        known: By name of the data its labels, where they are in memory.
        augment: The augmentation.
        best: The file that keeps the best weights, where there is a folder.
        state: The state whose ``probe`` is set.
        classes: How many classes the network tells apart; 0 where nothing is left to train.
    """

    net: nn.Module
    train: Batches
    val: Batches
    config: Config
    known: dict[str, Tensor | None]
    augment: Any
    best: Path | None = None
    state: TrainingState | None = None
    classes: int = 0

    def check(self, progress: Progress, generators: Generators) -> None:
        """Open the data where training goes on, and refuse what does not fit.

        Raises:
            CheckpointError: If it is other data than the run began with, or its best weights are
                gone.
            InputError: If labels do not fit the network, or there are none to learn from.
            OptionError: If batches or the network's output are none to train on.
        """
        kept = self.config.keep == "best" and progress.best is not None
        if kept and self.best is not None and not self.best.is_file():
            raise CheckpointError(
                f"{self.best} is gone, which holds the best weights so far, and the run would end "
                "with them: put it back, or start another run in another folder"
            )
        if progress.epoch >= self.config.epochs:
            return
        if progress.step and fingerprint.holds_generator(self.augment):
            raise CheckpointError(
                "this run cannot be resumed: augment draws from a random generator of its own, "
                "whose state is in no file. Let it draw from torch's, NumPy's or Python's own "
                "functions, which are seeded for every sample, and start another run"
            )
        if generators:
            self.train.set_states(generators["train"])
            self.val.set_states(generators["val"])
        first = self.train.peek(progress.epoch, progress.batch)
        found = self.train.digest(max(progress.batch, 1))
        if progress.read is not None and found != progress.read:
            raise CheckpointError(
                "this run cannot be resumed with this data: train yields other batches than the "
                "run read. It must yield the same ones when it is read again under the same seeds "
                "of torch, NumPy and Python; a sampler with a random state of its own does not"
            )
        soft = self.config.objective == "standard"
        looked = {"train": first or self.train.look(progress.epoch), "val": self.val.look(0)}
        for name, batch in looked.items():
            if batch is None:
                raise OptionError(f"{name} has no batch")
            x, y = tensors(batch, f"a batch of {name}")
            if self.state is not None and name == "train":
                self.state.probe = run_identity.probe(x)
                self.classes = run_identity.answers(self.net, self.state.probe).shape[1]
            for labels in (y, self.known[name]):
                if labels is not None:
                    allowed = soft or name == "val"
                    check_labels(labels, len(labels), self.classes, name=name, soft=allowed)
        for name, every in self.known.items():
            needless = name == "train" and self.config.learns_without_labels
            if every is not None and not needless and not bool(labelled(every).any()):
                raise InputError(
                    f"no sample of {name} has a label: all are {IGNORED}. "
                    + (UNLABELLED if name == "train" else "There is nothing to validate on")
                )


def _prepared(
    net: nn.Module,
    rows: Batches,
    held: Batches,
    config: Config,
    accelerator: Accelerator,
    output: Output,
    identity: dict[str, Any],
    sources: run_identity.Sources,
    first: _First,
    resume: bool,
) -> loop.TrainingRun:
    net.to(accelerator.device)
    ema = None
    if config.ema is not None:
        average = get_ema_multi_avg_fn(config.ema)  # type: ignore[no-untyped-call]
        ema = AveragedModel(net, multi_avg_fn=average)
    optimizer = make_optimizer(net, config)
    steps = -(-len(rows) // accelerator.gradient_accumulation_steps) * config.epochs
    facts = {
        "batches per epoch": len(rows),
        "gradient accumulation": accelerator.gradient_accumulation_steps,
        "mixed precision": accelerator.mixed_precision,
        "settings": net.settings() if isinstance(net, PursuitNetwork) else None,
        **identity,
    }
    state = TrainingState(net, optimizer, ema, config, facts, accelerator.scaler)
    first.state, state.sources = state, sources
    progress = Progress()
    if resume and output.state.is_file():
        progress = state.restore(output.state, first.check)
    else:
        first.check(progress, {})
    plan = step_plan(net, config, accelerator, state)
    own_options = {name: getattr(net, name) for name in plan.options}
    objective, prepared = accelerator.prepare(TrainingObjective(net, config), optimizer)
    if accelerator.log_with:
        accelerator.init_trackers(TRACKED)
    sums = progress.sums
    if len(sums) != accelerator.num_processes:  # resumed on another number of processes
        sums = [loop.added(sums)]
    mine = sums[accelerator.process_index] if accelerator.process_index < len(sums) else {}
    schedule = LearningRateSchedule(
        config,
        steps,
        sweeps=net.iterations if isinstance(net, PursuitNetwork) else 0,
        scale=net.step_scale if isinstance(net, PursuitNetwork) else 1.0,
    )
    return loop.TrainingRun(
        accelerator,
        state,
        objective,
        prepared,
        schedule,
        rows,
        held,
        output,
        progress,
        dict(mine),
        first.classes,
        plan,
        own_options,
    )


#: The columns of a result's table: the key of the history, its title, and how it is written.
_COLUMNS = (
    ("epoch", "epoch", "d"),
    ("loss", "loss", ".4f"),
    ("accuracy", "accuracy", ".2%"),
    ("val_loss", "val loss", ".4f"),
    ("val_accuracy", "val accuracy", ".2%"),
    ("iterations", "T", "d"),
    ("objective", "objective F", ".6g"),
)


@dataclass(frozen=True)
class Result(Shown):
    """The outcome of a fine-tuning; ``str()``, rich and notebooks show it as a table.

    Attributes:
        history: Per epoch: ``epoch``, ``step``, ``lr``, ``loss``, ``accuracy`` on the training
            data as it went, ``val_loss`` and ``val_accuracy`` after it, ``iterations`` (T at its
            end) and, of a pursuit network, ``objective`` (F, mean of what was measured) and
            ``mean_beta``.
        best: The entry of the best epoch, by validation accuracy, then loss.
        stopped_early: Whether patience ran out.
        best_path: File with the best weights, where an output folder was given.
        last_path: File with the last weights likewise.
        log_path: The history as CSV likewise.
    """

    history: list[dict[str, Any]]
    best: dict[str, Any]
    stopped_early: bool
    best_path: Path | None = None
    last_path: Path | None = None
    log_path: Path | None = None

    def __rich__(self) -> RenderableType:
        """Return the epochs as a table, and where the weights are."""
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        columns = [one for one in _COLUMNS if any(one[0] in entry for entry in self.history)]
        title = f"{len(self.history)} epochs" + (", stopped early" if self.stopped_early else "")
        table = Table(title=title if len(self.history) > 1 else "1 epoch")
        for _, heading, _ in columns:
            table.add_column(heading, justify="right")
        table.add_column("")
        for entry in self.history:
            cells = [format(entry[key], form) if key in entry else "-" for key, _, form in columns]
            table.add_row(*cells, "best" if entry["epoch"] == self.best["epoch"] else "")
        files = {"best weights": self.best_path, "last": self.last_path, "log": self.log_path}
        lines = [f"{what}: {path}" for what, path in files.items() if path is not None]
        return Group(table, *map(Text, lines))

    def __str__(self) -> str:
        """Return the table as text."""
        return as_text(self, width=110)

    def plot(self, path: str | os.PathLike[str] | None = None, *, ax: Axes | None = None) -> Figure:
        """Draw loss and accuracy per epoch, on the training and on the validation data.

        Args:
            path: File to write; the suffix chooses the format. Nothing is written if None.
            ax: Axes to draw the accuracy alone into; None for a figure with both.
        """
        shown = {"accuracy": "Accuracy"}
        with plots.style():
            if ax is None:
                figure = plots.new_figure(plots.WIDE, 3.4)
                shown = {"loss": "Loss", **shown}
                panels = list(figure.subplots(1, 2))
            else:
                figure, only = plots.panel(ax)
                panels = [only]
            epochs = [entry["epoch"] for entry in self.history]
            for axes, (key, title) in zip(panels, shown.items(), strict=True):
                for number, (name, label) in enumerate(
                    ((key, "training"), (f"val_{key}", "validation"))
                ):
                    values = [entry[name] for entry in self.history]
                    look = {"color": plots.COLOURS[number], "marker": plots.MARKS[number]}
                    axes.plot(epochs, values, label=label, **look)
                axes.axvline(self.best["epoch"], linestyle=":", color="grey", label="best epoch")
                axes.set_title(title)
                axes.set_xlabel("epoch")
                plots.whole_numbers(axes)
            plots.legend(panels[-1])
            return plots.finished(figure, path)

    def to_dict(self) -> dict[str, Any]:
        """Return plain lists, numbers and strings."""
        facts = asdict(self)
        return {k: str(v) if isinstance(v, Path) else v for k, v in facts.items()}


TRACKED = "pursuitify"


def make_accelerator(config: Config, folder: str | None) -> Accelerator:
    """Return an Accelerator as its launcher and configuration want it.

    Parameters that a mode does not use (``pursuit.*`` at T = 0) get no gradient, so
    DistributedDataParallel has to look for them.

    Raises:
        MissingExtraError: If accelerate is missing, or tensorboard where it is asked for.
    """
    try:
        from accelerate import Accelerator, DistributedDataParallelKwargs
    except ImportError as error:
        raise MissingExtraError(
            "fine-tuning needs accelerate: pip install 'pursuitify[train]'"
        ) from error
    log_with = None
    if config.tensorboard:
        try:
            import_module("torch.utils.tensorboard")
        except ImportError as error:
            raise MissingExtraError(
                "tensorboard=True needs tensorboard: pip install tensorboard"
            ) from error
        log_with = "tensorboard"
    return Accelerator(
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
        log_with=log_with,
        project_dir=folder,
    )
