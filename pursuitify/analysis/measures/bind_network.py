"""A network's dictionary bound for analysis, and what it holds."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from pursuitify.dictionary.structured import StructuredDictionary
from pursuitify.errors import InputError, OptionError
from pursuitify.network.pursuit_network import PursuitNetwork
from pursuitify.operators import Scale
from pursuitify.utils import option_checks


def bind(
    net: PursuitNetwork, input_shape: Sequence[int] | None, x: Tensor | None
) -> StructuredDictionary:
    """Bind the dictionary of a network to one input."""
    if not isinstance(net, PursuitNetwork):
        raise OptionError(f"net must be a PursuitNetwork, not {type(net).__name__}")
    if x is None:
        like = next((p for p in net.parameters() if p.is_floating_point()), torch.empty(0))
        shape = (3, 224, 224) if input_shape is None else sizes(input_shape)
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(1, *shape, generator=generator).to(like)
    elif input_shape is not None and tuple(x.shape[1:]) != tuple(input_shape):
        raise OptionError("x and input_shape disagree")
    if x.shape[0] != 1:
        raise InputError(
            f"a dictionary is measured for one input, not a batch of {x.shape[0]}: give x[:1]"
        )
    return net.dictionary(x)


def check_finite(dictionary: StructuredDictionary) -> None:
    """Refuse a dictionary about which nothing can be certified.

    Raises:
        InputError: If what rows read of the input, or a threshold, is NaN or infinite.
    """
    for what, found in (("signal", dictionary.signal), ("threshold", dictionary.thresholds)):
        wrong = [name for name, value in found.items() if not bool(value.isfinite().all())]
        if wrong:
            raise InputError(
                f"the {what} of {', '.join(map(repr, wrong))} holds NaN or infinite values: there "
                "is nothing to certify. Look at the weights and biases there"
            )


def sizes(input_shape: object) -> tuple[int, ...]:
    """Return the shape of one input.

    Raises:
        OptionError: If it is no sequence of whole numbers >= 1.
    """
    found = []
    if isinstance(input_shape, Tensor):
        raise OptionError(
            f"input_shape is a tensor of shape {tuple(input_shape.shape)}, not the shape of one "
            "input; give data as x=..."
        )
    if isinstance(input_shape, Iterable) and not isinstance(input_shape, str):
        found = [option_checks.whole(size) for size in input_shape]
    whole = tuple(size for size in found if size is not None and size > 0)
    if not found or len(whole) < len(found):
        raise OptionError(
            f"input_shape={input_shape!r} is not the shape of one input without the batch, whole "
            "numbers >= 1 like (3, 224, 224)"
        )
    return whole


def touched(dictionary: StructuredDictionary) -> list[set[int]]:
    """Return per latent the rows that hold it."""
    touched = [{j} for j in range(len(dictionary.rows))]
    for i, row in enumerate(dictionary.rows):
        for path in (p for slot in row.slots for p in slot if p.leaf >= 0):
            touched[path.leaf].add(i)
    return touched


def layouts(dictionary: StructuredDictionary) -> tuple[int, int]:
    """Return the numbers of decoder and encoder rows."""
    decoder = sum(row.diagonal is not None for row in dictionary.rows)
    return decoder, len(dictionary.rows) - decoder


def holds(dictionary: StructuredDictionary, kind: type) -> bool:
    """Whether a block of B, not the input's, holds a map of a kind."""
    return any(
        isinstance(m, kind)
        for row in dictionary.rows
        for slot in row.slots
        for path in slot
        if path.leaf >= 0
        for m in path.maps
    ) or any(
        isinstance(m, kind) for row in dictionary.rows if row.diagonal for m in row.diagonal.maps
    )


def gated(net: PursuitNetwork, dictionary: StructuredDictionary) -> bool:
    """Whether a scale of B (a gate, a mask) depends on the input: it then differs by sample."""
    if not any(f.dim() > 1 for f in _factors(dictionary)):
        return False
    twice = (torch.cat([x, x]) for x in dictionary.inputs)
    return any(f.dim() > 1 and f.shape[0] == 2 for f in _factors(net.dictionary(*twice)))


def _factors(dictionary: StructuredDictionary) -> Iterator[Tensor]:
    for row in dictionary.rows:
        paths = (p.maps for slot in row.slots for p in slot if p.leaf >= 0)
        for maps in (*paths, row.diagonal.maps if row.diagonal else ()):
            for m in maps:
                if isinstance(m, Scale) and isinstance(m.factor, Tensor):
                    yield m.factor


@contextlib.contextmanager
def evaluating(net: PursuitNetwork) -> Iterator[None]:
    """Hold a network in evaluation mode."""
    training = [m for m in net.modules() if m.training] if isinstance(net, PursuitNetwork) else []
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
