"""Losses that an attack raises: one number per example, large where the network is wrong."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from pursuitify.errors import OptionError

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


def scaled_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the cross entropy of logits brought to one spread per example.

    Neither a network that shrinks its logits nor one that blows them up until the softmax
    saturates hides its gradient from this loss.
    """
    spread = logits.detach().std(1, keepdim=True)
    return cross_entropy(logits / (spread + torch.finfo(logits.dtype).tiny), labels)


def toward(targets: Tensor) -> Loss:
    """Return the loss that pulls each example to its own target class.

    With four classes or more it is the targeted DLR (Croce & Hein 2020), else the difference.
    """

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        own = logits.gather(1, labels[:, None]).squeeze(1)
        aim = logits.gather(1, targets[:, None]).squeeze(1)
        if logits.shape[1] < 4:
            return aim - own
        top = logits.topk(4, dim=1).values
        gap = top[:, 0] - 0.5 * (top[:, 2] + top[:, 3])
        return (aim - own) / (gap + 1e-12)

    return loss


LOSSES: dict[str, Loss] = {
    "ce": cross_entropy,
    "margin": margin,
    "dlr": dlr,
    "scaled": scaled_cross_entropy,
}
