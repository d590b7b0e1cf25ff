"""Passes that leave a module as it was: queries of a network are no training steps."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import nn


@contextlib.contextmanager
def untouched(network: nn.Module) -> Iterator[None]:
    """Leave running statistics and counters as they are: the passes inside write to copies.

    Where no part of the network is in training mode nothing writes, and nothing is copied.
    """
    if not any(module.training for module in network.modules()):
        yield
        return
    held = [
        (module, name, buffer)
        for module in network.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    copies = {id(buffer): buffer.clone() for _, _, buffer in held}
    try:
        for module, name, buffer in held:
            module._buffers[name] = copies[id(buffer)]
        yield
    finally:
        for module, name, buffer in held:
            module._buffers[name] = buffer
