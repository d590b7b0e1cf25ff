"""Fingerprints of data sets, by what they hold in memory and in the files that they name.

A fingerprint tells one content from another. Every entry of every tensor and array counts, and
every number and text in lists and dicts. A text that names a file stands for the file. Of files
that are 256 MiB together or less every byte counts; of more, every file's name, size and time of
modification, and the beginning of 64 of them.
"""

from __future__ import annotations

import functools
import hashlib
import os
import random
import stat
import types
from collections import deque
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from pursuitify.utils.fingerprint import MARK, HashWalk, add_tensor, is_installed, of_values
from pursuitify.utils.torch_internals import version_of

#: Bytes of files that are read whole.
_WHOLE = 2**28
#: Files whose beginning is read where there are more bytes than that, and how much of each.
_FILES, _BEGINNING = 64, 2**20
#: How deep attributes are looked into.
_DEPTH = 16
_PLAIN = (bool, int, float, complex, bytes, np.generic, range, slice, torch.dtype, torch.Size)
_NUMBERS = (bool, int, float, complex, np.number)
_PATHS = (str, os.PathLike)
_CODE = (
    types.FunctionType,
    types.MethodType,
    types.BuiltinFunctionType,
    type,
    functools.partial,
    nn.Module,
)
_DRAWS = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)
#: Libraries whose objects are looked into: their transforms and data sets are plain objects.
_OPEN = frozenset({"torch", "torchvision", "pursuitify"})


@dataclass(frozen=True)
class Content:
    """Two fingerprints of what something holds.

    Attributes:
        held: Of all that is in memory, and of its files: names, sizes, what was read of them.
        written: Of the files' times of modification, where they were too large to be read whole.
    """

    held: str
    written: str | None


def of_value(value: Any, folders: Sequence[Path] = ()) -> Content | None:
    """Return what stands for a value and all that it holds; None where it holds nothing.

    Args:
        value: Anything.
        folders: Where files are looked for whose names are relative.
    """
    walk = _ContentWalk(folders)
    walk.add(value)
    return walk.content()


def of_attributes(data: object) -> dict[str, Content]:
    """Return what stands for each attribute of a data set, and of the data sets that it wraps.

    Texts that stand alone are left out, unless they name a file. So are random generators, and
    attributes that hold nothing yet, as empty caches. ``sizes`` tells caches and counters.

    Returns:
        Path of the attribute, such as ``dataset.samples``, to its content.
    """
    found: dict[str, Content] = {}
    seen: set[int] = set()
    attributes = list(_attributes(data))
    folders = [Path(value) for _, value in attributes if _is_folder(value)]
    for path, value in attributes:
        number = isinstance(value, _NUMBERS)
        if not number and (id(value) in seen or _stands_alone(value)):
            continue
        seen.add(id(value))
        content = of_value(value, folders)
        if content is not None:
            found[path] = content
    return found


def sizes(data: object) -> dict[str, Any]:
    """Return cheap marks of the attributes that differ where reading a sample filled a cache."""
    return {path: _size(value) for path, value in _attributes(data)}


def _size(value: Any) -> Any:
    if isinstance(value, Tensor):
        return id(value), version_of(value)
    if isinstance(value, _NUMBERS):
        return repr(value)
    if isinstance(value, list):
        return len(value), sum(part is None for part in value)
    if isinstance(value, (Mapping, Set, deque)):
        return len(value)
    return id(value)


def _attributes(data: object, path: str = "", above: tuple[int, ...] = ()) -> Iterator[Any]:
    """Yield (path, value) of the attributes of a data set and of the data sets in it."""
    for name, value in _own(data).items():
        inner = [(f"{path}{name}", value)]
        if isinstance(value, (list, tuple)) and any(isinstance(part, Dataset) for part in value):
            inner = [(f"{path}{name}[{number}]", part) for number, part in enumerate(value)]
        for place, part in inner:
            if not isinstance(part, Dataset):
                yield place, part
            elif id(part) not in above:
                yield from _attributes(part, f"{place}.", (*above, id(data)))


