"""finetune(): the one call."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from pursuitify import plots
from pursuitify.checkpoints.origin import Origin
from pursuitify.data.forms import Rows, all_labels, tensors
from pursuitify.data.samples import IGNORED, check_labels, labelled
from pursuitify.errors import (
    CheckpointError,
    EstimateError,
    InputError,
    MemoryLimitError,
    MissingExtraError,
    OptionError,
)
from pursuitify.memory import (
    MemoryWarning,
    StepPlan,
    estimate_step,
    free_memory,
    pass_bytes,
    smallest_change,
)
from pursuitify.network.pursuit_network import PursuitNetwork
from pursuitify.solvers.differentiation.modes import RecomputeMode
from pursuitify.solvers.settings import OPTIONS
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
from pursuitify.training.state import STEP_PLAN, Generators, Progress, TrainingState
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


#: The part of the free memory that a step may be counted to need: other programs need some, too.
_SHARE = 0.9
#: A step that is counted needs at most so many times what its passes make and its weights take: 2
#: to 12 times on eleven networks, T from 0 to 4 and every objective (one sweep counted for all).
_ROUGHLY = 16


def step_plan(
    net: nn.Module, config: Config, accelerator: Accelerator, state: TrainingState
) -> StepPlan:
    """Return how steps are run so that they fit into the free memory.

    What the user has set is obeyed, with a warning if it does not fit. A run that is resumed goes
    on as it began. With mixed precision nothing is counted: the count knows float32 alone.

    Args:
        net: The network, on its device.
        config: The configuration.
        accelerator: The engine.
        state: The state, whose probe has the shape of a batch; the choice is noted in its facts.

    Raises:
        MemoryLimitError: If nothing fits.
    """
    known = state.facts.get(STEP_PLAN)
    if known is not None:
        return StepPlan(known["options"], known["parts"])
    asked = {} if config.memory is None else {"memory": config.memory}
    own = StepPlan(asked, config.micro_batches or 1)
    free = _least_free(accelerator)
    if state.probe is None or free is None or accelerator.mixed_precision != "no":
        return own
    needs = _StepNeeds(net, config, accelerator, state.probe)
    limit, rows = int(_SHARE * free), len(state.probe)
    at_once = math.ceil(rows / own.parts)
    accumulates = accelerator.gradient_accumulation_steps > 1
    chosen = bool(asked) or config.micro_batches is not None or accumulates
    try:
        if needs.roughly(at_once) <= limit or needs.at_most(asked, at_once) <= limit:
            return own
        if chosen or (isinstance(net, PursuitNetwork) and net.memory != OPTIONS["memory"]):
            size = needs(asked, at_once)
            if size > limit:
                text = f"{_amount(size, free)}. It is run all the same, because its memory mode or "
                warnings.warn(MemoryWarning(text + "its micro-batches were set"), stacklevel=3)
            return own
        choices = _choices(net)
        plan, fits = smallest_change(needs, choices, rows, needs.least, limit)
    except EstimateError as error:
        warnings.warn(MemoryWarning(f"nothing was chosen to save memory: {error}"), stacklevel=3)
        return own
    if not fits:
        raise MemoryLimitError(
            f"{_amount(needs(choices[0], rows), free)}; with {_words(plan, rows)} it still needs "
            f"{_gib(plan.needed)}. Take fewer samples (batch_size), smaller inputs or fewer sweeps "
            "(iterations), free memory, or set memory= or micro_batches= to run it all the same"
        )
    if plan.options or plan.parts > 1:
        state.facts[STEP_PLAN] = plan.to_dict()
        text = f"{_amount(needs(choices[0], rows), free)}. So it is run with {_words(plan, rows)}"
        text += f", for which {_gib(plan.needed)} are needed"
        if plan.parts > 1 and needs.statistics:
            text += (
                ". BatchNorm takes its statistics from each micro-batch, and its running "
                "statistics move once for each: results differ from those of whole batches"
            )
        warnings.warn(MemoryWarning(text), stacklevel=3)
    return plan


class _StepNeeds:
    """The bytes that one training step needs beside what is there before it.

    Attributes:
        statistics: Whether the network takes statistics of batches.
        least: Fewest samples that it takes at a time.
    """

    def __init__(
        self, net: nn.Module, config: Config, accelerator: Accelerator, probe: Tensor
    ) -> None:
        self._net, self._probe = net, probe
        # The frozen estimate of the potential reads values; it is small beside the sweeps.
        self._config = replace(config, frame_potential=0.0)
        self._processes: int = accelerator.num_processes
        norms = (nn.modules.batchnorm._BatchNorm,)
        self.statistics = any(isinstance(module, norms) for module in net.modules())
        self.least = 2 if self.statistics else 1
        self._known: dict[object, int] = {}

    def __call__(self, options: Mapping[str, Any], rows: int) -> int:
        """Return the bytes for so many samples at a time with these settings."""
        key = (*options.items(), rows)
        if key not in self._known:
            self._known[key] = self._count(options, rows, None)
        return self._known[key]

    def roughly(self, rows: int) -> int:
        """Return more than ``at_most`` does, in the time of a pass without sweeps."""
        x = torch.empty(rows, *self._probe.shape[1:], dtype=self._probe.dtype, device="meta")
        sweeps = self._most_sweeps if isinstance(self._net, PursuitNetwork) else 0
        passes = (1 + 2 * sweeps) * (2 if self._config.objective == "trades" else 1)
        tensors = [*self._net.parameters(), *self._net.buffers()]
        weights = sum(t.numel() * t.element_size() for t in tensors)
        return _ROUGHLY * (passes * pass_bytes(self._net, x) + weights)

    def at_most(self, options: Mapping[str, Any], rows: int) -> int:
        """Return more than that, in the time of one sweep: no sweep needs more than the first."""
        if not isinstance(self._net, PursuitNetwork):
            return self(options, rows)
        return 2 * self._sweeps * self._count(options, rows, min(1, self._sweeps))

    @property
    def _most_sweeps(self) -> int:
        assert isinstance(self._net, PursuitNetwork)
        return max(self._net.iterations, self._config.first_sweeps or 0)

    @property
    def _sweeps(self) -> int:
        return max(self._most_sweeps, 1)

    def _count(self, options: Mapping[str, Any], rows: int, sweeps: int | None) -> int:
        if isinstance(self._net, PursuitNetwork):
            options = {**options, "iterations": sweeps or self._sweeps}
        shape, dtype = self._probe.shape[1:], self._probe.dtype
        adversarial = self._config.objective != "standard"

        def step(twin: nn.Module) -> Tensor:
            x = torch.empty(rows, *shape, dtype=dtype, device="meta")
            y = torch.empty(rows, dtype=torch.long, device="meta")
            objective = TrainingObjective(twin, self._config)
            loss: Tensor = objective(x, y, x.clone() if adversarial else None, True, 0)["loss"]
            return loss

        found = estimate_step(self._net, step, rows, True, options)
        copies = 1 if self._config.optimizer == "sgd" else 2  # what the optimizer keeps
        copies += self._processes > 1  # the engine's buckets
        copies += rows < len(self._probe)  # what earlier micro-batches left
        rest = copies * found.gradients + (self._config.ema is not None) * found.weights
        return found.resident + rest


def _choices(net: nn.Module) -> list[dict[str, Any]]:
    """Return settings that save memory, the ones that cost least time first."""
    if not (isinstance(net, PursuitNetwork) and net.pursues):
        return [{}]
    recompute = {"memory": RecomputeMode.name}
    return [{}, *({**recompute, "recompute_levels": levels} for levels in (1, 2))]


def _least_free(accelerator: Accelerator) -> int | None:
    """Return the least memory that a process has free; those of a machine share the CPU's."""
    free = free_memory(accelerator.device)
    if accelerator.num_processes == 1:
        return free
    from accelerate.utils import gather_object

    if free is not None and accelerator.device.type == "cpu":
        free //= int(os.environ.get("LOCAL_WORLD_SIZE", accelerator.num_processes))
    found = gather_object([free])
    return None if None in found else min(found)


def _gib(size: int | None) -> str:
    return f"{(size or 0) / 2**30:.1f} GiB"


def _amount(size: int, free: int) -> str:
    return f"a training step needs about {_gib(size)} of memory, and {_gib(free)} are free"


def _words(plan: StepPlan, rows: int) -> str:
    """Return a plan in words, as the options that ask for it."""
    settings = ", ".join(f"{name}={value!r}" for name, value in plan.options.items())
    parts = f"micro_batches={plan.parts} ({math.ceil(rows / plan.parts)} samples at a time)"
    return " and ".join(part for part in (settings, parts if plan.parts > 1 else "") if part)


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
