"""One piece of a split as an operator of its own, and which nodes hold sizes, not tensors."""

from __future__ import annotations

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


def detached(value: Any) -> Any:
    """Return a value through which no derivative goes: where the forward leaves ``no_grad``.

    A tensor shares its memory; of a tuple every tensor is detached.
    """
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, (tuple, list)):
        return tuple(detached(item) for item in value)
    return value


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


#: Methods that change the dtype, or may.
CASTS = ("float", "double", "half", "bfloat16", "to", "cpu", "cuda")


def is_cast(node: fx.Node) -> bool:
    """Whether the node changes nothing of a tensor but its dtype, or the device."""
    return node.op == "call_method" and node.target in CASTS
