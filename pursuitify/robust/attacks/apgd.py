"""APGD (Croce & Hein 2020): projected gradient steps that set their own length."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn

from pursuitify.errors import OptionError
from pursuitify.robust.attacks.objective import Guide, LossValue
from pursuitify.robust.attacks.runner import Batch, Campaign
from pursuitify.robust.attacks.threat_model import Ball
from pursuitify.utils import option_checks

_MOMENTUM = 0.75
_RHO = 0.75  # least share of steps that must raise the loss for the step size to stay


def apgd(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    steps: int = 100,
    restarts: int = 1,
    targets: int = 0,
    seed: int | None = None,
    norm: str = "linf",
    loss: str = "ce",
    guide: Guide | nn.Module | None = None,
    early_stop: bool = True,
    batch_size: int | None = None,
    progress: bool = False,
) -> Tensor:
    """Climb with momentum, halving the step where the loss no longer rises.

    ``loss="ce"`` and ``loss="dlr"`` are APGD-CE and APGD-DLR; ``targets=9`` is APGD-T. Each
    example's worst point is kept as :func:`pgd` keeps it.

    Args:
        model: Returns logits, one row per input.
        x: Inputs in [0, 1], batch first, float32 or float64.
        y: Class labels, one per input.
        eps: Radius of the ball.
        steps: Gradient steps per restart.
        restarts: How many times to start over, from a random point each time.
        targets: Pull each example to each of its this many likeliest wrong classes in turn, with
            the targeted DLR loss; 0 pushes it off its own class.
        seed: Makes the random starts repeat and leaves the global random state alone.
        norm: ``"linf"`` or ``"l2"``.
        loss: ``"ce"``, ``"margin"``, ``"dlr"`` or ``"scaled"``; with ``targets`` it is their own.
        guide: Differentiate this in the model's place; see
            :mod:`pursuitify.robust.surrogates.pursuit_losses`.
        early_stop: Leave an example alone once it is fooled.
        batch_size: How many inputs to attack at a time; all at once by default.
        progress: Show a progress bar.

    Returns:
        The perturbed inputs, inside the ball and [0, 1].
    """
    option_checks.positive("steps", steps)
    option_checks.positive("restarts", restarts)
    if targets != 0:
        option_checks.positive("targets", targets)
        if loss != "ce":
            raise OptionError(
                f"loss={loss!r} would have no effect: targets={targets} raises the targeted loss. "
                "Leave one of the two out"
            )

    def attack(batch: Batch) -> None:
        for aim in _aims(batch.logits, batch.labels, targets) * restarts:
            _Ascent(batch, steps, early_stop, aim)(batch.ball.draw(batch.generator))

    campaign = Campaign("APGD", seed, norm, loss, batch_size, progress, guide)
    ticks = restarts * max(targets, 1) * steps
    return campaign.run(attack, model, x, y, eps=eps, ticks=ticks)


def _aims(logits: Tensor, labels: Tensor, targets: int) -> list[Tensor | None]:
    """Return the likeliest wrong classes in order, at most ``targets`` of them."""
    if not targets:
        return [None]
    wrong = logits.scatter(1, labels[:, None], -torch.inf)
    count = min(targets, logits.shape[1] - 1)
    return list(wrong.topk(count, dim=1).indices.unbind(1))


@dataclass
class _AscentState:
    """The state of APGD for each example that is still under attack."""

    index: Tensor
    points: Tensor
    before: Tensor
    slope: Tensor
    loss: Tensor
    best: Tensor
    best_slope: Tensor
    best_loss: Tensor
    size: Tensor
    rises: Tensor
    checked_loss: Tensor
    halved: Tensor

    def keep(self, mask: Tensor) -> None:
        """Drop the examples outside ``mask``."""
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name)[mask])


@dataclass(frozen=True)
class _Ascent:
    """One run from given starting points."""

    batch: Batch
    steps: int
    early_stop: bool
    aim: Tensor | None

    def __call__(self, points: Tensor) -> None:
        """Move ``points`` uphill and note in ``worst`` what is found on the way."""
        index = torch.arange(len(points), device=points.device)
        if self.early_stop:
            index = index[~self.batch.worst.fooled]
        if len(index) == 0:
            return
        ball = self.batch.ball.at(index)
        state, fooled = self._start(ball, points[index], index)
        period, decrease = max(int(0.22 * self.steps), 1), max(int(0.03 * self.steps), 1)
        least, since = max(int(0.06 * self.steps), 1), 0
        for step in range(self.steps):
            if self.early_stop and fooled.any():
                state.keep(~fooled)
                ball = ball.at(~fooled)
            if len(state.index) == 0:
                return
            fooled = self._step(ball, state, first=step == 0)
            self.batch.tick()
            since += 1
            if since == period:
                _adapt(state, period)
                since, period = 0, max(period - decrease, least)

    def _start(self, ball: Ball, points: Tensor, index: Tensor) -> tuple[_AscentState, Tensor]:
        value = self._value(points, ball, index)
        shape = [-1, *[1] * (points.ndim - 1)]
        state = _AscentState(
            index=index,
            points=points,
            before=points.clone(),
            slope=value.gradient,
            loss=value.loss,
            best=points.clone(),
            best_slope=value.gradient.clone(),
            best_loss=value.loss.clone(),
            size=torch.full_like(value.loss, 2 * ball.eps).to(points.dtype).view(shape),
            rises=torch.zeros_like(value.loss),
            checked_loss=value.loss.clone(),
            halved=torch.ones_like(value.fooled),
        )
        return state, value.fooled

    def _step(self, ball: Ball, state: _AscentState, *, first: bool) -> Tensor:
        """Take one step and return which examples it fooled."""
        moved = ball.project(state.points + state.size * ball.direction(state.slope))
        if not first:
            glide = (1 - _MOMENTUM) * (state.points - state.before)
            moved = ball.project(state.points + _MOMENTUM * (moved - state.points) + glide)
        value = self._value(moved, ball, state.index)
        state.rises += (value.loss > state.loss).to(state.rises.dtype)
        better = value.loss > state.best_loss
        state.best[better], state.best_slope[better] = moved[better], value.gradient[better]
        state.best_loss[better] = value.loss[better]
        state.before, state.points = state.points, moved
        state.slope, state.loss = value.gradient, value.loss
        return value.fooled

    def _value(self, points: Tensor, ball: Ball, index: Tensor) -> LossValue:
        """Evaluate the points and note the worst.

        Losses toward different targets do not compare; points that fool do.
        """
        aim = None if self.aim is None else self.aim[index]
        value = self.batch.objective(
            points, self.batch.labels[index], clean=ball.x, targets=aim, gradient=True
        )
        hit = value.fooled if aim is not None else torch.ones_like(value.fooled)
        self.batch.worst.update(index[hit], points[hit], value.loss[hit], value.fooled[hit])
        return value


def _adapt(state: _AscentState, period: int) -> None:
    """Halve the step of examples that no longer gain, and send them back to their best point."""
    stalled = state.rises <= _RHO * period
    stalled |= ~state.halved & (state.checked_loss >= state.best_loss)
    state.halved = stalled
    state.checked_loss = state.best_loss.clone()
    state.rises.zero_()
    state.size[stalled] /= 2
    state.points[stalled], state.slope[stalled] = state.best[stalled], state.best_slope[stalled]
