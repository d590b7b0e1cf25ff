"""From a module to a normalised torch.fx graph; knows nothing about dictionaries.

The model is traced on a *skeleton*: a deep copy that shares the Parameters and owns its buffers
and Python attributes, so that code which counts batches or calls while it is traced can change
nothing of the user's. Normalisation makes data flow explicit: an in-place operator's result
replaces its operand in everything that runs later, and reading piece i of a split becomes one
operator of its own.
"""

from __future__ import annotations

import copy
import inspect
import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from pursuitify import errors, pieces

LeafModule = type[nn.Module] | str

_INPLACE_OPERATORS = {
    operator.iadd,
    operator.isub,
    operator.imul,
    operator.itruediv,
}
#: Methods that share storage with what they are called on.
_VIEWS = {
    "view", "reshape", "flatten", "transpose", "permute", "squeeze", "unsqueeze", "chunk", "split",
    "narrow", "select", "expand", "expand_as", "view_as", "t", "unbind", "detach", "contiguous",
}  # fmt: skip
_VIEW_FUNCTIONS = {
    torch.flatten, torch.transpose, torch.permute, torch.squeeze, torch.unsqueeze, torch.chunk,
    torch.split, torch.narrow, torch.select, torch.reshape, torch.unbind, torch.t,
    operator.getitem, torch.swapaxes, torch.movedim,
}  # fmt: skip


@dataclass(frozen=True)
class Traced:
    """What tracing yields.

    Attributes:
        graph: The normalised graph; targets are paths in the model.
        constants: Tensors the forward made while it was traced, by the name the graph reads.
        training: The mode the model was traced in.
    """

    graph: fx.Graph
    constants: dict[str, Tensor]
    training: bool


