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

from pursuitify.errors import MissingExtraError, OptionError
from pursuitify.network.pursuit_network import PursuitNetwork
from pursuitify.training import loop, seeding
from pursuitify.training.batches import Rows, Share, batches
from pursuitify.training.config import Config
from pursuitify.training.objectives import Objective
from pursuitify.training.optimizer import Schedule, make_optimizer
from pursuitify.training.run_folder import Output
from pursuitify.training.state import Progress, State

if TYPE_CHECKING:
    from accelerate import Accelerator


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
    **options: Any,
) -> Result:
    """Train a network in place.

    Devices, processes, mixed precision and gradient accumulation are Hugging Face accelerate's:
    start the script by ``accelerate launch``, or pass an Accelerator.

    Args:
        net: A pursuit network, or any module that returns logits: it is trained alike. It ends
            with the best weights by validation (``keep="last"``: the last), in its own mode, on
            accelerate's device.
        train: ``(x, y)`` tensors; a Dataset of pairs; a DataLoader; or an iterable of batches with
            a length. Shuffled, but for iterables.
        val: Likewise; the only data that anything is chosen by.
        config: The configuration.
        output: Folder for the state, the best and the last weights and the log; without one,
            nothing is written and nothing can be resumed.
        resume: Go on from the state in the folder, if there is one: to the same numbers as if the
            run had never stopped.
        augment: Applied to each training sample: one x in, one x out.
        accelerator: An Accelerator of your own. Make it with
            ``DistributedDataParallelKwargs(find_unused_parameters=True)``.
        **options: Fields of the configuration, by name.

    Raises:
        OptionError: If an argument is unknown or invalid, or would have no effect.
        MissingExtraError: If accelerate is not installed.
        CheckpointError: If the folder holds another run, or cannot be written.
        TrainingError: If the loss is not finite.
        Interrupted: On Ctrl-C, after saving the state.
    """
    config = (config or Config()).with_options(options)
    _check(net, config, resume, output)
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
    with seeding.kept():
        place = Output.at(output, resume)
        run = _prepared(net, rows, held, config, accelerator, place, resume)
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
    best = run.progress.best
    assert best is not None
    written = place.folder is not None
    return Result(
        run.progress.history,
        best,
        stopped,
        place.best if written else None,
        place.last if written else None,
        place.log if written else None,
    )


def _check(net: object, config: Config, resume: bool, output: object) -> None:
    if not isinstance(net, nn.Module):
        raise OptionError(f"finetune takes a module, not a {type(net).__name__}")
    if resume and output is None:
        raise OptionError("resume=True needs the output folder of the run")
    config.check_read()
    if isinstance(net, PursuitNetwork):
        return
    own = Config()
    names = ("pursuit_lr", "reconstruction", "frame_potential", "first_sweeps", "step_ramp")
    given = [name for name in names if getattr(config, name) != getattr(own, name)]
    if given:
        raise OptionError(
            f"{', '.join(given)} apply to a PursuitNetwork, not to a {type(net).__name__}: "
            "convert it first"
        )


def _prepared(
    net: nn.Module,
    rows: Any,
    held: Any,
    config: Config,
    accelerator: Accelerator,
    output: Output,
    resume: bool,
) -> loop.Run:
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
        "settings": net.settings() if isinstance(net, PursuitNetwork) else None,
    }
    state = State(net, optimizer, ema, config, facts, accelerator.scaler)
    progress = Progress()
    if resume and output.state.is_file():
        progress = state.restore(output.state)
    objective, prepared = accelerator.prepare(Objective(net, config), optimizer)
    if accelerator.log_with:
        accelerator.init_trackers(TRACKED)
    sums = progress.sums
    if len(sums) != accelerator.num_processes:  # resumed on another number of processes
        sums = [loop.added(sums)]
    mine = sums[accelerator.process_index] if accelerator.process_index < len(sums) else {}
    schedule = Schedule(
        config,
        steps,
        sweeps=net.iterations if isinstance(net, PursuitNetwork) else 0,
        scale=net.step_scale if isinstance(net, PursuitNetwork) else 1.0,
    )
    return loop.Run(
        accelerator, state, objective, prepared, schedule, rows, held, output, progress, dict(mine)
    )


@dataclass(frozen=True)
class Result:
    """What a fine-tuning did.

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
