"""Questions about nodes of a traced graph: module, name, whether a shape, what leads to them."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import fx, nn

_SIZE_METHODS = {"size", "dim", "ndimension", "numel", "nelement", "get_device", "stride"}


_SIZE_ATTRIBUTES = {"shape", "ndim", "dtype", "device", "is_cuda", "requires_grad", "layout"}


_ARITHMETIC = {
    operator.getitem, operator.add, operator.sub, operator.mul, operator.floordiv,
    operator.truediv, operator.mod, operator.neg, operator.pos, operator.pow,
    operator.iadd, operator.isub, operator.imul, operator.itruediv, operator.ifloordiv,
    operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge,
    operator.and_, operator.or_, operator.not_, max, min, int, float, round, abs, len, sum, tuple,
    list,
}  # fmt: skip


#: What reads of a tensor its sizes, dtype and device alone.
_LIKE = {
    torch.zeros_like, torch.ones_like, torch.full_like, torch.empty_like, torch.rand_like,
    torch.randn_like, "new_zeros", "new_ones", "new_full", "new_empty", "new_tensor",
}  # fmt: skip


_RANDOM = {
    torch.rand_like, torch.randn_like, torch.rand, torch.randn, torch.bernoulli, torch.normal,
    torch.randint, torch.randint_like, torch.randperm, torch.dropout, "bernoulli", "bernoulli_",
    "uniform_", "normal_", "random_", "exponential_",
}  # fmt: skip


def is_like(node: fx.Node) -> bool:
    """Whether the node makes a tensor that depends on no value, only on another one's sizes."""
    return node.op in {"call_function", "call_method"} and node.target in _LIKE


#: The operands of a node through which a walk goes on.
Operands = Callable[[fx.Node], Iterable[fx.Node]]


def operands_of(node: fx.Node) -> list[fx.Node]:
    """Return everything that a node reads."""
    return node.all_input_nodes


def upstream(ends: Iterable[fx.Node], operands: Operands = operands_of) -> Iterator[fx.Node]:
    """Yield nodes, themselves first, and all that leads to them, each once.

    Args:
        ends: Where the walk starts; it goes against the direction of computation.
        operands: Which operands of a node it follows: all of them, unless said otherwise.
    """
    seen: set[fx.Node] = set()
    stack = list(ends)
    while stack:
        node = stack.pop()
        if node not in seen:
            seen.add(node)
            yield node
            stack.extend(operands(node))


def before(ends: Iterable[fx.Node], operands: Operands = operands_of) -> set[fx.Node]:
    """Return all that leads to some of ``ends``; one of them where it leads to another."""
    return set(upstream((operand for end in ends for operand in operands(end)), operands))


def reads_input(node: fx.Node) -> bool:
    """Whether the node is computed from an input of the network, if only from its sizes."""
    return any(n.op == "placeholder" for n in upstream([node]))


def reads_values(node: fx.Node) -> bool:
    """Whether the node is computed from the values of an input, not from its sizes alone."""

    def operands(node: fx.Node) -> list[fx.Node]:
        return [] if is_shape(node) or is_like(node) else node.all_input_nodes

    return any(n.op == "placeholder" for n in upstream([node], operands))


def is_random(node: fx.Node) -> bool:
    """Whether the node draws random numbers that are no mask of an operand."""
    return node.op in {"call_function", "call_method"} and node.target in _RANDOM


def is_shape(node: fx.Node) -> bool:
    """Whether the node holds a size, dtype or device (or arithmetic on them), not a tensor."""
    if node.op == "call_method":
        return node.target in _SIZE_METHODS
    if node.op != "call_function":
        return False
    if node.target is getattr:
        owner, name = node.args[:2]
        if name in {"type", "index"}:
            return isinstance(owner, fx.Node) and owner.args[1:2] == ("device",)
        return name in _SIZE_ATTRIBUTES
    module = getattr(node.target, "__module__", None)
    arithmetic = node.target in _ARITHMETIC or module == "math"
    return arithmetic and bool(node.all_input_nodes) and all(map(is_shape, node.all_input_nodes))


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
    owner = node.args[0] if node.op == "call_method" and node.args else None
    if isinstance(owner, fx.Node) and owner.op == "get_attr" and node.target == "forward":
        return type(operator.attrgetter(str(owner.target))(root)).__name__  # a scripted module
    return str(node.target)


def is_inplace(node: fx.Node, root: nn.Module) -> bool:
    """Whether the node writes into its first operand."""
    if node.op == "call_method":
        name = str(node.target)
        return name.endswith("_") and not name.endswith("__")
    if node.op == "call_module":
        return bool(getattr(root.get_submodule(str(node.target)), "inplace", False))
    if node.op == "call_function":
        name = getattr(node.target, "__name__", "")
        operation = getattr(node.target, "__module__", "") == operator.add.__module__  # and_, or_
        trailing = name.endswith("_") and not name.startswith("_") and not operation
        return node.target in _INPLACE_OPERATORS or trailing or bool(node.kwargs.get("inplace"))
    return False


def is_effect(node: fx.Node, root: nn.Module) -> bool:
    """Whether a node that nothing reads runs for what it does: guards, assertions, counters."""
    if node.users or node.op in {"placeholder", "output", "get_attr"}:
        return False
    if node.op == "call_function" and node.is_impure(impure_random=False):
        return True
    return is_inplace(node, root) and starts_at_attribute(node)


def starts_at_attribute(node: fx.Node) -> bool:
    """Whether the first operand is an attribute of the model, or made of one: a view, it may be."""
    while node.op != "get_attr":
        if not (node.args and isinstance(node.args[0], fx.Node)):
            return False
        node = node.args[0]
    return True
