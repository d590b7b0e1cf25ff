"""Short texts that stand for data and callables, to tell whether a run goes on with what it had.

A fingerprint is equal where its subject is; it says nothing about what differs. Of a callable it
covers the code and all that the code is bound to: defaults, closures, attributes, and the plain
values and functions that it names in its module.
"""

from __future__ import annotations

import functools
import hashlib
import random
import sys
import types
from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

#: What fingerprints start with, so that a message does not print them.
MARK = "#"
_ENTRIES = 4096
#: Libraries whose classes are known by their names: their code is their version's business.
_KNOWN = frozenset({"torch", "torchvision", "numpy", "PIL", "accelerate", *sys.stdlib_module_names})
_GENERATORS = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)


def of_tensors(*tensors: Tensor) -> str:
    """Return the fingerprint of tensors: every entry, shape and type counts."""
    seen = hashlib.blake2b(digest_size=16)
    for tensor in tensors:
        _add_tensor(seen.update, tensor)
    return MARK + seen.hexdigest()


def of_stacked(rows: Sequence[Tensor]) -> str:
    """Return what ``of_tensors`` returns of rows of one shape and type put into one tensor."""
    seen = hashlib.blake2b(digest_size=16)
    seen.update(f"{rows[0].dtype}{(len(rows), *rows[0].shape)}".encode())
    for row in rows:
        _add_entries(seen.update, row)
    return MARK + seen.hexdigest()


