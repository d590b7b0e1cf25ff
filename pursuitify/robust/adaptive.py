"""What an attacker who knows the pursuit differentiates in the network's place.

Every attack takes one of these as ``guide``: the loss and its gradient are the guide's, whether an
example is fooled is the network's own answer. So none can make a network look weaker than it is.

    pgd(net, x, y, eps=0.1, guide=AtIterations(net, 0))         # transfer from the T = 0 twin
    apgd(net, x, y, eps=0.1, guide=SmoothedBackward(net))       # past dead ReLUs (smoothed.py)
    apgd(net, x, y, eps=0.1, guide=Sweeps(net, how="worst"))    # the loss of every sweep
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from pursuitify.errors import OptionError
from pursuitify.network import PursuitNetwork
from pursuitify.robust.inputs import check_count
from pursuitify.robust.losses import Loss


@contextmanager
def iterations(net: PursuitNetwork, count: int) -> Iterator[PursuitNetwork]:
    """Run a pursuit network with another number of sweeps, then give it its own back."""
    before = net.iterations
    net.iterations = count
    try:
        yield net
    finally:
        net.iterations = before


class AtIterations(nn.Module):
    """A pursuit network seen at another number of sweeps; shares every parameter."""

    def __init__(self, net: PursuitNetwork, count: int) -> None:
        """Wrap ``net``; 0 sweeps make it the source network."""
        super().__init__()
        _check_pursuit(net)
        self.net = net
        self.count = count
        with iterations(net, count):
            pass  # refuses a count that is none
        self.training = net.training

    def forward(self, x: Tensor) -> Any:
        """Return the network's output after ``count`` sweeps."""
        with iterations(self.net, self.count):
            return self.net(x)


class Sweeps:
    """The loss on intermediate sweeps: their mean, or the worst of them."""

    def __init__(
        self, net: PursuitNetwork, counts: Sequence[int] | None = None, *, how: str = "mean"
    ) -> None:
        """Choose the sweeps; every one from 0 to the network's own number by default.

        Args:
            net: The network.
            counts: After which sweeps to read the output.
            how: ``"mean"`` or ``"worst"``, the sweep that is most wrong.
        """
        _check_pursuit(net)
        if how not in ("mean", "worst"):
            raise OptionError(f"how={how!r} is unknown; valid: 'mean', 'worst'")
        every = range(net.iterations + 1) if counts is None else counts
        self.views = [AtIterations(net, count) for count in every]
        if not self.views:
            raise OptionError("counts is empty: there is no sweep to read")
        self.guided = (net,)
        self.how = how

    def __call__(self, points: Tensor, labels: Tensor, clean: Tensor, loss: Loss) -> Tensor:
        """Return the loss, one per example."""
        losses = torch.stack([loss(_wide(view(points)), labels) for view in self.views])
        return losses.mean(0) if self.how == "mean" else losses.amax(0)


class LatentChange:
    """How far the pursued latents move from the clean input's, each relative to its own size.

    It reads no label and no logit, so neither a saturated head nor a shrunken logit hides it.
    Start at random: at the clean input itself the distance has no slope.
    """

    def __init__(self, net: PursuitNetwork) -> None:
        """Attack the latents of ``net``."""
        _check_pursuit(net)
        self.net = net
        self.guided = (net,)

    def __call__(self, points: Tensor, labels: Tensor, clean: Tensor, loss: Loss) -> Tensor:
        """Return the distance, one per example."""
        with torch.no_grad():
            before = self.net.latents(clean)
        total = points.new_zeros(len(points))
        for name, after in self.net.latents(points).items():
            rest = before[name]
            size = rest.flatten(1).square().sum(1) + 1e-12
            total = total + (after - rest).flatten(1).square().sum(1) / size
        return total / len(before)


class Averaged:
    """The loss averaged over several passes: what a network that draws at random needs."""

    def __init__(self, model: nn.Module, draws: int = 8) -> None:
        """Average over ``draws`` passes of ``model``."""
        check_count("draws", draws)
        self.model = model
        self.draws = draws
        self.guided = (model,)

    def __call__(self, points: Tensor, labels: Tensor, clean: Tensor, loss: Loss) -> Tensor:
        """Return the mean loss, one per example."""
        losses = [loss(_wide(self.model(points)), labels) for _ in range(self.draws)]
        return torch.stack(losses).mean(0)


def _wide(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()


def _check_pursuit(net: object) -> None:
    if not isinstance(net, PursuitNetwork):
        raise OptionError(f"net must be a PursuitNetwork, not {type(net).__name__}")
