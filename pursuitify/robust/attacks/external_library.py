"""Common parts of the adapters of outside libraries."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from pursuitify.errors import InputError, MissingExtraError, OptionError, PursuitifyError
from pursuitify.robust.attacks.input_checks import (
    attack_mode,
    batches,
    check_classes,
    check_inputs,
)
from pursuitify.robust.attacks.losses import cross_entropy
from pursuitify.robust.attacks.objective import AttackObjective
from pursuitify.robust.attacks.threat_model import BALLS, Ball
from pursuitify.utils import option_checks, random_state


def outside(name: str) -> Any:
    """Import an optional library, or say how to get it."""
    try:
        return import_module(name)
    except ImportError as error:
        raise MissingExtraError(
            f"{name} is not installed; it comes with the extra: pip install 'pursuitify[robust]'"
        ) from error


@dataclass(frozen=True)
class Target:
    """The target of an outside attack.

    Attributes:
        model: Returns logits.
        ball: Around the inputs.
        labels: Their classes.
        classes: How many classes the model tells apart.
    """

    model: nn.Module
    ball: Ball
    labels: Tensor
    classes: int


#: What the libraries raise where an attack does not suit the inputs or the model.
_LIMITS = (AssertionError, IndexError, KeyError, NotImplementedError, TypeError, ValueError)


def verified(
    name: str,
    attack: Callable[[Target], Tensor],
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
        name: The attack, for errors.
        attack: Returns points for a target; refuses, before it starts, what it cannot attack.
        model: Returns logits.
        x: Inputs in [0, 1].
        y: Class labels.
        eps: Radius of the ball.
        norm: Name of the ball.
        seed: Of the global state while the attack runs.
        batch_size: How many inputs at a time; None for all at once.

    Raises:
        InputError: If the inputs or the model's answers cannot be attacked, or the points break
            the threat model.
        OptionError: If the library's attack fails on them.
    """
    ball_type = option_checks.chosen("norm", norm, BALLS)
    seed = option_checks.seed("seed", seed)
    check_inputs(model, x, y, eps)
    objective = AttackObjective(model, cross_entropy)
    done = []
    with attack_mode(model), random_state.kept(cuda=x.is_cuda):
        random_state.seed_all(seed)
        for part, labels in batches(x, y, batch_size):
            logits = objective(part, labels).logits  # refuses what is no logits
            classes = logits.shape[1]
            check_classes(y, len(y), classes)
            target = Target(model, ball_type(part, eps), labels, classes)
            try:
                points = attack(target)
            except PursuitifyError:
                raise
            except _LIMITS as error:
                raise OptionError(
                    f"{name} cannot attack inputs of shape {tuple(part.shape)} of {classes} "
                    f"classes: {type(error).__name__}: {error}"
                ) from error
            try:
                done.append(target.ball.admit(points.detach().to(part)))
            except InputError as error:
                raise InputError(f"{name} cannot be counted: {error}") from error
    return torch.cat(done)
