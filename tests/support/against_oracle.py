"""A network against the dense oracle: feed-forward latents, Gram matrix, sweeps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pursuitify import PursuitNetwork
from tests.support.oracle import Oracle, Row

EXACT = 1e-10


def assert_matches_oracle(
    net: PursuitNetwork, rows: Sequence[Row], x: Tensor, args: Sequence[Tensor] | None = None
) -> None:
    """Assert that zero, one and five sweeps on a batch of one are the oracle's.

    Args:
        net: The network, in evaluation mode and float64.
        rows: Its rows by hand.
        x: A batch of one.
        args: What the network is called with, where it computes ``x`` from that.
    """
    args = (x,) if args is None else args
    oracle = Oracle(rows, x)
    matrix, _, thresholds = net.dictionary(*args).materialize()
    matrix, thresholds = matrix.detach(), thresholds.detach()
    close(matrix.T @ matrix, torch.from_numpy(oracle.B.T @ oracle.B))
    close(thresholds, torch.from_numpy(oracle.lam))
    steps = {name: float(step.detach()) for name, step in net.step_sizes(*args).items()}
    for count in (0, 1, 5):
        net.iterations = count
        latents = torch.cat([w.detach().flatten() for w in net.latents(*args).values()])
        expected = oracle.w0 if count == 0 else oracle.sweeps(count, steps)
        close(latents, torch.from_numpy(expected))


def close(a: Tensor, b: Tensor) -> None:
    """Assert equality relative to the largest entry."""
    assert a.shape == b.shape
    assert float((a - b).abs().max()) <= EXACT * max(1.0, float(b.abs().max()))
