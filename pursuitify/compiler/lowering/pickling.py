"""A program as bytes and back, for pickle: torch.save, and processes that are started afresh.

Generated functions have no place where pickle could find them, so what they were generated from is
kept: the nodes of the source graph one by one, then the rows and sites, which refer to nodes and
to built-in rules by name. ``emit.revive`` generates the functions again.
"""

from __future__ import annotations

import importlib
import io
import pickle
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from types import FunctionType
from typing import Any

from torch import fx

from pursuitify.compiler.tracing.nodes import module_path, note_return, returned_by
from pursuitify.errors import CheckpointError
from pursuitify.rules import Rule, default


@dataclass(frozen=True, eq=False)
class Stored:
    """A program without its code.

    Attributes:
        content: What ``dump`` wrote.
    """

    content: bytes

    def load(self) -> tuple[fx.Graph, Any]:
        """Return the graph, and the rest, which refers to its nodes."""
        return _Unpickler(io.BytesIO(self.content)).load_all()


def dump(graph: fx.Graph, rest: Any) -> Stored:
    """Write a graph and what refers to its nodes.

    Raises:
        CheckpointError: If there are functions or rules in it that pickle cannot find by name.
    """
    buffer = io.BytesIO()
    pickler = _Pickler(buffer)
    try:
        for part in (len(graph.nodes), *_entries(graph), rest):
            pickler.dump(part)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise CheckpointError(
            f"this network cannot be pickled: {error}. Its functions and rules would have to be "
            "found by name in a module, not inside a function or a lambda. pursuitify.save(net, "
            "path) and pursuitify.load(path, model) need no pickle"
        ) from error
    return Stored(buffer.getvalue())


def _entries(graph: fx.Graph) -> Iterator[tuple[Any, ...]]:
    for node in graph.nodes:
        paths = module_path(node), returned_by(node)
        yield node.op, node.name, node.target, node.args, node.kwargs, *paths


class _Pickler(pickle.Pickler):
    """Refers to nodes by name, to built-in rules by what they are registered for."""

    def __init__(self, buffer: io.BytesIO) -> None:
        super().__init__(buffer)
        self._keys = {id(rule): key for key, rule in default().items()}

    def persistent_id(self, obj: Any) -> tuple[Any, ...] | None:
        if isinstance(obj, fx.Node):
            return "node", obj.name
        if isinstance(obj, Rule):
            key = self._keys.get(id(obj))
            return None if key is None else ("rule", key)
        if isinstance(obj, FunctionType) and "<locals>" in obj.__qualname__:
            # As torch.nn.functional.max_pool2d: made by a function, found in its module.
            name, module = obj.__name__, sys.modules.get(obj.__module__)
            found = getattr(module, name, None)
            return ("function", obj.__module__, name) if found is obj else None
        return None


class _Unpickler(pickle.Unpickler):
    """Reads what ``_Pickler`` wrote, node by node."""

    def load_all(self) -> tuple[fx.Graph, Any]:
        self.graph, self.nodes = fx.Graph(), dict[str, fx.Node]()
        for _ in range(self.load()):
            op, name, target, args, kwargs, path, returned = self.load()
            node = self.graph.create_node(op, target, args, kwargs, name)
            node.name = name
            node.meta["nn_module_stack"] = {path: (path, "")}
            for block in returned:
                note_return(node, block)
            self.nodes[name] = node
        return self.graph, self.load()

    def persistent_load(self, pid: Any) -> Any:
        kind, *rest = pid
        if kind == "node":
            return self.nodes[rest[0]]
        if kind == "rule":
            return default()[rest[0]]
        return getattr(importlib.import_module(rest[0]), rest[1])
