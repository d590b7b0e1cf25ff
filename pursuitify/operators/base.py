"""The contract every linear map keeps: apply, explicit adjoint, certified norm bound."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, TypeAlias

import torch
from torch import Tensor

from pursuitify.operators.norms.symbol import Reach
from pursuitify.operators.symbols import Symbols
from pursuitify.utils.func_transforms import compiling

#: A factor of a sum: a number, or a tensor that broadcasts against the sum.
Factor: TypeAlias = "Tensor | float"


def accumulate(total: Tensor, value: Tensor, factor: Factor) -> Tensor:
    """Return ``total + factor * value``, in one pass; overwrites ``total``."""
    if isinstance(factor, Tensor):
        return total.addcmul_(value, factor)
    return total.add_(value, alpha=factor)


def piece(value: Tensor, dim: int, start: int, length: int) -> Tensor:
    """Return a slice of a map's weights: a view, but a copy where torch.compile traces.

    What a sweep reads are the inputs of a region that is compiled once, and two of those must not
    share memory.
    """
    found = value.narrow(dim, start, length)
    return found.clone() if compiling() else found


class FilterBank(NamedTuple):
    """The weights of a convolution or of a matrix, all that its norm bound depends on.

    Attributes:
        weight: Kernel (c_out, c_in / groups, *k); a matrix (out, in) has no spatial dims.
        stride: Stride per spatial dim.
        dilation: Dilation per spatial dim.
        groups: Number of groups.
        reaches: What the image at hand uses of the kernel, per spatial dim; None where norm bounds
            are to hold for images of every size.
    """

    weight: Tensor
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    reaches: tuple[Reach, ...] | None = None


class LinearMap(ABC):
    """A linear map between batches of tensors, bound to its parameters and shapes.

    Maps are small immutable records made once per forward pass (run time). ``apply`` and
    ``adjoint`` are explicit operators, never automatic differentiation, so that a sweep can be
    compiled, exported and differentiated. They take and return whole batches: dimension 0 is the
    batch unless the map itself moves it.
    """

    #: Whether ``apply`` also takes a tensor that only broadcasts against the input.
    broadcasts: ClassVar[bool] = False

    @abstractmethod
    def apply(self, x: Tensor) -> Tensor:
        """Return A x."""

    @abstractmethod
    def adjoint(self, y: Tensor) -> Tensor:
        """Return A^T y, in the shape ``apply`` took."""

    def minus_adjoint(self, total: Tensor, y: Tensor) -> Tensor:
        """Return ``total - A^T y``."""
        return total - self.adjoint(y)

    def apply_into(self, into: Tensor, x: Tensor) -> Tensor:
        """Return A x, in the memory of ``into`` where that saves something: see ``add_apply``."""
        return self.apply(x)

    def add_apply(self, total: Tensor, x: Tensor, factor: Factor) -> Tensor:
        """Return ``total + factor A x``, in ``total``: not where derivatives are recorded.

        Args:
            total: A tensor of the output's shape, which may be a view of a larger one: the result
                has to be written there.
            x: As ``apply`` takes it.
            factor: A number, or a tensor that broadcasts against ``total``.
        """
        return accumulate(total, self.apply(x), factor)

    def add_adjoint(self, total: Tensor, y: Tensor, factor: Factor) -> Tensor:
        """Return ``total + factor A^T y``, in ``total`` likewise."""
        return accumulate(total, self.adjoint(y), factor)

    @abstractmethod
    def norm_bound(self) -> Tensor | float:
        """Return a certified upper bound of the spectral norm of A.

        A float or a 0-dim tensor where the bound holds for every sample, or a tensor of shape
        (batch, 1, ..., 1) where frozen per-sample values (a gate, a mask) enter.
        """

    def narrow(self, dim: int, start: int, length: int) -> LinearMap:
        """Return the map restricted to one slot of dimension ``dim``.

        Only maps that treat the slots of ``dim`` independently (channelwise ones) can.

        Raises:
            NotImplementedError: If the map mixes slots.
        """
        raise NotImplementedError(f"{type(self).__name__} mixes the slots of dimension {dim}")

    def moves_batch(self, batch: int) -> bool:
        """Whether dimension 0 no longer holds sample after sample, where the input's does.

        Args:
            batch: Number of samples; dimension 0 may hold several entries of each.
        """
        return False

    def after(self, first: LinearMap) -> LinearMap | None:
        """Return ``self o first`` as one cheaper map, or None where there is none."""
        return None

    def filter_bank(self) -> FilterBank | None:
        """Return the weights where the map is one convolution or matrix; None where it is none."""
        return None

    def bank_on_image(self) -> FilterBank | None:
        """Return ``filter_bank()`` with what the image at hand uses of it, where that is known."""
        return self.filter_bank()

    def rescaled(self, factor: Tensor) -> LinearMap | None:
        """Return the map with its output times ``factor`` folded into its weights, or None.

        Args:
            factor: A tensor with as many dims as the output, each of its size or 1, or 0-dim.
        """
        return None

    def rescaled_input(self, factor: Tensor) -> LinearMap | None:
        """Return the map of ``factor`` times its input, folded into its weights, or None."""
        return None

    def narrow_input(self, start: int, length: int) -> LinearMap | None:
        """Return the map restricted to a slot of input channels, or None where it has no such."""
        return None

    def pattern(self) -> LinearMap:
        """Return the map with every weight set to one: what it can reach, whatever they are."""
        return self

    def symbol(self, into: Symbols) -> None:
        """Say in the words of ``Symbols`` what the map does to channels and positions.

        By default it is said to move elements; a map that does more, and says nothing, is refused.
        """
        into.moved(self)

    def adjoint_symbol(self, into: Symbols) -> None:
        """Say the same of the adjoint."""
        into.refused(f"the adjoint of {type(self).__name__} has no kernel form")


def along(factor: Tensor, dim: int, size: int, dims: int) -> Tensor | None:
    """Return a factor as a vector (size,) along ``dim``, or None if it varies elsewhere.

    Args:
        factor: As ``LinearMap.rescaled`` takes it.
        dim: The dimension.
        size: Its size.
        dims: Number of dimensions of what is scaled.
    """
    if factor.dim() == 0:
        return factor.expand(size)
    if factor.dim() != dims or factor.shape[dim] not in (1, size):
        return None
    if factor.numel() != factor.shape[dim]:
        return None
    return factor.reshape(-1).expand(size)


def channels_inside(x: Tensor) -> bool:
    """Return whether channels lie closest in memory (channels_last), under vmap as well."""
    return x.dim() > 2 and x.shape[1] > 1 and x.stride(1) == 1


class Identity(LinearMap):
    """The identity; what an inlined no-op (Identity, contiguous, eval-mode dropout) becomes."""

    broadcasts = True

    def apply(self, x: Tensor) -> Tensor:
        """Return ``x`` itself."""
        return x

    def adjoint(self, y: Tensor) -> Tensor:
        """Return ``y`` itself."""
        return y

    def norm_bound(self) -> float:
        """Return 1."""
        return 1.0

    def narrow(self, dim: int, start: int, length: int) -> Identity:
        """Return the identity on the slot."""
        return self

    def after(self, first: LinearMap) -> LinearMap:
        """Return ``first``."""
        return first

    def symbol(self, into: Symbols) -> None:
        """Say nothing: nothing is done."""


class Detached(LinearMap):
    """The identity, but that no derivative goes through its value: where ``no_grad`` ends.

    Its adjoint is the identity's, so feedback goes through, with the derivatives of what it reads.
    """

    def apply(self, x: Tensor) -> Tensor:
        """Return ``x`` without its derivative."""
        return x.detach()

    def adjoint(self, y: Tensor) -> Tensor:
        """Return ``y`` itself."""
        return y

    def norm_bound(self) -> float:
        """Return 1."""
        return 1.0

    def narrow(self, dim: int, start: int, length: int) -> Detached:
        """Return the same map: it treats every entry alike."""
        return self


@dataclass(frozen=True, eq=False)
class Chain(LinearMap):
    """Several maps as one; the first is applied first.

    Attributes:
        maps: The maps, in the order they are applied.
    """

    maps: tuple[LinearMap, ...]

    def apply(self, x: Tensor) -> Tensor:
        """Return A_n ... A_1 x."""
        for item in self.maps:
            x = item.apply(x)
        return x

    def adjoint(self, y: Tensor) -> Tensor:
        """Return A_1^T ... A_n^T y."""
        for item in reversed(self.maps):
            y = item.adjoint(y)
        return y

    def minus_adjoint(self, total: Tensor, y: Tensor) -> Tensor:
        """Return ``total - A^T y``."""
        for item in reversed(self.maps[1:]):
            y = item.adjoint(y)
        return self.maps[0].minus_adjoint(total, y) if self.maps else total - y

    def add_apply(self, total: Tensor, x: Tensor, factor: Factor) -> Tensor:
        """Return ``total + factor A x``; overwrites ``total``."""
        for item in self.maps[:-1]:
            x = item.apply(x)
        return (self.maps[-1] if self.maps else Identity()).add_apply(total, x, factor)

    def add_adjoint(self, total: Tensor, y: Tensor, factor: Factor) -> Tensor:
        """Return ``total + factor A^T y``; overwrites ``total``."""
        for item in reversed(self.maps[1:]):
            y = item.adjoint(y)
        return (self.maps[0] if self.maps else Identity()).add_adjoint(total, y, factor)

    def norm_bound(self) -> Tensor | float:
        """Return the product of the maps' bounds."""
        bound: Tensor | float = 1.0
        for item in self.maps:
            bound = bound * item.norm_bound()
        return bound

    def moves_batch(self, batch: int) -> bool:
        """Whether one of the maps does."""
        return any(item.moves_batch(batch) for item in self.maps)

    def narrow(self, dim: int, start: int, length: int) -> Chain:
        """Narrow every map of the chain."""
        return Chain(tuple(item.narrow(dim, start, length) for item in self.maps))

    def pattern(self) -> Chain:
        """Return the chain of the maps' patterns."""
        return Chain(tuple(item.pattern() for item in self.maps))

    def symbol(self, into: Symbols) -> None:
        """Let every map speak for itself."""
        for item in self.maps:
            into.read(item)


