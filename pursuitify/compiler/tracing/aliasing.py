"""Aliases: values that may share memory, so that an in-place write into one changes the other.

The default is that they may: an operation hands its operands' memory on unless it is known that
its result is always memory of its own. What is not known is then refused, never computed wrongly.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping

import torch
from torch import fx, nn
from torch.nn import functional as F

from pursuitify.compiler.tracing import nodes
from pursuitify.rules import Registry

#: Who owns a piece of memory: its first holder and, for a piece of a split, (split, index).
Origin = tuple[fx.Node | str, tuple[str, int] | None]

#: Built-in layers without a rule, by the file their forward is in, that return memory of their own.
_FRESH_MODULES = {
    f"torch.nn.modules.{family}" for family in ("activation", "instancenorm", "normalization")
}
#: Functions and methods without a rule that return memory of their own.
_FRESH = {
    torch.sigmoid, torch.tanh, torch.exp, torch.softmax, torch.abs, torch.sqrt, torch.rsqrt,
    torch.pow, torch.square, torch.bmm, torch.amax, torch.std, torch.var, F.silu, F.gelu,
    F.hardswish, F.hardsigmoid, F.mish, F.elu, F.celu, F.selu, F.softplus, F.softmax,
    F.log_softmax, F.sigmoid, F.tanh, F.layer_norm, F.group_norm, F.instance_norm,
    operator.pow, "sigmoid", "tanh", "exp", "softmax", "abs", "sqrt", "rsqrt", "pow", "square",
    "bmm", "amax", "std", "var",
}  # fmt: skip


def origins(
    graph: fx.Graph, root: nn.Module, registry: Registry, writes: Mapping[fx.Node, fx.Node]
) -> dict[fx.Node, set[Origin]]:
    """Return whose memory every value may lie in.

    Args:
        graph: A graph with one node per piece of a split.
        root: The module its targets are paths in.
        registry: The rules; they say which operations return memory of their own.
        writes: The operand that each in-place operation writes into and returns.
    """
    found: dict[fx.Node, set[Origin]] = {}
    for node in graph.nodes:
        inputs = [n for n in node.all_input_nodes if not nodes.is_shape(n)]
        if node in writes:
            found[node] = found[writes[node]]
        elif node.op == "get_attr":
            found[node] = {(str(node.target), None)}
        elif not inputs or _is_fresh(node, root, registry):
            found[node] = {(node, None)}
        elif "split" in node.meta and found[inputs[0]] == {(inputs[0], None)}:
            found[node] = {(inputs[0], (node.meta["split"], node.args[1]))}
        else:
            found[node] = set().union(*(found[n] for n in inputs))
    return found


def overlap(first: set[Origin], second: set[Origin]) -> bool:
    """Whether two values may share memory; two pieces of one split do not."""
    return any(a[0] == b[0] and not _apart(a[1], b[1]) for a in first for b in second)


def _apart(first: tuple[str, int] | None, second: tuple[str, int] | None) -> bool:
    if first is None or second is None or first[0] != second[0]:
        return False
    return first[1] != second[1] and (first[1] < 0) == (second[1] < 0)


def _is_fresh(node: fx.Node, root: nn.Module, registry: Registry) -> bool:
    if nodes.is_shape(node) or nodes.is_like(node):
        return True
    if "out" in node.kwargs:
        return False
    module = nodes.module_of(node, root)
    if module is not None:
        if module._forward_hooks or module._forward_pre_hooks:
            return False
        if type(module).forward.__module__ in _FRESH_MODULES:
            return True
    rule = registry.find(node, root)
    known = node.op in {"call_function", "call_method"} and node.target in _FRESH
    return known if rule is None else rule.fresh
