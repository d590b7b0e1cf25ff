"""The calls and returns that one thread makes while a context is open, seen one by one."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from cProfile import Profile
from types import FrameType
from typing import Any

#: Called with a frame, what happens there (``call``, ``return``, ``c_call``, ...), and what
#: ``sys.setprofile`` hands over with it.
Note = Callable[[FrameType, str, Any], object]


@contextlib.contextmanager
def noted(note: Note) -> Iterator[bool]:
    """Call ``note`` at every event of ``sys.setprofile`` in this thread.

    A profile function that is set already goes on seeing them, too. A profiler written in C cannot
    be called from here: cProfile's, which has ``disable`` and ``enable``, is switched off
    meanwhile; any other is left in its place, and nothing is noted.

    Yields:
        Whether events are noted.
    """
    outer: Any = sys.getprofile()
    if isinstance(outer, Profile):
        outer.disable()
        try:
            with noted(note) as works:
                yield works
        finally:
            outer.enable()
        return
    if outer is not None and not callable(outer):
        yield False
        return

    def both(frame: FrameType, event: str, arg: Any) -> None:
        note(frame, event, arg)
        if outer is not None:
            outer(frame, event, arg)

    sys.setprofile(both)
    try:
        yield True
    finally:
        sys.setprofile(outer)
