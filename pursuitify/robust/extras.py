"""What the adapters of outside libraries share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from torch import nn

from pursuitify.errors import MissingExtraError


def outside(name: str) -> Any:
    """Import an optional library, or say how to get it."""
    try:
        return import_module(name)
    except ImportError as error:
        raise MissingExtraError(
            f"{name} is not installed; it comes with the extra: pip install 'pursuitify[robust]'"
        ) from error


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Keep the parameters' ``.grad`` as they are: outside libraries call ``backward``."""
    wanting = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in wanting:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in wanting:
            parameter.requires_grad_(True)
