"""The display of a run: a progress bar and a CSV file."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

from pursuitify.utils.terminal import bar_console

COLUMNS = (
    "epoch",
    "step",
    "lr",
    "iterations",
    "loss",
    "accuracy",
    "val_loss",
    "val_accuracy",
    "objective",
    "reconstruction",
    "frame_potential",
    "mean_beta",
)


def table(history: Sequence[dict[str, Any]]) -> str:
    """Return the history as CSV."""
    out = io.StringIO()
    writer = csv.DictWriter(out, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    return out.getvalue()


class Bar:
    """A progress bar over all steps, on stderr, with the running numbers of the epoch."""

    def __init__(self, shown: bool, title: str, total: int, done: int) -> None:
        """Start at ``done`` of ``total`` steps."""
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[numbers]}"),
            console=bar_console(),
            disable=not shown,
        )
        self._task = self._progress.add_task(title, total=total, completed=done, numbers="")

    def __enter__(self) -> Bar:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def update(self, step: int, numbers: dict[str, float]) -> None:
        """Show how far it is."""
        text = "  ".join(f"{name} {value:.4g}" for name, value in numbers.items())
        self._progress.update(self._task, completed=step, numbers=text)
