"""Questions about torch.func: whether vmap, grad or jvp transform the code that runs."""

from __future__ import annotations

import torch

from pursuitify.errors import InputError
from pursuitify.utils import torch_internals


def active() -> bool:
    """Whether values may be wrapped by a transform, or carry tangents of forward-mode AD.

    Such a value has no memory to read, so nothing may depend on its numbers, be kept for a later
    call, or be written in place. A compiler traces the transforms itself, so there it is False.
    """
    if torch.compiler.is_compiling():
        return False
    return torch_internals.transform_is_active()


def refuse_tracing() -> None:
    """Refuse transforms that trace with make_fx: norm bounds crash the process there.

    Raises:
        InputError: Under ``torch.func.linearize``, for one.
    """
    if torch_internals.make_fx_is_tracing():
        raise InputError(
            "pursuit (iterations > 0) cannot be traced by make_fx under torch.func, as "
            "torch.func.linearize does: call torch.func.jvp with each tangent instead"
        )
