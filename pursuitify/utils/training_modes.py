"""Effects of a model's own train() and eval() beyond setting the mode of every module."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class Modes:
    """The changes that a model makes when it is put in one mode.

    Attributes:
        training: Per path of a submodule whether it is then in training mode.
        trainable: ``requires_grad`` of the parameters where the model changes it, by path.
    """

    training: Mapping[str, bool]
    trainable: Mapping[str, bool]

    def apply(self, network: nn.Module) -> None:
        """Do the same to a network that has the model's submodules."""
        for path, training in self.training.items():
            network.get_submodule(path).training = training
        for path, trainable in self.trainable.items():
            network.get_parameter(path).requires_grad_(trainable)


def put(root: nn.Module, training: bool) -> Modes:
    """Put a skeleton in a mode, by its own ``train`` or ``eval``, and return what that did.

    Its Parameters are the user's: whether they require a gradient is as before afterwards.
    """
    before = {path: p.requires_grad for path, p in root.named_parameters()}
    if training:
        root.train()
    else:
        root.eval()
    trainable = {}
    for path, parameter in root.named_parameters():
        if parameter.requires_grad is not before[path]:
            trainable[path] = parameter.requires_grad
            parameter.requires_grad_(before[path])
    return Modes({path: m.training for path, m in root.named_modules() if path}, trainable)


def overridden(model: nn.Module) -> bool:
    """Whether a model's ``train`` or ``eval`` is its own; its children's are called as they are."""
    kind = type(model)
    own = kind.train is not nn.Module.train or kind.eval is not nn.Module.eval
    return own or "train" in vars(model) or "eval" in vars(model)
