"""A short hash of what a run depends on: tensors, modules, options, functions of the user's own.

Two values with the same hash do the same; two with different hashes may. A function is hashed with
its code, its defaults, and the values it reads from outside (closure, globals, the object it is
bound to), so that a function edited between two runs, or one that reads another constant, is told
from the old one. Installed libraries count by name and version and are not looked into.
"""

from __future__ import annotations

import functools
import hashlib
import random
import sys
import types
from collections.abc import Iterator, Mapping, Set
from typing import Any

import torch
from torch import Tensor, nn

_PLAIN = (type(None), bool, int, float, complex, str, bytes, type(...))
_NAMED = (torch.dtype, torch.device, torch.Size, torch.layout, range, slice)
#: What every module has: no setting of the user's.
_OWN = {*vars(nn.Module()), "inplace"}


def fingerprint(*things: object) -> str:
    """Return 16 hexadecimal digits for all ``things`` together.

    Args:
        things: Anything. Of a module: what its state_dict holds and how it prints. Of an object of
            no known kind: its class and its attributes.
    """
    writer = _Writer()
    for thing in things:
        writer.add(thing)
    return writer.digest.hexdigest()[:16]


def attributes(module: nn.Module) -> dict[str, str]:
    """Return a hash of each number, text or tensor that a module or one inside it keeps plainly.

    Those are what a state_dict does not hold: the mean of a normalisation written as
    ``self.mean = 0.4``, a buffer that is not persistent. Modules of this library are passed over:
    what they compute is said by their settings.

    Returns:
        Path of the attribute to its hash.
    """
    found = {}
    for path, part in module.named_modules():
        if type(part).__module__.split(".")[0] == "pursuitify":
            continue
        left_out = part._non_persistent_buffers_set
        loose = {name: part._buffers[name] for name in left_out if name in part._buffers}
        for name, value in {**vars(part), **loose}.items():
            if name not in _OWN and _is_value(value):
                found[f"{path}.{name}" if path else name] = fingerprint(value)
    return found


def _is_value(value: object) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_is_value, value))
    if isinstance(value, dict):
        return all(map(_is_value, value.values()))
    return isinstance(value, (*_PLAIN, *_NAMED, Tensor)) or _is_array(value)


def _is_array(value: object) -> bool:
    return type(value).__module__ == "numpy" and hasattr(value, "tobytes")


class _Writer:
    """Feeds values to a hash; one that was met before is a number, so that cycles end."""

    def __init__(self) -> None:
        self.digest = hashlib.sha256()
        self._met: dict[int, tuple[int, object]] = {}  # holding the object keeps its id its own

    def add(self, value: object) -> None:
        """Hash a value with its kind and its length, so that no two read alike."""
        if isinstance(value, (*_PLAIN, *_NAMED)):
            self._text(f"{type(value).__name__} {value!r}")
            return
        if id(value) in self._met:
            self._text(f"met {self._met[id(value)][0]}")
            return
        self._met[id(value)] = len(self._met), value
        if isinstance(value, Tensor):
            self._tensor(value)
        elif _is_array(value):
            array: Any = value
            self._text(f"array {array.dtype} {array.shape}")
            self.digest.update(array.tobytes())
        elif isinstance(value, nn.Module):
            self._text(f"module {value!r}")
            self._items(value.state_dict())
        elif isinstance(value, Mapping):
            self._items(value)
        elif isinstance(value, (list, tuple)):
            self._text(f"{type(value).__name__} {len(value)}")
            for item in value:
                self.add(item)
        elif isinstance(value, Set):
            self._text("set " + " ".join(sorted(fingerprint(item) for item in value)))
        else:
            self._object(value)

    def _text(self, text: str) -> None:
        data = text.encode(errors="surrogatepass")
        self.digest.update(f"{len(data)}:".encode() + data)

    def _items(self, items: Mapping[Any, Any]) -> None:
        self._text(f"items {len(items)}")
        for name, value in items.items():
            self.add(name)
            self.add(value)

    def _tensor(self, value: Tensor) -> None:
        self._text(f"tensor {value.dtype} {tuple(value.shape)}")
        if value.device.type == "meta":
            return
        dense = value.detach().to_dense() if value.layout != torch.strided else value.detach()
        flat = dense.cpu().resolve_conj().resolve_neg().contiguous().flatten()
        self.digest.update(flat.view(torch.uint8).numpy().tobytes())

    def _object(self, value: object) -> None:
        """Hash what is neither data nor a module: functions, classes, instances."""
        if isinstance(value, types.ModuleType):
            self._library(value.__name__)
        elif isinstance(value, functools.partial):
            self._text("partial")
            for part in (value.func, value.args, value.keywords):
                self.add(part)
        elif isinstance(value, types.MethodType):
            self.add(value.__func__)
            self.add(value.__self__)
        elif isinstance(value, torch.Generator):
            self.add(value.get_state())
        elif isinstance(value, random.Random):
            self.add(value.getstate())
        elif isinstance(value, (types.FunctionType, type)):
            self._text(f"{value.__module__}.{value.__qualname__}")
            if _installed(value.__module__):
                self._library(value.__module__)
            elif isinstance(value, type):
                for base in value.__bases__:
                    self.add(base)
                self._items(dict(_members(value)))
            else:
                self._function(value)
        else:
            self.add(type(value))
            if not callable(getattr(value, "__dict__", None)):
                self._items(getattr(value, "__dict__", {}))

    def _library(self, name: str) -> None:
        top = sys.modules.get(name.split(".")[0])
        self._text(f"library {name} {getattr(top, '__version__', '')}")

    def _function(self, function: types.FunctionType) -> None:
        self._code(function.__code__)
        self.add(function.__defaults__)
        self.add(function.__kwdefaults__)
        for cell in function.__closure__ or ():
            try:
                self.add(cell.cell_contents)
            except ValueError:  # not filled yet
                self._text("empty")
        for name in sorted(set(_names(function.__code__))):
            if name in function.__globals__:
                self._text(name)
                self.add(function.__globals__[name])

    def _code(self, code: types.CodeType) -> None:
        self.digest.update(code.co_code)
        self._text(" ".join((*code.co_names, *code.co_varnames, *code.co_freevars)))
        for constant in code.co_consts:
            if isinstance(constant, types.CodeType):
                self._code(constant)
            else:
                self.add(constant)


def _names(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


def _members(kind: type) -> Iterator[tuple[str, object]]:
    """Yield the methods and the constants of a class."""
    for name, value in vars(kind).items():
        if isinstance(value, (staticmethod, classmethod)):
            yield name, value.__func__
        elif isinstance(value, property):
            yield name, value.fget
        elif isinstance(value, types.FunctionType) or (
            _is_value(value) and not (name.startswith("__") and name.endswith("__"))
        ):
            yield name, value


def _installed(module: str) -> bool:
    """Whether a module is of the standard library, of ours, or of a library with a version."""
    top = module.split(".")[0]
    if top in sys.stdlib_module_names and top != "__main__":
        return True
    return top == "pursuitify" or hasattr(sys.modules.get(top), "__version__")
