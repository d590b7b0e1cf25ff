"""Losses that an attacker who knows the pursuit differentiates in the network's place.

Every attack takes one of these as ``guide``: the loss and its gradient are the guide's, whether an
example is fooled is the network's own answer. So none can make a network look weaker than it is.

    pgd(net, x, y, eps=0.1, guide=AtIterations(net, 0))         # transfer from the T = 0 twin
    apgd(net, x, y, eps=0.1, guide=SmoothedBackward(net))       # past dead ReLUs (smoothed.py)
    apgd(net, x, y, eps=0.1, guide=Sweeps(net, how="worst"))    # the loss of every sweep
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pursuitify.errors import OptionError
from pursuitify.robust.attacks.losses import Loss
from pursuitify.robust.surrogates.sweep_counts import AtIterations, at_each, iterations, pursuit_of
from pursuitify.utils import option_checks


class Sweeps:
    """The loss on intermediate sweeps: their mean, or the worst of them."""

    def __init__(
        self, net: nn.Module, counts: Sequence[int] | None = None, *, how: str = "mean"
    ) -> None:
        """Choose the sweeps; every one from 0 to the network's own number by default.

        Args:
            net: Is or holds a pursuit network.
            counts: After which sweeps to read the output.
            how: ``"mean"`` or ``"worst"``, the sweep that is most wrong.
        """
        pursuit = pursuit_of(net)
        option_checks.one_of("how", how, ("mean", "worst"))
        self.counts = list(range(pursuit.iterations + 1) if counts is None else counts)
        if not self.counts:
            raise OptionError("counts is empty: there is no sweep to read")
        for count in self.counts:
            AtIterations(net, count)  # refuses a count that is none
        self.net = net
        self.guided = (net,)
        self.how = how

    def __call__(self, points: Tensor, labels: Tensor, clean: Tensor, loss: Loss) -> Tensor:
        """Return the loss, one per example."""
        outputs = at_each(self.net, points, self.counts)
        losses = torch.stack([loss(_wide(logits), labels) for logits in outputs])
        return losses.mean(0) if self.how == "mean" else losses.amax(0)


class LatentChange:
    """The distance of the pursued latents from the clean input's, each relative to its own size.

    It reads no label and no logit, so neither a saturated head nor a shrunken logit hides it.
    Start at random: at the clean input itself the distance has no slope.
    """

    def __init__(self, net: nn.Module) -> None:
        """Attack the latents of ``net``, which is or holds a pursuit network."""
        self.pursuit = pursuit_of(net)
        self.net = net
        self.guided = (net,)

    def __call__(self, points: Tensor, labels: Tensor, clean: Tensor, loss: Loss) -> Tensor:
        """Return the distance, one per example."""
        # Not under no_grad: sweeps without derivatives run in place, in another order, and what
        # that rounds differently would look like a change.
        before = {name: latent.detach() for name, latent in self._latents(clean).items()}
        total = points.new_zeros(len(points))
        for name, after in self._latents(points).items():
            rest = before[name]
            size = rest.reshape(len(points), -1).square().sum(1) + 1e-12
            change = (after - rest).reshape(len(points), -1)
            total = total + change.square().sum(1) / size
        return total / len(before)

    def _latents(self, points: Tensor) -> dict[str, Tensor]:
        if self.net is self.pursuit:
            return self.pursuit.latents(points)
        seen: list[tuple[Any, ...]] = []
        hook = self.pursuit.register_forward_pre_hook(lambda _, args: seen.append(args))
        try:
            with iterations(self.net, 0):
                self.net(points)  # what comes before the pursuit turns points into its input
        finally:
            hook.remove()
        return self.pursuit.latents(*seen[0])


class Averaged:
    """The loss averaged over several passes: what a network that draws at random needs."""

    def __init__(self, model: nn.Module, draws: int = 8) -> None:
        """Average over ``draws`` passes of ``model``."""
        option_checks.positive("draws", draws)
        self.model = model
        self.draws = draws
        self.guided = (model,)

    def __call__(self, points: Tensor, labels: Tensor, clean: Tensor, loss: Loss) -> Tensor:
        """Return the mean loss, one per example."""
        losses = [loss(_wide(self.model(points)), labels) for _ in range(self.draws)]
        return torch.stack(losses).mean(0)


def _wide(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()
