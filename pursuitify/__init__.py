"""Turn an existing ReLU network into a deep pursuit network."""

from pursuitify.analysis import coherence
from pursuitify.calibration import calibrate
from pursuitify.checkpoints.save_load import load, save
from pursuitify.conversion.convert import pursuitify
from pursuitify.conversion.explain import explain
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
from pursuitify.network.pursuit_network import PursuitNetwork
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
