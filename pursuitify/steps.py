"""Lipschitz constants and step sizes, gamma_j = 1 / (beta_j L_j) (MATH section 5)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from pursuitify.dictionary import StructuredDictionary
from pursuitify.maps import (
    Adjoint,
    Conv,
    Dense,
    LinearMap,
    conv_norm_estimate,
    dense_norm_estimate,
    is_weighted,
)


class Norms:
    """Norm bounds of a network's weighted maps, kept as long as its parameters stay.

    In evaluation mode every bound is certified and kept per parameter version. In training mode,
    where the weights move at every step, a warm-started power iteration with a stated margin
    (``maps.ESTIMATE_MARGIN``) stands in; its state is kept from step to step.
    """

    def __init__(self) -> None:
        self._certified: dict[str, Tensor] = {}
        self._states: dict[str, Tensor] = {}
        self._stamp: Any = None
        self.training = False

    def refresh(self, tensors: Iterable[Tensor], training: bool) -> None:
        """Forget bounds if a parameter or buffer changed since they were made."""
        self.training = training
        if torch.compiler.is_compiling():
            return
        stamp = tuple((t.data_ptr(), t._version, t.dtype, t.device) for t in tensors)
        if stamp != self._stamp:
            self._certified.clear()
            self._stamp = stamp

    def clear(self) -> None:
        """Forget everything."""
        self._certified.clear()
        self._states.clear()
        self._stamp = None

    def __call__(self, key: str, linear: LinearMap) -> Tensor | float:
        """Return the bound of a map; ``key`` names its place in the dictionary."""
        if not is_weighted(linear):
            return linear.norm_bound()
        if self.training:
            return self._estimate(key, linear)
        differentiable = torch.is_grad_enabled() and _weight(linear).requires_grad
        if key in self._certified and not differentiable:
            return self._certified[key]
        bound = linear.norm_bound()
        if isinstance(bound, Tensor):
            self._certified[key] = bound.detach()
        return bound

    def _estimate(self, key: str, linear: LinearMap) -> Tensor:
        state = self._states.get(key)
        inner = linear.inner if isinstance(linear, Adjoint) else linear
        if isinstance(inner, Conv):
            value, state = conv_norm_estimate(
                inner.weight, inner.stride, inner.dilation, inner.groups, state
            )
        else:
            assert isinstance(inner, Dense)
            value, state = dense_norm_estimate(inner.weight, state)
        self._states[key] = state.detach()
        return value


def _weight(linear: LinearMap) -> Tensor:
    inner = linear.inner if isinstance(linear, Adjoint) else linear
    assert isinstance(inner, (Conv, Dense))
    return inner.weight


def _chain_norm(norms: Norms, key: str, maps: Iterable[LinearMap]) -> Tensor | float:
    bound: Tensor | float = 1.0
    for position, item in enumerate(maps):
        bound = bound * norms(f"{key}.{position}", item)
    return bound


def lipschitz(
    dictionary: StructuredDictionary, norms: Norms, layered: bool = False
) -> list[Tensor]:
    """Return L_j >= ||B_j^T B_j + sum_j' B_j'j B_j'j^T|| per latent.

    Args:
        dictionary: The bound dictionary.
        norms: Norm bounds.
        layered: Count the row's own operator alone, as Algorithm 1 needs.
    """
    like = dictionary.inputs[0]
    constants = []
    for j, row in enumerate(dictionary.rows):
        own: Tensor | float = 1.0
        if row.diagonal is not None:
            own = _chain_norm(norms, f"{row.name}.diagonal", row.diagonal.maps)
        total = own * own
        for i, s, paths in () if layered else dictionary.readers[j]:
            reader = dictionary.rows[i]
            norm: Tensor | float = 0.0
            for p in paths:
                key = f"{reader.name}.{s}.{p}"
                norm = norm + _chain_norm(norms, key, reader.slots[s][p].maps)
            total = total + norm * norm
        constants.append(torch.as_tensor(total, dtype=like.dtype, device=like.device))
    return constants


def step_sizes(constants: Iterable[Tensor], beta: Tensor) -> list[Tensor]:
    """Return gamma_j = 1 / (beta_j L_j); any step is right where L_j is zero."""
    return [
        1.0 / (beta[j] * torch.where(value > 0, value, torch.ones_like(value)))
        for j, value in enumerate(constants)
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
