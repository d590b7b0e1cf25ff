"""Common parts of attacks that keep each example's worst point: batches, chance, a bar."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from rich.progress import Progress
from torch import Tensor, nn

from pursuitify.robust.attacks.input_checks import (
    attack_mode,
    batches,
    check_classes,
    check_inputs,
)
from pursuitify.robust.attacks.losses import LOSSES
from pursuitify.robust.attacks.objective import AttackObjective, Guide
from pursuitify.robust.attacks.threat_model import BALLS, Ball
from pursuitify.utils import option_checks
from pursuitify.utils.terminal import bar_console


@dataclass(frozen=True)
class Batch:
    """One batch under attack.

    Attributes:
        objective: The model and the loss to raise.
        ball: Where points may go.
        labels: The true classes.
        logits: What the model says of the inputs as they are.
        worst: The worst points so far; at first the inputs themselves.
        generator: Where chance comes from; None for the global state.
        tick: Moves the bar on by one.
    """

    objective: AttackObjective
    ball: Ball
    labels: Tensor
    logits: Tensor
    worst: Worst
    generator: torch.Generator | None
    tick: Callable[[], None]


@dataclass(frozen=True)
class Campaign:
    """The plan of an attack on all inputs.

    Attributes:
        title: What the progress bar says.
        seed: Makes chance repeat and leaves the global state alone; None draws from that.
        norm: Name of the ball.
        loss: Name of the loss to raise.
        batch_size: How many inputs at a time; None for all at once.
        progress: Whether to show a bar.
        guide: What to differentiate in the model's place.
    """

    title: str
    seed: int | None
    norm: str
    loss: str
    batch_size: int | None
    progress: bool
    guide: Guide | nn.Module | None = None

    def run(
        self,
        attack: Callable[[Batch], None],
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        *,
        eps: float,
        ticks: int,
    ) -> Tensor:
        """Return each example's worst point under ``attack``, verified.

        Args:
            attack: Notes what it finds in its batch's ``worst``.
            model: Returns logits.
            x: Inputs in [0, 1].
            y: Class labels.
            eps: Radius of the ball.
            ticks: How often ``attack`` moves the bar per batch, at most.
        """
        check_inputs(model, x, y, eps)
        ball_type = option_checks.chosen("norm", self.norm, BALLS)
        objective = AttackObjective(
            model, option_checks.chosen("loss", self.loss, LOSSES), self.guide
        )
        seed = None if self.seed is None else option_checks.seed("seed", self.seed)
        generator = None if seed is None else torch.Generator(x.device).manual_seed(seed)
        done = []
        bars = Progress(console=bar_console(), disable=not self.progress)
        with attack_mode(model, self.guide), bars as bar:
            parts = list(batches(x, y, self.batch_size))
            task = bar.add_task(self.title, total=len(parts) * ticks)
            for number, (part, labels) in enumerate(parts, 1):
                ball = ball_type(part, eps)
                start = objective(part, labels, clean=part)
                if number == 1:  # before the work: the labels of the last batch too
                    check_classes(y, len(y), start.logits.shape[1])
                worst = Worst(part.clone(), start.loss, start.fooled)

                def tick() -> None:
                    bar.advance(task)

                attack(Batch(objective, ball, labels, start.logits, worst, generator, tick))
                bar.update(task, completed=number * ticks)
                done.append(ball.check(worst.points))
        return torch.cat(done)


@dataclass
class Worst:
    """The worst point seen so far of each example.

    Attributes:
        points: The points.
        loss: The attack's loss there.
        fooled: Whether the model is wrong there.
    """

    points: Tensor
    loss: Tensor
    fooled: Tensor

    def update(self, index: Tensor, points: Tensor, loss: Tensor, fooled: Tensor) -> None:
        """Take over those of ``points``, belonging to the examples at ``index``, that are worse."""
        was = self.fooled[index]
        # A tie goes to the later point: where the loss saturates to 0 it is the one further uphill.
        worse = (fooled & ~was) | ((fooled == was) & (loss >= self.loss[index]))
        index = index[worse]
        self.points[index], self.loss[index] = points[worse], loss[worse]
        self.fooled[index] = fooled[worse]
