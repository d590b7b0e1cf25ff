"""The idx format of the MNIST family, read without trusting the file."""

from __future__ import annotations

import gzip
import math
import os
import zlib
from pathlib import Path

import torch
from torch import Tensor

from pursuitify.errors import DataError

_UNSIGNED_BYTE = 0x08
_LIMIT = 2**32


def read_idx(path: str | os.PathLike[str]) -> Tensor:
    """Read an idx file of bytes, gzipped or not.

    Args:
        path: The file; gzipped where its name ends in ``.gz``.

    Returns:
        A uint8 tensor of the shape that the header states.

    Raises:
        DataError: If the file is missing, truncated, longer than its header says, or of another
            type. No more is read than the header states.
    """
    file = Path(path)
    try:
        with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as source:
            magic = source.read(4)
            if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] != _UNSIGNED_BYTE:
                raise DataError(f"{file} is no idx file of bytes: it starts with {magic.hex()!r}")
            head = source.read(4 * magic[3])
            if magic[3] == 0 or len(head) < 4 * magic[3]:
                raise DataError(f"{file} is truncated in its header")
            shape = [int.from_bytes(head[i : i + 4], "big") for i in range(0, len(head), 4)]
            size = math.prod(shape)
            if size > _LIMIT:
                raise DataError(f"{file} states the shape {shape}, more than {_LIMIT} bytes")
            body = source.read(size + 1)
    except FileNotFoundError as error:
        raise DataError(f"there is no file {file}") from error
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{file} cannot be read; it may be truncated: {error}") from error
    if len(body) != size:
        found = "more" if len(body) > size else f"{len(body)}"
        raise DataError(f"{file} states the shape {shape}, {size} bytes, but holds {found}")
    if size == 0:
        return torch.empty(shape, dtype=torch.uint8)
    return torch.frombuffer(bytearray(body), dtype=torch.uint8).reshape(shape)
