"""The guard that holds the networks and the process's state while a user's own attack runs.

Such an attack is given the network itself. If it trains it, switches its mode, sets an attribute or
leaves a hook behind, everything after it would be said of another network. So the networks are
held before, compared after, and given back as they were.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pursuitify.solvers.settings import OPTIONS
from pursuitify.utils import random_state

#: Where a module keeps its parts: their objects count here, the tensors' entries below.
_PARTS = ("_parameters", "_buffers", "_modules")
#: What a module of this library computes with; what else it keeps are caches, which passes change.
_SETTINGS = frozenset({"_self_check", *(f"_{name}" for name in OPTIONS)})
_PLAIN = (type(None), bool, int, float, complex, str, bytes)
#: How deep lists and dicts of an attribute are looked into.
_DEPTH = 6
_SHOWN = 5


@dataclass(frozen=True)
class _HeldTensor:
    """A parameter or a buffer as it was.

    Attributes:
        label: What a report calls it.
        tensor: The object that the module holds.
        memory: The memory that it had, under another name.
        entries: A copy of what was in it.
        trainable: Its ``requires_grad``.
        gradient: Its ``.grad`` and a copy of that; None where it had none.
    """

    label: str
    tensor: Tensor
    memory: Tensor
    entries: Tensor
    trainable: bool
    gradient: tuple[Tensor, Tensor] | None

    @classmethod
    def of(cls, label: str, tensor: Tensor) -> _HeldTensor:
        """Hold a tensor."""
        own = tensor.grad if tensor.is_leaf else None
        gradient = None if own is None else (own, own.detach().clone())
        memory = tensor.detach()
        return cls(label, tensor, memory, memory.clone(), tensor.requires_grad, gradient)

    def differs(self) -> bool:
        """Whether its entries, shape, type or device are others."""
        return not _equal(self.tensor.detach(), self.entries)

    @torch.no_grad()
    def restore(self) -> None:
        """Give it its memory, the entries in it, its flag and its gradient back."""
        if not _equal(self.memory, self.entries):
            self.memory.copy_(self.entries)
        if not _is_memory(self.tensor, self.memory):
            # Not copied into: the memory that it has now may be another network's.
            self.tensor.data = self.memory
        if not self.tensor.is_leaf:
            return
        if self.tensor.requires_grad is not self.trainable:
            self.tensor.requires_grad_(self.trainable)
        if self.gradient is None:
            self.tensor.grad = None
            return
        gradient, entries = self.gradient
        if not _equal(gradient.detach(), entries):
            gradient.copy_(entries)
        if self.tensor.grad is not gradient:
            self.tensor.grad = gradient


@dataclass(frozen=True)
class _HeldAttribute:
    """An attribute of a module as it was.

    Attributes:
        label: What a report calls it.
        module: The module.
        name: The attribute's name in the module's ``__dict__``.
        value: The object; ``_ABSENT`` where there was none.
        content: A copy of what it held, as deep as that can change in place.
    """

    label: str
    module: nn.Module
    name: str
    value: Any
    content: Any

    def differs(self) -> bool:
        """Whether it holds something else now; another object with the same content does not."""
        now = vars(self.module).get(self.name, _ABSENT)
        if now is _ABSENT or self.value is _ABSENT:
            return now is not self.value
        if self.name in _PARTS:
            return not _holds(now, self.content)
        return not _has(now, self.content)

    def restore(self) -> None:
        """Give the attribute its object and content back."""
        own = vars(self.module)
        if self.value is _ABSENT:
            own.pop(self.name, None)
            return
        own[self.name] = self.value
        if self.name in _PARTS:
            self.value.clear()
            self.value.update(self.content)
        elif not _has(self.value, self.content):
            own[self.name] = _filled(self.value, self.content)


_ABSENT = object()


class NetworkGuard:
    """Networks as they are at one moment: parameters, buffers, modes, attributes, modules, hooks.

    ``requires_grad`` and ``.grad`` of the parameters are restored as well, but are no changes: a
    network does not compute with them.
    """

    def __init__(self, subjects: Mapping[str, nn.Module]) -> None:
        """Hold networks by name; the first is the one that reports call nothing but its paths."""
        self._tensors: dict[int, _HeldTensor] = {}
        self._attributes: list[_HeldAttribute] = []
        self._seen: dict[int, tuple[str, nn.Module, str]] = {}
        for number, (name, root) in enumerate(subjects.items()):
            of = "" if number == 0 else f" of {name!r}"
            for path, module in root.named_modules():
                self._hold(path, module, of)

    def _hold(self, path: str, module: nn.Module, of: str) -> None:
        if id(module) in self._seen:
            return
        self._seen[id(module)] = (path, module, of)
        prefix = f"{path}." if path else ""
        for kind, held in (("weight", module._parameters), ("buffer", module._buffers)):
            for name, tensor in held.items():
                if tensor is not None and id(tensor) not in self._tensors:
                    label = f"{kind} {prefix}{name}{of}"
                    self._tensors[id(tensor)] = _HeldTensor.of(label, tensor)
        for name, value in vars(module).items():
            if _counts(module, name):
                label = _label(path, name) + of
                content = dict(value) if name in _PARTS else _copied(value)
                self._attributes.append(_HeldAttribute(label, module, name, value, content))

    def _differing(self) -> Iterator[tuple[str, Callable[[], None]]]:
        """Yield what differs, and how it is put right."""
        for attribute in [*self._attributes, *self._added()]:
            if attribute.differs():
                yield attribute.label, attribute.restore
        for held in self._tensors.values():
            if held.differs():
                yield held.label, held.restore

    def _added(self) -> Iterator[_HeldAttribute]:
        """Yield the attributes that were not there."""
        known = {(id(held.module), held.name) for held in self._attributes}
        for path, module, of in self._seen.values():
            for name in list(vars(module)):
                if _counts(module, name) and (id(module), name) not in known:
                    yield _HeldAttribute(_label(path, name) + of, module, name, _ABSENT, None)

    def changes(self) -> list[str]:
        """Return what the networks compute with and is not what it was, in words."""
        return [label for label, _ in self._differing()]

    def restore(self, but: Collection[str] = ()) -> list[str]:
        """Make the networks what they were, and return what had changed.

        Args:
            but: Changes that are left as they are and not returned.
        """
        found = [(label, undo) for label, undo in self._differing() if label not in but]
        for _, undo in found:
            undo()
        for held in self._tensors.values():
            if held.label not in but:
                held.restore()
        return list(dict.fromkeys(label for label, _ in found))


def in_words(changes: Collection[str]) -> str:
    """Return changes as a short text."""
    listed = list(changes)
    more = f" and {len(listed) - _SHOWN} more" if len(listed) > _SHOWN else ""
    return ", ".join(listed[:_SHOWN]) + more


@contextmanager
def process_state_kept() -> Iterator[None]:
    """Give back what belongs to the whole process.

    That are the random states of torch, NumPy and Python, whether gradients are recorded, and the
    default type.
    """
    recording, kind = torch.is_grad_enabled(), torch.get_default_dtype()
    with random_state.kept():
        try:
            yield
        finally:
            torch.set_grad_enabled(recording)
            torch.set_default_dtype(kind)


def _counts(module: nn.Module, name: str) -> bool:
    """Whether an attribute is one that a module computes with."""
    if isinstance(module, torch.jit.ScriptModule):
        return False  # what it computes with are its tensors; its attributes are not Python's
    if type(module).__module__.partition(".")[0] != "pursuitify" or not name.startswith("_"):
        return True
    return name in _PARTS or name in _SETTINGS or "_hooks" in name


def _label(path: str, name: str) -> str:
    where = f" of {path}" if path else ""
    if name == "training":
        return f"mode{where}"
    if "_hooks" in name:
        return f"hooks{where}"
    if name in _PARTS:
        return f"{name[1:]}{where}"
    return f"attribute {path}.{name}" if path else f"attribute {name}"


def _is_memory(tensor: Tensor, memory: Tensor) -> bool:
    """Whether a tensor is another name of this memory, laid out alike."""
    return (
        tensor.dtype == memory.dtype
        and tensor.device == memory.device
        and tensor.shape == memory.shape
        and (tensor.layout != torch.strided or tensor.stride() == memory.stride())
        and (tensor.layout != torch.strided or tensor.data_ptr() == memory.data_ptr())
    )


def _equal(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors hold the same, NaN in the same places included."""
    if one.shape != other.shape or one.dtype != other.dtype or one.device != other.device:
        return False
    if one.device.type == "meta" or torch.equal(one, other):
        return True
    if not (one.is_floating_point() or one.is_complex()):
        return False
    return bool(((one == other) | ((one != one) & (other != other))).all())


