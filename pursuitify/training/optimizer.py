"""The optimizer, and its state by the names of the parameters."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pursuitify.errors import CheckpointError, OptionError
from pursuitify.training.config import Config

_NORMS = (
    nn.modules.batchnorm._NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
)


#: What the optimizers used here keep per parameter.
_KEPT = frozenset({"step", "exp_avg", "exp_avg_sq", "momentum_buffer"})


def make_optimizer(net: nn.Module, config: Config) -> torch.optim.Optimizer:
    """Return the optimizer of a network, its parameters in groups.

    Weight decay falls on kernels and matrices outside norms; ``pursuit.*`` has its own rate.

    Raises:
        OptionError: If no parameter is trainable.
    """
    norms = {id(p) for m in net.modules() if isinstance(m, _NORMS) for p in m.parameters()}
    groups: dict[str, list[nn.Parameter]] = {"weights": [], "others": [], "pursuit": []}
    for name, parameter in net.named_parameters():
        if not parameter.requires_grad:
            continue
        if name.startswith("pursuit."):
            groups["pursuit"].append(parameter)
        elif id(parameter) in norms or parameter.dim() < 2:
            groups["others"].append(parameter)
        else:
            groups["weights"].append(parameter)
    own = config.lr if config.pursuit_lr is None else config.pursuit_lr
    listed = [
        {
            "params": group,
            "lr": own if name == "pursuit" else config.lr,
            "base_lr": own if name == "pursuit" else config.lr,
            "weight_decay": config.weight_decay if name == "weights" else 0.0,
        }
        for name, group in groups.items()
        if group
    ]
    if not listed:
        raise OptionError("the network has no trainable parameter")
    if config.optimizer == "sgd":
        return torch.optim.SGD(listed, lr=config.lr, momentum=0.9, nesterov=True)
    return torch.optim.AdamW(listed, lr=config.lr)


def set_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set every group's learning rate to its own times ``factor``."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor


def state_tensors(net: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the optimizer's state as tensors named ``parameter|what``."""
    found = {}
    for name, parameter in net.named_parameters():
        for what, value in optimizer.state.get(parameter, {}).items():
            if value is not None:
                found[f"{name}|{what}"] = torch.as_tensor(value)
    return found


def restore_state(
    net: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], path: Path
) -> None:
    """Give an optimizer the state that ``state_tensors`` returned.

    Raises:
        CheckpointError: If a tensor belongs to no parameter, or has not its shape.
    """
    own = dict(net.named_parameters())
    order = [p for group in optimizer.param_groups for p in group["params"]]
    index = {id(p): i for i, p in enumerate(order)}
    state: dict[int, dict[str, Any]] = {}
    for key, value in tensors.items():
        name, _, what = key.rpartition("|")
        parameter = own.get(name)
        if parameter is None or id(parameter) not in index or what not in _KEPT:
            raise CheckpointError(f"{path} holds an unexpected optimizer state {key!r}")
        if value.shape != (torch.Size() if what == "step" else parameter.shape):
            raise CheckpointError(
                f"{path}: optimizer state {key!r} has shape {tuple(value.shape)}, the parameter "
                f"{tuple(parameter.shape)}"
            )
        state.setdefault(index[id(parameter)], {})[what] = value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


@dataclass(frozen=True)
class LearningRateSchedule:
    """Learning rate, sweeps and step scale at every step.

    Attributes:
        config: The configuration.
        steps: Steps of the whole training.
        sweeps: T at the end.
        scale: Step scale at the end.
    """

    config: Config
    steps: int
    sweeps: int
    scale: float

    def rate(self, step: int) -> float:
        """Return the factor on the learning rates at a step, counted from 0.

        A linear warm-up, then a cosine from 1 to ``final_lr`` (Loshchilov & Hutter 2017, without
        restarts).
        """
        warm = round(self.config.warmup * self.steps)
        if step < warm:
            return (step + 1) / (warm + 1)
        part = min((step - warm) / max(self.steps - warm, 1), 1.0)
        low = self.config.final_lr
        return low + (1 - low) * (1 + math.cos(math.pi * part)) / 2

    def iterations(self, step: int) -> int:
        """Return T at a step."""
        first = self.config.first_sweeps
        if first is None:
            return self.sweeps
        part = self._ramp(step, self.config.sweeps_ramp)
        return round(first + (self.sweeps - first) * part)

    def step_scale(self, step: int) -> float:
        """Return the step scale at a step."""
        return self.scale * self._ramp(step, self.config.step_ramp)

    def _ramp(self, step: int, fraction: float) -> float:
        length = fraction * self.steps
        return 1.0 if step >= length else step / length
