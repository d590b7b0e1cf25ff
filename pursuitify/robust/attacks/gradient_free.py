"""Attacks that read logits but no gradient: random noise and Square.

Where one of these fools what the gradient attacks do not, the gradients are at fault.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pursuitify.errors import OptionError
from pursuitify.robust.attacks.query_search import Hunt, QueryCampaign
from pursuitify.robust.attacks.threat_model import LinfBall
from pursuitify.utils import option_checks

# Square's schedule (Andriushchenko et al. 2020): after each of these shares of the queries the
# windows' area is halved once more.
_HALVINGS = (0.001, 0.005, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8)


def random_noise(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    draws: int = 10,
    seed: int | None = None,
    norm: str = "linf",
    batch_size: int | None = None,
    progress: bool = False,
) -> Tensor:
    """Draw at random; every second draw lies on the ball's surface (linf: at its corners).

    Args:
        model: Returns logits, one row per input.
        x: Inputs in [0, 1], batch first, float32 or float64.
        y: Class labels, one per input.
        eps: Radius of the ball.
        draws: Points to try per example.
        seed: Makes the draws repeat and leaves the global random state alone.
        norm: ``"linf"`` or ``"l2"``.
        batch_size: How many inputs to attack at a time; all at once by default.
        progress: Show a progress bar.

    Returns:
        Each example's worst draw, inside the ball and [0, 1].
    """
    option_checks.positive("draws", draws)

    def strategy(hunt: Hunt) -> None:
        for draw in range(draws):
            if not hunt.left:
                return
            ball = hunt.ball
            points = ball.draw(hunt.batch.generator)
            if draw % 2:
                points = ball.project(ball.x + ball.eps * ball.direction(points - ball.x))
            hunt.look(points)

    plan = QueryCampaign("noise", seed, norm, "margin", batch_size, progress)
    return plan.search(strategy, model, x, y, eps, draws)


def square(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    queries: int = 1000,
    area: float = 0.8,
    seed: int | None = None,
    norm: str = "linf",
    loss: str = "margin",
    batch_size: int | None = None,
    progress: bool = False,
) -> Tensor:
    """Change square windows at random and keep what raises the loss (Square attack).

    Inputs that are not images (batch, channels, height, width) count as one row of pixels. In l2
    the changed input is brought back to length ``eps``: the paper's search without its transport
    of mass between windows.

    Args:
        model: Returns logits, one row per input.
        x: Inputs in [0, 1], batch first, float32 or float64.
        y: Class labels, one per input.
        eps: Radius of the ball.
        queries: Points to try per example.
        area: Share of the image that the first windows cover.
        seed: Makes the search repeat and leaves the global random state alone.
        norm: ``"linf"`` or ``"l2"``.
        loss: ``"margin"``, ``"ce"``, ``"dlr"`` or ``"scaled"``.
        batch_size: How many inputs to attack at a time; all at once by default.
        progress: Show a progress bar.

    Returns:
        The perturbed inputs, inside the ball and [0, 1].
    """
    option_checks.positive("queries", queries)
    if not 0 < area <= 1:
        raise OptionError(f"area must lie in (0, 1], not {area!r}")

    def strategy(hunt: Hunt) -> None:
        hunt.look(_stripes(hunt))
        for query in range(1, queries):
            if not hunt.left:
                return
            halvings = sum(query > share * queries for share in _HALVINGS)
            hunt.look(_windowed(hunt, area / 2**halvings))

    plan = QueryCampaign("Square", seed, norm, loss, batch_size, progress)
    return plan.search(strategy, model, x, y, eps, queries)


def _image_shape(x: Tensor) -> tuple[int, int, int]:
    """Return channels, height and width; what is no image is one row."""
    return (x.shape[1], x.shape[2], x.shape[3]) if x.ndim == 4 else (1, 1, x[0].numel())


def _stripes(hunt: Hunt) -> Tensor:
    """Return vertical stripes of full strength, random per channel."""
    ball = hunt.ball
    channels, height, width = _image_shape(ball.x)
    signs = hunt.signs(hunt.left, channels, 1, width).expand(-1, -1, height, -1)
    return ball.project(ball.x + ball.eps * ball.direction(signs.reshape(ball.x.shape)))


def _windowed(hunt: Hunt, share: float) -> Tensor:
    """Return the present points with one window per example set anew."""
    ball, points = hunt.ball, hunt.points
    channels, height, width = _image_shape(ball.x)
    if height == 1 or width == 1:
        tall = min(height, max(round(share * height), 1))
        wide = min(width, max(round(share * width), 1))
    else:
        side = max(round((share * height * width) ** 0.5), 1)
        tall, wide = min(side, height), min(side, width)
    count = hunt.left
    rows = _spans(hunt, count, height, tall).view(count, 1, height, 1)
    columns = _spans(hunt, count, width, wide).view(count, 1, 1, width)
    window = (rows & columns).expand(-1, channels, -1, -1).reshape(points.shape)
    signs = hunt.signs(count, channels, 1, 1).expand(-1, -1, height, width).reshape(points.shape)
    if isinstance(ball, LinfBall):
        return ball.project(torch.where(window, ball.x + ball.eps * signs, points))
    change = points - ball.x
    typical = ball.eps / ball.x[0].numel() ** 0.5
    change = change + torch.where(window, 2 * typical * signs, 0.0)
    return ball.project(ball.x + ball.eps * ball.direction(change))


def _spans(hunt: Hunt, count: int, length: int, size: int) -> Tensor:
    """Return masks (count, length), each true on ``size`` entries from a random place on."""
    first = (hunt.uniform(count, 1) * (length - size + 1)).floor()
    place = torch.arange(length, device=first.device)
    return (place >= first) & (place < first + size)
