"""A network against the dense oracle: feed-forward latents, Gram matrix, sweeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
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


def joined(values: Mapping[str, Tensor]) -> npt.NDArray[np.float64]:
    """Return latents as one vector, as the oracle has them."""
    return np.concatenate([v.detach().reshape(-1).numpy() for v in values.values()])


def assert_close(a: Any, b: Any, tolerance: float = EXACT) -> None:
    """Assert that arrays are equal, relative to the largest entry or 1."""
    a, b = np.asarray(a), np.asarray(b)
    assert a.shape == b.shape
    assert np.max(np.abs(a - b), initial=0.0) <= tolerance * max(1.0, np.max(np.abs(b), initial=0))


def extrapolate(net: PursuitNetwork, alpha: float) -> PursuitNetwork:
    """Set every beta to 0.8 and every alpha to ``alpha``, and return the network."""
    with torch.no_grad():
        net.pursuit.beta.fill_(0.8)
        net.pursuit.alpha.fill_(alpha)
    return net
