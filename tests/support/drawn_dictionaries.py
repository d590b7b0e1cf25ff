"""Small networks of every kind that the Gram algebra is about, drawn by hypothesis."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import assume
from hypothesis import strategies as st
from torch import Tensor, nn

from pursuitify import pursuitify
from pursuitify.dictionary.bound_rows import BoundPath
from pursuitify.operators import Select
from tests.support.nets import randomise

#: What is drawn; ``strided`` to ``tied`` are convolutional, the first three linear as well.
KINDS = (
    "chain", "residual", "dense", "strided", "pooled", "averaged", "grouped", "concat", "shortcut",
    "tied", "identity", "scaled", "shuffled",
)  # fmt: skip
#: Sizes of images by the number of their dimensions.
SIZES: dict[int, tuple[int, ...]] = {0: (), 1: (9,), 2: (5, 6), 3: (4, 3, 3)}
LINEAR_KINDS = ("chain", "residual", "dense", "tied", "identity", "scaled")

CONV = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORM = (nn.BatchNorm1d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
MAX_POOL: tuple[Any, ...] = (None, F.max_pool1d, F.max_pool2d, F.max_pool3d)
AVG_POOL: tuple[Any, ...] = (None, F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)


class Drawn(nn.Module):
    """A first layer, a middle of one kind, a last layer.

    Attributes:
        kind: One of ``KINDS``.
        dims: Spatial dimensions, 0 for vectors.
        pads: Zeros before and after each spatial dim, last dim first, ahead of the middle; the
            groups of the joined weight where the kind is ``concat``.
        pool: kernel, stride, padding (and dilation of a max pooling) of the pooling.
    """

    def __init__(
        self,
        kind: str,
        dims: int,
        widths: tuple[int, int],
        middle: dict[str, Any],
        pads: tuple[int, ...],
        pool: tuple[tuple[int, ...], ...],
    ) -> None:
        super().__init__()
        self.kind, self.dims, self.pads, self.pool = kind, dims, pads, pool
        a, b = widths
        same: dict[str, Any] = {"kernel_size": 3, "padding": 1} if dims else {}
        point: dict[str, Any] = {"kernel_size": 1} if dims else {}
        make = CONV[dims]
        self.first = make(2, a, **same)
        if kind in ("residual", "tied", "identity"):
            self.middle = make(a, a, **same)
        else:
            self.middle = make(a, b, **(middle or same))
        if kind == "dense":
            self.more = make(a + b, b, **same)
        elif kind == "shortcut":
            self.more = make(a, b, **point, stride=middle["stride"], groups=math.gcd(a, b))
        elif kind == "concat":  # two slots under one weight, whose groups may lie across them
            self.more = make(a, b, **point)
            self.joined = make(a + b, 6 * b, groups=max(pads), **same)
            self.pads, b = (), 6 * b
        read = {"dense": a + 2 * b, "residual": a, "tied": a, "identity": a}.get(kind, b)
        self.norm = NORM[dims](a)
        self.last = make(read, 2, **point)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        y = self.run(x)
        return torch.relu(self.last(y))

    def run(self, x: Tensor) -> Tensor:
        """Return the value of the middle."""
        if self.kind == "residual":
            return torch.relu(self.middle(x) + x)
        if self.kind == "tied":
            return torch.relu(self.middle(torch.relu(self.middle(x))))
        if self.kind == "identity":  # a latent that is read by an addition alone
            y = torch.relu(self.norm(x))
            return torch.relu(self.middle(x) - 0.5 * y)
        if self.kind == "scaled":
            return torch.relu(self.middle(-1.5 * self.norm(x)))
        if self.kind == "dense":
            y = torch.cat([x, torch.relu(self.middle(x))], 1)
            return torch.cat([y, torch.relu(self.more(y))], 1)
        if self.kind == "concat":
            y = torch.cat([torch.relu(self.more(x)), x], 1)
            return torch.relu(self.joined(y))
        if self.kind == "pooled":
            x = MAX_POOL[self.dims](x, *self.pool)
        if self.kind == "averaged":
            x = AVG_POOL[self.dims](x, *self.pool[:3])
        if self.kind == "shortcut":
            return torch.relu(self.middle(x) + self.more(x))
        if self.kind == "shuffled":  # whole groups of channels change places
            y = self.middle(x)
            n, c, *rest = y.shape
            y = y.view(n, 2, 2, c // 4, *rest).transpose(1, 2).reshape(n, c, *rest)
            return torch.relu(y)
        if self.pads:
            x = F.pad(x, self.pads)
        return torch.relu(self.middle(x))


@st.composite
def drawn(draw: st.DrawFn, kind: str, dims: tuple[int, ...] = (0, 1, 2, 3)) -> tuple[Drawn, int]:
    """Draw a network of one kind and its seed.

    Args:
        draw: Given by hypothesis.
        kind: One of ``KINDS``.
        dims: Spatial dimensions to choose from; 0 for vectors where the kind allows it.
    """
    allowed = [d for d in dims if d or kind in LINEAR_KINDS]
    d = draw(st.sampled_from(allowed))
    groups = draw(st.sampled_from([2, 3, "all"])) if kind == "grouped" else 1
    widths = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    if groups == "all":
        groups, widths = widths[0], (widths[0], widths[0] * draw(st.integers(1, 2)))
    elif kind == "grouped":
        widths = groups * draw(st.integers(1, 2)), groups * draw(st.integers(1, 2))
    per_dim = st.lists
    middle: dict[str, Any] = {}
    pads: tuple[int, ...] = ()
    if d and kind in ("chain", "strided", "grouped", "pooled", "averaged"):
        top = 3 if kind == "strided" else 2
        kernel = draw(per_dim(st.integers(1, 3), min_size=d, max_size=d))
        middle = {
            "kernel_size": tuple(kernel),
            "stride": tuple(draw(per_dim(st.integers(1, top), min_size=d, max_size=d))),
            "dilation": tuple(draw(per_dim(st.integers(1, 2), min_size=d, max_size=d))),
            "padding": tuple(draw(st.integers(0, k)) for k in kernel),
            "groups": groups,
        }
        pads = tuple(draw(per_dim(st.integers(0, 2), min_size=2 * d, max_size=2 * d)))
        pads = pads if draw(st.booleans()) else ()
    elif kind == "shortcut":
        s = tuple(draw(per_dim(st.integers(1, 2), min_size=d, max_size=d)))
        g = draw(st.integers(1, 2))
        widths = g * widths[0], g * widths[1]
        middle = {"kernel_size": 3, "stride": s, "padding": 1, "groups": g}
    elif kind == "shuffled":
        widths = 4 * draw(st.integers(1, 2)), 8
        middle = {"kernel_size": 3, "padding": 1, "groups": draw(st.sampled_from([1, 2, 4]))}
    elif kind == "concat":
        widths = draw(st.sampled_from([(1, 1), (2, 2), (3, 3), (2, 1), (4, 2)]))
        pads = (draw(st.sampled_from([1, 1, sum(widths) // math.gcd(*widths)])),)
    window = draw(per_dim(st.integers(1, 3), min_size=d, max_size=d)) if d else []
    pool: tuple[tuple[int, ...], ...] = (
        tuple(window),
        tuple(draw(st.integers(1, 3)) for _ in window),
        tuple(draw(st.integers(0, k // 2)) for k in window),
        tuple(draw(st.integers(1, 2)) for _ in window),
    )
    seed = draw(st.integers(0, 2**16))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Drawn(kind, d, widths, middle, pads, pool)
    return randomise(model, seed).double().eval(), seed  # type: ignore[return-value]


def centred(dictionary: Any) -> Any:
    """Return a dictionary whose every max-pool window selects its centre, spelled out by hand."""

    def swap(m: Any) -> Any:
        if not isinstance(m, Select):
            return m
        out = m.indices.shape[2:]
        index = torch.zeros(out, dtype=torch.long)
        held = m.windows
        for n, o, d, k, s, p, e in zip(
            m.size, out, range(len(out)), held.kernel, held.stride, held.padding, held.dilation,
            strict=True,
        ):  # fmt: skip
            chosen = []
            for q in range(o):
                taps = [t for t in range(k) if 0 <= q * s - p + t * e < n]
                t = min((abs(t - (k - 1) // 2), t) for t in taps)[1]
                chosen.append(q * s - p + t * e)
            shape = [-1 if i == d else 1 for i in range(len(out))]
            index = index * n + torch.tensor(chosen).reshape(shape)
        return dataclasses.replace(m, indices=index.expand(m.indices.shape).contiguous())

    rows = tuple(
        dataclasses.replace(
            row,
            slots=tuple(
                tuple(BoundPath(p.leaf, tuple(map(swap, p.maps))) for p in slot)
                for slot in row.slots
            ),
        )
        for row in dictionary.rows
    )
    return dictionary.with_rows(rows)


def bound(model, layout, sizes=None):
    """Return the network and its dictionary at one input, every max-pool window at its centre."""
    net = pursuitify(model, layout=layout)
    shape = (2, *(SIZES[model.dims] if sizes is None else sizes))
    x = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    try:
        with torch.no_grad():
            model(x)
    except RuntimeError:  # a kernel larger than what is left of the image
        assume(False)
    return net, centred(net.dictionary(x)), shape
