"""Checks of options and models: a clear error before any work is done."""

from __future__ import annotations

import difflib
import importlib.util
import inspect
import math
import operator
import os
from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor, nn

from pursuitify.errors import MissingExtraError, OptionError

T = TypeVar("T")

LAYOUTS = ("auto", "decoder", "encoder")


def one_of(name: str, value: object, valid: Sequence[str]) -> str:
    """Return ``value`` if it is one of ``valid``.

    Raises:
        OptionError: Otherwise; the message lists them.
    """
    if not isinstance(value, str) or value not in valid:
        raise OptionError(f"{name}={value!r} is not one of {', '.join(map(repr, valid))}")
    return value


def chosen(name: str, value: object, valid: Mapping[str, T]) -> T:
    """Return what ``value`` stands for.

    Raises:
        OptionError: If it is no key of ``valid``; the message lists them.
    """
    return valid[one_of(name, value, tuple(valid))]


def whole(value: object) -> int | None:
    """Return a whole number of any type (numpy's too) as an int; None for what is none."""
    if isinstance(value, (bool, Tensor)) or not hasattr(value, "__index__"):
        return None
    return operator.index(value)


def whole_number(name: str, value: object, *, least: int | None = None) -> int:
    """Return ``value`` as an int if it is a whole number >= ``least``, any if there is no least.

    Raises:
        OptionError: Otherwise.
    """
    found = whole(value)
    if found is None or (least is not None and found < least):
        limit = "" if least is None else f" >= {least}"
        raise OptionError(f"{name}={value!r} is not a whole number{limit}")
    return found


def count(name: str, value: object) -> int:
    """Return ``value`` if it is a whole number >= 0.

    Raises:
        OptionError: Otherwise.
    """
    return whole_number(name, value, least=0)


def positive(name: str, value: object) -> int:
    """Return ``value`` if it is a whole number >= 1.

    Raises:
        OptionError: Otherwise.
    """
    return whole_number(name, value, least=1)


def seed(name: str, value: object) -> int:
    """Return ``value`` as an int if it is a whole number that torch takes as a seed.

    Raises:
        OptionError: Otherwise.
    """
    found = whole(value)
    if found is None or not -(2**63) <= found < 2**64:
        raise OptionError(f"{name}={value!r} is not a whole number of 64 bits")
    return found


def path(name: str, value: object) -> Path:
    """Return ``value`` as a path if it is one, or a text that is not empty.

    Raises:
        OptionError: Otherwise.
    """
    if not isinstance(value, (str, os.PathLike)) or not os.fspath(value):
        raise OptionError(f"{name}={value!r} is not the path of a file or a folder")
    return Path(value)


def number(
    name: str,
    value: object,
    *,
    least: float = -math.inf,
    above: float = -math.inf,
    most: float = math.inf,
    below: float = math.inf,
) -> float:
    """Return ``value`` as a float if it is a finite number, numpy's too, within limits.

    Args:
        name: The option.
        value: What was given.
        least: It is this or more.
        above: It is more than this.
        most: It is this or less.
        below: It is less than this.

    Raises:
        OptionError: Otherwise.
    """
    found = math.nan
    if not isinstance(value, bool) and isinstance(value, Real):
        found = float(value)
    if not (math.isfinite(found) and least <= found <= most and above < found < below):
        limits = {">=": least, ">": above, "<=": most, "<": below}
        wanted = " and ".join(f"{sign} {n:g}" for sign, n in limits.items() if math.isfinite(n))
        raise OptionError(f"{name}={value!r} is not a finite number {wanted}".rstrip())
    return found


def radius(name: str, value: float, shape: Sequence[int], norm: str) -> None:
    """Refuse the radius of an attack that is larger than any two images are apart.

    Args:
        name: The option.
        value: The radius.
        shape: Shape of one image, whose pixels lie in [0, 1].
        norm: ``linf`` or ``l2``.

    Raises:
        OptionError: If it is; asks whether 8/255 was meant where 8 was given.
    """
    most = math.sqrt(math.prod(shape)) if norm == "l2" else 1.0
    if value > most:
        meant = f". Is {value:g}/255 meant?" if value <= 255 * most else ""
        raise OptionError(
            f"{name}={value:g}: pixels lie in [0, 1], so no two images are further apart than "
            f"{most:.4g} in {norm}, and such an attack may turn any image into any other{meant}"
        )


def factor(name: str, value: object, high: float = math.inf) -> float:
    """Return ``value`` as a float if it is a finite number from 0 to ``high``.

    Raises:
        OptionError: Otherwise.
    """
    return number(name, value, least=0, most=high)


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
        hint = nearest(name, valid) or "."
        raise OptionError(f"unknown option {name!r}{hint} Valid options: {', '.join(valid)}")


def nearest(name: str, valid: Iterable[str]) -> str:
    """Return a question for the end of a message, after the valid name that is most like one.

    Args:
        name: What was given.
        valid: What could have been meant.

    Returns:
        ``; did you mean 'NAME'?``, or an empty text where nothing is like it.
    """
    near = difflib.get_close_matches(name, valid, 1)
    return f"; did you mean {near[0]!r}?" if near else ""


def nearest_path(path: Path) -> str:
    """Return the question of ``nearest`` after a file or folder that stands beside a path."""
    try:
        beside = [str(path.with_name(other.name)) for other in path.parent.iterdir()]
    except (OSError, ValueError):  # no such folder, or a path without a name
        beside = []
    return nearest(str(path), beside)


def no_file(path: Path) -> str:
    """Return the message that there is no such file, with the name in its folder most like it."""
    return f"there is no file {path}{nearest_path(path)}"


def extra(name: str, *libraries: str) -> None:
    """Refuse to go on without libraries that an extra of this package installs.

    Args:
        name: The extra.
        libraries: Their import names.

    Raises:
        MissingExtraError: If one of them is not installed.
    """
    missing = [library for library in libraries if importlib.util.find_spec(library) is None]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        raise MissingExtraError(
            f"{', '.join(missing)} {verb} not installed: pip install 'pursuitify[{name}]'"
        )


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
