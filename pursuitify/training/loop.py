"""The loop: epochs, steps, validation, when to save, and what Ctrl-C does."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pursuitify.data.forms import Batch, tensors
from pursuitify.data.samples import IGNORED, check_labels, labelled
from pursuitify.errors import CheckpointError, RangeError, TrainingError
from pursuitify.memory import StepPlan
from pursuitify.network.pursuit_network import PursuitNetwork
from pursuitify.training import progress_log, run_identity
from pursuitify.training.adversarial_inputs import attack, noisy
from pursuitify.training.batches import Batches
from pursuitify.training.config import UNLABELLED, Draw
from pursuitify.training.evaluation import Score, score, sums
from pursuitify.training.optimizer import LearningRateSchedule, set_rate
from pursuitify.training.run_folder import Output
from pursuitify.training.state import Progress, TrainingState
from pursuitify.utils import random_state

if TYPE_CHECKING:
    from accelerate import Accelerator


class Interrupted(KeyboardInterrupt):
    """Training was interrupted; the message says how to go on."""


class Guard:
    """While entered, the first SIGINT or SIGTERM only leaves word; the second acts at once.

    Attributes:
        asked: Whether the run is to stop.
    """

    def __init__(self, active: bool) -> None:
        """Guard, if ``active`` and in the main thread, where alone Python takes signals."""
        self.asked = False
        self._active = active and threading.current_thread() is threading.main_thread()
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Guard:
        if self._active:
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        self._restore()

    def _restore(self) -> None:
        while self._before:
            number, handler = self._before.popitem()
            signal.signal(number, handler)


#: What to do about a training that runs away.
_ADVICE = "What was saved stays. Try a smaller learning rate, clipping, or fewer sweeps first"


@dataclass(frozen=True, eq=False)
class TrainingRun:
    """Everything a run works with; what changes is in ``progress`` and the modules.

    Attributes:
        accelerator: The engine.
        state: Network, optimizer and average.
        objective: The loss as the engine prepared it.
        optimizer: The optimizer likewise.
        schedule: What changes over training.
        train: Passes over the training data.
        val: Passes over the validation data.
        output: Where results go.
        progress: How far the run is.
        own_sums: This process's running sums of the epoch.
        classes: Number of classes that the network tells apart.
        plan: How a step is run so that it fits into memory.
        own_options: The network's own values of the settings that the plan changes.
    """

    accelerator: Accelerator
    state: TrainingState
    objective: nn.Module
    optimizer: Any
    schedule: LearningRateSchedule
    train: Batches
    val: Batches
    output: Output
    progress: Progress
    own_sums: dict[str, float]
    classes: int
    plan: StepPlan
    own_options: dict[str, Any]

    @property
    def net(self) -> nn.Module:
        """The network that is trained."""
        return self.state.net

    @property
    def kept(self) -> nn.Module:
        """The network that is validated and kept: the average, where there is one."""
        return self.net if self.state.ema is None else self.state.ema.module


def train(run: TrainingRun) -> bool:
    """Train to the end.

    Returns:
        Whether patience ran out before.

    Raises:
        Interrupted: On Ctrl-C, after saving the state.
        TrainingError: If the loss is not finite.
        CheckpointError: If something cannot be written.
    """
    config, progress = run.state.config, run.progress
    shown = config.progress and run.accelerator.is_main_process
    bar = progress_log.Bar(shown, "fine-tuning", run.schedule.steps, progress.step)
    with bar, Guard(run.output.folder is not None) as guard:
        try:
            while _goes_on(run):
                _epoch(run, bar, guard)
                _finish_epoch(run)
        except Exception:
            # What the epochs before this one left is of use, also where training cannot go on.
            with contextlib.suppress(CheckpointError):
                _write(run)
            raise
    return progress.epoch < config.epochs


def _goes_on(run: TrainingRun) -> bool:
    return run.progress.epoch < run.state.config.epochs and not _out_of_patience(run)


def _out_of_patience(run: TrainingRun) -> bool:
    patience = run.state.config.patience
    return patience is not None and run.progress.waited >= patience


def _epoch(run: TrainingRun, bar: progress_log.Bar, guard: Guard) -> None:
    config, progress = run.state.config, run.progress
    run.net.train()
    batches = run.train(progress.epoch, progress.batch)
    size = run.accelerator.gradient_accumulation_steps
    while group := _group(run, batches, size):
        _step(run, group)
        progress.batch += len(group)
        progress.step += 1
        bar.update(progress.step, _means(run.own_sums))
        if _agreed(run.accelerator, guard.asked):
            _save(run)
            raise Interrupted(
                f"interrupted after {progress.step} of {run.schedule.steps} steps. The state is in "
                f"{run.output.state}; the same call with resume=True (command line: --resume) goes "
                "on from there, to the same numbers"
            )
        if config.save_every and progress.step % config.save_every == 0:
            _save(run)


def _group(run: TrainingRun, batches: Iterator[Batch], size: int) -> list[Batch]:
    """Return the batches of the next step."""
    soft = run.state.config.objective == "standard"
    with _saved_before(run):
        group = list(islice(batches, size))
        pairs = [tensors(batch, f"a batch of {run.train.name}") for batch in group]
        return [
            (x, check_labels(y, len(x), run.classes, name=run.train.name, soft=soft))
            for x, y in pairs
        ]


@contextlib.contextmanager
def _saved_before(run: TrainingRun) -> Iterator[None]:
    """Save the state as it is where what follows fails: a file that cannot be read, a bad label.

    What the data holds and names is no part of that state, for its owner will mend it: the samples
    that are read to compare still are. Not with several processes: the others go on and would not
    take part in saving.
    """
    try:
        yield
    except BaseException as error:
        if run.accelerator.num_processes == 1:
            if isinstance(error, Exception):
                run.state.facts = run_identity.without_content(run.state.facts)
            _save(run)
        raise


def _step(run: TrainingRun, group: list[Batch]) -> None:
    config, step = run.state.config, run.progress.step
    process = run.accelerator.process_index
    set_rate(run.state.optimizer, run.schedule.rate(step))
    _schedule_pursuit(run, step)
    run.optimizer.zero_grad()
    for number, batch in enumerate(group):
        keys = (config.seed, step, number, process)
        random_state.seed_all(random_state.derived(Draw.STEP, *keys))
        x, y = (part.to(run.accelerator.device, non_blocking=True) for part in batch)
        x = noisy(x, config, random_state.derived(Draw.NOISE, *keys))
        pieces, whole = _micro_batches(run.plan, x, y), (int(labelled(y).sum()), len(y))
        norms = run.net.norm_state() if isinstance(run.net, PursuitNetwork) else {}
        for part, (inputs, labels) in enumerate(pieces):
            if part and isinstance(run.net, PursuitNetwork):
                # Estimates of norms move with every pass: all parts begin at the same, as one does.
                run.net.restore_norm_state(norms)
            seed = random_state.derived(Draw.ATTACK, *keys, *([part] if part else []))
            measure = step % config.log_every == 0 and number == part == 0
            last = number == len(group) - 1 and part == len(pieces) - 1
            parts = _step_part(run, inputs, labels, whole, len(group), seed, measure, last)
            _note(run, parts, (int(labelled(labels).sum()), len(labels)), whole)
    if config.clip is not None:
        run.accelerator.clip_grad_norm_(run.objective.parameters(), config.clip)
    run.optimizer.step()
    if run.state.ema is not None:
        run.state.ema.update_parameters(run.net)


def _micro_batches(plan: StepPlan, x: Tensor, y: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Cut a batch into the plan's parts, which differ by one sample at most; a small one whole."""
    parts = min(plan.parts, len(x))
    return list(zip(x.tensor_split(parts), y.tensor_split(parts), strict=True))


