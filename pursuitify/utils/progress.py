"""A progress bar that is only there where it is wanted."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from pursuitify.utils.progress_bar import bar_console


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
