"""Lipschitz constants and step sizes, gamma_j = 1 / (beta_j L_j) (MATH section 5)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pursuitify.dictionary.norm_bounds import Norms, fit, operator_bound
from pursuitify.dictionary.structured import StructuredDictionary


def synchronous_step_sizes(dictionary: StructuredDictionary, norms: Norms) -> list[Tensor]:
    """Return g = 1 / L once per latent, L >= ||B||^2; the trained beta_j are not used.

    Args:
        dictionary: The bound dictionary.
        norms: Norm bounds.
    """
    like = dictionary.inputs[0]
    total = operator_bound(dictionary, norms).square()
    step = (1.0 / torch.where(total > 0, total, torch.ones_like(total))).to(like.dtype)
    return [fit(step, shape) for shape in dictionary.shapes]


def step_sizes(constants: Sequence[Tensor], betas: Sequence[Tensor]) -> list[Tensor]:
    """Return gamma_j = 1 / (beta_j L_j); any step is right where L_j is zero."""
    return [
        1.0 / (beta * torch.where(value > 0, value, torch.ones_like(value)))
        for beta, value in zip(betas, constants, strict=True)
    ]


class Schedule(nn.Module):
    """The trainable beta_j and alpha_j of a network; all its parameters are named ``pursuit.*``.

    The values used are the parameters held to their range; the derivative passes through, so that
    a parameter outside can come back.

    Attributes:
        beta: Relative inverse step sizes, start at 1.
        alpha: Extrapolation weights, start at 0.
    """

    def __init__(self, count: int, beta_range: tuple[float, float], dtype: torch.dtype) -> None:
        super().__init__()
        self.beta_range = beta_range
        self.beta = nn.Parameter(torch.ones(count, dtype=dtype))
        self.alpha = nn.Parameter(torch.zeros(count, dtype=dtype))

    def betas(self) -> Tensor:
        """Return beta_j within its range."""
        return _held(self.beta, *self.beta_range)

    def alphas(self) -> Tensor:
        """Return alpha_j within [0, 1)."""
        return _held(self.alpha, 0.0, 0.999)


def _held(raw: Tensor, low: float, high: float) -> Tensor:
    return raw + (raw.clamp(low, high) - raw).detach()