def _step_part(
    run: TrainingRun,
    x: Tensor,
    y: Tensor,
    whole: tuple[int, int],
    group: int,
    seed: int,
    measure: bool,
    last: bool,
) -> dict[str, Tensor]:
    """Add the derivatives of one micro-batch to those of its step; return what the loss returns.

    Args:
        run: The run.
        x: Its inputs.
        y: Its labels.
        whole: The number of labels, and of samples, in the whole batch.
        group: The number of batches in the step.
        seed: Seed of the attack's start.
        measure: Whether to measure the objective F.
        last: Whether nothing follows in the step.
    """
    with run.accelerator.autocast():
        attacked = attack(run.net, x, y, run.state.config, seed)
    own = int(labelled(y).sum()), len(y)
    shares = (own[0] / whole[0] if whole[0] else 1.0, own[1] / whole[1])
    with _synchronised(run, last):
        try:
            parts: dict[str, Tensor] = run.objective(
                x, y, attacked, measure, run.progress.step, shares
            )
        except RangeError as error:
            raise TrainingError(
                f"at step {run.progress.step} the weights are not finite, or so large that the "
                f"sweeps have no step: {error}. {_ADVICE}"
            ) from error
        run.accelerator.backward(_of_group(run, parts["loss"], group))
    return parts