def _own(data: object) -> dict[str, Any]:
    """Return the attributes of an object, those in slots included."""
    slots = [name for kind in type(data).__mro__ for name in getattr(kind, "__slots__", ())]
    own = {n: getattr(data, n) for n in slots if isinstance(n, str) and hasattr(data, n)}
    held = getattr(data, "__dict__", None)
    own |= held if isinstance(held, dict) else {}
    return {name: value for name, value in own.items() if name not in ("__dict__", "__weakref__")}


def _stands_alone(value: Any) -> bool:
    if isinstance(value, _PATHS):
        return _file(value) is None
    return value is None or isinstance(value, (*_PLAIN, *_DRAWS))


class _ContentWalk(HashWalk):
    """A walk through what a value holds, which gathers the files on its way."""

    def __init__(self, folders: Sequence[Path]) -> None:
        super().__init__()
        self._folders = folders
        self._files: list[tuple[str, Path]] = []
        self._open: set[int] = set()
        self._python = ""
        self._found = False

    def content(self) -> Content | None:
        """Return what was found."""
        written = None
        if self._files:
            written = _add_files(self.hash, self._files)
        if not self._found:
            return None
        return Content(f"{MARK}{self._python}{self.hash.hexdigest()}", written)

    def add(self, value: Any) -> None:
        """Add a value and all that it holds."""
        if isinstance(value, _PATHS):
            self._path(value)
        elif value is None:
            self.add_text("None")
        elif isinstance(value, _PLAIN):
            self._found = True
            self.add_text(f"{type(value).__name__} {value!r}")
        elif isinstance(value, _DRAWS):
            self.add_text(type(value).__name__)
        elif id(value) in self._open or len(self._open) > _DEPTH:
            self.add_text("above, or too deep")
        else:
            self._open.add(id(value))
            self._parts(value)
            self._open.discard(id(value))

    def _parts(self, value: Any) -> None:
        if isinstance(value, Tensor):
            self._found |= value.numel() > 0
            add_tensor(self.hash.update, value)
        elif isinstance(value, np.ndarray):
            self._array(value)
        elif isinstance(value, Mapping):
            self.add_all("mapping", [part for key in _ordered(value) for part in (key, value[key])])
        elif isinstance(value, Set):
            self.add_all("set", _ordered(value))
        elif isinstance(value, (list, tuple, deque)):
            self.add_all("list", value)
        elif isinstance(value, _CODE):
            self._code(value)
        else:
            self._object(value)

    def _array(self, value: Any) -> None:
        name = getattr(value, "filename", None)  # of a memory map, which may be larger than memory
        if isinstance(name, _PATHS) and value.nbytes > _WHOLE:
            self.add_text(f"map {value.dtype} {value.shape} {getattr(value, 'offset', 0)}")
            self._path(name)
        elif value.dtype.hasobject or value.dtype.kind in "US":
            self.add_text(f"array {value.shape}")
            self.add_all("entries", value.reshape(-1).tolist())
        else:
            self._found |= value.size > 0
            self.add_text(f"array {value.dtype} {value.shape}")
            self.hash.update(np.ascontiguousarray(value).tobytes())

    def _code(self, value: Any) -> None:
        if isinstance(value, types.MethodType):
            # What it is bound to is most often the data set, whose attributes count one by one.
            if not isinstance(value.__self__, Dataset):
                self.add(value.__self__)
            value = value.__func__
        mark = of_values(value)
        version, sign, _ = mark.removeprefix(MARK).rpartition(":")
        self._python = version + sign or self._python
        self._found = True
        self.add_text(mark)

    def _object(self, value: Any) -> None:
        """Add pictures and tables as arrays, open files by name, other objects by attributes."""
        kind = type(value)
        self.add_text(f"{kind.__module__} {kind.__qualname__}")
        array = _as_array(value)
        if array is not None:
            self._array(array)
            return
        names = [getattr(value, name, None) for name in ("filename", "name")]
        files = [name for name in names if isinstance(name, _PATHS) and _file(name) is not None]
        if files:
            self._path(files[0])
        elif not is_installed(kind.__module__) or kind.__module__.partition(".")[0] in _OPEN:
            self.add_all("object", [part for item in sorted(_own(value).items()) for part in item])

    def _path(self, value: Any) -> None:
        text = os.fsdecode(value)
        for folder in (None, *self._folders):
            found = _file(text if folder is None else folder / text)
            if found is not None:
                self._found = True
                self._files.append((text, found))
                self.add_text("file")
                return
        if not _is_folder(value):  # where a folder lies is no part of what is in it
            self._found = True
            self.add_text(f"text {text}")


