"""Latents and rows as one flat NumPy vector: the form in which other libraries' solvers take them.

A vector holds sample after sample. Each sample is what ``materialize`` has of a batch of one: the
values in graph order, each flattened. So a batch is one vector for a block diagonal matrix with a
dictionary per sample.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pursuitify.errors import InputError

#: The precisions that both NumPy and torch have.
_DTYPES: dict[torch.dtype, type[np.floating[Any]]] = {
    torch.float64: np.float64,
    torch.float32: np.float32,
    torch.float16: np.float16,
}


def numpy_dtype(dtype: torch.dtype) -> type[np.floating[Any]]:
    """Return NumPy's name of a precision.

    Raises:
        InputError: If NumPy has no such precision.
    """
    if dtype not in _DTYPES:
        raise InputError(
            f"the dictionary is in {dtype}, which NumPy does not have: convert the network with "
            "net.float() or net.double(), the input too"
        )
    return _DTYPES[dtype]


@dataclass(frozen=True)
class VectorLayout:
    """This layout says where the values of a batch stand in a flat vector.

    Attributes:
        what: What the values are, for messages: ``latent`` or ``row``.
        shapes: Shape of each value by name, in graph order; dimension 0 holds sample after sample.
        samples: The number of samples.
        like: A tensor with the dtype and device of the values.
    """

    what: str
    shapes: Mapping[str, torch.Size]
    samples: int
    like: Tensor

    @property
    def size(self) -> int:
        """The number of entries of a vector."""
        return sum(shape.numel() for shape in self.shapes.values())

    def join(self, values: Sequence[Tensor]) -> np.ndarray:
        """Return a vector of values in graph order, shape (size,)."""
        numpy_dtype(self.like.dtype)
        parts = [value.detach().reshape(self.samples, -1) for value in values]
        found: np.ndarray = torch.cat(parts, 1).reshape(-1).cpu().numpy()
        return found

    def split(self, vector: object) -> dict[str, Tensor]:
        """Return the values of a vector by name, in the dictionary's dtype and on its device.

        Args:
            vector: Real numbers, shape (size,) or (size, 1).

        Raises:
            InputError: If it has another size, or its entries are not real numbers.
        """
        array = np.asarray(vector)
        if array.shape not in {(self.size,), (self.size, 1)}:
            raise InputError(
                f"a vector of {self.what}s has shape ({self.size},) here, not {array.shape}"
            )
        if array.dtype.kind not in "fiub":
            raise InputError(
                f"a vector of {self.what}s holds real numbers, not {array.dtype}: the dictionary "
                "is real, so give real and imaginary parts one after the other"
            )
        wanted = array.astype(numpy_dtype(self.like.dtype))  # a copy: nothing shares memory
        flat = torch.from_numpy(wanted).to(self.like.device).reshape(self.samples, -1)
        sizes = [shape.numel() // self.samples for shape in self.shapes.values()]
        parts = torch.split(flat, sizes, 1)
        named = zip(self.shapes.items(), parts, strict=True)
        return {name: part.reshape(shape) for (name, shape), part in named}