def _copied(value: Any, depth: int = 0) -> Any:
    """Return a copy of what can change in place inside a value; other objects are themselves."""
    if depth > _DEPTH or isinstance(value, nn.Parameter):
        return value
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, np.ndarray):
        return value.copy()
    if isinstance(value, dict):
        return {key: _copied(part, depth + 1) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_copied(part, depth + 1) for part in value]
    return set(value) if isinstance(value, set) else value


def _has(value: Any, content: Any, depth: int = 0) -> bool:
    """Whether a value holds what ``_copied`` found in it."""
    if depth > _DEPTH or isinstance(value, nn.Parameter):
        return value is content
    if isinstance(value, Tensor):
        return isinstance(content, Tensor) and _equal(value.detach(), content)
    if isinstance(value, np.ndarray):
        alike = isinstance(content, np.ndarray) and value.dtype == content.dtype
        return alike and value.shape == content.shape and value.tobytes() == content.tobytes()
    if isinstance(value, dict):
        if not isinstance(content, dict) or list(value) != list(content):
            return False
        return all(_has(part, content[key], depth + 1) for key, part in value.items())
    if isinstance(value, (list, tuple)):
        if not isinstance(content, list) or len(value) != len(content):
            return False
        return all(_has(a, b, depth + 1) for a, b in zip(value, content, strict=True))
    if isinstance(value, set):
        return isinstance(content, set) and value == content
    return _is_same(value, content)


