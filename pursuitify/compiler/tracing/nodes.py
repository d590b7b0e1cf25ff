"""Questions about nodes of a traced graph: module, name, whether a shape, what leads to them."""

from __future__ import annotations

import math
import operator
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping

import torch
from torch import fx, nn

from pursuitify.rules import split_ops

_SIZE_METHODS = {"size", "dim", "ndimension", "numel", "nelement", "get_device", "stride"}


_SIZE_ATTRIBUTES = {"shape", "ndim", "dtype", "device", "is_cuda", "requires_grad", "layout"}


#: Questions about the dtype of a tensor, as methods of a tensor and attributes of a dtype.
DTYPE_KINDS = {"is_floating_point", "is_complex"}
#: The same as functions of tensors, and functions of dtypes.
DTYPE_FUNCTIONS: dict[object, type] = {
    torch.is_floating_point: bool, torch.is_complex: bool, torch.result_type: torch.dtype,
}  # fmt: skip
_OF_DTYPES: dict[object, type] = {torch.promote_types: torch.dtype, torch.can_cast: bool}
#: What is asked of a dtype itself.
_DTYPE_ATTRIBUTES: dict[str, type] = {
    **dict.fromkeys(DTYPE_KINDS, bool), "is_signed": bool, "itemsize": int
}  # fmt: skip


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
        return node.target in _SIZE_METHODS | DTYPE_KINDS
    if node.op != "call_function":
        return False
    if node.target is getattr:
        owner, name = node.args[:2]
        if name in {"type", "index"}:
            return isinstance(owner, fx.Node) and owner.args[1:2] == ("device",)
        return name in _SIZE_ATTRIBUTES or (name in _DTYPE_ATTRIBUTES and _is_dtype(owner))
    if node.target in DTYPE_FUNCTIONS:
        return True
    module = getattr(node.target, "__module__", None)
    arithmetic = node.target in _ARITHMETIC or node.target in _OF_DTYPES or module == "math"
    return arithmetic and bool(node.all_input_nodes) and all(map(is_shape, node.all_input_nodes))


def _is_dtype(value: object) -> bool:
    return isinstance(value, fx.Node) and is_shape(value) and type_of(value) is torch.dtype


#: What an attribute of a tensor is.
_ATTRIBUTES: dict[str, type] = {
    "shape": torch.Size, "ndim": int, "dtype": torch.dtype, "device": torch.device,
    "is_cuda": bool, "requires_grad": bool, "layout": torch.layout,
}  # fmt: skip
_COMPARISONS = {
    operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge, operator.not_,
}  # fmt: skip
#: Arithmetic that makes whole numbers of whole numbers.
_WHOLE = {
    operator.add, operator.sub, operator.mul, operator.floordiv, operator.mod, operator.neg,
    operator.pos, operator.iadd, operator.isub, operator.imul, operator.ifloordiv, abs, max, min,
}  # fmt: skip
_MADE: dict[object, type] = {
    int: int, len: int, round: int, float: float, tuple: tuple, list: list, math.ceil: int,
    math.floor: int, math.sqrt: float, math.log: float, math.log2: float, math.exp: float,
    math.log10: float,
}  # fmt: skip


def attribute_type(name: str) -> type | None:
    """Return the type of an attribute of a tensor that is no tensor; None where it is unknown."""
    return _ATTRIBUTES.get(name)


def type_of(node: fx.Node) -> type | None:
    """Return the type that the value of a node has, of one that ``is_shape``; None if unknown."""
    if node.op == "call_method":
        if node.target in DTYPE_KINDS:
            return bool
        whole = node.target == "size" and len(node.args) + len(node.kwargs) == 1
        several = node.target == "stride" and len(node.args) + len(node.kwargs) == 1
        return torch.Size if whole else tuple if several else int
    if node.op != "call_function":
        return None
    if node.target is getattr:
        name = str(node.args[1])
        if _is_dtype(node.args[0]):
            return _DTYPE_ATTRIBUTES.get(name)
        return str if name == "type" else attribute_type(name)
    known = {**DTYPE_FUNCTIONS, **_OF_DTYPES}
    if node.target in known:
        return known[node.target]
    kinds = [type_of(a) if isinstance(a, fx.Node) else type(a) for a in node.args]
    if node.target is operator.getitem:
        if kinds[0] not in (torch.Size, tuple):
            return None
        return kinds[0] if isinstance(node.args[1], slice) else int
    if node.target in _COMPARISONS:
        return bool
    if node.target in {operator.truediv, operator.itruediv} and set(kinds) <= {int, float}:
        return float
    if node.target is operator.pow and set(kinds) <= {int, float}:
        power = node.args[1]
        whole = isinstance(power, int) and power >= 0
        return kinds[0] if whole or kinds[0] is float else float if kinds[1] is float else None
    if node.target in _WHOLE and set(kinds) <= {int, float}:
        return float if float in kinds else int
    return _MADE.get(node.target) if len(node.args) == 1 else None


_INPLACE_OPERATORS = {
    operator.iadd,
    operator.isub,
    operator.imul,
    operator.itruediv,
}


def module_of(node: fx.Node, root: nn.Module) -> nn.Module | None:
    """Return the module that a node calls; None where it calls none."""
    return root.get_submodule(str(node.target)) if node.op == "call_module" else None


def module_path(node: fx.Node) -> str:
    """Return the path of the module whose call, or whose forward, the node is."""
    if node.op == "call_module":
        return str(node.target)
    stack = node.meta.get("nn_module_stack") or {}
    entries = [entry[0] for entry in stack.values()]
    return str(entries[-1]) if entries else ""


def note_return(node: fx.Node, path: str) -> None:
    """Note at a node that its value is what a module whose forward was traced returned."""
    node.meta.setdefault("returned_by", []).append(path)


def returned_by(node: fx.Node) -> tuple[str, ...]:
    """Return the paths of the modules that returned the node's value, innermost first."""
    return tuple(node.meta.get("returned_by", ()))


def keep_returns(graph: fx.Graph, calls: Mapping[str, int]) -> None:
    """Leave no notes of a module but where there is one for each of its calls.

    Values that are made without derivatives lose theirs: the graph records them with derivatives,
    and cuts these off where they are read.

    Args:
        graph: The graph.
        calls: How often each module was called.
    """
    for node in graph.nodes:
        if "still" in node.meta or is_shape(node):  # sizes may have notes of what they are read of
            node.meta.pop("returned_by", None)
    noted = Counter(path for node in graph.nodes for path in returned_by(node))
    for node in graph.nodes:
        whole = [path for path in returned_by(node) if noted[path] == calls[path]]
        node.meta.pop("returned_by", None)
        for path in whole:
            note_return(node, path)


def describe(node: fx.Node, root: nn.Module) -> str:
    """Return what the node does, in the words of its author: ``GELU``, ``softmax``, ``view``."""
    if node.op == "call_module":
        return type(root.get_submodule(str(node.target))).__name__
    if node.op == "call_function":
        if node.target in split_ops.NAMED:
            return str(node.kwargs["name"])
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
