"""Records of tensors taken apart and put together again.

A bound dictionary is a tree of records (rows, maps, activations) with tensors at its ends. What is
kept for later keeps the records without the tensors, which then go where autograd sees them: each
is an argument of its own, listed once however many records hold it, so that no derivative is lost
and none counted twice.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor

Record = TypeVar("Record")


@dataclass(frozen=True)
class Hole:
    """The place of a tensor that was taken out.

    Attributes:
        index: Which tensor.
    """

    index: int


def take_out(record: Record) -> tuple[Record, list[Tensor]]:
    """Return the record with holes for tensors, and the tensors, each once.

    Args:
        record: Tensors in attributes, tuples, lists and dictionaries, at any depth. What hides in
            closures stays where it is. Nothing is changed in place; records that hold no tensor
            are shared.
    """
    tensors: list[Tensor] = []
    places: dict[int, Hole] = {}

    def change(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if id(value) not in places:
            places[id(value)] = Hole(len(tensors))
            tensors.append(value)
        return places[id(value)]

    return _changed(record, change, {}), tensors


def put_in(record: Record, tensors: Sequence[Tensor]) -> Record:
    """Return a record with tensors in its holes."""

    def change(value: Any) -> Any:
        return tensors[value.index] if isinstance(value, Hole) else value

    filled: Record = _changed(record, change, {})
    return filled


def holes(record: object) -> list[int]:
    """Return which tensors were taken out of a record, each once, in order."""
    found: dict[int, None] = {}

    def change(value: Any) -> Any:
        if isinstance(value, Hole):
            found[value.index] = None
        return value

    _changed(record, change, {})
    return list(found)


def _changed(value: Any, change: Callable[[Any], Any], known: dict[int, tuple[Any, Any]]) -> Any:
    """Return ``value`` with its ends changed; records that several others share stay shared."""
    if isinstance(value, (Tensor, Hole)):
        return change(value)
    if id(value) not in known:
        # The value itself is kept beside its image: its id must not be given to another.
        known[id(value)] = (value, value)
        known[id(value)] = (value, _rebuilt(value, change, known))
    return known[id(value)][1]


def _rebuilt(value: Any, change: Callable[[Any], Any], known: dict[int, tuple[Any, Any]]) -> Any:
    if isinstance(value, (tuple, list)):
        items = [_changed(item, change, known) for item in value]
        if all(new is old for new, old in zip(items, value, strict=True)):
            return value
        return value._make(items) if hasattr(value, "_make") else type(value)(items)
    if isinstance(value, dict):
        entries = {key: _changed(item, change, known) for key, item in value.items()}
        same = all(entries[key] is item for key, item in value.items())
        return value if same else entries
    if isinstance(value, type) or not hasattr(value, "__dict__"):
        return value
    attributes = {name: _changed(item, change, known) for name, item in vars(value).items()}
    if all(attributes[name] is item for name, item in vars(value).items()):
        return value
    image = copy.copy(value)
    vars(image).update(attributes)
    return image
