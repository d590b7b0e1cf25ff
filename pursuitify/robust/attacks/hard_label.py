"""A hard-label attack: it reads which class wins and nothing else."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pursuitify.robust.attacks.query_search import Hunt, QueryCampaign
from pursuitify.robust.attacks.threat_model import LinfBall
from pursuitify.utils import option_checks

_BISECTIONS = 8


def hard_label(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    queries: int = 400,
    seed: int | None = None,
    norm: str = "linf",
    batch_size: int | None = None,
    progress: bool = False,
) -> Tensor:
    """Search for the direction in which the decision changes soonest (RayS, Chen & Gu 2020).

    Directions are signs of pixels. Ever smaller blocks of them are flipped in turn; a flip that
    fools the model nearer to the input is kept, and how near is found by bisection. No loss is
    read, so nothing that hides in the logits or their gradients stands in the way.

    Args:
        model: Returns logits, one row per input; only the winning class is read.
        x: Inputs in [0, 1], batch first, float32 or float64.
        y: Class labels, one per input.
        eps: Radius of the ball.
        queries: Points to try per example.
        seed: Draws the first direction at random; without one it is the same for all pixels.
        norm: ``"linf"`` or ``"l2"``.
        batch_size: How many inputs to attack at a time; all at once by default.
        progress: Show a progress bar.

    Returns:
        Points that fool the model within ``eps`` where some were found, else the point at ``eps``
        in the best direction.
    """
    option_checks.positive("queries", queries)

    def strategy(hunt: Hunt) -> None:
        _Rays(hunt, queries, random=seed is not None).search()

    plan = QueryCampaign("hard label", seed, norm, "margin", batch_size, progress)
    return plan.search(strategy, model, x, y, eps, queries)


class _Rays:
    """The best ray of each example left, and how far along it the decision changes."""

    def __init__(self, hunt: Hunt, queries: int, *, random: bool) -> None:
        self.hunt = hunt
        self.queries = queries
        x = hunt.ball.x
        self.size = x[0].numel()
        # Along a ray every pixel moves alike, so a length in l2 is sqrt(size) times that in linf.
        self.unit = 1.0 if isinstance(hunt.ball, LinfBall) else self.size**-0.5
        shape = (hunt.left, self.size)
        self.signs = hunt.signs(*shape) if random else torch.ones(shape).to(x)
        self.radius = torch.full((hunt.left,), 1 / self.unit).to(x)
        self.radius = self.radius.nextafter(self.radius.new_tensor(torch.inf))

    def search(self) -> None:
        """Flip blocks until the queries are spent or every example is fooled."""
        self._improve(self.signs)
        blocks, block = 1, 0
        while self.queries > 0 and self.hunt.left:
            width = -(-self.size // blocks)
            part = slice(block * width, (block + 1) * width)
            attempt = self.signs.clone()
            attempt[:, part] *= -1
            self._improve(attempt)
            block += 1
            if block * width >= self.size:
                blocks, block = (1 if width == 1 else 2 * blocks), 0
        if self.hunt.left:
            # Take the point, whatever its loss.
            self.hunt.batch.worst.loss[self.hunt.index] = -torch.inf
            self.hunt.look(self._points(self.signs, torch.full_like(self.radius, torch.inf)))

    def _improve(self, attempt: Tensor) -> None:
        """Take over the directions that fool the model nearer than the best so far."""
        nearer = self._fools(attempt, self.radius)
        self.queries -= 1
        self.hunt.batch.tick()
        if not nearer.any():
            return
        low, high = torch.zeros_like(self.radius), self.radius.clone()
        for _ in range(_BISECTIONS):
            if self.queries <= 0:
                break
            middle = (low + high) / 2
            hit = torch.zeros_like(nearer)
            hit[nearer] = self._fools(attempt[nearer], middle[nearer], nearer)
            self.queries -= 1
            self.hunt.batch.tick()
            high, low = torch.where(hit, middle, high), torch.where(hit, low, middle)
        self.signs[nearer], self.radius[nearer] = attempt[nearer], high[nearer]
        within = self.radius <= self.hunt.ball.eps
        if within.any():
            stay = self.hunt.look(self._points(self.signs, self.radius))
            self.signs, self.radius = self.signs[stay], self.radius[stay]

    def _fools(self, signs: Tensor, radius: Tensor, of: Tensor | None = None) -> Tensor:
        x = self.hunt.ball.x if of is None else self.hunt.ball.x[of]
        change = (self.unit * radius[:, None] * signs).view_as(x)
        return self.hunt.ask((x + change).clamp(0, 1), of).fooled

    def _points(self, signs: Tensor, radius: Tensor) -> Tensor:
        """Return the points on the rays, brought into the ball."""
        ball = self.hunt.ball
        length = self.unit * radius.clamp(max=ball.eps)[:, None]
        return ball.project(ball.x + (length * signs).view_as(ball.x))
