"""Normalisation of a traced graph: data flow made explicit.

An in-place operator's result replaces its operand in everything that runs later, and reading
piece i of a split becomes one operator of its own.
"""

from __future__ import annotations

import itertools
import operator

from torch import fx, nn

from pursuitify import aliases, errors, pieces
from pursuitify.rules import default

_INPLACE_OPERATORS = {
    operator.iadd,
    operator.isub,
    operator.imul,
    operator.itruediv,
}


def module_path(node: fx.Node) -> str:
    """Return the path of the module whose call, or whose forward, the node is."""
    if node.op == "call_module":
        return str(node.target)
    stack = node.meta.get("nn_module_stack") or {}
    entries = [entry[0] for entry in stack.values()]
    return str(entries[-1]) if entries else ""


def describe(node: fx.Node, root: nn.Module) -> str:
    """Return what the node does, in the words of its author: ``GELU``, ``softmax``, ``view``."""
    if node.op == "call_module":
        return type(root.get_submodule(str(node.target))).__name__
    if node.op == "call_function":
        return str(getattr(node.target, "__name__", node.target))
    return str(node.target)


def split_pieces(graph: fx.Graph) -> None:
    """Replace ``getitem(chunk(x, ...), i)`` by one operator that returns piece i."""
    for node in list(graph.nodes):
        splitter = pieces.splitter_of(node)
        if splitter is None:
            continue
        for user in list(node.users):
            reads = user.op == "call_function" and user.target is operator.getitem
            if reads and isinstance(user.args[1], int):
                with graph.inserting_before(user):
                    piece = graph.call_function(
                        splitter, (node.args[0], user.args[1], *node.args[1:]), dict(node.kwargs)
                    )
                piece.meta = {**node.meta, "split": node.name}
                user.replace_all_uses_with(piece)
                graph.erase_node(user)
        if not node.users:
            graph.erase_node(node)


def is_inplace(node: fx.Node, root: nn.Module) -> bool:
    """Whether the node writes into its first operand."""
    if node.op == "call_method":
        name = str(node.target)
        return name.endswith("_") and not name.endswith("__")
    if node.op == "call_module":
        return bool(getattr(root.get_submodule(str(node.target)), "inplace", False))
    if node.op == "call_function":
        name = getattr(node.target, "__name__", "")
        trailing = name.endswith("_") and not name.startswith("_")
        return node.target in _INPLACE_OPERATORS or trailing or bool(node.kwargs.get("inplace"))
    return False


def is_effect(node: fx.Node, root: nn.Module) -> bool:
    """Whether a node that nothing reads runs for what it does: guards, assertions, counters."""
    if node.users or node.op in {"placeholder", "output", "get_attr"}:
        return False
    if node.op == "call_function" and node.is_impure(impure_random=False):
        return True
    return is_inplace(node, root) and _starts_at_attribute(node)


def _starts_at_attribute(node: fx.Node) -> bool:
    """Whether the first operand is an attribute of the model, or made of one: a view, it may be."""
    while node.op != "get_attr":
        if not (node.args and isinstance(node.args[0], fx.Node)):
            return False
        node = node.args[0]
    return True


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
    owners = aliases.origins(graph, root, default(), writes)
    problems = []
    for node, operand in writes.items():
        if operand.op == "get_attr" or pieces.is_shape(operand):
            continue
        stale = [
            (other, user)
            for other in itertools.islice(order, order[node])
            if other is not operand and aliases.overlap(owners[other], owners[operand])
            for user in other.users
            if order[user] > order[node] and not pieces.is_shape(user)
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
