"""Checks of what a network is called with: a clear error before any work is done."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pursuitify.compiler.graph.classify import Value
from pursuitify.compiler.lowering.program import Program
from pursuitify.errors import InputError, PursuitifyError
from pursuitify.utils import func_transforms

_VARIADIC = (
    ". What a forward takes as *args or **kwargs was compiled in as empty: to pass more, convert a "
    "wrapper with one named argument for each"
)


@contextlib.contextmanager
def input_errors() -> Iterator[None]:
    """Say that an operation that refuses its operands got them from the input."""
    try:
        yield
    except (PursuitifyError, torch.OutOfMemoryError):
        raise
    except (RuntimeError, ValueError, IndexError, AssertionError) as error:
        raise InputError(f"the network cannot run on this input: {error}") from error


def tensors(name: str, values: object) -> None:
    """Check that something maps names to tensors.

    Raises:
        InputError: Otherwise.
    """
    if not isinstance(values, Mapping):
        raise InputError(f"{name} is a {type(values).__name__}, not a dict of tensors by latent")
    wrong = [key for key, value in values.items() if not isinstance(value, Tensor)]
    if wrong:
        raise InputError(f"{name} holds no tensors at {wrong}")


def arguments(
    program: Program, args: Sequence[Any], kwargs: Mapping[str, Any], network: nn.Module
) -> tuple[Any, ...]:
    """Return a call's values in the order of the placeholders, checked.

    Raises:
        InputError: If an argument is missing, unknown or given twice, or does not fit.
    """
    own = [str(node.target) for node in program.inputs]
    # fx numbers the placeholders of arguments that have a default: "scale" becomes "scale_1".
    asked = [
        name.rsplit("_", 1)[0] if node.args and name.rsplit("_", 1)[-1].isdigit() else name
        for node, name in zip(program.inputs, own, strict=True)
    ]
    if len(args) > len(own):
        raise InputError(
            f"the network takes {len(own)} argument{'s' * (len(own) != 1)} ({asked}), not "
            f"{len(args)}{_VARIADIC}"
        )
    given = dict(zip(own, args, strict=False))
    for name, value in kwargs.items():
        if name not in own and name not in asked:
            raise InputError(f"unexpected argument {name!r}; the network takes {asked}{_VARIADIC}")
        key = name if name in own else own[asked.index(name)]
        if key in given:
            raise InputError(f"the argument {name!r} is given twice")
        given[key] = value
    values = []
    for node, key, name in zip(program.inputs, own, asked, strict=True):
        if key in given:
            if node.args and not _same(given[key], node.args[0]):
                raise InputError(
                    f"the argument {name!r} is compiled in at its default, {node.args[0]!r}; "
                    "convert a wrapper that passes another value"
                )
            values.append(given[key])
        elif node.args:
            values.append(node.args[0])
        else:
            raise InputError(f"the network needs the argument {name!r}")
    inputs(program, values, network)
    return tuple(values)


def _same(value: object, default: object) -> bool:
    if value is default:
        return True
    return not isinstance(value, Tensor) and type(value) is type(default) and value == default


def inputs(program: Program, values: Sequence[Any], network: nn.Module) -> None:
    """Check the tensors a network is called with.

    Raises:
        InputError: If one has the wrong type, dtype, device or shape, or is not finite.
    """
    tensors = [
        (node, value, free)
        for node, value, free in zip(program.inputs, values, program.any_dtype, strict=False)
        if program.sites[node].value is Value.INPUT
    ]
    for node, value, free in tensors:
        name = node.name if len(tensors) > 1 else "the input"
        if not isinstance(value, Tensor):
            raise InputError(f"{name} is a {type(value).__name__}, not a tensor")
        if not (free or value.is_floating_point()):
            raise InputError(
                f"{name} has dtype {value.dtype} and is read by a layer that needs floating point: "
                "prepare it as the model was trained (for images x.float(), divided by 255 if the "
                "model does not divide itself)"
            )
        if value.dim() == 0 or value.shape[0] == 0:
            raise InputError(f"{name} has shape {tuple(value.shape)}: there is no sample in it")
        like = next((p for p in network.parameters() if p.is_floating_point()), None)
        if like is not None and like.device != value.device:
            raise InputError(
                f"{name} is on {value.device} and the network on {like.device}: move one of them"
            )
        converted = not value.is_floating_point() or _autocast(value.device)
        if like is not None and like.dtype != value.dtype and not converted:
            raise InputError(
                f"{name} has dtype {value.dtype} and the network {like.dtype}: convert one of them"
            )
        _check_shape(program, node, value, network, name)
        if not value.is_floating_point():
            continue
        # An accelerator is not waited for: there sweeps of such a value give NaN (unseen_lost).
        readable = value.device.type == "cpu" and not (
            torch.compiler.is_compiling() or func_transforms.active()
        )
        if readable and not _finite(value):
            raise InputError(f"{name} holds NaN or infinite values")


def floating(values: Sequence[Any], dtype: torch.dtype) -> list[Any]:
    """Return a call's values with integers as numbers of ``dtype``: what the rows calculate with.

    The network itself has cast or frozen them; its rows read them as they are.
    """
    return [
        value.to(dtype) if isinstance(value, Tensor) and not value.is_floating_point() else value
        for value in values
    ]


def _finite(value: Tensor) -> bool:
    """Whether all values are finite: by their sum, and one by one only where that is not finite."""
    return math.isfinite(float(value.detach().sum())) or bool(torch.isfinite(value).all())


def _autocast(device: torch.device) -> bool:
    kind = device.type
    return torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)


def _check_shape(program: Program, node: Any, value: Tensor, network: nn.Module, name: str) -> None:
    for user in node.users:
        if user.op != "call_module":
            continue
        module = network.get_submodule(str(user.target))
        weight = getattr(module, "weight", None)
        if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
            wanted, dims = module.in_channels, 2 + len(module.kernel_size)
            fits = value.dim() == dims and value.shape[1] == wanted
            form = f"(batch, {wanted}, {', '.join(['size'] * (dims - 2))})"
        elif isinstance(module, nn.Linear) and weight is not None:
            fits = value.dim() >= 2 and value.shape[-1] == module.in_features
            form = f"(batch, {module.in_features})"
        else:
            continue
        if not fits:
            raise InputError(
                f"{name} has shape {tuple(value.shape)}; module {str(user.target)!r} reads it and "
                f"needs {form}"
            )
