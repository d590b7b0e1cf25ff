"""Turn an existing ReLU network into a deep pursuit network."""

from __future__ import annotations

import importlib
from typing import Any

from pursuitify.analysis import coherence
from pursuitify.checkpoints.save_load import load, save, save_pretrained
from pursuitify.conversion.calibration import calibrate
from pursuitify.conversion.convert import pursuitify
from pursuitify.conversion.explain import explain
from pursuitify.conversion.relu_twin import relu_twin
from pursuitify.conversion.report import Report
from pursuitify.errors import (
    CheckpointError,
    ConversionError,
    InputError,
    InternalError,
    OptionError,
    Problem,
    PursuitifyError,
    TraceError,
)
from pursuitify.memory import MemoryEstimate, estimate_memory
from pursuitify.network.pursuit_network import PursuitNetwork
from pursuitify.version import VERSION

__all__ = [
    "CheckpointError",
    "ConversionError",
    "InputError",
    "InternalError",
    "MemoryEstimate",
    "OptionError",
    "Problem",
    "PursuitNetwork",
    "PursuitifyError",
    "Report",
    "TraceError",
    "calibrate",
    "coherence",
    "estimate_memory",
    "explain",
    "load",
    "pursuitify",
    "relu_twin",
    "save",
    "save_pretrained",
]
__version__ = VERSION

#: Public modules that are imported when they are first used.
_MODULES = (
    "analysis", "backends", "data", "errors", "export", "memory", "models", "plots", "robust",
    "rules", "testing", "training",
)  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import a public module at its first use: ``pursuitify.training`` needs no import line."""
    if name in _MODULES:
        return importlib.import_module(f"pursuitify.{name}")
    raise AttributeError(f"module 'pursuitify' has no attribute {name!r}")


def __dir__() -> list[str]:
    """Return the public names; modules are found by their own names."""
    return [*__all__, "__version__"]
