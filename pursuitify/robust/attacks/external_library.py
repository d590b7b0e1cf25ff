"""What the adapters of outside libraries share."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from pursuitify.errors import MissingExtraError
from pursuitify.robust.attacks.input_checks import attack_mode, batches, check_choice, check_inputs
from pursuitify.robust.attacks.losses import cross_entropy
from pursuitify.robust.attacks.objective import Objective
from pursuitify.robust.attacks.threat_model import BALLS, Ball


def outside(name: str) -> Any:
    """Import an optional library, or say how to get it."""
    try:
        return import_module(name)
    except ImportError as error:
        raise MissingExtraError(
            f"{name} is not installed; it comes with the extra: pip install 'pursuitify[robust]'"
        ) from error


def verified(
    attack: Callable[[Ball, Tensor], Tensor],
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    norm: str,
    seed: int,
    batch_size: int | None,
) -> Tensor:
    """Run an outside attack on checked inputs, and verify what it returns.

    The model's modes, its parameters' ``.grad`` and the global random state are as before
    afterwards, though these libraries call ``backward`` and draw from the global state.

    Args:
        attack: From a ball and labels to points.
        model: Returns logits.
        x: Inputs in [0, 1].
        y: Class labels.
        eps: Radius of the ball.
        norm: Name of the ball.
        seed: Of the global state while the attack runs.
        batch_size: How many inputs at a time; None for all at once.
    """
    ball_type = check_choice("norm", norm, BALLS)
    check_inputs(model, x, y, eps)
    devices = [x.device] if x.device.type == "cuda" else []
    objective = Objective(model, cross_entropy)
    done = []
    with attack_mode(model), torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        for part, labels in batches(x, y, batch_size):
            objective(part, labels)  # refuses what is no logits, and labels out of range
            ball = ball_type(part, eps)
            done.append(ball.admit(attack(ball, labels).detach().to(part)))
    return torch.cat(done)
