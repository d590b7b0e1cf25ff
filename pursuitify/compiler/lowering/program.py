"""The compiled network: three generated functions and the rows they serve.

* ``plain``: the source graph as it stands; what T = 0 is.
* ``forward``: the feed-forward pass that also binds every operation of the rows to this batch and
  returns what the sweeps and the head need, nothing more.
* ``head``: from pursued latents to the output.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn

from pursuitify.compiler.graph.classify import Sites, inputs_of
from pursuitify.compiler.graph.rows import Readers, Row
from pursuitify.compiler.lowering import random_draws
from pursuitify.compiler.lowering.pickling import Stored, dump
from pursuitify.compiler.tracing import nodes
from pursuitify.operators import LinearMap
from pursuitify.operators.activations import Activation


@dataclass(frozen=True, eq=False)
class Bound:
    """One affine operation bound to a batch.

    Attributes:
        maps: One linear map per operand.
        offset: What depends on no latent; broadcasts against the value. None for zero.
        shape: Shape of the value.
    """

    maps: tuple[LinearMap, ...]
    offset: Tensor | None
    shape: tuple[int, ...]

    def __call__(self, x: Tensor) -> Tensor:
        """Apply the operation to its single operand."""
        value = self.maps[0].apply(x)
        return value if self.offset is None else value + self.offset


@dataclass(frozen=True, eq=False)
class Pass:
    """The results of the feed-forward pass that the sweeps and the head read.

    Attributes:
        latents: The latents' values, in graph order.
        u: Per row the value whose linear part is u_j.
        bound: The operations of the rows, by node name.
        activations: Per row its activation.
        captured: What rows read as they read an input, then frozen values and sizes that the head
            reads, in the program's order.
    """

    latents: tuple[Tensor, ...]
    u: tuple[Tensor, ...]
    bound: dict[str, Bound]
    activations: tuple[Activation, ...]
    captured: tuple[Any, ...]


@dataclass(frozen=True, eq=False)
class Program:
    """The compiled form of one traced graph; holds code, no tensors.

    Attributes:
        rows: The rows of the dictionary.
        layout: The layout that was asked for.
        nonnegative: Whether thresholds of sparse latents are held to >= 0.
        sites: The classified nodes.
        graph: The source graph.
        inputs: The placeholders, in the order of the arguments.
        defaults: Their default values; None where there is none.
        readers: Per latent the (row, slot, paths) that read it.
        plain: The source network as a function ``plain(network, *args)``.
        names: Names of the operations that ``_forward`` binds.
        any_format: Whether the memory format of images may be chosen (``layout_freedom.free``).
        any_dtype: Per input whether it may hold integers.
        signal_count: How many leaves are no inputs; a number, since compilers read no cache.
        blocks: Paths of the modules whose forward was traced and whose values are latents, or
            computed of latents in the head: their forward hooks can be called.
    """

    rows: tuple[Row, ...]
    layout: str
    nonnegative: bool
    sites: Sites
    graph: fx.Graph
    inputs: tuple[fx.Node, ...]
    defaults: tuple[Any, ...]
    readers: Readers
    plain: Callable[..., Any]
    names: tuple[str, ...]
    any_format: bool
    any_dtype: tuple[bool, ...]
    signal_count: int
    blocks: frozenset[str]
    _forward: Callable[..., Any]
    _head: Callable[..., Any]

    @functools.cached_property
    def leaves(self) -> tuple[fx.Node, ...]:
        """The inputs, then what rows read as they read one; the i-th is leaf -1 - i of paths."""
        return inputs_of(self.sites)

    def signals(self, first: Pass) -> tuple[Tensor, ...]:
        """Return the values of what rows read as they read an input, in a feed-forward pass."""
        return first.captured[: self.signal_count]

    @functools.cached_property
    def nodes(self) -> dict[str, fx.Node]:
        """The nodes of the source graph by name; rows refer to them so."""
        return {node.name: node for node in self.graph.nodes}

    @functools.cached_property
    def writes_buffers(self) -> bool:
        """Whether the forward itself writes into a buffer, whatever modes the modules are in."""
        no_root = nn.Module()  # in-place modules are left out, and need none
        for node, site in self.sites.items():
            if node.op not in {"call_function", "call_method"}:
                continue
            if nodes.is_inplace(node, no_root) and nodes.starts_at_attribute(node):
                return True
            if site.call is None or site.rule is None or not site.rule.stateful:
                continue
            if site.call.parameters.get("training", True) is not False:
                return True
        return False

    def may_draw(self, network: nn.Module) -> bool:
        """Return whether a pass may draw from the global random generators, in its modes now."""
        return self._draws.now(network)

    @functools.cached_property
    def _draws(self) -> random_draws.Draws:
        return random_draws.draws_of(self.graph, self.sites)

    def __deepcopy__(self, memo: Any) -> Program:
        """Return itself."""
        return self

    def __reduce__(self) -> tuple[type[Stored], tuple[bytes]]:
        """Pickle what the code is generated from; ``emit.revive`` makes a program of it."""
        rest = (self.sites, self.rows, self.layout, self.nonnegative)
        return Stored, (dump(self.graph, rest).content,)

    def forward(self, network: nn.Module, *args: Any) -> Pass:
        """Run the feed-forward pass and bind the rows to this batch."""
        return self.passed(self._forward(network, *args))

    def passed(self, found: tuple[Any, ...]) -> Pass:
        """Return the record of what the feed-forward function returned."""
        latents, u, bound, activations, captured = found
        named = dict(zip(self.names, bound, strict=True))
        return Pass(latents, u, named, activations, captured)

    def head(self, network: nn.Module, latents: tuple[Tensor, ...], first: Pass, args: Any) -> Any:
        """Run what follows the last latents."""
        return self._head(network, latents, first.bound, first.captured, args)
