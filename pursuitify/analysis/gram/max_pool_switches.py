"""Max pooling without a batch: what is assumed of its switches.

Switches depend on the batch. ``centre`` takes each window's centre element (the lower one of an
even window; the nearest one inside the image where that is padding): one legitimate choice.
``every`` keeps all elements of a window, a tap each, for the worst case over all choices.
"""

from __future__ import annotations

from collections.abc import Sequence

from pursuitify.analysis.gram import position_relations
from pursuitify.analysis.gram.position_relations import Band, Line, Table
from pursuitify.analysis.gram.symbol import UnsupportedError
from pursuitify.operators import Select, Windows


def centre(select: Select, sizes: Sequence[int]) -> tuple[Line, ...]:
    """Return the relation of a max pooling whose every window takes its centre.

    Raises:
        UnsupportedError: If the windows are not regular.
    """
    held = _windows(select)
    out = select.indices.shape[2:]
    along: list[Line] = []
    for n, o, k, s, p, d in zip(select.size, out, *vars(held).values(), strict=True):
        middle = (k - 1) // 2
        entries = []
        for q in range(o):
            inside = [t for t in range(k) if 0 <= q * s - p + t * d < n]
            tap = min(inside, key=lambda t: (abs(t - middle), t))
            entries.append((q, q * s - p + tap * d, 0, 1.0))
        edges = Table(tuple(entries), 1, n, o)
        along.append(Band(1, s, (((p - middle * d, 1.0),),), n, o, edges))
    return _filled(along, sizes)


def every(select: Select, sizes: Sequence[int]) -> tuple[Line, ...]:
    """Return the relation of a max pooling with a tap per element of its windows.

    Raises:
        UnsupportedError: If the windows are not regular.
    """
    held = _windows(select)
    out = select.indices.shape[2:]
    along: list[Line] = [
        position_relations.window(n, o, k, s, p, d)
        for n, o, k, s, p, d in zip(select.size, out, *vars(held).values(), strict=True)
    ]
    return _filled(along, sizes)


def _windows(select: Select) -> Windows:
    if select.windows is None:
        raise UnsupportedError("max pooling whose windows differ in size")
    return select.windows


def _filled(along: list[Line], sizes: Sequence[int]) -> tuple[Line, ...]:
    return (*along, *(position_relations.identity(n) for n in sizes[len(along) :]))
