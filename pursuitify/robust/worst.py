"""Each example's worst point so far."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


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
