"""Measurements of an audit beside attacks: intervals, gradients, whether answers repeat."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pursuitify.robust.attacks.input_checks import attack_mode, batches, evaluation_mode
from pursuitify.robust.attacks.losses import cross_entropy, margin
from pursuitify.robust.attacks.objective import AttackObjective, attacked_logits, slope_at
from pursuitify.robust.surrogates.sweep_counts import at_each

_SWEEPS = 50


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
        inputs: How many inputs that is.
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
    inputs: int
    norm_ce: float
    norm_margin: float
    zero_ce: float
    zero_margin: float
    zero_entries: float
    reach: float
    faint: float


def gradient_statistics(
    model: nn.Module,
    views: Mapping[str, int],
    outputs: Callable[[Tensor], Sequence[Tensor]],
    x: Tensor,
    y: Tensor,
    batch_size: int | None,
) -> list[GradientStatistics]:
    """Measure the gradients through several views of a model, from one pass over the inputs.

    Args:
        model: Put into evaluation mode meanwhile.
        views: What to differentiate: name to place among the outputs.
        outputs: From inputs to the logits of every view.
        x: The inputs.
        y: The labels.
        batch_size: How many inputs at a time.

    Returns:
        One per view that gets at least one input right.
    """
    found: dict[str, list[list[Tensor]]] = {view: [[], [], [], []] for view in views}
    with attack_mode(model):
        for part, labels in batches(x, y, batch_size):
            with torch.enable_grad():
                points = part.requires_grad_()
                logits = outputs(points)
            for view, place in views.items():
                measured = _slopes(points, attacked_logits(logits[place], labels), labels)
                for kept, value in zip(found[view], measured, strict=True):
                    kept.append(value)
    joined = {view: [torch.cat(kept) for kept in parts] for view, parts in found.items()}
    return [_summary(view, *values) for view, values in joined.items() if len(values[0])]


def _slopes(points: Tensor, logits: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
    """Return, per input that is right: both norms, the share of zero entries, and the reach."""
    right = logits.detach().argmax(1) == labels
    with torch.enable_grad():
        lead = margin(logits, labels)
        losses = (cross_entropy(logits, labels), lead)
    entropy, slope = (
        slope_at(points, loss, again=True)[right].flatten(1).double() for loss in losses
    )
    lead = lead.detach()[right].double().abs().clamp(min=1e-30)
    zero = (slope == 0).double().mean(1)
    return entropy.norm(dim=1), slope.norm(dim=1), zero, slope.abs().sum(1) / lead


def _summary(
    view: str, entropy: Tensor, slope: Tensor, zero: Tensor, reach: Tensor
) -> GradientStatistics:
    return GradientStatistics(
        view=view,
        inputs=len(entropy),
        norm_ce=float(entropy.median()),
        norm_margin=float(slope.median()),
        zero_ce=float((entropy == 0).double().mean()),
        zero_margin=float((slope == 0).double().mean()),
        zero_entries=float(zero.mean()),
        reach=float(reach.median()),
        faint=float((reach < 0.1).double().mean()),
    )


def through_sweeps(
    net: nn.Module, own: int, x: Tensor, y: Tensor, batch_size: int | None
) -> list[GradientStatistics]:
    """Measure a pursuit network's gradients after each sweep and at twice its own number.

    Beyond 50 sweeps only 50 of them are looked at, evenly spaced.
    """
    every = range(own + 1) if own <= _SWEEPS else [n * own // _SWEEPS for n in range(_SWEEPS + 1)]
    counts = [count for count in [*every, 2 * own] if count != own]
    views = {f"T = {count}": place for place, count in enumerate(counts)}
    return gradient_statistics(net, views, lambda p: at_each(net, p, counts), x, y, batch_size)


@torch.no_grad()
def spread(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Return by how much two passes over the same inputs differ, relative to the largest logit."""
    objective = AttackObjective(model, margin)
    with evaluation_mode(model):
        first, second = (objective.logits(x, y) for _ in range(2))
    return float((first - second).abs().max() / first.abs().max().clamp(min=1e-30))


@torch.no_grad()
def predictions(model: nn.Module, x: Tensor, y: Tensor, batch_size: int | None) -> Tensor:
    """Return which inputs the model gets wrong."""
    objective = AttackObjective(model, cross_entropy)
    with evaluation_mode(model):
        parts = [objective(part, labels).fooled for part, labels in batches(x, y, batch_size)]
    return torch.cat(parts)


@torch.no_grad()
def class_count(model: nn.Module, x: Tensor, y: Tensor) -> int:
    """Return how many classes the model tells apart."""
    with evaluation_mode(model):
        return AttackObjective(model, cross_entropy).logits(x, y).shape[1]
