"""Short texts that stand for data, modules and callables: they tell whether two are the same.

A fingerprint is equal where its subject is; it says nothing about what differs. Of a callable it
covers the code and all that the code is bound to: defaults, closures, attributes, and what it names
in its module. Installed libraries count by name and version and are not looked into.
"""

from __future__ import annotations

import functools
import hashlib
import random
import re
import sys
import types
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence, Set
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

#: What fingerprints start with, so that a message does not print them.
MARK = "#"
_ENTRIES = 4096
#: Libraries whose version says nothing here: those who compare fingerprints compare it themselves,
#: or accept that a run goes on with another one.
_KNOWN = frozenset({"torch", "torchvision", "numpy", "PIL", "accelerate", "pursuitify"})
_PLAIN = (type(None), bool, int, float, complex, str, bytes, type(...))
_NAMED = (torch.dtype, torch.device, torch.Size, torch.layout, range, slice)
_CODE = (types.FunctionType, types.MethodType, type, functools.partial)
#: What every module has: no setting of the user's.
_OWN = {*vars(nn.Module()), "inplace"}
_ADDRESS = re.compile(r"0x[0-9a-fA-F]+")


def of_tensors(*tensors: Tensor) -> str:
    """Return the fingerprint of tensors: every entry, shape and type counts."""
    seen = hashlib.blake2b(digest_size=16)
    for tensor in tensors:
        add_tensor(seen.update, tensor)
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
    add_tensor(seen.update, flat)
    add_tensor(seen.update, y)


def of_values(*values: Any, attributes: bool = True) -> str:
    """Return the fingerprint of tensors, modules, callables, objects and plain values together.

    It begins with the version of Python where code is part of it: another version compiles the
    same code to something else.

    Args:
        values: Anything.
        attributes: Whether modules count with their class and all their public attributes. If not,
            they count with what they print and what their state_dict holds: attributes may be
            counters, which a pass changes. ``attributes_of`` gives those one by one.
    """
    walk = _Walk(attributes)
    for value in values:
        walk.add(value)
    return walk.text()


def attributes_of(module: nn.Module) -> dict[str, str]:
    """Return the fingerprint of each number, text or tensor that a module, or one in it, keeps.

    Those are what a state_dict does not hold: the mean of a normalisation written as
    ``self.mean = 0.4``, a buffer that is not persistent. Modules of this library are passed over:
    what they compute is said by their settings.

    Returns:
        Path of the attribute to its fingerprint.
    """
    found = {}
    for path, part in module.named_modules():
        if type(part).__module__.split(".")[0] == "pursuitify":
            continue
        left_out = part._non_persistent_buffers_set
        loose = {name: part._buffers[name] for name in left_out if name in part._buffers}
        for name, value in {**vars(part), **loose}.items():
            if name not in _OWN and _is_value(value):
                found[f"{path}.{name}" if path else name] = of_values(value)
    return found


def comparable(one: Any, other: Any) -> bool:
    """Whether two fingerprints can be compared: those of code need one version of Python."""
    found = [value.rpartition(":")[0] for value in (one, other) if isinstance(value, str)]
    return not (len(found) == 2 and all(found) and found[0] != found[1])


def holds_generator(value: Any) -> bool:
    """Whether an object is bound to a random generator of its own, whose state is not kept."""
    walk = _Walk(attributes=True)
    walk.add(value)
    return walk.generator


def add_tensor(update: Callable[[Any], Any], tensor: Tensor) -> None:
    """Add a tensor to a hash by its ``update``: every entry, shape and type counts."""
    update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
    if tensor.device.type != "meta":
        _add_entries(update, tensor)


def _add_entries(update: Callable[[Any], Any], tensor: Tensor) -> None:
    dense = tensor.detach().to_dense() if tensor.layout != torch.strided else tensor.detach()
    flat = dense.cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
    if flat.numel():
        if flat.is_quantized:
            flat = flat.int_repr()
        update(flat.view(torch.uint8).numpy())


