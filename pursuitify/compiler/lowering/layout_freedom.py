"""This module decides whether images may change memory format unnoticed by the source."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from pursuitify.compiler.tracing import nodes

#: Views that need a layout, and the operations of the same value that need none.
_FREE: dict[str, str] = {"view": "reshape", "view_as": "reshape_as"}
#: Methods and attributes that read, or depend on, how a tensor lies in memory.
_READS_LAYOUT = {
    "stride", "is_contiguous", "data_ptr", "storage_offset", "storage", "untyped_storage",
    "as_strided", "as_strided_", "set_", "resize_", "resize_as_", "numpy", "dim_order",
}  # fmt: skip
_LAYOUT_FUNCTIONS = {torch.as_strided, torch.view_as_complex, torch.as_strided_copy}
#: They draw their masks in the order of memory, unless told that they do not train.
_DROPOUTS = {F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.rrelu}
#: Packages whose functions depend on values alone; of any other function nothing is known.
_KNOWN = {"torch", "torchvision", "_operator", "builtins", "math", "pursuitify"}


def free(graph: fx.Graph, root: nn.Module) -> bool:
    """Whether no value of the source depends on how its input lies in memory.

    Then the library may choose the format. Views count as free, for generated code reshapes in
    their place (``reshape_views``). Strides, memory addresses, random numbers, which are drawn in
    the order of memory, and code that was not traced are not.
    """
    return not any(_reads_layout(node, root) for node in graph.nodes)


def _reads_layout(node: fx.Node, root: nn.Module) -> bool:
    if node.op in {"placeholder", "get_attr", "output"}:
        return False
    if nodes.is_random(node):
        return True
    if node.op == "call_module":
        return not _is_known(type(root.get_submodule(str(node.target))))
    if node.op == "call_method":
        return node.target in _READS_LAYOUT or (node.target in _FREE and _reinterprets(node))
    if node.target is getattr:
        return node.args[1] in _READS_LAYOUT
    if node.target in _DROPOUTS:
        return node.kwargs.get("training", len(node.args) < 3 or node.args[2]) is not False
    return node.target in _LAYOUT_FUNCTIONS or not _is_known(node.target)


def _is_known(what: Any) -> bool:
    module = getattr(what, "__module__", None)
    # Functions of torch that are written in C have no module.
    return module is None or str(module).partition(".")[0] in _KNOWN


def _reinterprets(node: fx.Node) -> bool:
    """Whether a view reads the same bytes as another dtype."""
    last = [*node.args[1:], *node.kwargs.values()]
    dtypes = (a.args[1] == "dtype" for a in last if isinstance(a, fx.Node) and a.target is getattr)
    return bool(node.kwargs) or any(isinstance(a, torch.dtype) for a in last) or any(dtypes)


def reshape_views(graph: fx.Graph) -> None:
    """Let generated code reshape in place of viewing: one value, in any format.

    A view of memory that is written in place was made explicit, or refused, when the graph was
    normalised, so a copy is as good.
    """
    for node in graph.nodes:
        if node.op == "call_method":
            node.target = flexible(str(node.target))


def flexible(method: str) -> str:
    """Return the method that does what ``method`` does in any memory format."""
    return _FREE.get(method, method)
