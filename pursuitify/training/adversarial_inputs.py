"""Inputs moved before a step: by noise, and by the attack of adversarial training.

The attack is the library's PGD, on the network in evaluation mode: its frozen BatchNorms and
certified steps are those that will be attacked in the end.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pursuitify.data.samples import check_inputs, labelled
from pursuitify.robust import pgd
from pursuitify.robust.attacks.losses import Loss
from pursuitify.robust.attacks.objective import Guide
from pursuitify.training.config import Config
from pursuitify.training.objectives import divergence

_FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def noisy(x: Tensor, config: Config, seed: int) -> Tensor:
    """Return the inputs with the configuration's noise, in [0, 1]; ``x`` itself without noise.

    Args:
        x: Inputs in [0, 1].
        config: Standard deviation.
        seed: Seed of the noise, drawn on the CPU so that it is the same for every device.

    Raises:
        InputError: If there is noise, and ``x`` is of no floating type or leaves [0, 1].
    """
    if config.noise == 0:
        return x
    check_inputs(x, name="the batch to add noise to", kinds=_FLOATING)
    generator = torch.Generator().manual_seed(seed)
    draw = torch.randn(x.shape, generator=generator, dtype=x.dtype).to(x.device)
    return (x + config.noise * draw).clamp(0, 1)


def attack(net: nn.Module, x: Tensor, y: Tensor, config: Config, seed: int) -> Tensor | None:
    """Return adversarial inputs for the objective, or None where it needs none.

    Args:
        net: The network itself, not a distributed wrapper.
        x: Inputs in [0, 1].
        y: Class numbers; PGD leaves samples without one as they are, TRADES needs none.
        config: Objective, radius and steps.
        seed: Seed of the random start.
    """
    if config.objective == "standard":
        return None
    if config.eps == 0:
        return x
    chosen = labelled(y)
    if config.objective == "trades" or bool(chosen.all()):
        return _moved(net, x, y.clamp_min(0), config, seed)
    points = x.clone()
    if bool(chosen.any()):
        points[chosen] = _moved(net, x[chosen], y[chosen], config, seed)
    return points


def _moved(net: nn.Module, x: Tensor, y: Tensor, config: Config, seed: int) -> Tensor:
    return pgd(
        net,
        x,
        y,
        eps=config.eps,
        steps=config.attack_steps,
        step_size=config.attack_step_size,
        seed=seed,
        guide=_away(net) if config.objective == "trades" else None,
        early_stop=False,
    )


def _away(net: nn.Module) -> Guide:
    """Climb the divergence from the clean prediction: TRADES' inner maximisation."""

    def guide(points: Tensor, labels: Tensor, clean: Tensor, loss: Loss) -> Tensor:
        del labels, loss
        with torch.no_grad():
            target = net(clean)
        return divergence(net(points), target)

    return guide
