"""Every use of torch's private interface: one function each, with what happens without it.

Nothing else in the package names ``torch._C``, ``torch.ops.mkldnn`` and the like (``make test``
checks that). A torch release may drop any of them; each function therefore says which public
behaviour stands in, and a test takes each away.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad


def transform_is_active() -> bool:
    """Return whether torch.func or forward-mode derivatives wrap values at this moment.

    torch has no public question for it; its own modules ask ``_functorch``. Where the question is
    gone, the answer is True: nothing is kept or written in place then, which is slower and right.
    """
    try:
        wrapped = torch._C._functorch.maybe_current_level() is not None
        return wrapped or forward_ad._current_level >= 0
    except AttributeError:
        return True


def make_fx_is_tracing() -> bool:
    """Return whether ``make_fx`` traces at this moment; False where torch cannot say."""
    try:
        from torch.fx.experimental.proxy_tensor import get_proxy_mode
    except ImportError:
        return False
    return get_proxy_mode() is not None


def without_dispatch_modes() -> AbstractContextManager[Any]:
    """Return a context in which no TorchDispatchMode sees the operations.

    It is for constants that are kept for later calls: a mode of this call must not be recorded in
    them. Where torch has it no more, the context does nothing, and a mode sees these operations.
    """
    try:
        from torch.utils._python_dispatch import _disable_current_modes
    except ImportError:
        return contextlib.nullcontext()
    found: AbstractContextManager[Any] = _disable_current_modes()
    return found


def has_gradient_hooks(value: Tensor) -> bool:
    """Return whether a hook was put on a tensor's derivative; False where torch cannot say."""
    try:
        return bool(value._backward_hooks or value._post_accumulate_grad_hooks)
    except AttributeError:
        return False


_Function = TypeVar("_Function", bound=Callable[..., Any])


def constant_when_compiled(function: _Function) -> _Function:
    """Let a compiler call a function once while it traces, and take the result as a constant.

    That is what ``torch.compiler.assume_constant_result`` does; but it imports all of
    ``torch._dynamo`` to set one attribute, which takes longer than the rest of ``import torch``.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def watch_operations(run: Callable[..., Any]) -> AbstractContextManager[Any]:
    """Return a context in which a function runs every operation, as it is below autograd.

    The operations of a backward pass are among them, where it runs in this thread: on CPUs and on
    the meta device. torch documents the mode, but keeps it in a private module. Where it is gone,
    ImportError is raised: nothing can stand in for it.

    Args:
        run: Called with each operation, its arguments and its keyword arguments; returns the
            result.
    """
    from torch.utils._python_dispatch import TorchDispatchMode

    # torch's mode has an untyped __init_subclass__.
    class OperationsMode(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            return run(func, args, kwargs or {})

    mode: AbstractContextManager[Any] = OperationsMode()  # type: ignore[no-untyped-call]
    return mode


def watch_results(saw: Callable[[Tensor], None]) -> AbstractContextManager[Any]:
    """Return a context in which every tensor that an operation returns is shown to a function.

    See ``watch_operations``.

    Args:
        saw: Called with each tensor, views and results written in place among them.
    """

    def run(operation: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        result = operation(*args, **kwargs)
        for value in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(value, Tensor):
                saw(value)
        return result

    return watch_operations(run)


def count_multiplications(counted: Callable[[int], object]) -> AbstractContextManager[Any]:
    """Return a context in which a function is told the work of every product and convolution.

    The numbers follow from shapes alone, so that they are the same on every machine: twice the
    multiplications, as torch's own flop counter has them. See ``watch_operations``.

    Args:
        counted: Called with the number of floating-point operations of each.
    """
    from torch.utils.flop_counter import flop_registry

    def run(operation: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        result = operation(*args, **kwargs)
        formula = flop_registry.get(getattr(operation, "overloadpacket", None))
        if formula is not None:
            counted(int(formula(*args, **kwargs, out_val=result)))
        return result

    return watch_operations(run)


def forward_hooks(module: nn.Module) -> list[Callable[[nn.Module, Any, Any], Any]]:
    """Return the forward hooks of a module in their order, each as ``hook(module, args, output)``.

    Those that ask for keyword arguments get none. Where torch no longer says which ask for them,
    none is taken to.
    """
    keyed = getattr(module, "_forward_hooks_with_kwargs", {})

    def called(key: int, hook: Callable[..., Any]) -> Callable[[nn.Module, Any, Any], Any]:
        return (lambda m, args, out: hook(m, args, {}, out)) if key in keyed else hook

    return [called(key, hook) for key, hook in module._forward_hooks.items()]


def is_assertion(target: object) -> bool:
    """Return whether a traced function is ``torch._assert``, which takes a condition and a text.

    False where torch has it no more: then no forward calls it.
    """
    found = getattr(torch, "_assert", None)
    return found is not None and target is found


def asks_dimensions(operation: object) -> bool:
    """Return whether an operation below autograd is that of ``x.dim()``."""
    return operation is torch.ops.aten.dim.default


def detaches(operation: object) -> bool:
    """Return whether an operation below autograd is that of ``x.detach()``."""
    return operation is torch.ops.aten.detach.default


def version_of(value: Tensor) -> int:
    """Return how often a tensor was written into, past what its subclass makes of the question.

    Where torch cannot be asked so, the answer is 0: a custom Function that marks its argument as
    written into, and does nothing else, is not seen by the tracer then. So it is with tensors that
    were made in inference mode, which count nothing.
    """
    try:
        with torch._C.DisableTorchFunctionSubclass():
            return int(Tensor._version.__get__(value))  # type: ignore[attr-defined]
    except (AttributeError, RuntimeError):
        return 0


# -- oneDNN's convolutions, which torch's compiler uses and no public function wraps. Where they are
# -- missing, AttributeError, RuntimeError or TypeError is raised, and onednn_conv.available() is
# -- False: nothing is packed, and sweeps use the public convolutions.


def packed_convolution(
    x: Tensor,
    weight: Tensor,
    padding: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """Return the convolution of ``x`` with a packed kernel."""
    value: Tensor = torch.ops.mkldnn._convolution_pointwise(
        x, weight, None, padding, stride, dilation, groups, "none", [], ""
    )
    return value


def add_packed_convolution(
    total: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    padding: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> None:
    """Add a convolution with a packed kernel and a bias to ``total``."""
    torch.ops.mkldnn._convolution_pointwise_.binary(
        total, x, weight, bias, padding, stride, dilation, groups,
        "add", None, None, [], "",
    )  # fmt: skip


def pack_kernel(
    weight: Tensor,
    padding: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    shape: Sequence[int],
) -> Tensor:
    """Return a kernel in the order that oneDNN's loops want for inputs of ``shape``."""
    packed: Tensor = torch.ops.mkldnn._reorder_convolution_weight(
        weight, padding, stride, dilation, groups, list(shape)
    )
    return packed
