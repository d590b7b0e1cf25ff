"""Accuracy against the number of sweeps, clean and under attack."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pursuitify.errors import OptionError
from pursuitify.network import PursuitNetwork
from pursuitify.robust import pgd
from pursuitify.training.batches import Rows, Share, batches
from pursuitify.training.evaluation import evaluate


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
