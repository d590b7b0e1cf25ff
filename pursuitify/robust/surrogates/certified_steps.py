"""A pursuit network with certified steps in the place of adaptive ones, for an attack to follow.

Adaptive steps depend on the data: their derivatives are exact, and yet a step that is clipped, or a
line search that ends at the whole step, says nothing of what lies beside it. Certified steps depend
on the weights alone, so that nothing of that kind stands between the input and the output.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from pursuitify.robust.surrogates.sweep_counts import find_pursuit, iterations, pursuit_of
from pursuitify.solvers.settings import CERTIFIED
from pursuitify.utils import option_checks


def adapts_steps(model: object) -> bool:
    """Whether a module is or holds a pursuit network whose steps adapt."""
    pursuit = find_pursuit(model)
    return pursuit is not None and pursuit.adapts_steps


@contextmanager
def certified(net: nn.Module) -> Iterator[None]:
    """Run a pursuit network with certified steps, then give it its own back."""
    pursuit = pursuit_of(net)
    before, pursuit.steps = pursuit.steps, CERTIFIED
    try:
        yield
    finally:
        pursuit.steps = before


class CertifiedSteps(nn.Module):
    """A pursuit network seen with certified steps; shares every parameter."""

    def __init__(self, net: nn.Module, factor: int = 1) -> None:
        """Wrap ``net``, which is or holds a pursuit network.

        Args:
            net: The network; its settings are as before after every pass.
            factor: Sweeps for each of the network's own: certified steps are shorter.
        """
        super().__init__()
        pursuit_of(net)
        self.net = net
        self.factor = option_checks.positive("factor", factor)
        self.training = net.training

    def forward(self, x: Tensor) -> Any:
        """Return the network's output with certified steps."""
        count = self.factor * pursuit_of(self.net).iterations
        with certified(self.net), iterations(self.net, count):
            return self.net(x)
