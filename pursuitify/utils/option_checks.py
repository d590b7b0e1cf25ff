"""Checks of options and models: a clear error before any work is done."""

from __future__ import annotations

import difflib
import inspect
import math
import operator
from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor, nn

from pursuitify.errors import OptionError

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


def example(value: object, root: nn.Module) -> tuple[Any, ...]:
    """Return example inputs as a tuple of the forward's arguments; empty for None.

    Raises:
        OptionError: If it is neither a tensor nor a tuple that the forward takes, with a tensor.
    """
    if value is None:
        return ()
    inputs = (value,) if isinstance(value, Tensor) else value
    if not isinstance(inputs, tuple) or not any(isinstance(item, Tensor) for item in inputs):
        raise OptionError(
            f"example_inputs is a {type(value).__name__}, not a tensor or a tuple of the forward's "
            "arguments with a tensor among them"
        )
    try:
        inspect.signature(root.forward).bind(*inputs)
    except TypeError as error:
        raise OptionError(
            f"example_inputs are not what {type(root).__name__}.forward takes: {error}"
        ) from error
    return inputs


def wraps(candidate: nn.Module) -> str:
    """Return the attribute under which one of torch's own wrappers holds the model; "" for none.

    These are what torch.compile returns (``._orig_mod``), DataParallel, DistributedDataParallel,
    AveragedModel and their kin (``.module``).
    """
    if not type(candidate).__module__.startswith("torch."):
        return ""
    held = [name for name in ("_orig_mod", "module") if name in candidate._modules]
    return f".{held[0]}" if held else ""
