"""The memory format of images and kernels: channels_last where that is faster."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pursuitify.utils import func_transforms
from pursuitify.utils.func_transforms import compiling

_FAST = (torch.float32, torch.bfloat16)


def preferred(value: Any) -> Any:
    """Return an image batch in channels_last on a CPU; anything else as it is.

    Convolutions keep the format of their input, so one conversion here serves every sweep. There a
    strided convolution's adjoint takes the forward's time, in the contiguous format up to 2.5 times
    as long. On other devices, and in other precisions, the format the user chose stays; so it does
    in training mode, where dropout draws its mask in the order of memory. Under torch.func the
    format stays, too: vmap knows no other.
    """
    if (
        func_transforms.active()
        or not isinstance(value, Tensor)
        or value.dim() != 4
        or value.device.type != "cpu"
    ):
        return value
    if value.dtype not in _FAST or value.shape[1] == 1:
        return value
    return value.contiguous(memory_format=torch.channels_last)


def returned(output: Any, inputs: Sequence[Any]) -> Any:
    """Return an output in the contiguous format, where that is the format of every input.

    What the source returns for contiguous images can be flattened by ``view``; so can this.
    """
    images = (a for a in inputs if isinstance(a, Tensor) and a.dim() == 4)
    return _contiguous(output) if all(a.is_contiguous() for a in images) else output


def _contiguous(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.contiguous() if value.dim() == 4 else value
    if type(value) is dict:
        return {key: _contiguous(item) for key, item in value.items()}
    return type(value)(map(_contiguous, value)) if type(value) in {tuple, list} else value


def kernel(weight: Tensor, image: Tensor) -> Tensor:
    """Return a kernel in the memory format of the images it meets, where a compiler traces.

    Compiled code would copy it into that format for every convolution of every sweep; so it does
    once. Without a compiler the sweeps pack their kernels (``kernel_packing``).
    """
    if not compiling() or weight.dim() != 4 or image.is_contiguous():
        return weight
    if not image.is_contiguous(memory_format=torch.channels_last):
        return weight
    return weight.contiguous(memory_format=torch.channels_last)