def _of_group(run: TrainingRun, loss: Tensor, count: int) -> Tensor:
    """Return a batch's loss so that a step follows the mean over its own ``count`` batches.

    accelerate divides by the number of batches that it was told; an epoch's last step may have
    fewer.
    """
    told = run.accelerator.gradient_accumulation_steps
    return loss if count == told else loss * (told / count)


def _synchronised(run: TrainingRun, last: bool) -> Any:
    """Leave the processes apart until the last batch of a step, as accelerate does."""
    return contextlib.nullcontext() if last else run.accelerator.no_sync(run.objective)


def _schedule_pursuit(run: TrainingRun, step: int) -> None:
    if not isinstance(run.net, PursuitNetwork):
        return
    for name, value in run.plan.options.items():
        setattr(run.net, name, value)
    run.net.iterations = run.schedule.iterations(step)
    if run.state.config.step_ramp:
        run.net.step_scale = run.schedule.step_scale(step)


def settle(run: TrainingRun) -> None:
    """Give the network the settings that it has at the end."""
    if isinstance(run.net, PursuitNetwork):
        for name, value in run.own_options.items():
            setattr(run.net, name, value)
        run.net.iterations = run.schedule.sweeps
        if run.state.config.step_ramp:
            run.net.step_scale = run.schedule.scale


def _note(
    run: TrainingRun, parts: dict[str, Tensor], own: tuple[int, int], whole: tuple[int, int]
) -> None:
    """Add a micro-batch's numbers to the running sums: one transfer from the device.

    Args:
        run: The run.
        parts: The numbers. The loss is the micro-batch's share of its batch's; others are its own.
        own: Its number of labels, and of samples.
        whole: Those of its batch.
    """
    names = list(parts)
    values = torch.stack([parts[name].detach().float() for name in names]).tolist()
    found = dict(zip(names, values, strict=True))
    if not all(map(_finite, values)):
        raise TrainingError(
            f"at step {run.progress.step} these are not finite: "
            f"{[n for n in names if not _finite(found[n])]}. {_ADVICE}"
        )
    totals = run.own_sums
    labels, samples = own
    unlabelled = run.state.config.learns_without_labels
    totals["labels"] = totals.get("labels", 0.0) + labels
    for name, value in found.items():
        of_labels = name in ("correct", "cross_entropy") or (name == "loss" and not unlabelled)
        count = labels if of_labels else samples
        amount = value * count
        if name in ("correct", "loss"):  # a sum already, and a share of the batch's mean
            amount = value * (1 if name == "correct" else whole[0 if of_labels else 1])
        totals[name] = totals.get(name, 0.0) + amount
        totals[f"of {name}"] = totals.get(f"of {name}", 0.0) + count


def _finite(value: float) -> bool:
    return value - value == 0


def _means(totals: dict[str, float]) -> dict[str, float]:
    order = ("loss", "correct", "objective", "reconstruction", "frame_potential")
    names = {name: name for name in order} | {"correct": "accuracy"}
    return {names[n]: totals[n] / totals[f"of {n}"] for n in order if totals.get(f"of {n}")}


