"""This module makes what a user reads: progress bars, and reports as text and in notebooks."""

from __future__ import annotations

import contextlib
import io
import itertools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console, RenderableType


class Shown:
    """A report that rich prints, and that a notebook shows as the last value of a cell.

    A subclass defines ``__str__``. One that holds tables defines ``__rich__`` as well, and makes
    its text of that with ``as_text``.
    """

    def __rich__(self) -> RenderableType:
        """Return what rich prints: the text, as it is."""
        from rich.text import Text

        return Text(str(self))

    def _repr_html_(self) -> str:
        """Return what rich prints as HTML, for notebooks."""
        from rich.console import Console

        console = Console(file=io.StringIO(), record=True, width=_NOTEBOOK, force_jupyter=False)
        console.print(self)
        made: str = console.export_html(inline_styles=True, code_format=_HTML)
        return made


#: Columns of a report in a notebook, and the HTML around it: no colours of a page's own.
_NOTEBOOK = 110
_HTML = '<pre style="font-family:monospace; line-height:1.2; white-space:pre">{code}</pre>'


def bar_console() -> Console:
    """Return the console of a progress bar; in a notebook it shows in the cell as always.

    It writes to standard error, so that standard output holds results alone.
    """
    from rich.console import Console

    return Console(stderr=True)


#: Lines at most that stand for a progress bar.
_LINES = 20


@contextlib.contextmanager
def bar(wanted: bool, what: str, total: int) -> Iterator[Callable[[], None]]:
    """Show a progress bar and yield what advances it by one; do nothing if it is not wanted.

    Where standard error is neither a terminal nor a notebook, a line says at most every twentieth
    of the way how many steps are done.

    Args:
        wanted: Whether to show it.
        what: What is done.
        total: Number of steps.
    """
    if not wanted:
        yield lambda: None
        return
    from rich.progress import Progress

    console, done = bar_console(), itertools.count(1)
    if not (console.is_terminal or console.is_jupyter):

        def say() -> None:
            step = next(done)
            if step * _LINES // total > (step - 1) * _LINES // total:
                console.print(f"{what}: {step} of {total}", markup=False, highlight=False)

        yield say
        return
    with Progress(console=console) as shown:
        task = shown.add_task(what, total=total)
        yield lambda: shown.advance(task)


def as_text(report: RenderableType, width: int) -> str:
    """Return what rich prints of a report on a terminal of so many columns, without colours.

    Args:
        report: A table, a text, or an object with ``__rich__``.
        width: Number of columns.
    """
    from rich.console import Console

    out = io.StringIO()
    # In a notebook rich writes to the cell, whatever file it is given, unless it is told not to.
    Console(file=out, width=width, color_system=None, force_jupyter=False).print(report)
    return out.getvalue()
