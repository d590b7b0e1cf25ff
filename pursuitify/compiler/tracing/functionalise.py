"""Normalisation of a traced graph: data flow made explicit.

An in-place operator's result replaces its operand in everything that runs later, reading
piece i of a split becomes one operator of its own, and a ReLU that is written out becomes one.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

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
    What ``torch.diff`` puts before and after its operand is put there by a concatenation.
    """
    for node in graph.nodes:
        if node.target in (torch.diff, "diff"):
            _put_borders_in(graph, node)
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


def _put_borders_in(graph: fx.Graph, node: fx.Node) -> None:
    """Let ``torch.diff`` read a concatenation, as it does itself, instead of ``prepend=``."""
    names = ("input", "n", "dim", "prepend", "append")
    given: dict[str, Any] = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
    borders = [given.pop(name, None) for name in ("prepend", "append")]
    if given.keys() <= set(names) and any(border is not None for border in borders):
        x = given.pop("input")
        parts = tuple(p for p in (borders[0], x, borders[1]) if p is not None)
        with graph.inserting_before(node):
            joined = graph.call_function(torch.cat, (parts,), {"dim": given.get("dim", -1)})
        joined.meta = dict(node.meta)
        joined.meta.pop("returned_by", None)
        node.args, node.kwargs = (joined,), given


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


#: Comparisons with 0, and whether they hold where an entry is above it.
_ABOVE: dict[Any, bool] = {
    **dict.fromkeys((operator.gt, operator.ge, torch.gt, torch.ge, "gt", "ge"), True),
    **dict.fromkeys((operator.lt, operator.le, torch.lt, torch.le, "lt", "le"), False),
}
_NOT = (operator.invert, torch.logical_not, torch.bitwise_not, "logical_not", "bitwise_not")
_PRODUCT = (operator.mul, operator.imul, torch.mul, torch.multiply, "mul", "mul_", "multiply")
_FILL = (torch.masked_fill, "masked_fill", "masked_fill_")
_GREATER = (torch.maximum, torch.max, "maximum", "max")
_DETACHED = ("detach", torch.detach)
#: Casts of a mask to a dtype that they name.
_CASTS = {"float": torch.float32, "double": torch.float64}


def written_activations(graph: fx.Graph, constants: Mapping[str, Tensor]) -> None:
    """Replace what is ReLU or LeakyReLU written out by a call of it.

    Those are ``x * (x > 0)``, the mask cast or not, ``torch.where(x > 0, x, 0)``,
    ``x.masked_fill(x < 0, 0)`` and ``torch.maximum(x, zeros)``, and with ``s * x`` in the place of
    zero, for a number 0 < s < 1, LeakyReLU. Their finite values are the same; the derivative at 0
    is that of the activation. Nothing else is replaced, nor an input times a mask of itself, which
    is known.

    Args:
        graph: The graph, after ``functionalise``.
        constants: Tensors that the forward made, by the name that the graph reads.
    """
    for node in list(graph.nodes):
        found = _written(node, constants)
        if found is None:
            continue
        x, slope, dtype = found
        read = node.all_input_nodes
        node.op, node.kwargs = "call_function", {}
        if slope:
            node.target, node.args = F.leaky_relu, (x, slope)
        elif dtype is None:
            node.target, node.args = F.relu, (x,)
        else:
            node.target, node.args = split_ops.positive_part, (x, dtype)
        _erase_unread(graph, [n for n in read if n is not x])


def _erase_unread(graph: fx.Graph, read: list[fx.Node]) -> None:
    """Erase what nothing reads any more: masks, zeros and what they are made of."""
    while read:
        node = read.pop()
        if not node.users and node.op not in ("placeholder", "output"):
            read += node.all_input_nodes
            graph.erase_node(node)


#: What is the activation's operand, its slope below 0, and a dtype that its value has at least.
_Written = tuple[fx.Node, float, torch.dtype | None]