def flatten(maps: Sequence[LinearMap]) -> list[LinearMap]:
    """Return the maps with every ``Chain`` spelled out."""
    flat: list[LinearMap] = []
    for item in maps:
        flat.extend(flatten(item.maps) if isinstance(item, Chain) else [item])
    return flat


def compose(maps: Sequence[LinearMap]) -> tuple[LinearMap, ...]:
    """Fuse a chain of maps, first applied first, as far as neighbours allow; drop identities."""
    chain: list[LinearMap] = []
    waiting = flatten(maps)[::-1]
    while waiting:
        item = waiting.pop()
        fused = item.after(chain[-1]) if chain else None
        if fused is not None:
            chain.pop()
            waiting.extend(flatten([fused])[::-1])  # it may fuse with what stands before it
        elif not isinstance(item, Identity):
            chain.append(item)
    return tuple(chain)


def dottest(linear: LinearMap, x: Tensor, seed: int = 0) -> float:
    """Return the relative error of <A x, y> = <x, A^T y> for a random y.

    Args:
        linear: The map to test.
        x: An input of the shape, dtype and device the map is bound to.
        seed: Seed of the random y.

    Examples:
        >>> import torch
        >>> from pursuitify.rules import Scale
        >>> dottest(Scale(torch.tensor(2.0)), torch.rand(1, 3)) < 1e-6
        True
    """
    ax = linear.apply(x)
    generator = torch.Generator().manual_seed(seed)
    y = torch.randn(ax.shape, generator=generator, dtype=torch.float64).to(ax)
    left, right = (ax * y).sum(), (x * linear.adjoint(y)).sum()
    scale = ax.norm() * y.norm()
    return float((left - right).abs() / scale.clamp_min(torch.finfo(ax.dtype).tiny))


