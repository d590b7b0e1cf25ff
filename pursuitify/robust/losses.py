"""What an attack raises: one loss per example, large where the network is wrong."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pursuitify.errors import InputError, OptionError

Loss = Callable[[Tensor, Tensor], Tensor]


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the cross entropy."""
    return F.cross_entropy(logits, labels, reduction="none")


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Return by how much the best wrong class leads; positive exactly where it wins."""
    if logits.shape[1] < 2:
        raise OptionError("loss='margin' needs at least 2 classes")
    true = logits.gather(1, labels[:, None]).squeeze(1)
    return _best_wrong(logits, labels) - true


def dlr(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the margin over the first-to-third gap (Croce & Hein 2020), blind to logit scale."""
    if logits.shape[1] < 3:
        raise OptionError("loss='dlr' needs at least 3 classes; use 'margin'")
    top = logits.topk(3, dim=1).values
    gap = top[:, 0] - top[:, 2]
    return margin(logits, labels) / (gap + 1e-12)


def _best_wrong(logits: Tensor, labels: Tensor) -> Tensor:
    true = F.one_hot(labels, logits.shape[1]).bool()
    return logits.masked_fill(true, -torch.inf).amax(1)


LOSSES: dict[str, Loss] = {"ce": cross_entropy, "margin": margin, "dlr": dlr}


@dataclass(frozen=True)
class Value:
    """What the model makes of some points.

    Attributes:
        loss: The loss to raise, per example.
        fooled: Whether the model is wrong.
        gradient: The loss's gradient at the points; empty unless asked for.
    """

    loss: Tensor
    fooled: Tensor
    gradient: Tensor


class Objective:
    """The model and the loss to raise, with every check on what the model returns."""

    def __init__(self, model: nn.Module, loss: Loss) -> None:
        """Join a model that returns logits and one of ``LOSSES``."""
        self.model = model
        self.loss = loss
        self._warned = False

    def __call__(self, points: Tensor, labels: Tensor, *, gradient: bool = False) -> Value:
        """Evaluate the model; parameters gather no gradient either way."""
        with torch.set_grad_enabled(gradient):
            points = points.detach().requires_grad_(gradient)
            logits = self._check(self.model(points), labels)
            loss = self.loss(logits, labels)
        fooled = logits.detach().argmax(1) != labels
        if not gradient:
            return Value(loss, fooled, points.new_empty(0))
        if not loss.requires_grad:
            raise InputError("the model's output does not depend differentiably on its input")
        (slope,) = torch.autograd.grad(loss.sum(), points, allow_unused=True)
        if slope is None:
            raise InputError("the model's output does not depend differentiably on its input")
        if not slope.isfinite().all():
            raise InputError("the gradient at the input is not finite")
        return Value(loss.detach(), fooled, slope)

    def _check(self, logits: object, labels: Tensor) -> Tensor:
        if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(labels):
            got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise InputError(f"the model must return logits ({len(labels)}, classes), not {got}")
        values = logits.detach()
        if not values.isfinite().all():
            raise InputError("the model returned logits that are not finite")
        top = logits.shape[1] - 1
        if int(labels.max()) > top:
            raise InputError(f"label {int(labels.max())} is out of range: classes are 0 to {top}")
        if not self._warned and values.amin() >= 0 and (values.sum(1) - 1).abs().amax() < 1e-4:
            self._warned = True
            warnings.warn(
                "the model seems to return probabilities; attack its logits instead, since a "
                "saturated softmax hides the gradient",
                stacklevel=4,
            )
        return logits if logits.dtype == torch.float64 else logits.float()
