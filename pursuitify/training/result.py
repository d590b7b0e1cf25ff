"""What fine-tuning returns."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Result:
    """What a fine-tuning did.

    Attributes:
        history: Per epoch: ``epoch``, ``step``, ``lr``, ``loss``, ``accuracy`` on the training
            data as it went, ``val_loss`` and ``val_accuracy`` after it, ``iterations`` (T at its
            end) and, of a pursuit network, ``objective`` (F, mean of what was measured) and
            ``mean_beta``.
        best: The entry of the best epoch, by validation accuracy, then loss.
        stopped_early: Whether patience ran out.
        best_path: File with the best weights, where an output folder was given.
        last_path: File with the last weights likewise.
        log_path: The history as CSV likewise.
    """

    history: list[dict[str, Any]]
    best: dict[str, Any]
    stopped_early: bool
    best_path: Path | None = None
    last_path: Path | None = None
    log_path: Path | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain lists, numbers and strings."""
        facts = asdict(self)
        return {k: str(v) if isinstance(v, Path) else v for k, v in facts.items()}