def _ordered(values: Any) -> list[Any]:
    """Return the entries of a set, or the keys of a mapping, in an order that is always the same.

    Of texts, paths and numbers: the order of a set of texts is another one in every process. Of
    other things there is no order but their own.
    """
    found = list(values)
    simple = all(isinstance(part, (*_PATHS, *_PLAIN, tuple)) for part in found)
    return sorted(found, key=repr) if simple else found


def _as_array(value: Any) -> Any:
    """Return a picture, a table or a column as an array; None where it is none, or too large."""
    size = getattr(value, "nbytes", 0)
    has = hasattr(value, "__array__") or hasattr(value, "__array_interface__")
    if not has or (isinstance(size, int) and size > _WHOLE):
        return None
    try:
        found = np.asarray(value)
    except Exception:  # whatever a library raises where it has no array after all
        return None
    return found if isinstance(found, np.ndarray) else None


def _add_files(seen: Any, files: Sequence[tuple[str, Path]]) -> str | None:
    """Add files to a hash; return a fingerprint of their times where not all bytes were read."""
    absolute = [os.path.dirname(name) for name, _ in files if os.path.isabs(name)]
    try:
        top = os.path.commonpath(absolute) if absolute else ""
    except ValueError:  # on several drives
        top = ""
    facts = [_status(path) for _, path in files]
    total = sum(size for size, _ in facts)
    whole = total <= _WHOLE
    every = 1 if whole else max(1, -(-len(files) // _FILES))
    for number, ((name, path), (size, _)) in enumerate(zip(files, facts, strict=True)):
        known = os.path.relpath(name, top) if top and os.path.isabs(name) else name
        data = os.fsencode(known)
        seen.update(f"{len(data)}:".encode() + data + f" {size} ".encode())
        if number % every == 0:
            _add_bytes(seen, path, None if whole else _BEGINNING)
    if whole:
        return None
    times = hashlib.blake2b(repr([time for _, time in facts]).encode(), digest_size=16)
    return MARK + times.hexdigest()


def _status(path: Path) -> tuple[int, int]:
    """Return a file's size and time of modification in nanoseconds; zeros where it is gone."""
    try:
        found = path.stat()
    except OSError:
        return 0, 0
    return found.st_size, found.st_mtime_ns


def _add_bytes(seen: Any, path: Path, most: int | None) -> None:
    try:
        with path.open("rb") as file:
            left = most
            while block := file.read(2**20 if left is None else min(left, 2**20)):
                seen.update(block)
                left = None if left is None else left - len(block)
    except OSError as error:  # what cannot be read now is said when its sample is read
        seen.update(f"cannot be read: {error.errno}".encode())


def _mode(value: Any) -> int:
    """Return the mode of what a path names; 0 where it names nothing."""
    try:
        return os.stat(value).st_mode
    except (OSError, ValueError):  # too long, or with a character that no path has
        return 0


def _file(value: Any) -> Path | None:
    return Path(value) if value and stat.S_ISREG(_mode(value)) else None


def _is_folder(value: Any) -> bool:
    return isinstance(value, _PATHS) and stat.S_ISDIR(_mode(value))
