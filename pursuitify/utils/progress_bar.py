"""Where progress bars go: to standard error, so that standard output holds results alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


def bar_console() -> Console:
    """Return the console of a progress bar; in a notebook it shows in the cell as always."""
    from rich.console import Console

    return Console(stderr=True)