class _Proxy(fx.Proxy):
    """Records augmented assignments as the in-place operators they are.

    A plain Proxy turns ``y += b`` into ``y = y + b``; where another name still refers to the old
    ``y``, that is another function than the one the model computes.
    """

    def __iadd__(self, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", operator.iadd, (self, other), {})

    def __isub__(self, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", operator.isub, (self, other), {})

    def __imul__(self, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", operator.imul, (self, other), {})

    def __itruediv__(self, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", operator.itruediv, (self, other), {})


class _Tracer(fx.Tracer):
    """fx's tracer, with three changes.

    Buffers are proxied, so that counters and running statistics stay in the graph instead of
    being baked in; augmented assignment is recorded as in place (see ``_Proxy``); and the user's
    ``leaf_modules`` are not entered.
    """

    proxy_buffer_attributes = True

    def __init__(self, leaf_modules: Iterable[LeafModule]) -> None:
        super().__init__()
        self._leaves = tuple(leaf_modules)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        for leaf in self._leaves:
            if leaf == module_qualified_name if isinstance(leaf, str) else isinstance(m, leaf):
                return True
        return super().is_leaf_module(m, module_qualified_name)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)


def skeleton(model: nn.Module) -> nn.Module:
    """Return a deep copy that shares the model's Parameters and nothing else."""
    memo = {id(p): p for p in model.parameters()}
    return copy.deepcopy(model, memo)


def _defaults(model: nn.Module) -> dict[str, Any]:
    """Arguments of forward that have a default; they are traced at it."""
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return {
        name: parameter.default
        for name, parameter in inspect.signature(model.forward).parameters.items()
        if parameter.default is not inspect.Parameter.empty and parameter.kind not in variadic
    }


def trace(model: nn.Module, *, training: bool, leaf_modules: Iterable[LeafModule] = ()) -> Traced:
    """Trace ``model`` in the given mode and normalise the graph.

    Args:
        model: The module; left exactly as it was.
        training: Whether to trace what the model does in training mode.
        leaf_modules: Module types, or paths of modules, to keep as one node each.

    Raises:
        TraceError: If torch.fx cannot follow the forward.
    """
    try:
        root = skeleton(model)
    except RuntimeError as error:
        raise errors.TraceError(
            f"{type(model).__name__} cannot be copied ({error}). Old-style weight_norm keeps a "
            "computed tensor on the module: use torch.nn.utils.parametrizations.weight_norm"
        ) from error
    root.train(training)
    tracer = _Tracer(leaf_modules)
    known = {name for name, _ in model.named_buffers()} | {n for n, _ in model.named_parameters()}
    try:
        graph = tracer.trace(root, concrete_args=_defaults(model) or None)
    except Exception as error:
        raise errors.TraceError(_explain(error, model, tracer)) from error
    constants = {}
    for node in graph.nodes:
        if node.op == "get_attr" and node.target not in known:
            value = operator.attrgetter(node.target)(root)
            if isinstance(value, Tensor):
                constants[node.target] = value.detach()
    _split_pieces(graph)
    _functionalise(graph, root)
    graph.lint()
    return Traced(graph, constants, training)


def _explain(error: Exception, model: nn.Module, tracer: fx.Tracer) -> str:
    path = "".join(f" in module '{p}'" for p in list(tracer.module_stack)[-1:] if p)
    reason = str(error).strip().splitlines()
    return (
        f"torch.fx cannot follow {type(model).__name__}.forward{path}: "
        f"{type(error).__name__}: {reason[0] if reason else 'no message'}. "
        "Control flow or Python code that depends on tensor values or sizes cannot be traced: "
        "rewrite it, mark the module with leaf_modules=[...] and give it a rule with rules={...}, "
        "or wrap the function with torch.fx.wrap"
    )


def _split_pieces(graph: fx.Graph) -> None:
    """Replace ``getitem(chunk(x, ...), i)`` by one operator that returns piece i."""
    for node in list(graph.nodes):
        splitter = pieces.splitter_of(node)
        if splitter is None:
            continue
        for user in list(node.users):
            if user.op == "call_function" and user.target is operator.getitem:
                with graph.inserting_before(user):
                    piece = graph.call_function(
                        splitter, (node.args[0], user.args[1], *node.args[1:]), dict(node.kwargs)
                    )
                piece.meta = dict(node.meta)
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


def _is_view(node: fx.Node) -> bool:
    if node.op == "call_method":
        return node.target in _VIEWS
    return node.op == "call_function" and (
        node.target in _VIEW_FUNCTIONS or node.target in pieces.SPLITTERS.values()
    )


def _functionalise(graph: fx.Graph, root: nn.Module) -> None:
    """Let everything that runs after an in-place operator read its result."""
    order = {node: i for i, node in enumerate(graph.nodes)}
    problems = []
    for node in graph.nodes:
        if not (node.args and isinstance(node.args[0], fx.Node) and is_inplace(node, root)):
            continue
        operand = node.args[0]
        if operand.op == "get_attr" or pieces.is_shape(operand):
            continue
        alias = operand
        while _is_view(alias) and isinstance(alias.args[0], fx.Node):
            alias = alias.args[0]
        viewed = [u for u in operand.users if _is_view(u) and order[u] < order[node]]
        stale = [
            user
            for shared in [alias, *viewed]
            for user in shared.users
            if shared is not operand and order[user] > order[node] and not pieces.is_shape(user)
        ]
        if stale:
            problems.append(
                errors.Problem(
                    node.name,
                    str(getattr(node.target, "__name__", node.target)),
                    module_path(node),
                    f"writes in place into a view whose storage {stale[0].name} reads later",
                    "Use the out-of-place form there",
                )
            )
        for user in [u for u in operand.users if order[u] > order[node]]:
            user.replace_input_with(operand, node)
    if problems:
        raise errors.ConversionError("In-place writes through views cannot be followed:", problems)


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


def same_graph(first: fx.Graph, second: fx.Graph) -> bool:
    """Whether two traces of one model do the same, node for node."""
    if len(first.nodes) != len(second.nodes):
        return False
    twin: dict[fx.Node, fx.Node] = {}
    for a, b in zip(first.nodes, second.nodes, strict=True):
        if (a.op, a.target) != (b.op, b.target):
            return False
        twin[a] = b
        mapped: Callable[[fx.Node], fx.Node] = twin.__getitem__
        if fx.map_arg((a.args, a.kwargs), mapped) != (b.args, b.kwargs):
            return False
    return True
