"""Convolution: native apply, native transposed convolution as its adjoint."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pursuitify.operators.base import Adjoint, FilterBank, LinearMap, along, piece
from pursuitify.operators.conv_phases import phase_adjoint
from pursuitify.operators.norms.certified import conv_norm_bound
from pursuitify.operators.norms.symbol import Reach
from pursuitify.operators.reshape import Place
from pursuitify.operators.symbols import Symbols

_FEW = 4
_CONV: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TRANSPOSED: dict[int, Callable[..., Tensor]] = {
    1: F.conv_transpose1d,
    2: F.conv_transpose2d,
    3: F.conv_transpose3d,
}


def per_dim(value: int | Sequence[int], dims: int) -> tuple[int, ...]:
    """Spread an int, or a sequence of one or ``dims`` ints, over ``dims`` spatial dims."""
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * dims if len(values) == 1 else values


@dataclass(frozen=True, eq=False)
class Conv(LinearMap):
    """A convolution (as torch has it: a correlation) without bias.

    Attributes:
        weight: Kernel (c_out, c_in / groups, *k), one to three spatial dims.
        stride: Stride per spatial dim.
        padding: Zero padding (low, high) per spatial dim; a negative high end crops.
        dilation: Dilation per spatial dim.
        groups: Number of groups.
        size: Spatial size of the input.
    """

    weight: Tensor
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    groups: int
    size: tuple[int, ...]

    @classmethod
    def from_call(
        cls,
        input_size: Sequence[int],
        weight: Tensor,
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] | str = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
    ) -> Conv:
        """Make the map of an F.convNd call.

        Args:
            input_size: Spatial size of the input.
            weight: Kernel (c_out, c_in / groups, *k).
            stride: As F.convNd takes it.
            padding: As F.convNd takes it, 'same' and 'valid' included.
            dilation: As F.convNd takes it.
            groups: Number of groups.
        """
        dims = weight.dim() - 2
        dilated = per_dim(dilation, dims)
        if padding == "same":
            totals = [d * (k - 1) for d, k in zip(dilated, weight.shape[2:], strict=True)]
            pads = tuple((t // 2, t - t // 2) for t in totals)
        elif padding == "valid":
            pads = ((0, 0),) * dims
        elif isinstance(padding, str):
            raise ValueError(f"padding {padding!r} is not one of 'same', 'valid' or integers")
        else:
            pads = tuple((p, p) for p in per_dim(padding, dims))
        return cls(weight, per_dim(stride, dims), pads, dilated, groups, tuple(input_size))

    @property
    def form(self) -> tuple[tuple[int, ...], tuple[int, ...], int]:
        """Stride, dilation and groups: beside the weight all that the norm bound depends on."""
        return self.stride, self.dilation, self.groups

    @property
    def adjoint_form(self) -> tuple[object, ...]:
        """The settings that fix the code of the adjoint, as a key: equal keys have equal code.

        Weights, channels and the image size are no part of it, but for the number of pixels that a
        stride leaves over.
        """
        depthwise = self.groups > 1 and self.weight.shape[1] == 1
        over = tuple(
            (n + low + high - d * (k - 1) - 1) % s
            for n, (low, high), d, k, s in zip(
                self.size,
                self.padding,
                self.dilation,
                self.weight.shape[2:],
                self.stride,
                strict=True,
            )
        )
        kernel = tuple(self.weight.shape[2:])
        groups = -1 if depthwise else self.groups
        return kernel, self.stride, self.padding, self.dilation, groups, over, self._few_channels

    def _split_padding(self) -> tuple[list[int], list[int]]:
        """Return the symmetric padding per dim, and the rest in F.pad's order."""
        native = [max(0, min(low, high)) for low, high in self.padding]
        rest = [
            value
            for (low, high), p in zip(reversed(self.padding), reversed(native), strict=True)
            for value in (low - p, high - p)
        ]
        return native, rest

    def apply(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Return the convolution of ``x`` (batch, c_in, *size), plus ``bias`` (c_out,) if given."""
        native, rest = self._split_padding()
        if any(rest):
            x = F.pad(x, rest)
        return _CONV[len(self.size)](
            x, self.weight, bias, self.stride, native, self.dilation, self.groups
        )

    def adjoint(self, y: Tensor) -> Tensor:
        """Return the transposed convolution of ``y``, of the input's exact size."""
        if self._few_channels:
            starts = [p for p, _ in self.padding]
            return phase_adjoint(y, self.weight, self.stride, starts, self.size)
        native, rest = self._split_padding()
        dims = len(self.size)
        extra = []
        for i in range(dims):
            low, high = rest[2 * (dims - 1 - i) : 2 * (dims - i)]
            span = self.dilation[i] * (self.weight.shape[2 + i] - 1) + 1
            extra.append((self.size[i] + low + high + 2 * native[i] - span) % self.stride[i])
        x = _TRANSPOSED[dims](
            y, self.weight, None, self.stride, native, extra, self.groups, self.dilation
        )
        return F.pad(x, [-p for p in rest]) if any(rest) else x

    @property
    def _few_channels(self) -> bool:
        """Whether the adjoint is faster by phases."""
        plain = self.groups == 1 and set(self.dilation) == {1}
        return plain and max(self.stride) > 1 and self.weight.shape[1] <= _FEW

    def as_bias(self, offset: Tensor) -> Tensor | None:
        """Return an offset (1, c_out, 1, ...) as a bias vector, or None if it varies otherwise."""
        shape = (1, self.weight.shape[0], *(1,) * len(self.size))
        return offset.reshape(-1) if offset.shape == shape else None

    def norm_bound(self) -> Tensor:
        """Return the certified bound of the kernel, which holds for every image size."""
        return conv_norm_bound(self.weight, self.stride, self.dilation, self.groups)

    def scaled(self, scale: Tensor) -> Conv:
        """Return the map with its output channels scaled by ``scale`` (c_out,)."""
        shape = (-1,) + (1,) * (self.weight.dim() - 1)
        return dataclasses.replace(self, weight=self.weight * scale.reshape(shape))

    def scaled_input(self, scale: Tensor) -> Conv:
        """Return the map with its input channels scaled by ``scale`` (c_in,)."""
        split = self.weight.reshape(self.groups, -1, *self.weight.shape[1:])
        factor = scale.reshape(self.groups, 1, -1, *(1,) * len(self.size))
        return dataclasses.replace(self, weight=(split * factor).flatten(0, 1))

    def narrow_input(self, start: int, length: int) -> Conv | None:
        """Return the map restricted to a slot of input channels, or None if it is grouped."""
        if self.groups != 1:
            return None
        return dataclasses.replace(self, weight=piece(self.weight, 1, start, length))

    def after(self, first: LinearMap) -> LinearMap | None:
        """Absorb a placement into a slot of channels: only that slot's kernel is applied."""
        if isinstance(first, Place) and first.dim == 1:
            return self.narrow_input(first.start, first.length)
        return None

    def filter_bank(self) -> FilterBank:
        """Return the weights."""
        return FilterBank(self.weight, self.stride, self.dilation, self.groups)

    def bank_on_image(self) -> FilterBank:
        """Return the weights, and what images of ``size`` use of them."""
        # Sizes are tensors under torch.jit.trace, and symbols where a compiler keeps them open.
        reaches = tuple(
            Reach.of(int(n), int(k), s, padding, d) for n, k, s, padding, d in self._dims()
        )
        return self.filter_bank()._replace(reaches=reaches)

    def rescaled(self, factor: Tensor) -> Conv | None:
        """Return the map with a factor per output channel in its kernel."""
        scale = along(factor, 1, self.weight.shape[0], self.weight.dim())
        return None if scale is None else self.scaled(scale)

    def rescaled_input(self, factor: Tensor) -> Conv | None:
        """Return the map with a factor per input channel in its kernel."""
        channels = self.weight.shape[1] * self.groups
        scale = along(factor, 1, channels, self.weight.dim())
        return None if scale is None else self.scaled_input(scale)

    def pattern(self) -> Conv:
        """Return the convolution with a kernel of ones."""
        return dataclasses.replace(self, weight=torch.ones_like(self.weight))

    def symbol(self, into: Symbols) -> None:
        """Say: a kernel on a window per dim."""
        self._say(into, transposed=False)

    def adjoint_symbol(self, into: Symbols) -> None:
        """Say the same, transposed."""
        self._say(into, transposed=True)

    def _dims(self) -> Iterable[tuple[int, int, int, tuple[int, int], int]]:
        """Return size, taps, stride, padding and dilation per spatial dim."""
        taps = self.weight.shape[2:]
        return zip(self.size, taps, self.stride, self.padding, self.dilation, strict=True)

    def _say(self, into: Symbols, transposed: bool) -> None:
        windows = [
            into.window(n, (n + low + high - d * (k - 1) - 1) // s + 1, k, s, low, d)
            for n, k, s, (low, high), d in self._dims()
        ]
        into.weighted(self.weight, self.groups, windows, transposed)


def conv_transpose_map(
    input_size: Sequence[int],
    weight: Tensor,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    output_padding: int | Sequence[int] = 0,
    groups: int = 1,
    dilation: int | Sequence[int] = 1,
) -> Adjoint:
    """Return the map of an F.conv_transposeNd call: the adjoint of a convolution.

    Args:
        input_size: Spatial size of the transposed convolution's input.
        weight: Kernel (c_in, c_out / groups, *k), as F.conv_transposeNd takes it.
        stride: As F.conv_transposeNd takes it.
        padding: As F.conv_transposeNd takes it.
        output_padding: As F.conv_transposeNd takes it.
        groups: Number of groups.
        dilation: As F.conv_transposeNd takes it.
    """
    dims = weight.dim() - 2
    strides, pads = per_dim(stride, dims), per_dim(padding, dims)
    extra, dilated = per_dim(output_padding, dims), per_dim(dilation, dims)
    size = tuple(
        (n - 1) * s - 2 * p + d * (k - 1) + e + 1
        for n, s, p, d, k, e in zip(
            input_size, strides, pads, dilated, weight.shape[2:], extra, strict=True
        )
    )
    # output_padding may reach a whole stride under dilation: the convolution must not read that.
    sides = tuple((p, p - s * (e // s)) for p, s, e in zip(pads, strides, extra, strict=True))
    return Adjoint(Conv(weight, strides, sides, dilated, groups, size))
