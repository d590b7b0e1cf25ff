"""Any fixed-budget attack of foolbox (Rauber et al. 2017), behind our call."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pursuitify.errors import OptionError
from pursuitify.robust.extras import frozen, outside
from pursuitify.robust.inputs import batches, check_choice, check_inputs, evaluation_mode
from pursuitify.robust.threat import BALLS


def foolbox(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    attack: str = "LinfPGD",
    norm: str = "linf",
    batch_size: int | None = None,
    **options: Any,
) -> Tensor:
    """Run an attack of foolbox; needs the extra ``robust``.

    Args:
        model: Returns logits, one row per input.
        x: Inputs in [0, 1], batch first.
        y: Class labels, one per input.
        eps: Radius of the ball.
        attack: Name in ``foolbox.attacks``, for instance ``"LinfPGD"`` or ``"L2PGD"``.
        norm: The ball in which the result is verified, ``"linf"`` or ``"l2"``.
        batch_size: How many inputs to attack at a time; all at once by default.
        options: Keyword arguments of the attack's class.

    Returns:
        The perturbed inputs, inside the ball and [0, 1].

    Raises:
        MissingExtraError: If foolbox is not installed.
    """
    library = outside("foolbox")
    check_inputs(model, x, y, eps)
    ball_type = check_choice("norm", norm, BALLS)
    kind = getattr(library.attacks, attack, None)
    if kind is None:
        raise OptionError(f"foolbox.attacks has no {attack!r}")
    done = []
    with evaluation_mode(model), frozen(model):
        wrapped = library.PyTorchModel(model, bounds=(0, 1), device=x.device)
        for part, labels in batches(x, y, batch_size):
            ball = ball_type(part, eps)
            _, points, _ = kind(**options)(wrapped, part, labels, epsilons=ball.eps)
            done.append(ball.check(ball.project(points.detach().to(part))))
    return torch.cat(done)
