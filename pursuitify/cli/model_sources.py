"""Models by name: torchvision's, timm's, or a function in a file of the user's own."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import pickle
import sys
import traceback
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import typer
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from pursuitify.checkpoints.files import weights_of
from pursuitify.checkpoints.save_load import compare_shared
from pursuitify.conversion import model_checks
from pursuitify.errors import CheckpointError, OptionError
from pursuitify.utils import option_checks


def names_like(begun: str) -> list[str]:
    """Return the names of models that begin so, for the shell to complete; none of files.

    Args:
        begun: What was typed. timm's models are named after ``timm:``, where timm is installed.
    """
    if begun.startswith("timm:"):
        if importlib.util.find_spec("timm") is None:
            return []
        import timm

        return [f"timm:{name}" for name in timm.list_models(f"{begun.removeprefix('timm:')}*")]
    from torchvision import models

    return [name for name in (*models.list_models(), "timm:") if name.startswith(begun)]


def load_model(name: str, classes: int | None = None, published: bool = False) -> nn.Module:
    """Build a model, weights at random or as its library publishes them.

    Args:
        name: A torchvision model (``resnet50``), ``timm:`` and a timm model, or
            ``path/to/file.py:factory``, a function without arguments that returns a module.
            **The file is run as Python code**: name only files you trust. It is imported as Python
            imports it from its own folder, which joins ``sys.path``: it finds its neighbours.
        classes: Number of classes, for a model of torchvision or timm; its own by default. A
            factory of the user's own decides for itself.
        published: Take the weights that torchvision or timm publishes, downloaded where they are
            not there yet. With another number of classes those of the classifier stay random.

    Raises:
        OptionError: If there is no such model, it takes no number of classes, it is a function of
            the user's for which nobody publishes weights, or the file or the function raises.
        MissingExtraError: If timm is not installed.
        CheckpointError: If published weights cannot be downloaded or read, or there are none.
    """
    if ".py:" in name:
        if published:
            raise OptionError(
                f"--weights DEFAULT: {name} is a function of yours, for which nobody publishes "
                "weights. Let it load them, or give a file"
            )
        return _from_file(*name.rsplit(":", 1))
    if name.startswith("timm:"):
        return _from_timm(name.removeprefix("timm:"), classes, published)
    from torchvision import models

    known = models.list_models()
    if name not in known:
        raise OptionError(_unknown(name, known))
    options: dict[str, Any] = {"weights": None}
    if name in {"googlenet", "inception_v3"}:
        options["init_weights"] = True
    if name.split("_")[0] in {"deeplabv3", "fcn", "lraspp"}:
        options["weights_backbone"] = None
    if classes is not None:
        options["num_classes"] = classes
    model: nn.Module = models.get_model(name, **options)
    if published:
        with _downloads(name):
            weights = models.get_model_weights(name).DEFAULT
            state = weights.get_state_dict(progress=False, check_hash=True)
        _take(model, state, classes, name)
    return model


def _take(model: nn.Module, state: Mapping[str, Tensor], classes: int | None, name: str) -> None:
    """Load published weights; those of a classifier of other classes are left as they are.

    Raises:
        CheckpointError: If anything else does not fit.
    """
    own = model.state_dict()
    if classes is not None:
        state = {k: v for k, v in state.items() if k not in own or own[k].shape == v.shape}
        kept = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
        heads = {key.rpartition(".")[0] for key in kept}
        if heads:
            typer.echo(
                f"{name}: published weights, but random ones in {', '.join(sorted(heads))}, which "
                f"has {classes} classes here",
                err=True,
            )
        state = {**own, **state}
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise CheckpointError(f"the published weights of {name} do not fit: {error}") from error


@contextlib.contextmanager
def _downloads(name: str) -> Iterator[None]:
    """Say in our words what a download or a library says in its own.

    Raises:
        CheckpointError: If published weights cannot be downloaded or read, or there are none.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        raise CheckpointError(
            f"published weights of {name} cannot be downloaded or read, or there are none: {error}."
            " Without them or a network, give a file: --weights my.pth"
        ) from error