def _holds(parts: Any, held: Mapping[str, Any]) -> bool:
    """Whether a module's parts are these very objects."""
    return list(parts) == list(held) and all(parts[name] is part for name, part in held.items())


def _filled(value: Any, content: Any) -> Any:
    """Return an object with its content put back: itself where that is possible."""
    if isinstance(value, Tensor) and isinstance(content, Tensor):
        if value.shape == content.shape and value.dtype == content.dtype:
            with torch.no_grad():
                value.copy_(content)
            return value
        return content.clone()
    if isinstance(value, np.ndarray) and value.shape == content.shape:
        value[...] = content
        return value
    if isinstance(value, dict):
        parts = {key: _filled(value.get(key), part) for key, part in content.items()}
        value.clear()
        value.update(parts)
        return value
    if isinstance(value, list):
        old = [*value, *[None] * len(content)]
        value[:] = [_filled(a, b) for a, b in zip(old, content, strict=False)]
        return value
    if isinstance(value, tuple):
        return type(value)(_filled(a, b) for a, b in zip(value, content, strict=True))
    if isinstance(value, set):
        value.clear()
        value.update(content)
        return value
    return content


def _is_same(one: Any, other: Any) -> bool:
    """Whether two are one object, or equal plain values."""
    if one is other:
        return True
    if type(one) is not type(other) or not isinstance(one, _PLAIN):
        return False
    return bool(one == other) or (one != one and other != other)
