"""The model under attack, the loss to raise, and every check on what the model returns."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from sys import _getframe

import torch
from torch import Tensor, nn

from pursuitify.data.samples import check_logits, dtypes_explained
from pursuitify.errors import InputError
from pursuitify.robust.attacks.input_checks import check_classes
from pursuitify.robust.attacks.losses import Loss, toward

_HERE = str(Path(__file__).parent)

#: What the attacker differentiates in place of the model: (points, labels, clean inputs, loss)
#: to one loss per example.
Guide = Callable[[Tensor, Tensor, Tensor, Loss], Tensor]


@dataclass(frozen=True)
class LossValue:
    """The model's answers and losses at some points.

    Attributes:
        loss: The loss to raise, per example.
        fooled: Whether the model is wrong.
        gradient: The loss's gradient at the points; empty unless asked for.
        logits: The model's own logits, without their graph.
    """

    loss: Tensor
    fooled: Tensor
    gradient: Tensor
    logits: Tensor


class AttackObjective:
    """The model and the loss to raise, with every check on what the model returns.

    With a guide the loss and its gradient are the guide's; whether an example is fooled is always
    the model's own answer.
    """

    def __init__(
        self, model: nn.Module, loss: Loss, guide: Guide | nn.Module | None = None
    ) -> None:
        """Join a model that returns logits, one of ``LOSSES``, and perhaps a guide."""
        self.model = model
        self.loss = loss
        self.guide = _through(guide) if isinstance(guide, nn.Module) else guide
        self._warned = False

    def __call__(
        self,
        points: Tensor,
        labels: Tensor,
        *,
        clean: Tensor | None = None,
        targets: Tensor | None = None,
        gradient: bool = False,
    ) -> LossValue:
        """Evaluate the model; parameters gather no gradient either way.

        Args:
            points: Where.
            labels: The true classes.
            clean: The unperturbed inputs, which some guides compare with.
            targets: Pull to these classes, with the targeted loss, rather than off the true ones.
            gradient: Whether to differentiate.
        """
        goal = self.loss if targets is None else toward(targets)
        with torch.set_grad_enabled(gradient):
            points = points.detach().requires_grad_(gradient)
            if self.guide is None:
                logits = self.logits(points, labels)
                loss = goal(logits, labels)
            else:
                with torch.no_grad():
                    logits = self.logits(points, labels)
                start = points.detach() if clean is None else clean
                loss = self.guide(points, labels, start, goal)
        logits = logits.detach()
        fooled = logits.argmax(1) != labels
        if not gradient:
            return LossValue(loss, fooled, points.new_empty(0), logits)
        return LossValue(loss.detach(), fooled, slope_at(points, loss), logits)

    def logits(self, points: Tensor, labels: Tensor) -> Tensor:
        """Return the model's logits, in float32 at least, after checking them."""
        with dtypes_explained(self.model, points):
            logits = attacked_logits(self.model(points), labels)
        values = logits.detach()
        if not self._warned and values.amin() >= 0 and (values.sum(1) - 1).abs().amax() < 1e-4:
            self._warned = True
            warnings.warn(
                "the model seems to return probabilities; attack its logits instead, since a "
                "saturated softmax hides the gradient",
                stacklevel=_caller(),
            )
        return logits


def attacked_logits(logits: object, labels: Tensor) -> Tensor:
    """Return logits, one row per label, in float32 at least.

    Raises:
        InputError: If they are none, not finite, or fewer than the labels' classes.
    """
    found = check_logits(logits, len(labels), finite=True)
    check_classes(labels, len(labels), found.shape[1])
    return found if found.dtype == torch.float64 else found.float()


def slope_at(points: Tensor, loss: Tensor, *, again: bool = False) -> Tensor:
    """Return the gradient of a loss per example at the points; ``again`` keeps its graph."""
    slope = None
    if loss.requires_grad:
        (slope,) = torch.autograd.grad(loss.sum(), points, retain_graph=again, allow_unused=True)
    if slope is None:
        raise InputError("the model's output does not depend differentiably on its input")
    if not slope.isfinite().all():
        raise InputError("the gradient at the input is not finite")
    # Of a loss that sums pixels autograd returns one number under many names; attacks write into
    # some entries of what they keep, which would change the others.
    return slope.clone() if 0 in slope.stride() else slope


def _through(module: nn.Module) -> Guide:
    def guide(points: Tensor, labels: Tensor, clean: Tensor, loss: Loss) -> Tensor:
        del clean
        logits = module(points)
        return loss(logits if logits.dtype == torch.float64 else logits.float(), labels)

    return guide


def _caller() -> int:
    """Return the stack level, for a warning, of the first caller outside this package."""
    frame, level = _getframe(1), 1
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_HERE):
        frame, level = frame.f_back, level + 1
    return level
