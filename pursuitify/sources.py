"""Models by name: torchvision's, timm's, or a function in a file of the user's own."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from torch import nn

from pursuitify import checks
from pursuitify.errors import MissingExtraError, OptionError


def load_model(name: str) -> nn.Module:
    """Build a model, weights at random.

    Args:
        name: A torchvision model (``resnet50``), ``timm:`` and a timm model, or
            ``path/to/file.py:factory``, a function without arguments that returns a module.
            **The file is run as Python code**: name only files you trust.

    Raises:
        OptionError: If there is no such model.
        MissingExtraError: If timm is not installed.
    """
    if ".py:" in name:
        return _from_file(*name.rsplit(":", 1))
    if name.startswith("timm:"):
        return _from_timm(name.removeprefix("timm:"))
    from torchvision import models

    if name not in models.list_models():
        raise OptionError(
            f"{name!r} is no model of torchvision; name one of its list_models(), timm:NAME, or "
            "path/to/file.py:factory"
        )
    options: dict[str, Any] = {"weights": None}
    if name in {"googlenet", "inception_v3"}:
        options["init_weights"] = True
    if name.split("_")[0] in {"deeplabv3", "fcn", "lraspp"}:
        options["weights_backbone"] = None
    model: nn.Module = models.get_model(name, **options)
    return model


def _from_timm(name: str) -> nn.Module:
    try:
        import timm
    except ImportError as error:
        raise MissingExtraError("timm is not installed: pip install 'pursuitify[timm]'") from error
    if not timm.is_model(name):
        raise OptionError(f"{name!r} is no model of timm")
    model: nn.Module = timm.create_model(name, pretrained=False)
    return model


def _from_file(path: str, factory: str) -> nn.Module:
    file = Path(path)
    if not file.is_file():
        raise OptionError(f"there is no file {path}")
    spec = importlib.util.spec_from_file_location(file.stem, file)
    if spec is None or spec.loader is None:
        raise OptionError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    make = getattr(module, factory, None)
    if not callable(make):
        raise OptionError(f"{path} has no function {factory!r}")
    return checks.model(make())
