"""This module tells whether a compiler traces the code that runs."""

from __future__ import annotations

import torch


def compiling() -> bool:
    """Return whether torch.compile traces, and not torch.export.

    Some forms are better for a compiler (one sweep compiled once, kernels in the images' memory
    format) and have no place in an exported graph.
    """
    return torch.compiler.is_compiling() and not torch.compiler.is_exporting()
