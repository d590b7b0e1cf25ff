"""Checks of options and models: a clear error before any work is done."""

from __future__ import annotations

import difflib
import math
import operator
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from pursuitify.errors import ConversionError, OptionError
from pursuitify.rules import Registry, Rule, default

SOLVERS = ("global", "layered", "synchronous", "feedforward")
MEMORY = ("store", "recompute", "implicit")
LAYOUTS = ("auto", "decoder", "encoder")


def one_of(name: str, value: object, valid: Sequence[str]) -> str:
    """Return ``value`` if it is one of ``valid``.

    Raises:
        OptionError: Otherwise; the message lists them.
    """
    if not isinstance(value, str) or value not in valid:
        raise OptionError(f"{name}={value!r} is not one of {', '.join(map(repr, valid))}")
    return value


def whole(value: object) -> int | None:
    """Return a whole number of any type (numpy's too) as an int; None for what is none."""
    if isinstance(value, (bool, Tensor)) or not hasattr(value, "__index__"):
        return None
    return operator.index(value)


def count(name: str, value: object) -> int:
    """Return ``value`` if it is a whole number >= 0.

    Raises:
        OptionError: Otherwise.
    """
    number = whole(value)
    if number is None or number < 0:
        raise OptionError(f"{name}={value!r} is not a whole number >= 0")
    return number


def positive(name: str, value: object) -> int:
    """Return ``value`` if it is a whole number >= 1.

    Raises:
        OptionError: Otherwise.
    """
    number = whole(value)
    if number is None or number < 1:
        raise OptionError(f"{name}={value!r} is not a whole number >= 1")
    return number


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
    number = whole(value)
    if number not in (1, 2):
        raise OptionError(f"{name}={value!r} is not 1 or 2")
    return number


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
