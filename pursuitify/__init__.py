"""Turn an existing ReLU network into a deep pursuit network."""

from pursuitify.errors import (
    ConversionError,
    InputError,
    InternalError,
    OptionError,
    Problem,
    PursuitifyError,
    TraceError,
)
from pursuitify.network import PursuitNetwork, pursuitify
from pursuitify.report import Report, explain

__all__ = [
    "ConversionError",
    "InputError",
    "InternalError",
    "OptionError",
    "Problem",
    "PursuitNetwork",
    "PursuitifyError",
    "Report",
    "TraceError",
    "explain",
    "pursuitify",
]
__version__ = "0.1.0"
