"""Slopes of LeakyReLU and PReLU, held to (0, 1] where they are used.

Outside, they are no proximal operator of a convex penalty: at 0 and below the denominator of the
proximal step vanishes or turns negative, above 1 the objective falls without end. Conversion
refuses such slopes, but training or another state_dict may move them later. They are refused, not
clamped, because the feed-forward pass must stay what the source computes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from pursuitify.compiler.lowering.program import Pass, Program
from pursuitify.errors import OptionError
from pursuitify.operators.activations import Activation, LeakyReLU


def moving(alpha: Tensor) -> bool:
    """Whether an extrapolation weight is not zero."""
    return not alpha.is_meta and bool(alpha.any())


def checked_and_moving(program: Program, first: Pass, alpha: Tensor) -> bool:
    """Refuse slopes outside (0, 1], and return whether an extrapolation weight is not zero.

    Both are read in one transfer, so that an accelerator is waited for no more often than without
    slopes.

    Args:
        program: The program.
        first: Its feed-forward pass.
        alpha: The extrapolation weights, which a pass reads anyway.

    Returns:
        Whether ``moving(alpha)``.

    Raises:
        OptionError: If a slope is outside; names the module.
    """
    for index, activation in enumerate(first.activations):
        slope = activation.slope if isinstance(activation, LeakyReLU) else 1.0
        if not isinstance(slope, Tensor) and not 0 < slope <= 1:
            _refuse(program, index, slope, slope)
    tensors = {i: s for i, a in enumerate(first.activations) if (s := _tensor(a)) is not None}
    if not tensors:
        return moving(alpha)
    inside = _inside(torch.cat([s.detach().flatten() for s in tensors.values()])).all()
    moves, fine = torch.stack([alpha.detach().any(), inside]).tolist()
    if not fine:
        for index, slope in tensors.items():
            if not bool(_inside(slope).all()):
                low, high = torch.aminmax(slope.detach())
                _refuse(program, index, float(low), float(high))
    return bool(moves)


def unseen_lost(values: Sequence[object], alpha: Tensor, still: bool) -> Tensor:
    """Return NaN if an input is not finite or an extrapolation weight moved unseen, 0 otherwise.

    For accelerators, where reading either would wait for the device: the steps take it up.

    Args:
        values: The arguments of a call.
        alpha: The extrapolation weights.
        still: Whether the sweeps take them for zero.
    """
    floating = [v for v in values if isinstance(v, Tensor) and v.is_floating_point()]
    fine = [value.detach().isfinite().all() for value in floating]
    fine += [~alpha.detach().any()] if still else []
    return torch.where(torch.stack(fine).all(), 0.0, torch.nan) if fine else alpha.new_zeros(())


def slopes(first: Pass) -> list[Tensor]:
    """Return the slopes of a pass that are tensors."""
    return [s for a in first.activations if (s := _tensor(a)) is not None]


def poison(first: Pass) -> Pass:
    """Return the pass with NaN for slopes outside (0, 1].

    For compiled code and under torch.func, where no value can be read and nothing raised.
    """

    def poisoned(activation: Activation) -> Activation:
        slope = _tensor(activation)
        if slope is None:
            return activation
        return LeakyReLU(torch.where(_inside(slope), slope, torch.nan))

    if all(_tensor(activation) is None for activation in first.activations):
        return first
    return replace(first, activations=tuple(map(poisoned, first.activations)))


def still_steps(gammas: Sequence[Tensor], alpha: Tensor) -> list[Tensor]:
    """Return the steps, NaN if an extrapolation weight is not zero.

    For compiled and exported code that was made without extrapolation, because all weights were
    zero then. A load, a change of mode and a call without the compiler have compiled code made
    again; nothing says that a weight was written in place, and exported code stays as it is.

    Args:
        gammas: The steps.
        alpha: The extrapolation weights.
    """
    lost = alpha.detach().any()
    return [
        torch.where(
            lost if lost.device == gamma.device else lost.to(gamma.device), torch.nan, gamma
        )
        for gamma in gammas
    ]


def _tensor(activation: Activation) -> Tensor | None:
    slope = activation.slope if isinstance(activation, LeakyReLU) else None
    return slope if isinstance(slope, Tensor) and not slope.is_meta else None


def _inside(slope: Tensor) -> Tensor:
    return (slope > 0) & (slope <= 1)


def _refuse(program: Program, index: int, low: float, high: float) -> None:
    row = program.rows[index]
    reach = f"is {low:g}" if low == high else f"reaches from {low:g} to {high:g}"
    raise OptionError(
        f"the slope of module {row.source!r} (latent {row.name!r}) {reach}, outside (0, 1]: no "
        "convex penalty has it, and pursuit would run away. Clamp it after every optimizer step "
        "or load (module.weight.data.clamp_(1e-3, 1.0)), or set iterations=0: the source takes "
        "any slope"
    )
