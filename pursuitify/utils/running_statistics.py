"""Passes that leave a module as it was: queries of a network are no training steps."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import nn


def writes_buffers(network: nn.Module) -> bool:
    """Return whether a pass may write into buffers now.

    Every layer may in training mode; a forward that counts its calls does in any mode, which the
    network's attribute ``writes_always`` says.
    """
    training = any(module.training for module in network.modules())
    return training or bool(getattr(network, "writes_always", False))


@contextlib.contextmanager
def untouched(network: nn.Module) -> Iterator[None]:
    """Leave running statistics and counters as they are: the passes inside write to copies.

    Where nothing writes, nothing is copied.
    """
    if not writes_buffers(network):
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
