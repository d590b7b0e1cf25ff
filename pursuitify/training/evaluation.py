"""Accuracy and loss over a data set."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pursuitify.errors import OptionError
from pursuitify.network.pursuit_network import PursuitNetwork
from pursuitify.robust import pgd
from pursuitify.robust.attacks.input_checks import evaluation_mode
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


def against_sweeps(
    net: PursuitNetwork,
    data: Rows,
    sweeps: Sequence[int],
    *,
    limit: int | None = None,
    eps: float = 0.0,
    attack_steps: int = 20,
    batch_size: int = 256,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Evaluate a network at several numbers of sweeps.

    Args:
        net: The network; its number of sweeps is as before afterwards.
        data: ``(x, y)`` tensors, a Dataset, a DataLoader, or batches.
        sweeps: The values of T.
        limit: Take only the first so many samples.
        eps: Radius of PGD, through all sweeps; 0 for no attack.
        attack_steps: Its steps.
        batch_size: Samples at a time.
        seed: Seed of the attack.

    Returns:
        Per value ``sweeps``, ``samples``, ``accuracy``, ``loss`` and, with ``eps``, ``attacked``.
    """
    if limit is not None and limit < 1:
        raise OptionError(f"limit={limit!r} is not a number of samples")
    parts = _first(data, limit, batch_size)
    before = net.iterations
    rows = []
    try:
        for count in sweeps:
            net.iterations = count
            clean = evaluate(net, parts)
            row: dict[str, Any] = {
                "sweeps": count,
                "samples": clean.count,
                "accuracy": clean.accuracy,
                "loss": clean.loss,
            }
            if eps:
                moved = [
                    (pgd(net, x, y, eps=eps, steps=attack_steps, seed=seed), y) for x, y in parts
                ]
                row["attacked"] = evaluate(net, moved).accuracy
            rows.append(row)
    finally:
        net.iterations = before
    return rows


def _first(data: Rows, limit: int | None, batch_size: int) -> list[tuple[Tensor, Tensor]]:
    found, count = [], 0
    for x, y in batches(data, batch_size, Share(), train=False, name="data")(0):
        left = len(x) if limit is None else limit - count
        if left <= 0:
            break
        found.append((x[:left], torch.as_tensor(y)[:left].long()))
        count += len(found[-1][0])
    return found