def load_weights(model: nn.Module, path: Path) -> None:
    """Load a model's own weights, every key, from a file; nothing in it is executed.

    Args:
        model: The model, changed in place.
        path: A safetensors file, a folder with a ``model.safetensors`` (as ``save_pretrained`` of
            huggingface_hub writes it), or what ``torch.save`` wrote of a state_dict of plain
            tensors.

    Raises:
        CheckpointError: If the file is missing, holds anything else, or does not fit.
    """
    path = weights_of(path)
    try:
        if path.suffix == ".safetensors":
            weights = load_file(path)
        else:
            weights = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(option_checks.no_file(path)) from error
    except (SafetensorError, OSError, EOFError, RuntimeError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"{path} holds no plain tensors that can be read: {error}") from error
    if not isinstance(weights, Mapping):
        raise CheckpointError(f"{path} holds a {type(weights).__name__}, not a state_dict")
    if is_normalised(weights) and not is_normalised(model.state_dict()):
        raise CheckpointError(
            f"{path} holds the weights of a model with a normalisation in front (mean, std, "
            "model.*). Save those of the model inside, net.model.state_dict(), or write them with "
            "`pursuitify convert RUN --to-source FILE`, and give --normalise beside them"
        )
    try:
        model.load_state_dict(weights)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} does not fit {type(model).__name__}: {error}") from error
    compare_shared({k: v for k, v in weights.items() if isinstance(v, Tensor)}, model, path)


def is_normalised(weights: Mapping[str, Any]) -> bool:
    """Whether tensors by name are those of ``data.Normalised``: mean, std and a model's own."""
    own = {name for name in weights if not name.startswith("pursuit.")}
    inside = {name for name in own if name.startswith("model.")}
    return bool(inside) and own - inside == {"mean", "std"}


def _from_timm(name: str, classes: int | None, published: bool) -> nn.Module:
    option_checks.extra("timm", "timm")
    import timm

    if not timm.is_model(name):
        raise OptionError(
            f"{name!r} is no model of timm{option_checks.nearest(name, timm.list_models())}"
        )
    options: dict[str, Any] = {} if classes is None else {"num_classes": classes}
    with _downloads(name) if published else contextlib.nullcontext():
        model: nn.Module = timm.create_model(name, pretrained=published, **options)
    return model


def _from_file(path: str, factory: str) -> nn.Module:
    file = Path(path)
    if not file.is_file():
        raise OptionError(option_checks.no_file(file))
    module = _imported(file)
    make = getattr(module, factory, None)
    if not callable(make):
        own = [name for name, value in vars(module).items() if callable(value)]
        near = option_checks.nearest(factory, own)
        raise OptionError(f"{path} has no function {factory!r}{near}")
    try:
        made = make()
    except Exception as error:  # the user's own code
        raise OptionError(f"{path}:{factory} raised {_cause(error)}") from error
    return model_checks.model(made)


def _unknown(name: str, known: list[str]) -> str:
    """Return why a name is no model: it is a Python file, looks like a path, or is misspelt."""
    path = Path(name)
    if path.suffix == ".py":
        if not path.is_file():
            return option_checks.no_file(path)
        return f"{name} is a file: name the function in it that makes the model, {name}:FUNCTION"
    if "/" in name:
        return f"there is no file or folder {name}{option_checks.nearest_path(path)}"
    near = option_checks.nearest(name, known)
    return (
        f"{name!r} is no model of torchvision{near or '.'} Name one of its list_models(), "
        "timm:NAME, path/to/file.py:factory, or the folder of a run"
    )


def _imported(file: Path) -> ModuleType:
    """Import a file as Python would from its folder, or as part of the package that it lies in.

    Its folder (of a package, the one that holds the package) is put in front of ``sys.path``, and
    the module in ``sys.modules``, where dataclasses, pickle and its neighbours look for it.
    """
    file = file.resolve()
    root, parts = file.parent, [file.stem]
    while (root / "__init__.py").is_file():
        parts.insert(0, root.name)
        root = root.parent
    name = ".".join(parts)
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))
        importlib.invalidate_caches()
    try:
        if len(parts) > 1:
            module = importlib.import_module(name)
            if Path(module.__file__ or "").resolve() == file:
                return module
        return _executed(name.replace(".", "_"), file)
    except Exception as error:  # the user's own code
        raise OptionError(f"{file} cannot be imported: {_cause(error)}") from error


def _executed(name: str, file: Path) -> ModuleType:
    """Run a file as a module; if its name is another module's already, under a name of its own."""
    held = sys.modules.get(name)
    if held is not None and Path(getattr(held, "__file__", None) or "").resolve() != file:
        name = f"{name}_{zlib.crc32(str(file).encode()):08x}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise OptionError(f"{file} is no Python file")
    module = importlib.util.module_from_spec(spec)
    before = sys.modules.get(name)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        if before is None:
            del sys.modules[name]
        else:
            sys.modules[name] = before
        raise
    return module


def _cause(error: Exception) -> str:
    """Return what was raised, and in which line."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({last.filename}, line {last.lineno})"
