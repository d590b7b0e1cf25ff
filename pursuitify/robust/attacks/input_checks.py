"""Checks of every attack's arguments, and the state in which it runs the model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from pursuitify.data import samples
from pursuitify.errors import InputError, OptionError
from pursuitify.utils import option_checks


def check_inputs(model: nn.Module, x: Tensor, y: Tensor, eps: float, *, name: str = "y") -> None:
    """Refuse what cannot be attacked, naming the cause.

    Args:
        model: What is attacked.
        x: Its inputs.
        y: Their classes; how many there are is seen once the model has answered.
        eps: Radius of the ball.
        name: Of the labels, for the error.
    """
    if not isinstance(model, nn.Module):
        raise OptionError(f"model must be an nn.Module, not {type(model).__name__}")
    option_checks.number("eps", eps, least=0)
    samples.check_inputs(x)
    check_classes(y, len(x), name=name)
    if x.device != y.device:
        raise InputError(f"x is on {x.device} but y on {y.device}")


def check_classes(y: Tensor, count: int, classes: int | None = None, *, name: str = "y") -> None:
    """Refuse labels that are not one class number per input: an attack needs the true class.

    Raises:
        InputError: If they are not, or the model has fewer ``classes``.
    """
    samples.check_labels(y, count, classes, name=name, soft=False, ignored=False)


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
