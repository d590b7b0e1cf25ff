"""Max pooling without a batch: the stated assumption that every window takes its centre.

Switches depend on the batch. ``centre_window`` replaces a frozen selection by subsampling at each
window's centre element (the lower one of an even window), one legitimate choice of switches.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from torch import Tensor

from pursuitify.analysis import lines
from pursuitify.analysis.lines import Line
from pursuitify.errors import InternalError
from pursuitify.maps import Select


def centre_window(select: Select, sizes: Sequence[int]) -> tuple[Line, ...]:
    """Return the lines of a max pooling whose every window takes its centre.

    The windows are read off the switches: the smallest ones that hold them all.
    """
    out = select.indices.shape[2:]
    reach = [_reach(select.indices, select.size, d) for d in range(len(select.size))]
    options = [
        list(_fits(low, high, n, o))
        for (low, high), n, o in zip(reach, select.size, out, strict=True)
    ]
    fitting = [
        choice
        for choice in itertools.product(*options)
        if math.prod(-(-k // s) for k, s, _ in choice) == select.cover
    ]
    if not fitting:
        raise InternalError(f"no pooling window fits the switches of {select.size} -> {tuple(out)}")
    best = min(fitting, key=lambda c: (len({k for k, _, _ in c}), sum(k + p for k, _, p in c)))
    along: list[Line] = []
    for (k, s, p), n, o in zip(best, select.size, out, strict=True):
        centre = (k - 1) // 2
        along.append(lines.window(n, o, 1, s, p - centre, 1))
    along += [lines.identity(n) for n in sizes[len(along) :]]
    return tuple(along)


def _reach(indices: Tensor, size: Sequence[int], dim: int) -> tuple[list[int], list[int]]:
    """Return per output position the least and the greatest coordinate selected along ``dim``."""
    stride = math.prod(size[dim + 1 :])
    coordinate = (indices // stride % size[dim]).movedim(2 + dim, 0).flatten(1)
    return coordinate.amin(1).tolist(), coordinate.amax(1).tolist()


def _fits(low: Sequence[int], high: Sequence[int], n: int, out: int) -> list[tuple[int, int, int]]:
    """Return the (window, stride, padding) that hold what was selected."""
    found = []
    for k in range(1, n + 1):
        for pad in range(k // 2 + 1):
            for s in range(1, max(k, 3) + 1):
                whole = n + 2 * pad - k
                if whole < 0 or out not in (whole // s + 1, -(-whole // s) + 1):
                    continue
                starts = [q * s - pad for q in range(out)]
                inside = all(
                    a <= x and y <= a + k - 1 for a, x, y in zip(starts, low, high, strict=True)
                )
                if inside:
                    found.append((k, s, pad))
        if found and k > min(c[0] for c in found) + 3:
            break
    return found
