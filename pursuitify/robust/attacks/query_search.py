"""Common parts of the attacks without gradients: queries, and leaving what is fooled."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pursuitify.robust.attacks.objective import LossValue
from pursuitify.robust.attacks.runner import Batch, Campaign
from pursuitify.robust.attacks.threat_model import Ball


@dataclass
class Hunt:
    """One batch under attack; examples leave it as they are fooled.

    Attributes:
        batch: The whole batch.
        ball: Around the examples that are left.
        index: Their places in the batch.
    """

    batch: Batch
    ball: Ball
    index: Tensor

    @property
    def left(self) -> int:
        """The number of examples that are not fooled yet."""
        return len(self.index)

    @property
    def points(self) -> Tensor:
        """The worst points of the examples that are left."""
        return self.batch.worst.points[self.index]

    def ask(self, points: Tensor, of: Tensor | None = None) -> LossValue:
        """Return what the model makes of ``points`` of the examples left, or of some of them."""
        index = self.index if of is None else self.index[of]
        return self.batch.objective(points, self.batch.labels[index])

    def look(self, points: Tensor) -> Tensor:
        """Query one point of each example left; return which examples stay."""
        value = self.ask(points)
        self.batch.worst.update(self.index, points, value.loss, value.fooled)
        self.batch.tick()
        stay = ~value.fooled
        if not stay.all():
            self.index, self.ball = self.index[stay], self.ball.at(stay)
        return stay

    def uniform(self, *shape: int) -> Tensor:
        """Return numbers drawn uniformly from [0, 1), like the inputs."""
        like = self.ball.x
        return torch.rand(
            shape, generator=self.batch.generator, device=like.device, dtype=like.dtype
        )

    def signs(self, *shape: int) -> Tensor:
        """Return random signs."""
        return torch.where(self.uniform(*shape) < 0.5, -1.0, 1.0).to(self.ball.x.dtype)


@dataclass(frozen=True)
class QueryCampaign(Campaign):
    """A campaign that takes no gradient and leaves what is fooled."""

    def search(
        self,
        strategy: Callable[[Hunt], None],
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        eps: float,
        queries: int,
    ) -> Tensor:
        """Return each example's worst point under ``strategy``.

        Args:
            strategy: Looks at points of its hunt.
            model: Returns logits.
            x: Inputs in [0, 1].
            y: Class labels.
            eps: Radius of the ball.
            queries: How many points of each example it may take.
        """

        def attack(batch: Batch) -> None:
            left = (~batch.worst.fooled).nonzero().squeeze(1)
            if len(left):
                strategy(Hunt(batch, batch.ball.at(left), left))

        return self.run(attack, model, x, y, eps=eps, ticks=queries)
