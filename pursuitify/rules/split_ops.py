"""Operators that torch writes otherwise: one piece of several, operands that come first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F


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


def tensor_split_piece(
    input: Tensor, index: int, sections: Any = None, dim: int = 0, *, indices: Any = None
) -> Tensor:
    """Return ``torch.tensor_split(input, sections, dim)[index]``; ``indices`` is the same."""
    return torch.tensor_split(input, sections if indices is None else indices, dim)[index]


def einsum(tensors: Sequence[Tensor], equation: str) -> Tensor:
    """Return ``torch.einsum(equation, *tensors)``."""
    return torch.einsum(equation, *tensors)


def where(input: Tensor, other: Tensor, condition: Tensor) -> Tensor:
    """Return ``torch.where(condition, input, other)``."""
    return torch.where(condition, input, other)


def positive_part(input: Tensor, dtype: torch.dtype) -> Tensor:
    """Return ``input * (input > 0).to(dtype)``: ReLU, in the wider of the two dtypes."""
    return torch.relu(input).to(torch.promote_types(input.dtype, dtype))


def index_add(
    input: Tensor, source: Tensor, dim: int, index: Tensor, *, alpha: float = 1
) -> Tensor:
    """Return ``torch.index_add(input, dim, index, source, alpha=alpha)``."""
    return torch.index_add(input, dim, index, source, alpha=alpha)


def index_add_(
    input: Tensor, source: Tensor, dim: int, index: Tensor, *, alpha: float = 1
) -> Tensor:
    """Return ``input.index_add_(dim, index, source, alpha=alpha)``: it writes into ``input``."""
    return input.index_add_(dim, index, source, alpha=alpha)


def scatter_add(input: Tensor, src: Tensor, dim: int, index: Tensor) -> Tensor:
    """Return ``torch.scatter_add(input, dim, index, src)``."""
    return torch.scatter_add(input, dim, index, src)


def scatter_add_(input: Tensor, src: Tensor, dim: int, index: Tensor) -> Tensor:
    """Return ``input.scatter_add_(dim, index, src)``: it writes into ``input``."""
    return input.scatter_add_(dim, index, src)


_ADDED = ("input", "dim", "index", "source", "alpha")
_SCATTERED = ("input", "dim", "index", "src")
#: Functions and methods whose operands do not come first: the function above that stands for each,
#: and the names of its arguments in torch's order.
OPERANDS_FIRST: dict[Any, tuple[Callable[..., Tensor], tuple[str, ...]]] = {
    torch.where: (where, ("condition", "input", "other")),
    "where": (where, ("input", "condition", "other")),
    torch.index_add: (index_add, _ADDED),
    "index_add": (index_add, _ADDED),
    "index_add_": (index_add_, _ADDED),
    torch.scatter_add: (scatter_add, _SCATTERED),
    "scatter_add": (scatter_add, _SCATTERED),
    "scatter_add_": (scatter_add_, _SCATTERED),
}


def chosen_values(input: Tensor, name: str, dim: int, **more: Any) -> Tensor:
    """Return the values that ``torch.<name>(input, dim=dim, **more)`` chooses, as max does."""
    values: Tensor = getattr(torch, name)(input, dim=dim, **more)[0]
    return values


def chosen_indices(input: Tensor, name: str, dim: int, **more: Any) -> Tensor:
    """Return where along ``dim`` those values stand."""
    indices: Tensor = getattr(torch, name)(input, dim=dim, **more)[1]
    return indices


def pooled_indices(input: Tensor, name: str, **sizes: Any) -> Tensor:
    """Return the indices of the max pooling ``torch.nn.functional.<name>(input, **sizes)``."""
    indices: Tensor = getattr(F, name)(input, **sizes, return_indices=True)[1]
    return indices


#: Functions that are told by a name what they call.
NAMED = (chosen_values, chosen_indices, pooled_indices)


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
    "unsafe_chunk": chunk_piece,
    "split": split_piece,
    "unsafe_split": split_piece,
    "split_with_sizes": split_piece,
    "unbind": unbind_piece,
    "tensor_split": tensor_split_piece,
    "vsplit": tensor_split_piece,
    "hsplit": tensor_split_piece,
    "dsplit": tensor_split_piece,
}
#: The dimension that a splitter cuts, where its name says it.
_CUT = {"vsplit": 0, "hsplit": 1, "dsplit": 2}
#: What methods call the sizes of the pieces of ``torch.split``.
_SIZES = dict.fromkeys(("split_size", "split_sizes"), "split_size_or_sections")
_METHODS: dict[Any, str] = {name: name for name in SPLITTERS}
_FUNCTIONS: dict[Any, str] = {
    **{getattr(torch, name): name for name in SPLITTERS},
    torch.functional.split: "split",
}


def _splitter_name(node: fx.Node) -> str:
    """Return the name of the method that a node of several pieces calls; empty for others."""
    names = {"call_method": _METHODS, "call_function": _FUNCTIONS}.get(node.op, {})
    return names.get(node.target, "")


def splitter_of(node: fx.Node) -> Callable[..., Tensor] | None:
    """Return the single-piece form of a node that returns a tuple of pieces, or None."""
    return SPLITTERS.get(_splitter_name(node))


def cut_of(node: fx.Node) -> tuple[Any, Any]:
    """Return into what a node of several pieces cuts, None for single entries, and where.

    The first is a number or sizes, as the node's function takes them; the second is the dimension.
    """
    name = _splitter_name(node)
    given: dict[str, Any] = {**node.kwargs}
    own = ("dim",) if name == "unbind" else ("cut", "dim")
    given |= dict(zip(own, node.args[1:], strict=False))
    cuts = [value for key, value in given.items() if key != "dim"]
    return (cuts[0] if cuts else None), _CUT.get(name, given.get("dim", 0))


def piece_of(node: fx.Node, index: int) -> tuple[Callable[..., Tensor], Any, dict[str, Any]]:
    """Return the function, the arguments and the keywords of one piece of what a node returns."""
    name = _splitter_name(node)
    dim = {"dim": _CUT[name]} if name in _CUT else {}
    named = {_SIZES.get(key, key): value for key, value in node.kwargs.items()}
    return SPLITTERS[name], (node.args[0], index, *node.args[1:]), {**named, **dim}


#: Functions and methods that return chosen entries along a dimension, and their indices: the
#: names of their arguments after the input, in order, with the default of the dimension.
_CHOOSERS: dict[str, tuple[tuple[str, ...], int | None]] = {
    "max": (("dim", "keepdim"), None),
    "min": (("dim", "keepdim"), None),
    "median": (("dim", "keepdim"), None),
    "kthvalue": (("k", "dim", "keepdim"), -1),
    "topk": (("k", "dim", "largest", "sorted"), -1),
    "sort": (("dim", "descending"), -1),
}
_CHOOSING = {getattr(torch, name): name for name in _CHOOSERS}
_ALIASES = {"axis": "dim", "keepdims": "keepdim"}


def choice_of(node: fx.Node) -> dict[str, Any] | None:
    """Return what ``chosen_values`` takes after the input, where a node chooses along a dimension.

    None for any other node, ``torch.max(a, b)`` and ``x.max()`` among them.
    """
    if node.op == "call_method":
        name = str(node.target)
    else:
        name = _CHOOSING.get(node.target, "") if node.op == "call_function" else ""
    if name not in _CHOOSERS or not node.args:
        return None
    names, dim = _CHOOSERS[name]
    named = {_ALIASES.get(k, k): v for k, v in node.kwargs.items()}
    found = {"dim": dim, **dict(zip(names, node.args[1:], strict=False)), **named}
    one = isinstance(found["dim"], int) or "dim" in named
    return {"name": name, **found} if one and "out" not in found else None


#: What max-pooling layers hold of what their functions take.
_WINDOWS = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")
_POOL_LAYERS: dict[type[nn.Module], tuple[str, tuple[str, ...]]] = {
    nn.MaxPool1d: ("max_pool1d", _WINDOWS),
    nn.MaxPool2d: ("max_pool2d", _WINDOWS),
    nn.MaxPool3d: ("max_pool3d", _WINDOWS),
    nn.AdaptiveMaxPool1d: ("adaptive_max_pool1d", ("output_size",)),
    nn.AdaptiveMaxPool2d: ("adaptive_max_pool2d", ("output_size",)),
    nn.AdaptiveMaxPool3d: ("adaptive_max_pool3d", ("output_size",)),
}
_POOL_FUNCTIONS = {
    getattr(F, f"{name}_with_indices"): (name, names) for name, names in _POOL_LAYERS.values()
}


def pool_of(node: fx.Node, root: nn.Module) -> tuple[str, dict[str, Any]] | None:
    """Return the function of ``torch.nn.functional``, and its arguments after the input, of a node.

    None for nodes other than a max pooling that returns its indices, too.
    """
    if node.op == "call_module":
        module = root.get_submodule(str(node.target))
        plain = type(module) in _POOL_LAYERS and not (
            module._forward_hooks or module._forward_pre_hooks
        )
        if not (plain and getattr(module, "return_indices", False)):
            return None
        name, names = _POOL_LAYERS[type(module)]
        return name, {n: getattr(module, n) for n in names}
    if node.op != "call_function" or node.target not in _POOL_FUNCTIONS:
        return None
    name, names = _POOL_FUNCTIONS[node.target]
    given = {**dict(zip(names, node.args[1:], strict=False)), **node.kwargs}
    return name, {n: v for n, v in given.items() if n in names}


def is_pair(node: fx.Node, root: nn.Module) -> bool:
    """Whether a node returns chosen entries and their indices, as a tuple."""
    return choice_of(node) is not None or pool_of(node, root) is not None


#: Methods that change the dtype, or may.
CASTS = ("float", "double", "half", "bfloat16", "to", "cpu", "cuda")


def is_cast(node: fx.Node) -> bool:
    """Whether the node changes nothing of a tensor but its dtype, or the device."""
    return node.op == "call_method" and node.target in CASTS
