"""Any fixed-budget attack of foolbox (Rauber et al. 2017), behind our call."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from pursuitify.errors import OptionError
from pursuitify.robust.attacks.external_library import outside, verified
from pursuitify.robust.attacks.threat_model import Ball


def foolbox(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    attack: str = "LinfPGD",
    norm: str = "linf",
    seed: int = 0,
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
        seed: Makes it repeat; the global random state is left alone.
        batch_size: How many inputs to attack at a time; all at once by default.
        options: Keyword arguments of the attack's class.

    Returns:
        The perturbed inputs, inside the ball and [0, 1].

    Raises:
        MissingExtraError: If foolbox is not installed.
    """
    library = outside("foolbox")
    kind = getattr(library.attacks, attack, None)
    if kind is None:
        raise OptionError(f"foolbox.attacks has no {attack!r}")

    def run(ball: Ball, labels: Tensor) -> Tensor:
        wrapped = library.PyTorchModel(model, bounds=(0, 1), device=ball.x.device)
        points: Tensor
        _, points, _ = kind(**options)(wrapped, ball.x, labels, epsilons=ball.eps)
        return points

    return verified(run, model, x, y, eps=eps, norm=norm, seed=seed, batch_size=batch_size)
