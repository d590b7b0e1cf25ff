"""Normalisation of a traced graph: data flow made explicit.

An in-place operator's result replaces its operand in everything that runs later, and reading
piece i of a split becomes one operator of its own.
"""

from __future__ import annotations

import itertools
import operator
from typing import Any

import torch
from torch import fx, nn

from pursuitify import errors
from pursuitify.compiler.tracing import aliasing, nodes
from pursuitify.compiler.tracing.nodes import describe, is_inplace, module_path
from pursuitify.rules import default, split_ops


def split_pieces(graph: fx.Graph, root: nn.Module) -> None:
    """Replace ``getitem(chunk(x, ...), i)`` by one operator that returns piece i.

    And so ``torch.max(x, dim)``, of which ``values`` and ``indices`` are read, and its kin.
    """
    _split_pairs(graph, root)
    for node in list(graph.nodes):
        if split_ops.splitter_of(node) is None:
            continue
        for user in list(node.users):
            reads = user.op == "call_function" and user.target is operator.getitem
            if reads and isinstance(user.args[1], int):
                with graph.inserting_before(user):
                    piece = graph.call_function(*split_ops.piece_of(node, user.args[1]))
                piece.meta = {**node.meta, "split": node.name}
                user.replace_all_uses_with(piece)
                graph.erase_node(user)
        if not node.users:
            graph.erase_node(node)


#: Where the values and the indices stand in what chooses entries, by position and by name.
_ITEMS = {0: 0, 1: 1, -2: 0, -1: 1, "values": 0, "indices": 1}


def _split_pairs(graph: fx.Graph, root: nn.Module) -> None:
    """Replace what returns values and their indices by one operator for each of the two."""
    for node in list(graph.nodes):
        made = _piece_makers(node, root)
        if made is None:
            continue
        for user in list(node.users):
            reads = user.op == "call_function" and user.target in {operator.getitem, getattr}
            key = user.args[1] if reads and user.args[0] is node else None
            if not isinstance(key, (int, str)) or key not in _ITEMS:
                continue
            function, named = made[_ITEMS[key]]
            with graph.inserting_before(user):
                piece = graph.call_function(function, (node.all_input_nodes[0],), named)
            piece.meta = dict(node.meta)
            user.replace_all_uses_with(piece)
            graph.erase_node(user)
        if not node.users:
            graph.erase_node(node)


def _piece_makers(node: fx.Node, root: nn.Module) -> list[tuple[Any, dict[str, Any]]] | None:
    """Return the function and the arguments of the values, and those of the indices."""
    choice, pool = split_ops.choice_of(node), split_ops.pool_of(node, root)
    if choice is not None:
        return [(split_ops.chosen_values, choice), (split_ops.chosen_indices, choice)]
    if pool is None:
        return None
    name, sizes = pool
    indices = (split_ops.pooled_indices, {"name": name, **sizes})
    return [(getattr(torch.nn.functional, name), sizes), indices]


#: Functions that return a dtype, not a tensor.
_DTYPES = (torch.promote_types, torch.result_type)
#: Methods that take a size from another tensor, and those that take the size itself.
_EINSUM = (torch.einsum, torch.functional.einsum)
_AS_ANOTHER = {"expand_as": "expand", "view_as": "view", "reshape_as": "reshape"}


