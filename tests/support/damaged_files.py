"""This module makes files that are damaged, or that run code when they are unpickled."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

#: The kinds of damage, the keys of ``damaged``.
DAMAGE = ("truncated", "empty", "pickle", "garbage")


def damaged(whole: bytes, ran: Path) -> dict[str, bytes]:
    """Return contents by kind of damage.

    Args:
        whole: The content of an undamaged file.
        ran: A path that exists afterwards if something unpickled the content.
    """

    class Hostile:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (ran,))

    contents = (whole[: len(whole) // 2], b"", pickle.dumps(Hostile()), b"\xff" * 64)
    return dict(zip(DAMAGE, contents, strict=True))
