"""What the attacks without gradients share: batches, queries, and the worst point found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from rich.progress import Progress
from torch import Tensor, nn

from pursuitify.robust.inputs import (
    batches,
    check_choice,
    check_inputs,
    evaluation_mode,
)
from pursuitify.robust.losses import LOSSES
from pursuitify.robust.objective import Objective, Value
from pursuitify.robust.threat import BALLS, Ball
from pursuitify.robust.worst import Worst


@dataclass
class Hunt:
    """One batch under attack; examples leave it as they are fooled.

    Attributes:
        ball: Around the examples that are left.
        index: Their places in the batch.
        worst: The worst points of the whole batch.
        generator: Where chance comes from.
    """

    objective: Objective
    labels: Tensor
    ball: Ball
    index: Tensor
    worst: Worst
    generator: torch.Generator | None
    tick: Callable[[], None]

    @property
    def left(self) -> int:
        """How many examples are not fooled yet."""
        return len(self.index)

    @property
    def points(self) -> Tensor:
        """The worst points of the examples that are left."""
        return self.worst.points[self.index]

    def ask(self, points: Tensor, of: Tensor | None = None) -> Value:
        """Return what the model makes of ``points`` of the examples left, or of some of them."""
        index = self.index if of is None else self.index[of]
        return self.objective(points, self.labels[index])

    def look(self, points: Tensor) -> Tensor:
        """Query one point of each example left; return which examples stay."""
        value = self.ask(points)
        self.worst.update(self.index, points, value.loss, value.fooled)
        self.tick()
        stay = ~value.fooled
        if not stay.all():
            self.index, self.ball = self.index[stay], self.ball.at(stay)
        return stay

    def uniform(self, *shape: int) -> Tensor:
        """Return numbers drawn uniformly from [0, 1), like the inputs."""
        like = self.ball.x
        return torch.rand(shape, generator=self.generator, device=like.device, dtype=like.dtype)

    def signs(self, *shape: int) -> Tensor:
        """Return random signs."""
        return torch.where(self.uniform(*shape) < 0.5, -1.0, 1.0).to(self.ball.x.dtype)


@dataclass(frozen=True)
class Plan:
    """How to run a search over all batches.

    Attributes:
        title: What the progress bar says.
        queries: How many points of each example a batch takes.
        seed: Makes chance repeat; None draws from the global state.
        norm: Name of the ball.
        loss: Name of the loss by which points are compared.
        batch_size: How many inputs at a time.
        progress: Whether to show a bar.
    """

    title: str
    queries: int
    seed: int | None
    norm: str
    loss: str
    batch_size: int | None
    progress: bool

    def run(
        self,
        strategy: Callable[[Hunt], None],
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        eps: float,
    ) -> Tensor:
        """Return each example's worst point under ``strategy``."""
        check_inputs(model, x, y, eps)
        ball_type = check_choice("norm", self.norm, BALLS)
        objective = Objective(model, check_choice("loss", self.loss, LOSSES))
        seed = self.seed
        generator = None if seed is None else torch.Generator(x.device).manual_seed(seed)
        done = []
        with evaluation_mode(model), Progress(disable=not self.progress) as bar, torch.no_grad():
            parts = list(batches(x, y, self.batch_size))
            task = bar.add_task(self.title, total=len(parts) * self.queries)
            for number, (part, labels) in enumerate(parts, 1):
                ball = ball_type(part, eps)
                start = objective(part, labels)
                left = (~start.fooled).nonzero().squeeze(1)
                hunt = Hunt(
                    objective=objective,
                    labels=labels,
                    ball=ball.at(left),
                    index=left,
                    worst=Worst(part.clone(), start.loss, start.fooled),
                    generator=generator,
                    tick=lambda: bar.advance(task),
                )
                if hunt.left:
                    strategy(hunt)
                bar.update(task, completed=number * self.queries)
                done.append(ball.check(hunt.worst.points))
        return torch.cat(done)