def _written(node: fx.Node, constants: Mapping[str, Tensor]) -> _Written | None:
    """Return what activation a node is, written out; None if it is none."""
    if node.op not in ("call_function", "call_method") or nodes.is_shape(node):
        return None
    names = ("input", "mask", "value") if node.target in _FILL else ("input", "other")
    given: dict[str, Any] = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
    if node.target is split_ops.where:
        names = (*names, "condition")
    if set(given) != set(names):
        return None
    first, second = given["input"], given[names[1]]
    if node.target in _PRODUCT:
        for x, mask in ((first, second), (second, first)):
            factor, dtype = _uncast(mask, x)
            known = not isinstance(x, fx.Node) or x.op == "placeholder"
            if not known and _above(factor, x, constants) is True:
                return x, 0.0, dtype
    elif node.target in _FILL:
        zero = _is_zero_number(given["value"])
        return (first, 0.0, None) if zero and _above(second, first, constants) is False else None
    elif node.target is split_ops.where:
        for x, low, high in ((first, second, True), (second, first, False)):
            if isinstance(x, fx.Node) and _above(given["condition"], x, constants) is high:
                return _with_slope(x, low, constants)
    elif node.target in _GREATER:
        for x, low in ((first, second), (second, first)):
            found = None
            if isinstance(x, fx.Node) and isinstance(low, fx.Node):
                found = _with_slope(x, low, constants)
            if found is not None:
                return found
    return None


def _with_slope(x: fx.Node, low: Any, constants: Mapping[str, Tensor]) -> _Written | None:
    """Return the activation that is ``x`` above 0 and ``low`` below, if that is ``s * x``."""
    if _is_zero_number(low):
        return x, 0.0, None
    if not isinstance(low, fx.Node):
        return None
    if low.op == "get_attr":
        zero = constants.get(str(low.target))
        if zero is None or zero.dim() > 1 or zero.numel() != 1 or bool(zero.any()):
            return None
        return x, 0.0, zero.dtype if zero.dim() else None
    if low.target is torch.zeros_like and low.args == (x,) and not low.kwargs:
        return x, 0.0, None
    if low.target in _PRODUCT and x in low.args and not low.kwargs:
        slopes = [a for a in low.args if isinstance(a, (int, float))]
        if len(slopes) == 1 and 0 <= slopes[0] < 1:
            return x, float(slopes[0]), None
    return None


def _is_zero_number(value: Any) -> bool:
    return type(value) in (int, float) and value == 0


def _uncast(mask: Any, x: Any) -> tuple[Any, torch.dtype | None]:
    """Return a mask before its cast, and the dtype that the cast names, if it is not that of x."""
    if not isinstance(mask, fx.Node) or mask.op != "call_method":
        return mask, None
    if mask.target in _CASTS and len(mask.args) == 1 and not mask.kwargs:
        return mask.args[0], _CASTS[str(mask.target)]
    given = {**dict(zip(("dtype",), mask.args[1:], strict=False)), **mask.kwargs}
    if mask.target != "to" or len(mask.args) > 2 or not given.keys() <= {"dtype", "device"}:
        return mask, None
    wanted = given.get("dtype")
    dtype = wanted if isinstance(wanted, torch.dtype) and wanted.is_floating_point else None
    for name, value in given.items():
        own = isinstance(value, fx.Node) and value.target is getattr and value.args == (x, name)
        if not own and (name == "device" or dtype is None):
            return mask, None
    return mask.args[0], dtype


def _above(mask: Any, x: Any, constants: Mapping[str, Tensor]) -> bool | None:
    """Return whether a mask holds where ``x`` is above 0 (True) or below (False); None if neither.

    What it says of 0 itself makes no difference.
    """
    if not isinstance(mask, fx.Node) or mask.kwargs:
        return None
    if mask.target in _NOT and len(mask.args) == 1:
        inner = _above(mask.args[0], x, constants)
        return None if inner is None else not inner
    if mask.target not in _ABOVE or len(mask.args) != 2:
        return None
    value, bound = mask.args
    if isinstance(value, fx.Node) and value.target in _DETACHED:
        value = value.args[0]
    zero = _is_zero_number(bound)
    if not zero and isinstance(bound, fx.Node) and isinstance(x, fx.Node):
        found = _with_slope(x, bound, constants)
        zero = found is not None and found[1] == 0
    return _ABOVE[mask.target] if value is x and zero else None
