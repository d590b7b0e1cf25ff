"""The exact slopes of an affine head: how each logit depends on the latents."""

from __future__ import annotations

import torch
from torch import Tensor

from pursuitify.errors import OptionError
from pursuitify.network import arguments
from pursuitify.network.pursuit_network import PursuitNetwork


def slopes(net: PursuitNetwork, x: Tensor) -> dict[str, Tensor]:
    """Return per latent that the head reads the slope of each logit, (classes, entries).

    The head must be affine (see ``certifiable``): then the slope is the same everywhere.

    Args:
        net: The network.
        x: Inputs; the first one's shape is what counts.

    Raises:
        OptionError: If the latents do not hold sample after sample along dimension 0.
    """
    program = net._program
    with torch.no_grad():
        classes = net(x[:1]).shape[1]
    values = arguments.arguments(program, (x[:1].expand(classes, *x.shape[1:]),), {}, net)
    with torch.no_grad():
        first, bound = net._bind(program, values)
    if bound.samples is None:
        raise OptionError(
            "this network cannot be certified: it moves the batch away from dimension 0 of its "
            "latents, or joins batches along it, so that margins per sample are not known"
        )
    with torch.enable_grad():
        leaves = tuple(w.detach().requires_grad_() for w in first.latents)
        logits = program.head(net, leaves, first, values)
        found = torch.autograd.grad(logits.diagonal().sum(), leaves, allow_unused=True)
    return {
        name: slope.detach().flatten(1)
        for name, slope in zip(bound.names, found, strict=True)
        if slope is not None
    }
