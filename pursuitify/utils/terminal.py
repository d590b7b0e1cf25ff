"""This module makes what a user reads on a terminal: progress bars, and tables as text."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console, RenderableType


def bar_console() -> Console:
    """Return the console of a progress bar; in a notebook it shows in the cell as always.

    It writes to standard error, so that standard output holds results alone.
    """
    from rich.console import Console

    return Console(stderr=True)


@contextlib.contextmanager
def bar(wanted: bool, what: str, total: int) -> Iterator[Callable[[], None]]:
    """Show a progress bar and yield what advances it by one; do nothing if it is not wanted.

    Args:
        wanted: Whether to show it.
        what: What is done.
        total: Number of steps.
    """
    if not wanted:
        yield lambda: None
        return
    from rich.progress import Progress

    with Progress(console=bar_console()) as shown:
        task = shown.add_task(what, total=total)
        yield lambda: shown.advance(task)


def as_text(*parts: RenderableType, width: int) -> str:
    """Return what rich prints of each part on a terminal of so many columns, without colours.

    Args:
        parts: Tables, texts, or objects with ``__rich__``; each begins a line.
        width: Number of columns.
    """
    from rich.console import Console

    out = io.StringIO()
    console = Console(file=out, width=width, color_system=None)
    for part in parts:
        console.print(part)
    return out.getvalue()
