"""Convolutions of oneDNN with kernels packed ahead, added into a tensor that is at hand.

Sweeps apply the same kernels again and again to tensors that already hold a sum. oneDNN, which runs
torch's float32 convolutions on CPUs, can take a kernel in the order its loops want and add the
result to what the output holds, with a bias: no reordering per call, no result of its
own, no pass over memory for the sum. The factor of the sum is in the kernel. The adjoint of a
convolution of stride 1 is one with the kernel turned around, so it profits alike.

torch has these operators for its compiler, and no public function wraps them
(``utils/torch_internals.py``). ``available`` therefore tries them once against the public ones;
where they are missing or differ, nothing is packed.
"""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pursuitify.operators.base import LinearMap
from pursuitify.operators.conv import Conv
from pursuitify.utils import torch_internals


@dataclass(frozen=True, eq=False)
class Kernel:
    """``factor`` times a convolution in two dimensions, packed.

    Attributes:
        weight: The packed kernel, opaque.
        factor: What is in it.
        shape: Batch and spatial size that it is packed for.
        padding: Zero padding per dim, the same on both sides.
        stride: Stride per dim.
        dilation: Dilation per dim.
        groups: Number of groups.
        spread: Step, per dim, between the elements of a sum that the result is added to: the
            adjoint of a 1 x 1 convolution reaches no other.
    """

    weight: Tensor
    factor: float
    shape: tuple[int, ...]
    padding: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    spread: tuple[int, ...] = (1, 1)

    def apply(self, x: Tensor) -> Tensor:
        """Return factor A x."""
        return torch_internals.packed_convolution(
            x, self.weight, self.padding, self.stride, self.dilation, self.groups
        )

    def add(self, total: Tensor, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Return ``total + factor A x + bias``, in ``total``."""
        into = total if max(self.spread) == 1 else total[:, :, :: self.spread[0], :: self.spread[1]]
        torch_internals.add_packed_convolution(
            into, x, self.weight, bias, self.padding, self.stride, self.dilation, self.groups
        )
        return total


@dataclass(frozen=True, eq=False)
class PackedConv(LinearMap):
    """A convolution with packed kernels for the factors it is wanted with.

    Any other factor, and an adjoint that has no kernel, go to the convolution itself.

    Attributes:
        inner: The convolution.
        direct: Its kernel, for one factor.
        turned: The kernel of its adjoint, for one factor; None where there is none.
    """

    inner: Conv
    direct: Kernel
    turned: Kernel | None

    def apply(self, x: Tensor) -> Tensor:
        """Return A x."""
        return self.direct.apply(x) if self.direct.factor == 1 else self.inner.apply(x)

    def adjoint(self, y: Tensor) -> Tensor:
        """Return A^T y."""
        kernel = self.turned
        if kernel is not None and kernel.factor == 1 and max(kernel.spread) == 1:
            return kernel.apply(y)
        return self.inner.adjoint(y)

    def adjoint_into(self, into: Tensor, y: Tensor) -> Tensor:
        """Return A^T y, in the memory of ``into`` where there is a kernel for that."""
        kernel = self.turned
        if kernel is not None and kernel.factor == 1:
            return kernel.add(into.zero_(), y)
        return self.inner.adjoint(y)

    def add_apply(self, total: Tensor, x: Tensor, factor: Tensor | float) -> Tensor:
        """Return ``total + factor A x``; overwrites ``total``."""
        if _is(factor, self.direct):
            return self.direct.add(total, x)
        return self.inner.add_apply(total, x, factor)

    def add_adjoint(self, total: Tensor, y: Tensor, factor: Tensor | float) -> Tensor:
        """Return ``total + factor A^T y``; overwrites ``total``."""
        if self.turned is not None and _is(factor, self.turned):
            return self.turned.add(total, y)
        return self.inner.add_adjoint(total, y, factor)

    def norm_bound(self) -> Tensor | float:
        """Return the convolution's bound."""
        return self.inner.norm_bound()


def _is(factor: Tensor | float, kernel: Kernel) -> bool:
    if isinstance(factor, Tensor) and factor.dim() > 0:
        return False
    return float(factor) == kernel.factor


def packable(conv: LinearMap) -> bool:
    """Whether a map is a convolution that can be packed: float32, on a CPU, in two dimensions."""
    if not isinstance(conv, Conv) or len(conv.size) != 2:
        return False
    if conv.weight.dtype is not torch.float32 or conv.weight.device.type != "cpu":
        return False
    return all(low == high for low, high in conv.padding) and available()


def direct_kernel(conv: Conv, factor: float, batch: int) -> Kernel:
    """Return ``factor A``, packed for batches of that size (it serves others, more slowly)."""
    padding = tuple(low for low, _ in conv.padding)
    return _pack(conv.weight, conv, factor, padding, (batch, *conv.size))


def adjoint_kernel(conv: Conv, factor: float, batch: int) -> Kernel | None:
    """Return ``factor A^T`` likewise; None where it is no convolution of the same kind."""
    spans = [d * (k - 1) for d, k in zip(conv.dilation, conv.weight.shape[2:], strict=True)]
    padding = tuple(span - low for span, (low, _) in zip(spans, conv.padding, strict=True))
    if min(padding) < 0 or (max(conv.stride) > 1 and max(*spans, *padding) > 0):
        return None
    grouped = conv.weight.reshape(conv.groups, -1, *conv.weight.shape[1:])
    turned = grouped.transpose(1, 2).flatten(0, 1).flip(2, 3)
    sides = zip(conv.size, conv.padding, spans, conv.stride, strict=True)
    size = ((n + 2 * p[0] - k - 1) // s + 1 for n, p, k, s in sides)
    once = dataclasses.replace(conv, stride=(1, 1))
    kernel = _pack(turned, once, factor, padding, (batch, *size))
    return dataclasses.replace(kernel, spread=conv.stride)


@torch.no_grad()
def _pack(
    weight: Tensor, conv: Conv, factor: float, padding: tuple[int, ...], shape: tuple[int, ...]
) -> Kernel:
    rest = padding, conv.stride, conv.dilation, conv.groups
    scaled = (weight.detach() * factor).contiguous()
    channels = weight.shape[1] * conv.groups
    full = [shape[0], channels, *shape[1:]]
    packed = torch_internals.pack_kernel(scaled, *rest, full)
    return Kernel(packed, factor, tuple(shape), *rest)


@functools.lru_cache(maxsize=1)
def available() -> bool:
    """Whether this torch has the operators, and they do what they are taken to do."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    try:
        return all(_agrees(groups) for groups in (1, 2))
    except (AttributeError, RuntimeError, TypeError):
        return False


@torch.inference_mode()
def _agrees(groups: int) -> bool:
    ramp = torch.linspace(-1, 1, 1200)
    weight = ramp[: 6 * (4 // groups) * 9].reshape(6, 4 // groups, 3, 3)
    x = ramp[:400].reshape(2, 4, 5, 10).contiguous(memory_format=torch.channels_last)
    rest = ramp[: 2 * 8 * 50].reshape(2, 8, 5, 10).contiguous(memory_format=torch.channels_last)
    bias, slot = ramp[:6], rest.clone()
    conv = Conv(weight, (1, 1), ((1, 1), (1, 1)), (1, 1), groups, (5, 10))
    product = F.conv2d(x, weight, None, 1, 1, 1, groups)
    expected = rest[:, 1:7] - 0.5 * product + bias[:, None, None]
    direct_kernel(conv, -0.5, 2).add(slot[:, 1:7], x, bias)
    back = adjoint_kernel(conv, 1.0, 2)
    assert back is not None
    y = expected
    turned = F.conv_transpose2d(y, weight, None, 1, 1, 0, groups)
    close = torch.allclose(slot[:, 1:7], expected, atol=1e-5)
    kept = torch.equal(slot[:, :1], rest[:, :1]) and torch.equal(slot[:, 7:], rest[:, 7:])
    return close and kept and torch.allclose(back.apply(y), turned, atol=1e-5)
