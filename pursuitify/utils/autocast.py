"""Contexts in which numbers are as exact as the network's parameters."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import torch


def full_precision(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Keep autocast away from what runs inside, on one device."""
    if torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return contextlib.nullcontext()


#: The settings that ``exact_products`` changes, as they were before the first of those that are
#: inside entered, and how many are inside. Threads share the settings, so they share these.
_LOCK = threading.Lock()
_before: list[str] = []
_inside = 0


@contextlib.contextmanager
def exact_products() -> Iterator[None]:
    """Keep products of float32 matrices in float32: neither TF32 nor bfloat16 inside.

    ``torch.set_float32_matmul_precision("high")`` and cuDNN's default round their factors to ten
    bits and fewer, with "medium" on CPUs too. A proof that was computed so proves nothing. The
    settings are the process's: other threads are slower for this time, and the settings come back
    when the last that is inside leaves.
    """
    global _before, _inside
    with _LOCK:
        if not _inside:
            _before = [setting.fp32_precision for setting in _settings()]
            for setting in _settings():
                setting.fp32_precision = "ieee"
        _inside += 1
    try:
        yield
    finally:
        with _LOCK:
            _inside -= 1
            if not _inside:
                for setting, value in zip(_settings(), _before, strict=True):
                    setting.fp32_precision = value


def _settings() -> tuple[Any, ...]:
    backends: Any = torch.backends
    return (
        # torch's older question for cuDNN has no answer where its two settings differ.
        backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn,
        backends.mkldnn.matmul, backends.mkldnn.conv, backends.mkldnn.rnn,
    )  # fmt: skip
