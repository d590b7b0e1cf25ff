"""The memory format of images and kernels: channels_last where that is faster."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from pursuitify.compiler.tracing import nodes
from pursuitify.utils import func_transforms
from pursuitify.utils.compiling import compiling

_FAST = (torch.float32, torch.bfloat16)
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


def preferred(value: Any) -> Any:
    """Return an image batch in channels_last on a CPU; anything else as it is.

    Convolutions keep the format of their input, so one conversion here serves every sweep. There a
    strided convolution's adjoint takes the forward's time, in the contiguous format up to 2.5 times
    as long. On other devices, and in other precisions, the format the user chose stays; so it does
    in training mode, where dropout draws its mask in the order of memory. Under torch.func the
    format stays, too: vmap knows no other.
    """
    if (
        func_transforms.active()
        or not isinstance(value, Tensor)
        or value.dim() != 4
        or value.device.type != "cpu"
    ):
        return value
    if value.dtype not in _FAST or value.shape[1] == 1:
        return value
    return value.contiguous(memory_format=torch.channels_last)


def returned(output: Any, inputs: Sequence[Any]) -> Any:
    """Return an output in the contiguous format, where that is the format of every input.

    What the source returns for contiguous images can be flattened by ``view``; so can this.
    """
    images = (a for a in inputs if isinstance(a, Tensor) and a.dim() == 4)
    return _contiguous(output) if all(a.is_contiguous() for a in images) else output


def _contiguous(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.contiguous() if value.dim() == 4 else value
    if type(value) is dict:
        return {key: _contiguous(item) for key, item in value.items()}
    return type(value)(map(_contiguous, value)) if type(value) in {tuple, list} else value


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


def kernel(weight: Tensor, image: Tensor) -> Tensor:
    """Return a kernel in the memory format of the images it meets, where a compiler traces.

    Compiled code would copy it into that format for every convolution of every sweep; so it does
    once. Without a compiler the sweeps pack their kernels (``packing``).
    """
    if not compiling() or weight.dim() != 4 or image.is_contiguous():
        return weight
    if not image.is_contiguous(memory_format=torch.channels_last):
        return weight
    return weight.contiguous(memory_format=torch.channels_last)
