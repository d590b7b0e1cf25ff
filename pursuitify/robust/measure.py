"""What the audit measures beside attacks: intervals, gradients, whether answers repeat."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pursuitify.robust.inputs import batches, evaluation_mode
from pursuitify.robust.losses import cross_entropy, margin
from pursuitify.robust.objective import Objective


def wilson(count: int, total: int, z: float = 1.96) -> tuple[float, float]:
    """Return Wilson's interval for a share, 95 % by default."""
    share = count / total
    scale = 1 + z * z / total
    middle = (share + z * z / (2 * total)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    return max(middle - half, 0.0), min(middle + half, 1.0)


@dataclass(frozen=True)
class GradientStatistics:
    """The slope of the loss at the clean inputs that the network gets right.

    Attributes:
        view: What was differentiated, for instance ``T = 10``.
        norm_ce: Median length of the cross entropy's gradient.
        norm_margin: Median length of the margin's.
        zero_ce: Share of inputs at which the cross entropy's gradient is exactly zero.
        zero_margin: Share of inputs at which the margin's is.
        zero_entries: Share of pixels whose slope of the margin is exactly zero.
        reach: Median of the share of its margin that an input would lose, to first order, if each
            pixel could move by 1. Scaling the logits does not change it.
        faint: Share of inputs whose reach is below 0.1: the slope says that no image whatever
            would change the decision.
    """

    view: str
    norm_ce: float
    norm_margin: float
    zero_ce: float
    zero_margin: float
    zero_entries: float
    reach: float
    faint: float


def gradient_statistics(
    view: str, model: nn.Module, x: Tensor, y: Tensor, batch_size: int | None
) -> GradientStatistics | None:
    """Measure the gradients; None where the network gets no input right."""
    found: dict[str, list[Tensor]] = {"ce": [], "margin": [], "entries": [], "reach": []}
    by_entropy, by_margin = Objective(model, cross_entropy), Objective(model, margin)
    with evaluation_mode(model):
        for part, labels in batches(x, y, batch_size):
            value = by_margin(part, labels, gradient=True)
            right = ~value.fooled
            slope = value.gradient[right].flatten(1).double()
            entropy = by_entropy(part, labels, gradient=True).gradient[right].flatten(1).double()
            found["ce"].append(entropy.norm(dim=1))
            found["margin"].append(slope.norm(dim=1))
            found["entries"].append((slope == 0).double().mean(1))
            lead = value.loss[right].double().abs().clamp(min=1e-30)
            found["reach"].append(slope.abs().sum(1) / lead)
    joined = {key: torch.cat(parts) for key, parts in found.items()}
    if joined["ce"].numel() == 0:
        return None
    return GradientStatistics(
        view=view,
        norm_ce=float(joined["ce"].median()),
        norm_margin=float(joined["margin"].median()),
        zero_ce=float((joined["ce"] == 0).double().mean()),
        zero_margin=float((joined["margin"] == 0).double().mean()),
        zero_entries=float(joined["entries"].mean()),
        reach=float(joined["reach"].median()),
        faint=float((joined["reach"] < 0.1).double().mean()),
    )


@torch.no_grad()
def spread(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Return by how much two passes over the same inputs differ, relative to the largest logit."""
    objective = Objective(model, margin)
    with evaluation_mode(model):
        first, second = (objective.logits(x, y) for _ in range(2))
    return float((first - second).abs().max() / first.abs().max().clamp(min=1e-30))


@torch.no_grad()
def predictions(model: nn.Module, x: Tensor, y: Tensor, batch_size: int | None) -> Tensor:
    """Return which inputs the model gets wrong."""
    objective = Objective(model, cross_entropy)
    with evaluation_mode(model):
        parts = [objective(part, labels).fooled for part, labels in batches(x, y, batch_size)]
    return torch.cat(parts)


@torch.no_grad()
def class_count(model: nn.Module, x: Tensor, y: Tensor) -> int:
    """Return how many classes the model tells apart."""
    with evaluation_mode(model):
        return Objective(model, cross_entropy).logits(x, y).shape[1]
