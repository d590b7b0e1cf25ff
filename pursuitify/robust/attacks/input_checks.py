"""Checks of every attack's arguments, and the state in which it runs the model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from pursuitify.errors import InputError, OptionError
from pursuitify.utils import option_checks


def check_inputs(model: nn.Module, x: Tensor, y: Tensor, eps: float) -> None:
    """Refuse what cannot be attacked, naming the cause."""
    if not isinstance(model, nn.Module):
        raise OptionError(f"model must be an nn.Module, not {type(model).__name__}")
    option_checks.number("eps", eps, least=0)
    for name, value in (("x", x), ("y", y)):
        if not isinstance(value, Tensor):
            raise InputError(f"{name} must be a tensor, not {type(value).__name__}")
    if x.dtype not in (torch.float32, torch.float64):
        raise InputError(f"x must be float32 or float64, not {x.dtype}")
    if y.dtype not in (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8):
        raise InputError(f"y must hold integer labels, not {y.dtype}")
    if x.ndim < 2:
        raise InputError(f"x must be a batch of inputs, not of shape {tuple(x.shape)}")
    if x.numel() == 0:
        raise InputError("there is nothing to attack: x is empty")
    if y.shape != x.shape[:1]:
        raise InputError(
            f"y must have shape ({len(x)},), one label per input, not {tuple(y.shape)}"
        )
    if x.device != y.device:
        raise InputError(f"x is on {x.device} but y on {y.device}")
    if int(y.min()) < 0:
        raise InputError(f"label {int(y.min())} is out of range: labels start at 0")
    check_range(x)


def check_labels(y: Tensor, classes: int) -> None:
    """Refuse labels that a model with so many logits does not have, and a model with one.

    Raises:
        InputError: If there is a single logit, or a label is beyond the classes.
    """
    if classes < 2:
        raise InputError(
            "the model returns one logit per input, and the largest of one is always right: "
            "accuracy would be 100 % whatever it computes. Return two, for instance "
            "torch.cat([-z, z], 1) for a logit z of class 1"
        )
    if int(y.max()) >= classes:
        wrong = int((y >= classes).sum())
        raise InputError(
            f"label {int(y.max())} is out of range: classes are 0 to {classes - 1}, and {wrong} of "
            f"{len(y)} labels are beyond them"
        )


def check_range(x: Tensor) -> None:
    """Refuse inputs outside [0, 1]."""
    if not ((x >= 0) & (x <= 1)).all():
        span = f"{float(x.min()):.4g} to {float(x.max()):.4g}"
        raise InputError(f"x must lie in [0, 1], not {span}; normalise inside the model")


def batches(x: Tensor, y: Tensor, batch_size: int | None) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield inputs and int64 labels in parts; copies, so that inference tensors will do."""
    if batch_size is None:
        batch_size = len(x)
    option_checks.positive("batch_size", batch_size)
    for start in range(0, len(x), batch_size):
        part = slice(start, start + batch_size)
        yield x[part].detach().clone(), y[part].clone().long()


@contextmanager
def evaluation_mode(*models: object) -> Iterator[None]:
    """Run the models in evaluation mode, then give every submodule its own mode back.

    What is no module is passed over; a guide that is none names its own in ``guided``.
    """
    roots = _roots(models)
    modes = [(module, module.training) for root in roots for module in root.modules()]
    changed = any(training for _, training in modes)
    own = [(root, root.training) for root in roots]
    if changed:
        for root in roots:
            root.eval()
    try:
        with torch.inference_mode(False):
            yield
    finally:
        if changed:
            for root, training in own:
                root.train(training)
            for module, training in modes:
                module.training = training


@contextmanager
def attack_mode(*models: object) -> Iterator[None]:
    """Run the models in evaluation mode, asking for no parameter's derivative.

    Parameters keep the ``.grad`` they have, whatever is called inside, and a pass records only
    what the input's derivative needs: in a pursuit network step sizes and extrapolation drop out.
    """
    wanting = {
        id(parameter): parameter
        for root in _roots(models)
        for parameter in root.parameters()
        if parameter.requires_grad
    }
    with evaluation_mode(*models):
        try:
            for parameter in wanting.values():
                parameter.requires_grad_(False)
            yield
        finally:
            for parameter in wanting.values():
                parameter.requires_grad_(True)


def _roots(models: Sequence[object]) -> list[nn.Module]:
    roots = [model for model in models if isinstance(model, nn.Module)]
    return roots + [module for model in models for module in getattr(model, "guided", ())]
