"""Whether torch.func transforms the code that runs: vmap, grad, jvp and what is built of them."""

from __future__ import annotations

import torch
from torch.autograd import forward_ad

from pursuitify.errors import InputError


def active() -> bool:
    """Whether values may be wrapped by a transform, or carry tangents of forward-mode AD.

    Such a value has no memory to read, so nothing may depend on its numbers, be kept for a later
    call, or be written in place. torch has no public question for this; ``_functorch`` answers what
    torch's own modules ask. A compiler traces the transforms itself, so there it is False.
    """
    if torch.compiler.is_compiling():
        return False
    wrapped = torch._C._functorch.maybe_current_level() is not None
    return wrapped or forward_ad._current_level >= 0


def refuse_tracing() -> None:
    """Refuse transforms that trace with make_fx: norm bounds crash the process there.

    Raises:
        InputError: Under ``torch.func.linearize``, for one.
    """
    from torch.fx.experimental.proxy_tensor import get_proxy_mode

    if get_proxy_mode() is not None:
        raise InputError(
            "pursuit (iterations > 0) cannot be traced by make_fx under torch.func, as "
            "torch.func.linearize does: call torch.func.jvp with each tangent instead"
        )
