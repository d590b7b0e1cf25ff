"""Accuracy and loss over a data set."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from pursuitify.errors import OptionError
from pursuitify.robust.inputs import evaluation_mode
from pursuitify.training.batches import Batch, Rows, Share, batches
from pursuitify.training.objectives import checked


@dataclass(frozen=True)
class Score:
    """How good a network is on some data.

    Attributes:
        accuracy: Share of samples it gets right.
        loss: Mean cross entropy.
        count: Number of samples.
    """

    accuracy: float
    loss: float
    count: int


def evaluate(net: nn.Module, data: Rows, *, batch_size: int = 256, workers: int = 0) -> Score:
    """Evaluate a network, in evaluation mode, as it is set.

    Args:
        net: Returns logits; its modes are as before afterwards.
        data: ``(x, y)`` tensors, a Dataset, a DataLoader, or batches.
        batch_size: Rows at a time, where batches are made here.
        workers: Processes that read a Dataset.
    """
    rows = batches(data, batch_size, Share(), train=False, workers=workers, name="data")
    return score(sums(net, rows(0)))


def sums(net: nn.Module, parts: Iterable[Batch]) -> list[float]:
    """Return summed loss, number right, and number of samples."""
    place = next((p.device for p in net.parameters()), torch.device("cpu"))
    total = [0.0, 0.0, 0.0]
    with evaluation_mode(net), torch.no_grad():
        for x, y in parts:
            x, y = moved(x, y, place)
            logits = checked(net(x), len(x))
            total[0] += float(F.cross_entropy(logits.float(), y, reduction="sum"))
            total[1] += int((logits.argmax(1) == y).sum())
            total[2] += len(y)
    return total


def score(total: list[float]) -> Score:
    """Turn sums into means.

    Raises:
        OptionError: If there was no sample.
    """
    loss, right, count = total
    if not count:
        raise OptionError("there is no sample to evaluate on")
    return Score(right / count, loss / count, int(count))


def moved(x: Any, y: Any, place: torch.device) -> Batch:
    """Return a batch on a device, its labels as int64.

    Raises:
        OptionError: If it holds no tensors.
    """
    if not isinstance(x, torch.Tensor) or not isinstance(y, torch.Tensor):
        raise OptionError(f"a batch must hold tensors, not {type(x).__name__}, {type(y).__name__}")
    return x.to(place, non_blocking=True), y.to(place, non_blocking=True).long()
