"""Checks of options and inputs: a clear error before any work is done."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pursuitify.classify import Value
from pursuitify.errors import InputError, OptionError
from pursuitify.program import Program

SOLVERS = ("global", "layered", "feedforward")
LAYOUTS = ("auto", "decoder", "encoder")


def one_of(name: str, value: object, valid: Sequence[str]) -> str:
    """Return ``value`` if it is one of ``valid``.

    Raises:
        OptionError: Otherwise; the message lists them.
    """
    if not isinstance(value, str) or value not in valid:
        raise OptionError(f"{name}={value!r} is not one of {', '.join(map(repr, valid))}")
    return value


def count(name: str, value: object) -> int:
    """Return ``value`` if it is a whole number >= 0.

    Raises:
        OptionError: Otherwise.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise OptionError(f"{name}={value!r} is not a whole number >= 0")
    return value


def unknown_options(options: Iterable[str], valid: Sequence[str]) -> None:
    """Refuse keywords that nothing reads.

    Raises:
        OptionError: If there is one; the message lists the valid ones and the nearest.
    """
    for name in options:
        near = difflib.get_close_matches(name, valid, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise OptionError(f"unknown option {name!r}{hint} Valid options: {', '.join(valid)}")


def model(candidate: object) -> nn.Module:
    """Return ``candidate`` if it is a module that can be converted at all.

    Raises:
        OptionError: Otherwise.
    """
    if not isinstance(candidate, nn.Module):
        kind = (
            f"the class {candidate.__name__}"
            if isinstance(candidate, type)
            else (f"a {type(candidate).__name__}")
        )
        raise OptionError(f"pursuitify takes a torch.nn.Module instance, not {kind}")
    if isinstance(candidate, torch.jit.ScriptModule):
        raise OptionError("a scripted module holds no Python code to trace: pass the original")
    if isinstance(candidate, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        raise OptionError(f"pass the wrapped model: {type(candidate).__name__}.module")
    lazy = [n for n, p in candidate.named_parameters() if isinstance(p, nn.UninitializedParameter)]
    if lazy:
        raise OptionError(f"lazy parameters have no shape yet; run the model once first: {lazy}")
    return candidate


def inputs(program: Program, values: Sequence[Any], network: nn.Module) -> None:
    """Check the tensors a network is called with.

    Raises:
        InputError: If one has the wrong type, dtype, device or shape, or is not finite.
    """
    tensors = [
        (node, value)
        for node, value in zip(program.inputs, values, strict=False)
        if program.sites[node].value is Value.INPUT
    ]
    for node, value in tensors:
        name = node.name if len(tensors) > 1 else "the input"
        if not isinstance(value, Tensor):
            raise InputError(f"{name} is a {type(value).__name__}, not a tensor")
        if not value.is_floating_point():
            raise InputError(
                f"{name} has dtype {value.dtype}; pursuit needs floating point: "
                "convert it (x.float() / 255 for images)"
            )
        if value.dim() == 0 or value.shape[0] == 0:
            raise InputError(f"{name} has shape {tuple(value.shape)}: there is no sample in it")
        like = next((p for p in network.parameters() if p.is_floating_point()), None)
        if like is not None and like.device != value.device:
            raise InputError(
                f"{name} is on {value.device} and the network on {like.device}: move one of them"
            )
        autocast = torch.is_autocast_enabled(value.device.type)
        if like is not None and like.dtype != value.dtype and not autocast:
            raise InputError(
                f"{name} has dtype {value.dtype} and the network {like.dtype}: convert one of them"
            )
        _check_shape(program, node, value, network, name)
        if not torch.compiler.is_compiling() and not bool(torch.isfinite(value).all()):
            raise InputError(f"{name} holds NaN or infinite values")


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
