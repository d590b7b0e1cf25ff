"""The loss of one batch, as a module: everything with a derivative happens in its forward.

So DistributedDataParallel, which watches one module's forward, sees all of it.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pursuitify.analysis.measures.frame_potential_penalty import FramePotentialPenalty
from pursuitify.data.samples import check_logits, cross_entropy, right
from pursuitify.dictionary.structured import StructuredDictionary
from pursuitify.network.pursuit_network import PursuitNetwork
from pursuitify.training.config import Config, Draw
from pursuitify.utils import random_state


def reconstruction(dictionary: StructuredDictionary, latents: Mapping[str, Tensor]) -> Tensor:
    """Return the relative reconstruction error, ||r_j||^2 / ||u_j||^2, mean over rows and samples.

    A sample whose signal u_j is zero has nothing to be reconstructed and counts as 0.

    Args:
        dictionary: The dictionary of the batch, bound.
        latents: The latents after pursuit, by name.
    """
    residuals = dictionary.residual(latents)
    total = dictionary.inputs[0].new_zeros(())
    for row in dictionary.rows:
        residual = residuals[row.name]
        signal = row.join(row.decode(latents[row.name])) - residual
        batch = len(residual)
        error = residual.reshape(batch, -1).square().sum(1)
        size = signal.reshape(batch, -1).square().sum(1)
        share = error / torch.where(size > 0, size, torch.ones_like(size))
        total = total + torch.where(size > 0, share, torch.zeros_like(share)).mean()
    return total / len(dictionary.rows)


class TrainingObjective(nn.Module):
    """A network with its training objective."""

    def __init__(self, net: nn.Module, config: Config) -> None:
        """Join them; the network is held, not copied."""
        super().__init__()
        self.net = net
        self.config = config
        self._penalty: FramePotentialPenalty | None = None

    def forward(
        self,
        x: Tensor,
        y: Tensor,
        attacked: Tensor | None,
        measure: bool,
        step: int,
        shares: tuple[float, float] = (1.0, 1.0),
    ) -> dict[str, Tensor]:
        """Return the loss and what is to be shown.

        Args:
            x: Inputs.
            y: Labels, as ``check_labels`` returns them.
            attacked: Adversarial inputs, for the adversarial objectives.
            measure: Whether to measure the objective F.
            step: Number of the step, which seeds the frame potential's estimate.
            shares: Of a micro-batch, which part of its batch's labels and of its samples it has.

        Returns:
            ``loss``, of a micro-batch its share of the batch's loss, and, detached, ``correct`` (a
            number of samples), ``cross_entropy``, and where they are computed ``objective``,
            ``reconstruction`` and ``frame_potential``.
        """
        config = self.config
        first = attacked if config.objective == "pgd" and attacked is not None else x
        logits, parts = self._run(first, measure)
        of_labels, of_samples = shares
        loss = cross_entropy(logits, y, config.label_smoothing)
        shown = {
            "cross_entropy": loss.detach(),
            "correct": right(logits.detach(), y).sum(),
            **{name: value.detach() for name, value in parts.items()},
        }
        loss = loss * of_labels
        if config.objective == "trades" and attacked is not None:
            other, _ = self._run(attacked, False)
            weight = config.trades_weight * of_samples
            loss = loss + weight * divergence(other, logits).mean()
        if config.reconstruction:
            loss = loss + config.reconstruction * of_samples * parts["reconstruction"]
        if config.frame_potential:
            potential = self._frame_potential(x, step)
            shown["frame_potential"] = potential.detach()
            loss = loss + config.frame_potential * of_samples * potential
        return {"loss": loss, **shown}

    def _run(self, x: Tensor, measure: bool) -> tuple[Tensor, dict[str, Tensor]]:
        parts: dict[str, Tensor] = {}
        pursued = isinstance(self.net, PursuitNetwork)
        if pursued and (self.config.reconstruction or measure):
            logits, latents, dictionary = self.net.infer(x)  # type: ignore[operator]
            if self.config.reconstruction:
                parts["reconstruction"] = reconstruction(dictionary, latents)
            if measure:
                with torch.no_grad():
                    parts["objective"] = dictionary.mean_objective(latents)
        else:
            logits = self.net(x)
        return check_logits(logits, len(x)), parts

    def _frame_potential(self, x: Tensor, step: int) -> Tensor:
        assert isinstance(self.net, PursuitNetwork)
        if self._penalty is None:
            self._penalty = FramePotentialPenalty(self.net, tuple(x.shape[1:]))
        seed = random_state.derived(self.config.seed, Draw.PENALTY, step)
        self._penalty.reseed(seed)
        return self._penalty()


def divergence(logits: Tensor, target: Tensor) -> Tensor:
    """Return KL(target || logits) per sample, of the distributions that logits stand for."""
    log_target = F.log_softmax(target, 1)
    log_own = F.log_softmax(logits, 1)
    return (log_target.exp() * (log_target - log_own)).sum(1)
