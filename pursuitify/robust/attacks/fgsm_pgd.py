"""Gradient attacks on a network that takes inputs in [0, 1] and returns logits.

Normalisation belongs inside the model, so that epsilon and pixels share one unit. The model runs
in evaluation mode for the length of the attack; its modes, its parameters' ``.grad`` and, where a
seed is given, the global random state are as before afterwards. Pixels are clamped outside the
differentiated expression: inside it, pixels that are exactly black or white can lose their
gradient, and the attack would be weaker than it looks.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pursuitify.errors import OptionError
from pursuitify.robust.attacks.input_checks import (
    attack_mode,
    batches,
    check_classes,
    check_inputs,
)
from pursuitify.robust.attacks.losses import LOSSES
from pursuitify.robust.attacks.objective import AttackObjective, Guide
from pursuitify.robust.attacks.runner import Batch, Campaign
from pursuitify.robust.attacks.threat_model import BALLS
from pursuitify.utils import option_checks


def fgsm(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    loss: str = "ce",
    guide: Guide | nn.Module | None = None,
    batch_size: int | None = None,
) -> Tensor:
    """Move each pixel once by ``eps`` along the sign of the loss's gradient (19).

    One step is a baseline, not evidence of robustness.

    Args:
        model: Returns logits, one row per input.
        x: Inputs in [0, 1], batch first, float32 or float64.
        y: Class labels, one per input.
        eps: Largest change of a pixel.
        loss: ``"ce"``, ``"margin"``, ``"dlr"`` or ``"scaled"``.
        guide: Differentiate this in the model's place; see
            :mod:`pursuitify.robust.surrogates.pursuit_losses`.
        batch_size: How many inputs to attack at a time; all at once by default.

    Returns:
        The perturbed inputs, inside the ball and [0, 1].
    """
    check_inputs(model, x, y, eps)
    objective = AttackObjective(model, option_checks.chosen("loss", loss, LOSSES), guide)
    done = []
    with attack_mode(model, guide):
        for part, labels in batches(x, y, batch_size):
            ball = BALLS["linf"](part, eps)
            value = objective(part, labels, clean=part, gradient=True)
            check_classes(y, len(y), value.logits.shape[1])
            gradient = value.gradient
            done.append(ball.check(ball.project(part + ball.eps * ball.direction(gradient))))
    return torch.cat(done)


def pgd(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    steps: int = 20,
    step_size: float | None = None,
    restarts: int = 1,
    random_start: bool = True,
    seed: int | None = None,
    norm: str = "linf",
    loss: str = "ce",
    guide: Guide | nn.Module | None = None,
    early_stop: bool = True,
    batch_size: int | None = None,
    progress: bool = False,
) -> Tensor:
    """Climb the loss by projected gradient steps; keep each example's worst point.

    The worst is the first point found that the model gets wrong, else the point of highest loss,
    over the input itself and every step of every restart. So with one seed, more restarts, or more
    steps of a given ``step_size``, never weaken a single-batch attack on a deterministic model.

    Args:
        model: Returns logits, one row per input.
        x: Inputs in [0, 1], batch first, float32 or float64.
        y: Class labels, one per input.
        eps: Radius of the ball.
        steps: Gradient steps per restart.
        step_size: Length of a step in the norm; ``2.5 * eps / steps`` by default.
        restarts: How many times to start over; more than one needs ``random_start``.
        random_start: Start from a random point of the ball rather than from the input.
        seed: Makes the random starts repeat and leaves the global random state alone.
        norm: ``"linf"`` or ``"l2"``.
        loss: ``"ce"``, ``"margin"``, ``"dlr"`` or ``"scaled"``.
        guide: Differentiate this in the model's place; see
            :mod:`pursuitify.robust.surrogates.pursuit_losses`.
        early_stop: Leave an example alone once it is fooled. Otherwise go on and keep the fooling
            point of highest loss, as adversarial training wants.
        batch_size: How many inputs to attack at a time; all at once by default.
        progress: Show a progress bar.

    Returns:
        The perturbed inputs, inside the ball and [0, 1].

    Examples:
        >>> import torch
        >>> from pursuitify.models import ChainNet
        >>> model = ChainNet(1, 10).eval()
        >>> x, y = torch.rand(4, 1, 8, 8), torch.randint(10, (4,))
        >>> adversarial = pgd(model, x, y, eps=0.1, steps=2, seed=0)
        >>> ((adversarial - x).abs() <= 0.1 + 1e-6).all().item()
        True
    """
    option_checks.positive("steps", steps)
    option_checks.positive("restarts", restarts)
    if restarts > 1 and not random_start:
        raise OptionError("restarts > 1 without random_start would repeat the same run")
    size = None if step_size is None else option_checks.number("step_size", step_size, above=0)

    def attack(batch: Batch) -> None:
        climb = _Climb(batch, steps, 2.5 * eps / steps if size is None else size, early_stop)
        for _ in range(restarts):
            climb(batch.ball.draw(batch.generator) if random_start else batch.ball.x)

    campaign = Campaign("PGD", seed, norm, loss, batch_size, progress, guide)
    return campaign.run(attack, model, x, y, eps=eps, ticks=restarts * steps)


@dataclass(frozen=True)
class _Climb:
    """One run of projected gradient steps from given starting points."""

    batch: Batch
    steps: int
    size: float
    early_stop: bool

    def __call__(self, points: Tensor) -> None:
        """Move ``points`` uphill and note in ``worst`` what is found on the way."""
        batch, ball = self.batch, self.batch.ball
        fooled = batch.worst.fooled
        index = torch.arange(len(points), device=points.device)
        for step in range(self.steps + 1):
            if self.early_stop and fooled.any():
                keep = ~fooled
                index, points, ball = index[keep], points[keep], ball.at(keep)
            if len(index) == 0:
                return
            more = step < self.steps
            value = batch.objective(points, batch.labels[index], clean=ball.x, gradient=more)
            batch.worst.update(index, points, value.loss, value.fooled)
            if more:
                points = ball.project(points + self.size * ball.direction(value.gradient))
                batch.tick()
            fooled = value.fooled