def _is_value(value: object) -> bool:
    """Whether a value is a number, a text, an array, or a list, tuple or dict of such."""
    if isinstance(value, (list, tuple)):
        return all(map(_is_value, value))
    if isinstance(value, dict):
        return all(map(_is_value, value.values()))
    return isinstance(value, (*_PLAIN, *_NAMED, Tensor, np.ndarray, np.generic))


class HashWalk(ABC):
    """A walk through what a value holds, which adds all of it to a hash.

    Attributes:
        hash: The hash.
    """

    def __init__(self) -> None:
        """Begin with an empty hash."""
        self.hash = hashlib.blake2b(digest_size=16)

    @abstractmethod
    def add(self, value: Any) -> None:
        """Add a value and all that it holds."""

    def add_all(self, what: str, parts: Collection[Any]) -> None:
        """Add several values, with their kind and number."""
        self.add_text(f"{what} {len(parts)}")
        for part in parts:
            self.add(part)

    def add_text(self, text: str) -> None:
        """Add a text with its length, so that no two read alike."""
        data = text.encode("utf-8", "surrogatepass")
        self.hash.update(f"{len(data)}:".encode() + data)


class _Walk(HashWalk):
    """A walk through what an object is made of.

    Each object has a hash of its own, which stands for it wherever it is met: two equal parts read
    alike, be they one object or two. An object inside itself is how many levels up it is.
    """

    def __init__(self, attributes: bool) -> None:
        super().__init__()
        self.generator = False
        self.version = ""
        self._attributes = attributes
        self._open: dict[int, int] = {}  # by id: the level of an object that is being read
        self._done: dict[int, str] = {}
        self._alive: list[Any] = []  # an object that is gone could lend its id to another one

    def text(self) -> str:
        """Return the fingerprint of what was added."""
        return f"{MARK}{self.version}{self.hash.hexdigest()}"

    def add(self, value: Any) -> None:
        """Add a value and all that it holds."""
        if isinstance(value, (*_PLAIN, *_NAMED)):
            self.add_text(f"{type(value).__name__} {value!r}")
            return
        key, level = id(value), len(self._open)
        if key in self._open:
            self.add_text(f"circle {level - self._open[key]}")
            return
        if key not in self._done:
            self._alive.append(value)
            self._open[key] = level
            self._done[key] = self._alone(self._content, value)
            del self._open[key]
        self.add_text(self._done[key])

    def _alone(self, add: Callable[[Any], None], value: Any) -> str:
        """Return the hash of what ``add`` adds of a value, which is not added itself."""
        outer, self.hash = self.hash, hashlib.blake2b(digest_size=16)
        add(value)
        found, self.hash = self.hash.hexdigest(), outer
        return found

    def _content(self, value: Any) -> None:
        if isinstance(value, Tensor):
            add_tensor(self.hash.update, value)
        elif isinstance(value, (np.ndarray, np.generic)):
            self._array(value)
        elif self._draws(value):
            self.generator = True
        elif isinstance(value, Mapping):
            self.add_all("mapping", [part for item in value.items() for part in item])
        elif isinstance(value, Set):
            self.add_all("set", sorted(self._alone(self.add, item) for item in value))
        elif isinstance(value, (list, tuple)):
            self.add_all(type(value).__name__, list(value))
        else:
            self._other(value)

    def _array(self, value: Any) -> None:
        self.add_text(f"array {value.dtype} {value.shape}")
        if value.dtype == object:
            self.add(value.tolist())
        else:
            self.hash.update(value.tobytes())

    def _draws(self, value: Any) -> bool:
        """Add the state of a random generator, if the value is one."""
        if isinstance(value, torch.Generator):
            state: Any = value.get_state()
        elif isinstance(value, np.random.Generator):
            state = value.bit_generator.state
        elif isinstance(value, np.random.RandomState):
            state = value.get_state(legacy=False)
        elif isinstance(value, random.Random):
            state = None if isinstance(value, random.SystemRandom) else value.getstate()
        else:
            return False
        self.add_all(type(value).__name__, [state])
        return True

    def _other(self, value: Any) -> None:
        if isinstance(value, functools.partial):
            self.add_all("partial", [value.func, value.args, value.keywords])
        elif isinstance(value, types.MethodType):
            self.add_all("method", [value.__func__, value.__self__])
        elif isinstance(value, types.FunctionType):
            self._function(value)
        elif isinstance(value, types.CodeType):
            self._code(value)
        elif isinstance(value, type):
            self._type(value)
        elif isinstance(value, types.ModuleType):
            self._library(value.__name__, "")
        elif isinstance(value, types.BuiltinFunctionType):
            self.add_text(f"{value.__module__} {value.__name__}")
        elif isinstance(value, nn.Module):
            self._module(value)
        else:
            slots = [n for c in type(value).__mro__ for n in getattr(c, "__slots__", ())]
            own = {n: getattr(value, n) for n in slots if isinstance(n, str) and hasattr(value, n)}
            own.pop("__dict__", None)
            own.pop("__weakref__", None)
            held = getattr(value, "__dict__", None)
            name = getattr(value, "__qualname__", "")  # of a function of C
            self.add_all(
                "object", [type(value), name, own | (held if isinstance(held, dict) else {})]
            )

    def _module(self, value: nn.Module) -> None:
        if not self._attributes:
            self.add_all("module", [repr(value), value.state_dict()])
            return
        hidden = ("_parameters", "_buffers", "_modules")
        own = {k: v for k, v in vars(value).items() if not k.startswith("_") or k in hidden}
        self.add_all("module", [type(value), own])

    def _function(self, value: types.FunctionType) -> None:
        if is_installed(value.__module__):
            self._library(value.__module__, value.__qualname__)
            return
        cells = [cell.cell_contents for cell in value.__closure__ or () if _filled(cell)]
        names = sorted({n for n in _names(value.__code__) if n in value.__globals__})
        named = {name: _named(value.__globals__[name]) for name in names}
        self.add_all(
            f"function {value.__qualname__}",
            [value.__code__, value.__defaults__, value.__kwdefaults__, cells, named],
        )

    def _code(self, code: types.CodeType) -> None:
        self.version = f"{sys.version_info.major}.{sys.version_info.minor}:"
        self.hash.update(code.co_code)
        names = (code.co_names, code.co_varnames, code.co_freevars)
        self.add_all("code", [*names, *code.co_consts])

    def _type(self, value: type) -> None:
        if is_installed(value.__module__):
            self._library(value.__module__, value.__qualname__)
            return
        self.add_text(f"type {value.__module__} {value.__qualname__}")
        for name, part in _members(value):
            self.add_text(name)
            self.add(part)
        self.add_all("bases", [base for base in value.__bases__ if base is not object])

    def _library(self, module: str, name: str) -> None:
        top = module.partition(".")[0]
        version = "" if top in _KNOWN else getattr(sys.modules.get(top), "__version__", "")
        self.add_text(f"library {module} {name} {version}")


def _named(value: Any) -> Any:
    """Return what counts of a value that a function names in its module.

    Of an object of a library, such as a logger, that is how it prints: what it holds may be the
    whole process.
    """
    data = (Tensor, nn.Module, torch.Generator, random.Random, np.random.Generator)
    if _is_value(value) or isinstance(value, (*data, *_CODE, types.ModuleType)):
        return value
    if isinstance(value, (list, tuple, dict, Set)) or not is_installed(type(value).__module__):
        return value
    return type(value), _ADDRESS.sub("", repr(value))


def _names(code: types.CodeType) -> Iterator[str]:
    """Yield the names that code and the functions inside it look up."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


def _filled(cell: types.CellType) -> bool:
    try:
        return cell.cell_contents is not cell
    except ValueError:  # a name of an enclosing function that has no value yet
        return False


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


def is_installed(module: str) -> bool:
    """Whether a module is of the standard library, of ours, or of a library that was installed."""
    top = (module or "").partition(".")[0]
    if top == "__main__":
        return False
    if top in sys.stdlib_module_names or top == "pursuitify":
        return True
    parts = PurePath(getattr(sys.modules.get(top), "__file__", None) or "").parts
    return "site-packages" in parts or "dist-packages" in parts
