"""Questions about what runs the code: transforms of torch.func (vmap, grad, jvp), a compiler."""

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


def compiling() -> bool:
    """Return whether torch.compile traces, and not torch.export.

    Some forms are better for a compiler (one sweep compiled once, kernels in the images' memory
    format) and have no place in an exported graph.
    """
    return torch.compiler.is_compiling() and not torch.compiler.is_exporting()


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
