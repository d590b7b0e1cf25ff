"""Contexts in which numbers are as exact as the network's parameters."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch


def full_precision(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Keep autocast away from what runs inside, on one device."""
    if torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return contextlib.nullcontext()


@contextlib.contextmanager
def exact_products() -> Iterator[None]:
    """Keep products of float32 matrices in float32: neither TF32 nor bfloat16 inside.

    ``torch.set_float32_matmul_precision("high")`` and cuDNN's default round their factors to ten
    bits and fewer, with "medium" on CPUs too. A proof that was computed so proves nothing. The
    settings are the process's: other threads are slower for this time, and they come back.
    """
    backends: Any = torch.backends
    settings = (
        # torch's older question for cuDNN has no answer where its two settings differ.
        backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn,
        backends.mkldnn.matmul, backends.mkldnn.conv, backends.mkldnn.rnn,
    )  # fmt: skip
    before = [setting.fp32_precision for setting in settings]
    try:
        for setting in settings:
            setting.fp32_precision = "ieee"
        yield
    finally:
        for setting, value in zip(settings, before, strict=True):
            setting.fp32_precision = value
