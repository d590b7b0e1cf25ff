"""A training run that kills its own process, to be called in one that may die.

It draws from every random generator there is, so that it repeats only if all of them do.
"""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from pursuitify.training import Result, finetune, loop
from tests.support.toy import network, rows

STEPS = 24
#: Files renamed into place by an undisturbed run: state, weights and log.
WRITES = 16


class Noisy(Dataset[Any]):
    """Images with noise of torch's, NumPy's and Python's."""

    def __init__(self) -> None:
        self.x, self.y = rows(48)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        noise = 0.01 * (torch.rand(()) + np.random.rand() + random.random())
        return (self.x[i] + noise).float().clamp(0, 1), self.y[i]


def arm(count: int, where: str) -> None:
    """Let this process die by SIGKILL in step ``count``, or while writing file ``count``."""
    calls = 0

    def deadly(inner: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls > count:
                os.kill(os.getpid(), signal.SIGKILL)
            return inner(*args, **kwargs)

        return call

    if where == "step":
        loop.attack = deadly(loop.attack)  # type: ignore[attr-defined]
    else:
        os.replace = deadly(os.replace)


def run(folder: Path, optimizer: str, **options: Any) -> Result:
    """Train, or resume."""
    config = {
        "epochs": 4,
        "batch_size": 8,
        "save_every": 4,
        "log_every": 3,
        "optimizer": optimizer,
        "lr": 1e-2,
        "ema": 0.9,
        "first_sweeps": 1,
        **({"objective": "pgd", "attack_steps": 1, "eps": 0.05} if optimizer == "sgd" else {}),
        "progress": False,
        **options,
    }
    net = network(dropout=0.3)
    return finetune(net, Noisy(), rows(24, seed=1), output=folder, resume=True, **config)
