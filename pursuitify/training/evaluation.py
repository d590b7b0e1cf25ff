"""Accuracy and loss over a data set."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pursuitify.data.forms import Batch, Rows, all_labels, tensors
from pursuitify.data.samples import (
    IGNORED,
    check_labels,
    check_logits,
    dtypes_explained,
    labelled,
    right,
)
from pursuitify.errors import OptionError
from pursuitify.network.pursuit_network import PursuitNetwork
from pursuitify.robust import pgd
from pursuitify.robust.attacks.input_checks import evaluation_mode
from pursuitify.training.batches import Share, batches, refuse_void
from pursuitify.utils.terminal import Shown


@dataclass(frozen=True)
class Score(Shown):
    """The accuracy and losses of a network on some data.

    Attributes:
        accuracy: Share of samples it gets right.
        loss: Mean cross entropy.
        count: Number of samples that have a label (-100 stands for none).
    """

    accuracy: float
    loss: float
    count: int

    def __str__(self) -> str:
        """Return the numbers in one line."""
        return f"accuracy {self.accuracy:.2%}, loss {self.loss:.4f}, {self.count} samples"


def evaluate(
    net: nn.Module, data: Rows, *, batch_size: int | None = None, workers: int = 0
) -> Score:
    """Evaluate a network, in evaluation mode, as it is set.

    Args:
        net: Returns logits; its modes are as before afterwards.
        data: ``(x, y)`` tensors, a Dataset, a list of pairs, a DataLoader, or batches. Labels are
            class numbers, -100 for a sample that is not to be counted, or probabilities.
        batch_size: Rows at a time, where batches are made here; 256 by default.
        workers: Processes that read a Dataset.

    Raises:
        OptionError: If data or output are of another kind, or an option would have no effect.
        InputError: If labels do not fit the network.
    """
    refuse_void(data, batch_size=batch_size, workers=workers or None)
    size = 256 if batch_size is None else batch_size
    rows = batches(data, size, Share(), train=False, workers=workers, name="data")
    return score(sums(net, rows(0), known=all_labels(data), name="data"))


def sums(
    net: nn.Module, parts: Iterable[Batch], *, known: Tensor | None = None, name: str = "val"
) -> list[float]:
    """Return summed loss, number right, and number of samples that have a label.

    Args:
        net: Returns logits.
        parts: The batches.
        known: All labels, where they are in memory: checked after the first batch, when the number
            of classes is known.
        name: Of the data, for errors.
    """
    place = next((p.device for p in net.parameters()), torch.device("cpu"))
    total = [0.0, 0.0, 0.0]
    with evaluation_mode(net), torch.no_grad():
        for batch in parts:
            x, y = tensors(batch, f"a batch of {name}")
            with dtypes_explained(net, x):
                logits = check_logits(net(x.to(place, non_blocking=True)), len(x))
            if known is not None:
                check_labels(known, len(known), logits.shape[1], name=name)
                known = None
            y = check_labels(y, len(x), logits.shape[1], name=name).to(logits.device)
            soft = y.float() if y.is_floating_point() else y
            total[0] += float(
                F.cross_entropy(logits.float(), soft, reduction="sum", ignore_index=IGNORED)
            )
            total[1] += int(right(logits, y).sum())
            total[2] += int(labelled(y).sum())
    return total


def score(total: list[float]) -> Score:
    """Turn sums into means.

    Raises:
        OptionError: If there was no sample with a label.
    """
    loss, correct, count = total
    if not count:
        raise OptionError("there is no sample to evaluate on, or none has a label")
    return Score(correct / count, loss / count, int(count))


def against_sweeps(
    net: PursuitNetwork,
    data: Rows,
    sweeps: Sequence[int],
    *,
    limit: int | None = None,
    eps: float = 0.0,
    attack_steps: int | None = None,
    batch_size: int | None = None,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Evaluate a network at several numbers of sweeps.

    Args:
        net: The network; its number of sweeps is as before afterwards.
        data: ``(x, y)`` tensors, a Dataset, a DataLoader, or batches.
        sweeps: The values of T.
        limit: Take only the first so many samples.
        eps: Radius of PGD, through all sweeps; 0 for no attack.
        attack_steps: Its steps; 20 by default.
        batch_size: Samples at a time, where batches are made here; 256 by default.
        seed: Seed of the attack.

    Returns:
        Per value ``sweeps``, ``samples``, ``accuracy``, ``loss`` and, with ``eps``, ``attacked``.
    """
    if limit is not None and limit < 1:
        raise OptionError(f"limit={limit!r} is not a number of samples")
    if attack_steps is not None and not eps:
        raise OptionError(f"attack_steps={attack_steps!r} would have no effect without eps")
    refuse_void(data, batch_size=batch_size)
    parts = _first(data, limit, 256 if batch_size is None else batch_size)
    steps = 20 if attack_steps is None else attack_steps
    place = next((p.device for p in net.parameters()), torch.device("cpu"))
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
                    (pgd(net, x.to(place), y.to(place), eps=eps, steps=steps, seed=seed), y)
                    for x, y in parts
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
        labels = check_labels(y, len(x), name="data")
        found.append((x[:left], labels[:left]))
        count += len(found[-1][0])
    return found
