"""A pursuit network at other numbers of sweeps, also where it sits inside another module."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeGuard

from torch import Tensor, nn

from pursuitify.errors import OptionError
from pursuitify.network.pursuit_network import PursuitNetwork
from pursuitify.solvers.differentiation.modes import RecomputeMode


def find_pursuit(model: object) -> PursuitNetwork | None:
    """Return the pursuit network that a module is or holds, for instance behind a normalisation.

    Raises:
        OptionError: If it holds several: their sweeps cannot be told apart.
    """
    if not isinstance(model, nn.Module):
        return None
    held = [module for module in model.modules() if isinstance(module, PursuitNetwork)]
    if len(held) > 1:
        raise OptionError(f"the model holds {len(held)} pursuit networks; audit one at a time")
    return held[0] if held else None


def pursuit_of(model: object) -> PursuitNetwork:
    """Return the pursuit network that a module is or holds.

    Raises:
        OptionError: If there is none, or several.
    """
    found = find_pursuit(model)
    if found is None:
        raise OptionError(f"net must be or hold a PursuitNetwork; {type(model).__name__} does not")
    return found


@contextmanager
def iterations(net: nn.Module, count: int) -> Iterator[nn.Module]:
    """Run a pursuit network with another number of sweeps, then give it its own back."""
    pursuit = pursuit_of(net)
    before = pursuit.iterations
    pursuit.iterations = count
    try:
        yield net
    finally:
        pursuit.iterations = before


@contextmanager
def exact_derivatives(net: nn.Module) -> Iterator[None]:
    """Differentiate a pursuit network's sweeps themselves, though it is set to approximate."""
    pursuit = find_pursuit(net)
    if pursuit is None or pursuit.derivative_mode.exact:
        yield
        return
    before, pursuit.memory = pursuit.memory, RecomputeMode.name
    try:
        yield
    finally:
        pursuit.memory = before


class AtIterations(nn.Module):
    """A pursuit network seen at another number of sweeps; shares every parameter."""

    def __init__(self, net: nn.Module, count: int) -> None:
        """Wrap ``net``, which is or holds a pursuit network; 0 sweeps make it the source."""
        super().__init__()
        self.net = net
        self.count = count
        with iterations(net, count):
            pass  # refuses a count that is none
        self.training = net.training

    def forward(self, x: Tensor) -> Any:
        """Return the network's output after ``count`` sweeps."""
        with iterations(self.net, self.count):
            return self.net(x)


def at_each(net: nn.Module, points: Tensor, counts: Sequence[int]) -> list[Any]:
    """Return the network's outputs after each of these numbers of sweeps.

    Where sweep follows sweep the pursuit passes through all of them on the way to the last, so
    one gives all; layered pursuit, which finishes row after row, runs once for each.

    Args:
        net: Is or holds a pursuit network.
        points: Its input.
        counts: Numbers of sweeps, in any order.
    """
    if not _in_one_pass(net):
        return [AtIterations(net, count)(points) for count in counts]
    with iterations(net, max(counts)):
        found = net.outputs_at(counts, points)
    return [found[count] for count in counts]


def _in_one_pass(net: nn.Module) -> TypeGuard[PursuitNetwork]:
    # In training mode a pass writes statistics; a pass that recomputes must not keep all states.
    if not isinstance(net, PursuitNetwork) or net.training:
        return False
    return net.pursuit_solver.passes_through and net.derivative_mode.records_sweeps
