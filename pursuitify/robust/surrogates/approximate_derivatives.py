"""A pursuit network with the derivatives of another memory mode, for an attack to follow."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from pursuitify.robust.surrogates.sweep_counts import pursuit_of
from pursuitify.solvers.differentiation import modes


class Implicit(nn.Module):
    """The network's output with implicit derivatives, or those of its last sweeps.

    A layered pursuit has no joint fixed point: there the derivatives are the network's own.
    """

    def __init__(self, net: nn.Module, last: int | None = None) -> None:
        """Wrap ``net``, which is or holds a pursuit network.

        Args:
            net: The network; its settings are as before after every pass.
            last: Through how many of the last sweeps to differentiate; None solves at the last
                iterate.
        """
        super().__init__()
        pursuit_of(net)
        self.net = net
        self.last = last
        self.training = net.training

    def forward(self, x: Tensor) -> Any:
        """Return the network's output."""
        pursuit = pursuit_of(self.net)
        before = pursuit.memory, pursuit.implicit_last
        if not pursuit.pursuit_solver.minimises:
            return self.net(x)
        pursuit.memory, pursuit.implicit_last = modes.ImplicitMode.name, self.last
        try:
            return self.net(x)
        finally:
            pursuit.memory, pursuit.implicit_last = before
