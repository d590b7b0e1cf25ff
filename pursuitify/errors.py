"""The error family: everything pursuitify raises on purpose derives from ``PursuitifyError``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class PursuitifyError(Exception):
    """Base of every error this library raises on purpose."""


class OptionError(PursuitifyError, ValueError):
    """An argument is unknown, of the wrong type or outside its range."""


class InputError(PursuitifyError, ValueError):
    """An input tensor does not fit the network: shape, dtype, device or not finite."""


class OutputError(InputError, OptionError):
    """A network returns something else than logits, and training and attacks need these."""


class RangeError(InputError):
    """The sweeps leave the range of their precision on this input."""


class TraceError(PursuitifyError):
    """torch.fx cannot follow the model, for instance through data-dependent control flow."""


class CheckpointError(PursuitifyError):
    """A checkpoint cannot be written or read, or belongs to another network."""


class ExportError(PursuitifyError):
    """Another library cannot write the network in its format, or cannot run what was written."""


class DataError(PursuitifyError):
    """A data set cannot be found or read."""


class TrainingError(PursuitifyError):
    """Training cannot go on, for instance because the loss is not finite."""


class AuditError(PursuitifyError):
    """An audit cannot go on, for instance because an attack changed the network for good."""


class MemoryLimitError(TrainingError):
    """A training step does not fit into the free memory, whatever is chosen for it."""


class EstimateError(PursuitifyError):
    """The memory of a network cannot be counted: its forward needs values, or has no meta form."""


class MissingExtraError(PursuitifyError, ImportError):
    """An optional library is not installed."""


class InternalError(PursuitifyError):
    """A check on our own work failed; a bug to report, never a wrong answer returned."""


@dataclass(frozen=True)
class Problem:
    """One thing that stands in the way of a conversion.

    Attributes:
        node: Name of the fx node.
        op: What the node does, for example ``GELU``.
        module: Path of the module that does it, or of the module whose forward calls it.
        reason: Why it cannot be converted.
        hint: What to do about it.
    """

    node: str
    op: str
    module: str
    reason: str
    hint: str

    def __str__(self) -> str:
        """Return the problem in one line."""
        where = f" in '{self.module}'" if self.module else ""
        return f"{self.node} ({self.op}{where}): {self.reason}. {self.hint}".rstrip()


class ConversionError(PursuitifyError):
    """A model cannot be converted; lists every problem at once.

    Attributes:
        problems: All problems found, in graph order.
    """

    def __init__(self, summary: str, problems: Sequence[Problem] = ()) -> None:
        """Join the summary and one line per problem."""
        self.problems = tuple(problems)
        super().__init__("\n".join([summary, *(f"  - {p}" for p in self.problems)]))


class VerificationError(ConversionError):
    """A network does not do what its source does, or its dictionary is not that of its source.

    Attributes:
        problems: All differences found, in graph order: row, operation and module path each.
    """