def of_sample(seen: Any, x: Tensor, y: Tensor) -> None:
    """Add a sample or a batch to a hash: all of the labels, and up to 4096 entries of the inputs.

    Args:
        seen: A hash of hashlib.
        x: The inputs; the entries are evenly spread over them.
        y: The labels.
    """
    flat = x.detach().reshape(-1)
    if flat.numel() > _ENTRIES:
        flat = flat[:: -(-flat.numel() // _ENTRIES)]
    seen.update(repr(tuple(x.shape)).encode())
    _add_tensor(seen.update, flat)
    _add_tensor(seen.update, y)


def of_values(*values: Any) -> str:
    """Return the fingerprint of callables, objects and plain values.

    It begins with the version of Python where code is part of it: another version compiles the
    same code to something else.
    """
    walk = _Walk()
    for value in values:
        walk.add(value)
    return f"{MARK}{walk.version}{walk.hash.hexdigest()}"


def comparable(one: Any, other: Any) -> bool:
    """Whether two fingerprints can be compared: those of code need one version of Python."""
    found = [value.rpartition(":")[0] for value in (one, other) if isinstance(value, str)]
    return not (len(found) == 2 and all(found) and found[0] != found[1])


def holds_generator(value: Any) -> bool:
    """Whether an object is bound to a random generator of its own, whose state is not kept."""
    walk = _Walk()
    walk.add(value)
    return walk.generator


def _add_tensor(update: Callable[[Any], Any], tensor: Tensor) -> None:
    update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
    _add_entries(update, tensor)


def _add_entries(update: Callable[[Any], Any], tensor: Tensor) -> None:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    if flat.numel():
        if flat.is_quantized:
            flat = flat.int_repr()
        update(flat.view(torch.uint8).numpy())


class _Walk:
    """A walk through what an object is made of; each part is visited once."""

    def __init__(self) -> None:
        self.hash = hashlib.blake2b(digest_size=16)
        self.generator = False
        self.version = ""
        self._seen: dict[int, int] = {}
        self._alive: list[Any] = []  # an object that is gone could lend its id to another one

    def add(self, value: Any) -> None:
        """Add a value and all that it holds."""
        if value is None or isinstance(value, (bool, int, float, complex, str, bytes, torch.dtype)):
            self._text(f"{type(value).__name__} {value!r}")
            return
        if id(value) in self._seen:
            self._text(f"again {self._seen[id(value)]}")
            return
        self._seen[id(value)] = len(self._seen)
        self._alive.append(value)
        if isinstance(value, Tensor):
            _add_tensor(self.hash.update, value)
        elif isinstance(value, np.ndarray):
            self._text(f"{value.dtype}{value.shape}")
            self.hash.update(value.tobytes() if value.dtype != object else b"")
        elif isinstance(value, _GENERATORS):
            self.generator = True
            self._text(type(value).__name__)
        elif isinstance(value, Mapping):
            self._all("mapping", [part for item in value.items() for part in item])
        elif isinstance(value, Set):
            self._text("set " + " ".join(sorted(map(repr, value))))
        elif isinstance(value, (list, tuple, range)):
            self._all(type(value).__name__, list(value))
        else:
            self._other(value)

    def _other(self, value: Any) -> None:
        if isinstance(value, functools.partial):
            self._all("partial", [value.func, value.args, value.keywords])
        elif isinstance(value, types.MethodType):
            self._all("method", [value.__func__, value.__self__])
        elif isinstance(value, types.FunctionType):
            self._function(value)
        elif isinstance(value, types.CodeType):
            self._code(value)
        elif isinstance(value, type):
            self._type(value)
        elif isinstance(value, (types.BuiltinFunctionType, types.ModuleType)):
            self._text(f"{getattr(value, '__module__', '')} {value.__name__}")
        elif isinstance(value, nn.Module):
            hidden = ("_parameters", "_buffers", "_modules")
            own = {k: v for k, v in vars(value).items() if not k.startswith("_") or k in hidden}
            self._all("module", [type(value), own])
        else:
            slots = [n for c in type(value).__mro__ for n in getattr(c, "__slots__", ())]
            own = {n: getattr(value, n) for n in slots if isinstance(n, str) and hasattr(value, n)}
            own.pop("__dict__", None)
            own.pop("__weakref__", None)
            self._all("object", [type(value), own | getattr(value, "__dict__", {})])

    def _function(self, value: types.FunctionType) -> None:
        cells = [cell.cell_contents for cell in value.__closure__ or () if _filled(cell)]
        named = {}
        for name in _names(value.__code__):
            found = value.__globals__.get(name)
            own = isinstance(found, (types.FunctionType, type)) and (
                found.__module__ == value.__module__
            )
            if own or isinstance(found, (bool, int, float, str, tuple, list, dict, Tensor)):
                named[name] = found
        self._all(
            f"function {value.__qualname__}",
            [value.__code__, value.__defaults__, value.__kwdefaults__, cells, named],
        )

    def _code(self, code: types.CodeType) -> None:
        self.version = f"{sys.version_info.major}.{sys.version_info.minor}:"
        self.hash.update(code.co_code)
        self._all("code", [code.co_names, code.co_varnames, *code.co_consts])

    def _type(self, value: type) -> None:
        self._text(f"type {value.__module__} {value.__qualname__}")
        if value.__module__.partition(".")[0] in _KNOWN and value.__module__ != "__main__":
            return
        kinds = (types.FunctionType, bool, int, float, str, tuple, property, staticmethod)
        for name, part in vars(value).items():
            if isinstance(part, kinds) and name not in ("__module__", "__doc__", "__qualname__"):
                self._text(name)
                inner = part.fget if isinstance(part, property) else part
                self.add(inner.__func__ if isinstance(inner, staticmethod) else inner)
        self._all("bases", [base for base in value.__bases__ if base is not object])

    def _all(self, what: str, parts: list[Any]) -> None:
        self._text(f"{what} {len(parts)}")
        for part in parts:
            self.add(part)

    def _text(self, text: str) -> None:
        self.hash.update(text.encode("utf-8", "surrogateescape") + b"\0")


def _names(code: types.CodeType) -> list[str]:
    """Return the names that code and the functions inside it look up."""
    inner = [name for c in code.co_consts if isinstance(c, types.CodeType) for name in _names(c)]
    return [*code.co_names, *inner]


def _filled(cell: types.CellType) -> bool:
    try:
        return cell.cell_contents is not cell
    except ValueError:  # a name of an enclosing function that has no value yet
        return False