def _agreed(accelerator: Accelerator, asked: bool) -> bool:
    """Whether any process was asked to stop; they must do it at the same step."""
    if accelerator.num_processes == 1:
        return asked
    if asked:
        accelerator.set_trigger()
    return bool(accelerator.check_trigger())


def _gathered(run: TrainingRun) -> list[dict[str, float]]:
    """Return every process's running sums."""
    if run.accelerator.num_processes == 1:
        return [dict(run.own_sums)]
    from accelerate.utils import gather_object

    found: list[dict[str, float]] = gather_object([run.own_sums])
    return found


def _save(run: TrainingRun) -> None:
    if run.output.folder is None:
        return
    progress = run.progress
    progress.sums = _gathered(run)
    progress.read = run.train.digest(max(progress.batch, 1))
    if run.accelerator.is_main_process:
        generators = {"train": run.train.states(progress.epoch), "val": run.val.states(-1)}
        with run.output.writing():
            _write(run)
            run.state.save(run.output.state, progress, generators, done=not _goes_on(run))
    run.accelerator.wait_for_everyone()


def _write(run: TrainingRun) -> None:
    """Write the weights that are held, and the log."""
    if run.accelerator.is_main_process:
        run.output.write(progress_log.table(run.progress.history))


def added(parts: list[dict[str, float]]) -> dict[str, float]:
    """Return the sums of sums, by name."""
    total: dict[str, float] = {}
    for part in parts:
        for name, value in part.items():
            total[name] = total.get(name, 0.0) + value
    return total


def _validate(run: TrainingRun) -> Score:
    with run.accelerator.autocast():
        own = sums(run.kept, run.val(0))
    total = torch.tensor(own, dtype=torch.float64)
    if run.accelerator.num_processes > 1:
        gathered = run.accelerator.gather(total.float().to(run.accelerator.device))
        total = gathered.cpu().double().reshape(-1, len(own)).sum(0)
    return score(total.tolist())


def _finish_epoch(run: TrainingRun) -> None:
    """Validate, compare with the best, save if that is due, log."""
    progress, config = run.progress, run.state.config
    progress.sums = _gathered(run)
    totals = added(progress.sums)
    if totals and not totals.get("labels", 1.0) and not config.learns_without_labels:
        raise TrainingError(
            f"no sample of {run.train.name} has a label (all are {IGNORED}), so that nothing was "
            f"learned in epoch {progress.epoch + 1}. {UNLABELLED}"
        )
    settle(run)
    with _saved_before(run):
        found = _validate(run)
    entry = {
        "epoch": progress.epoch + 1,
        "step": progress.step,
        "lr": config.lr * run.schedule.rate(progress.step - 1),
        **_means(totals),
        "val_loss": found.loss,
        "val_accuracy": found.accuracy,
    }
    if isinstance(run.net, PursuitNetwork):
        entry["iterations"] = run.schedule.iterations(progress.step - 1)
        entry["mean_beta"] = float(run.net.pursuit.betas().detach().mean())
    better = progress.best is None or _rank(entry) > _rank(progress.best)
    progress.best = entry if better else progress.best
    progress.waited = 0 if better else progress.waited + 1
    progress.history.append(entry)
    progress.epoch, progress.batch, progress.sums = progress.epoch + 1, 0, []
    run.own_sums.clear()
    due = not _goes_on(run) or _agreed(run.accelerator, run.output.is_due())
    if run.accelerator.is_main_process:
        run.output.keep(run.kept, better, copy=not due)
    try:
        # What comes next is part of what tells this data from another when the run is resumed.
        if _goes_on(run):
            run.train.peek(progress.epoch)
    except BaseException:
        due = True
        raise
    finally:
        if due:
            _save(run)
    run.accelerator.log(
        {k: v for k, v in entry.items() if k not in ("epoch", "step")}, step=progress.step
    )


def _rank(entry: dict[str, Any]) -> tuple[float, float]:
    return entry["val_accuracy"], -entry["val_loss"]
