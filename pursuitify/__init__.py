"""Turn an existing ReLU network into a deep pursuit network."""

from pursuitify.analysis import coherence
from pursuitify.calibrate import calibrate
from pursuitify.checkpoint import load, save
from pursuitify.compiler import pursuitify
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
from pursuitify.network import PursuitNetwork
from pursuitify.report import Report, explain
from pursuitify.version import VERSION

__all__ = [
    "CheckpointError",
    "ConversionError",
    "InputError",
    "InternalError",
    "OptionError",
    "Problem",
    "PursuitNetwork",
    "PursuitifyError",
    "Report",
    "TraceError",
    "calibrate",
    "coherence",
    "explain",
    "load",
    "pursuitify",
    "save",
]
__version__ = VERSION
