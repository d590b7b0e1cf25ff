"""Guards: generated code checks at run time that an assumption made while tracing still holds."""

from __future__ import annotations

import torch
from torch import nn
from torch.fx.node import has_side_effect

from pursuitify.errors import InputError


@has_side_effect
def assume(condition: bool, expected: bool, text: str) -> None:
    """Raise if a condition on sizes is not what the traced branch stands for.

    Raises:
        InputError: If ``condition`` is not ``expected``.
    """
    if bool(condition) is not expected:
        raise InputError(
            f"the model branches on `{text}`, which was taken to be {expected} when it was "
            f"converted and is {not expected} for this input: inputs of this shape need a "
            "conversion of their own (example_inputs= one of them), or a model without that branch"
        )


@has_side_effect
def same_mode(module: nn.Module, training: bool, path: str) -> None:
    """Raise if a module whose mode is part of the traced code is in the other mode.

    Raises:
        InputError: If ``module.training`` is not ``training``.
    """
    if module.training is not training:
        mine, then = ("eval", "training") if training else ("training", "eval")
        raise InputError(
            f"module '{path}' is in {mine} mode, and was in {then} mode when the network was "
            f"converted for the mode it is in; what '{path}' does in either was fixed then. Put "
            "both in one mode by net.train() or net.eval(), or give the module a rule and name it "
            "in leaf_modules"
        )


@has_side_effect
def no_autocast(path: str) -> None:
    """Raise under autocast: the source switches it off for a part, which the network cannot.

    Raises:
        InputError: If autocast is enabled.
    """
    if torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda"):
        where = f"the forward of '{path}'" if path else "the forward"
        raise InputError(
            f"{where} sets autocast for a part of it, which the conversion cannot keep: run this "
            "network without autocast, or take that context out of the model"
        )
