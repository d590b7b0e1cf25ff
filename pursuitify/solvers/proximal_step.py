"""One proximal-gradient step on one latent, in place where nothing records it."""

from __future__ import annotations

import torch
from torch import Tensor

from pursuitify.backends import inplace_enabled
from pursuitify.dictionary.bound_rows import BoundRow
from pursuitify.utils import func_transforms


def may_overwrite() -> bool:
    """Return whether elementwise work may be done in place.

    It may not where a derivative, a compiler or a transform needs what would be overwritten, under
    autocast, where dtypes differ, and where ``backends.inplace(False)`` asks for the plain path.
    """
    if not inplace_enabled():
        return False
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or func_transforms.active():
        return False
    return not (torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda"))


def proximal_step(row: BoundRow, v: Tensor, slope: Tensor, step: Tensor, inplace: bool) -> Tensor:
    """Return prox(v - step slope); ``slope`` holds the result where it may be overwritten."""
    if not inplace:
        return row.activation.prox(torch.addcmul(v, slope, step, value=-1.0), step)
    return row.activation.prox_(torch.addcmul(v, slope, step, value=-1.0, out=slope), step)