@dataclass(frozen=True, eq=False)
class Adjoint(LinearMap):
    """The adjoint of ``inner``: apply and adjoint exchanged, the same norm.

    Attributes:
        inner: The map to turn around.
    """

    inner: LinearMap

    def apply(self, x: Tensor) -> Tensor:
        """Return the inner map's adjoint of ``x``."""
        return self.inner.adjoint(x)

    def adjoint(self, y: Tensor) -> Tensor:
        """Return the inner map of ``y``."""
        return self.inner.apply(y)

    def norm_bound(self) -> Tensor | float:
        """Return the inner map's bound."""
        return self.inner.norm_bound()

    def moves_batch(self, batch: int) -> bool:
        """Whether the inner map does."""
        return self.inner.moves_batch(batch)

    def narrow(self, dim: int, start: int, length: int) -> Adjoint:
        """Return the adjoint of the inner map's slot."""
        return Adjoint(self.inner.narrow(dim, start, length))

    def filter_bank(self) -> FilterBank | None:
        """Return the inner map's: the norm is the same."""
        return self.inner.filter_bank()

    def bank_on_image(self) -> FilterBank | None:
        """Return the inner map's likewise."""
        return self.inner.bank_on_image()

    def rescaled(self, factor: Tensor) -> LinearMap | None:
        """Return the adjoint of the inner map with its input rescaled, or None."""
        scaled = self.inner.rescaled_input(factor)
        return None if scaled is None else Adjoint(scaled)

    def pattern(self) -> Adjoint:
        """Return the adjoint of the inner map's pattern."""
        return Adjoint(self.inner.pattern())

    def symbol(self, into: Symbols) -> None:
        """Let the inner map speak of its adjoint."""
        self.inner.adjoint_symbol(into)

    def adjoint_symbol(self, into: Symbols) -> None:
        """Let the inner map speak."""
        into.read(self.inner)
