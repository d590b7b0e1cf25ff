"""Checks of options and inputs: a clear error before any work is done."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pursuitify import transforms
from pursuitify.classify import Value
from pursuitify.errors import ConversionError, InputError, OptionError
from pursuitify.program import Program
from pursuitify.rules import Registry, Rule, default

SOLVERS = ("global", "layered", "synchronous", "feedforward")
MEMORY = ("store", "recompute", "implicit")
LAYOUTS = ("auto", "decoder", "encoder")

_VARIADIC = (
    ". What a forward takes as *args or **kwargs was compiled in as empty: to pass more, convert a "
    "wrapper with one named argument for each"
)


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


def positive(name: str, value: object) -> int:
    """Return ``value`` if it is a whole number >= 1.

    Raises:
        OptionError: Otherwise.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise OptionError(f"{name}={value!r} is not a whole number >= 1")
    return value


def factor(name: str, value: object, high: float = math.inf) -> float:
    """Return ``value`` as a float if it is a finite number from 0 to ``high``.

    Raises:
        OptionError: Otherwise.
    """
    result = math.nan
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        result = float(value)
    if not (math.isfinite(result) and 0 <= result <= high):
        limit = "" if math.isinf(high) else f" and <= {high:g}"
        raise OptionError(f"{name}={value!r} is not a finite number >= 0{limit}")
    return result


def one_or_two(name: str, value: object) -> int:
    """Return ``value`` if it is 1 or 2.

    Raises:
        OptionError: Otherwise.
    """
    if isinstance(value, bool) or value not in (1, 2) or not isinstance(value, int):
        raise OptionError(f"{name}={value!r} is not 1 or 2")
    return value


def unknown_options(options: Iterable[str], valid: Sequence[str]) -> None:
    """Refuse keywords that nothing reads.

    Raises:
        OptionError: If there is one; the message lists the valid ones and the nearest.
    """
    for name in options:
        near = difflib.get_close_matches(name, valid, 1)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        raise OptionError(f"unknown option {name!r}{hint} Valid options: {', '.join(valid)}")


def switch(name: str, value: object) -> bool:
    """Return ``value`` if it is True or False.

    Raises:
        OptionError: Otherwise.
    """
    if not isinstance(value, bool):
        raise OptionError(f"{name}={value!r} is not True or False")
    return value


def registry(rules: object) -> Registry:
    """Return the built-in rules with the user's own before them.

    Raises:
        OptionError: If ``rules`` is not a mapping to rules.
    """
    if rules is None:
        return default()
    if not isinstance(rules, Mapping):
        raise OptionError(f"rules={rules!r} is not a mapping from types or functions to Rule")
    wrong = [key for key, rule in rules.items() if not isinstance(rule, Rule)]
    if wrong:
        raise OptionError(f"rules: the values of {wrong} are not of type Rule")
    return default().extended(rules)


def leaves(leaf_modules: object, root: nn.Module) -> None:
    """Check that the leaf modules are types, or paths in the model.

    Raises:
        OptionError: Otherwise.
    """
    if isinstance(leaf_modules, str) or not isinstance(leaf_modules, Iterable):
        raise OptionError(f"leaf_modules={leaf_modules!r} is not a sequence of types and paths")
    paths = {name for name, _ in root.named_modules(remove_duplicate=False)}
    for leaf in leaf_modules:
        known = leaf in paths if isinstance(leaf, str) else isinstance(leaf, type)
        if not known:
            raise OptionError(f"leaf_modules: {leaf!r} is neither a type nor a path in the model")


def names(root: nn.Module, reserved: Iterable[str]) -> None:
    """Check that the model's own names leave room for those of PursuitNetwork.

    Raises:
        ConversionError: Otherwise.
    """
    own = {**root._modules, **root._parameters, **root._buffers}
    taken = sorted(set(own) & set(reserved))
    if taken:
        raise ConversionError(
            f"{type(root).__name__} has submodules, parameters or buffers with names that "
            f"PursuitNetwork needs: {taken}. Rename them, or wrap the model in another module"
        )


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
            f"the network takes {len(own)} argument(s) ({asked}), not {len(args)}{_VARIADIC}"
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
        if like is not None and like.dtype != value.dtype and not _autocast(value.device):
            raise InputError(
                f"{name} has dtype {value.dtype} and the network {like.dtype}: convert one of them"
            )
        _check_shape(program, node, value, network, name)
        readable = not (value.is_meta or torch.compiler.is_compiling() or transforms.active())
        if readable and not _finite(value):
            raise InputError(f"{name} holds NaN or infinite values")


def _finite(value: Tensor) -> bool:
    """One pass where the sum is finite, which it is unless a value is not or it overflows."""
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
