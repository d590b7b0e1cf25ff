"""Hugging Face accelerate: devices, processes, mixed precision, accumulation are its business."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from pursuitify.errors import MissingExtraError
from pursuitify.training.config import Config

if TYPE_CHECKING:
    from accelerate import Accelerator

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
