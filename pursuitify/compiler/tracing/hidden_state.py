"""What a trace would lose or fix silently: reads of a module's mode, randomness, Python state."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from pursuitify import errors
from pursuitify.compiler.tracing.nodes import is_inplace


@contextlib.contextmanager
def watch_modes(paths: dict[int, str], asked: set[str]) -> Iterator[None]:
    """Note which modules' ``training`` the traced code reads."""

    def read(module: nn.Module) -> Any:
        if id(module) in paths:
            asked.add(paths[id(module)])
        return module.__dict__["training"]

    def write(module: nn.Module, value: bool) -> None:
        module.__dict__["training"] = value

    nn.Module.training = property(read, write)  # type: ignore[assignment]
    try:
        yield
    finally:
        del nn.Module.training


def random_state() -> tuple[Any, Any, Any]:
    """Return the state of every global random number generator on the CPU."""
    return torch.get_rng_state(), random.getstate(), np.random.get_state()


def same_random_state(before: tuple[Any, Any, Any]) -> bool:
    """Whether no random number was drawn since."""
    now = random_state()
    same = bool(torch.equal(now[0], before[0])) and now[1] == before[1]
    return same and bool(np.array_equal(now[2][1], before[2][1])) and now[2][2] == before[2][2]


def restore_random_state(state: tuple[Any, Any, Any]) -> None:
    """Put the generators back."""
    torch.set_rng_state(state[0])
    random.setstate(state[1])
    np.random.set_state(state[2])


def python_state(root: nn.Module) -> dict[tuple[str, str], Any]:
    """Return every plain Python value that hangs on a module."""
    plain = (bool, int, float, str, type(None))
    return {
        (path, name): value
        for path, module in root.named_modules()
        for name, value in vars(module).items()
        if isinstance(value, plain)
    }


def check_buffers(root: nn.Module, model: nn.Module) -> None:
    """Refuse buffers that the forward replaces; writing into them in place is recorded."""
    for path, module in root.named_modules():
        for name, value in module._buffers.items():
            if value is None or not issubclass(type(value), fx.Proxy):
                continue
            node: fx.Node = value.node
            target = f"{path}.{name}".lstrip(".")
            first = node.args[0] if node.args else None
            if not (
                isinstance(first, fx.Node) and is_inplace(node, root) and first.target == target
            ):
                raise errors.TraceError(
                    f"{type(model).__name__} assigns a new tensor to its buffer '{target}', which "
                    "the conversion would lose: write into it in place (buffer.copy_(...))"
                )