def spell_out(graph: fx.Graph) -> None:
    """Write by name what a method takes from another tensor, or from a type of old.

    ``x.type_as(y)`` and ``x.to(y)`` become ``x.to(device=y.device, dtype=y.dtype)``, and
    ``x.expand_as(y)`` becomes ``x.expand(y.shape)``: of ``y`` its form alone counts, not its
    values, on which the input may have acted. ``x.type(t)`` becomes ``x.to(...)``. The operands of
    ``torch.einsum`` come first, as one sequence, and so do those of ``torch.where`` and its kin.
    """
    for node in graph.nodes:
        if node.target in _EINSUM and isinstance(node.args[0], str):
            listed = node.args[1:] if isinstance(node.args[1], fx.Node) else node.args[1]
            node.target, node.args = split_ops.einsum, (tuple(listed), node.args[0])
        if node.op != "placeholder" and node.target in split_ops.OPERANDS_FIRST:
            _put_operands_first(node)
        if "out" in node.kwargs and node.kwargs["out"] is None:  # as torch.tensordot passes it
            node.kwargs = {k: v for k, v in node.kwargs.items() if k != "out"}
        if node.op != "call_method" or len(node.args) < 2:
            continue
        other = node.args[1]
        tensor = isinstance(other, fx.Node) and not nodes.is_shape(other)
        tensor = tensor and other.target not in _DTYPES
        if tensor and node.target in ("type_as", "to"):
            read = {name: _attribute(graph, node, other, name) for name in ("device", "dtype")}
            rest = dict(zip(("non_blocking", "copy"), node.args[2:], strict=False))
            node.target, node.kwargs = "to", {**node.kwargs, **read, **rest}
            node.args = (node.args[0],)
        elif tensor and node.target in _AS_ANOTHER:
            shape = _attribute(graph, node, other, "shape")
            node.target, node.args = _AS_ANOTHER[node.target], (node.args[0], shape)
        elif node.target == "type" and isinstance(other, str):
            kind: Any = getattr(torch, other.removeprefix("torch."), None)
            if isinstance(kind, type(torch.FloatTensor)):
                node.args = node.args[:1]
                node.kwargs = {**node.kwargs, "device": "cpu", "dtype": kind.dtype}
                node.target = "to"
        elif node.target == "type":
            node.target = "to"


def _put_operands_first(node: fx.Node) -> None:
    """Let a node call the function of ``split_ops.OPERANDS_FIRST`` that stands for its own.

    ``torch.where`` of the condition alone, which returns indices, is left as it is.
    """
    function, names = split_ops.OPERANDS_FIRST[node.target]
    named = {("input" if k == "self" else k): v for k, v in node.kwargs.items()}
    given = {**dict(zip(names, node.args, strict=False)), **named}
    operands = [n for n in names if n in ("input", "other", "source", "src")]
    if given.keys() <= {*names} and all(n in given for n in operands):
        node.op, node.target = "call_function", function
        node.args = tuple(given.pop(n) for n in operands)
        node.kwargs = given


def _attribute(graph: fx.Graph, node: fx.Node, owner: fx.Node, name: str) -> fx.Node:
    """Return a node before another one that reads an attribute."""
    with graph.inserting_before(node):
        read = graph.call_function(getattr, (owner, name))
    read.meta = dict(node.meta)
    return read


def functionalise(graph: fx.Graph, root: nn.Module) -> None:
    """Let everything that runs after an in-place operator read its result.

    Raises:
        ConversionError: If one writes into memory that is read later under another name.
    """
    order = {node: i for i, node in enumerate(graph.nodes)}
    writes = {
        node: node.args[0]
        for node in graph.nodes
        if node.args and isinstance(node.args[0], fx.Node) and is_inplace(node, root)
    }
    owners = aliasing.origins(graph, root, default(), writes)
    problems = []
    for node, operand in writes.items():
        if operand.op == "get_attr" or nodes.is_shape(operand):
            continue
        stale = [
            (other, user)
            for other in itertools.islice(order, order[node])
            if other is not operand and aliasing.overlap(owners[other], owners[operand])
            for user in other.users
            if order[user] > order[node] and not nodes.is_shape(user)
        ]
        if stale:
            other, user = stale[0]
            problems.append(
                errors.Problem(
                    node.name,
                    describe(node, root),
                    module_path(node),
                    f"writes in place into {operand.name}, which may share memory with "
                    f"{other.name}, which {user.name} reads later",
                    f"Use the out-of-place form there, or write into {operand.name}.clone()",
                )
            )
        for user in [u for u in operand.users if order[u] > order[node]]:
            user.replace_input_with(operand, node)
    if problems:
        raise errors.ConversionError("In-place writes through views cannot be followed:", problems)
