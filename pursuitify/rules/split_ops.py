"""One piece of a split as an operator of its own, and which nodes hold sizes, not tensors."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx


def chunk_piece(input: Tensor, index: int, chunks: int, dim: int = 0) -> Tensor:
    """Return ``torch.chunk(input, chunks, dim)[index]``."""
    return torch.chunk(input, chunks, dim)[index]


def split_piece(
    input: Tensor, index: int, split_size_or_sections: int | Sequence[int], dim: int = 0
) -> Tensor:
    """Return ``torch.split(input, split_size_or_sections, dim)[index]``."""
    sections = split_size_or_sections
    sizes = sections if isinstance(sections, int) else list(sections)
    return torch.split(input, sizes, dim)[index]


def unbind_piece(input: Tensor, index: int, dim: int = 0) -> Tensor:
    """Return ``torch.unbind(input, dim)[index]``."""
    return torch.unbind(input, dim)[index]


SPLITTERS: dict[str, Callable[..., Tensor]] = {
    "chunk": chunk_piece,
    "split": split_piece,
    "unbind": unbind_piece,
}
_FUNCTIONS: dict[Any, Callable[..., Tensor]] = {
    torch.chunk: chunk_piece,
    torch.split: split_piece,
    torch.functional.split: split_piece,
    torch.unbind: unbind_piece,
}


def splitter_of(node: fx.Node) -> Callable[..., Tensor] | None:
    """Return the single-piece form of a node that returns a tuple of pieces, or None."""
    if node.op == "call_method":
        return SPLITTERS.get(str(node.target))
    return _FUNCTIONS.get(node.target) if node.op == "call_function" else None


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


def reads_input(node: fx.Node) -> bool:
    """Whether the node is computed from an input of the network, if only from its sizes."""
    seen, stack = {node}, [node]
    while stack:
        current = stack.pop()
        if current.op == "placeholder":
            return True
        stack += [n for n in current.all_input_nodes if n not in seen]
        seen.update(current.all_input_nodes)
    return False


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
        return node.args[1] in _SIZE_ATTRIBUTES
    module = getattr(node.target, "__module__", None)
    arithmetic = node.target in _ARITHMETIC or module == "math"
    return arithmetic and bool(node.all_input_nodes) and all(map(is_shape, node.all_input_nodes))
