"""The cost of one sweep, counted: no clock, so that it holds on every machine."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.common import Operators
from pursuitify import pursuitify


def sweep_cost(model: nn.Module, x: Tensor) -> tuple[int, int]:
    """Return convolutions, and elements written by other operators, in one sweep of many."""
    net, found = pursuitify(model.eval()), []
    with torch.no_grad():
        net(x)
        for sweeps in (3, 4):
            net.iterations = sweeps
            with Operators() as count:
                net(x)
            found.append((count.convolutions, count.elements))
    return found[1][0] - found[0][0], found[1][1] - found[0][1]


def launches(model: nn.Module, x: Tensor) -> tuple[int, int, int]:
    """Return the operators that an evaluation runs, once weights are known: (source, fixed, sweep).

    A call with T sweeps runs fixed + T sweep of them.
    """
    net, found = pursuitify(model.eval()), []
    with torch.no_grad():
        net(x)
        with Operators() as source:
            model(x)
        for sweeps in (3, 4):
            net.iterations = sweeps
            net(x)
            with Operators() as count:
                net(x)
            found.append(count.launches)
    sweep = found[1] - found[0]
    return source.launches, found[0] - 3 * sweep, sweep
