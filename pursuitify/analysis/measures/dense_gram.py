"""The Gram matrix entry by entry, for small networks: switches, masks and all, as bound."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor

from pursuitify.analysis.measures.block_measures import Block, ColumnNorms, Pair
from pursuitify.dictionary.bound_rows import BoundPath
from pursuitify.dictionary.structured import StructuredDictionary
from pursuitify.errors import InputError

#: Largest number of columns (and of rows) that the explicit computation accepts.
LIMIT = 6000


def fits(dictionary: StructuredDictionary) -> bool:
    """Whether a dictionary is small enough to be treated entry by entry."""
    return max(_size(dictionary)) <= LIMIT


def _size(dictionary: StructuredDictionary) -> tuple[int, int]:
    rows = sum(part.numel() for row in dictionary.rows for part in row.u)
    return rows, sum(shape.numel() for shape in dictionary.shapes)


def normalised(dictionary: StructuredDictionary) -> tuple[Tensor, Tensor, Tensor]:
    """Return B with unit columns, its column norms, and which Gram entries are structural.

    Raises:
        InputError: If the dictionary has more columns or rows than ``LIMIT``, or an entry is NaN
            or infinite.
    """
    rows, columns = _size(dictionary)
    if max(columns, rows) > LIMIT:
        raise InputError(
            f"the explicit computation is for at most {LIMIT} rows and columns; this dictionary "
            f"has {rows} and {columns}. Use a smaller input_shape, switches='centre' or 'worst', "
            "or boundary='interior'"
        )
    matrix = dictionary.materialize()[0]
    if not bool(torch.isfinite(matrix).all()):
        wrong = (~torch.isfinite(matrix)).any(0).nonzero().flatten().tolist()
        raise InputError(
            f"the dictionary holds NaN or infinite entries, in {len(wrong)} of {columns} columns "
            f"(the first is column {wrong[0]}): there is nothing to measure. Look at the weights"
        )
    top = matrix.abs().amax(0)  # lengths are taken after scaling: squares of tiny weights vanish
    top = torch.where(top > 0, top, 1)
    scaled = matrix / top
    lengths = scaled.norm(dim=0)
    norms = top * lengths
    pattern = (_pattern(dictionary).materialize()[0] != 0).to(torch.float32)
    unit = scaled / torch.where(lengths > 0, lengths, 1)
    return unit, norms, (pattern.T @ pattern) > 0


def _pattern(dictionary: StructuredDictionary) -> StructuredDictionary:
    """Return the dictionary with every weight set to one: its structural non-zeros."""

    def path(p: BoundPath) -> BoundPath:
        return BoundPath(p.leaf, tuple(m.pattern() for m in p.maps))

    rows = tuple(
        dataclasses.replace(
            row,
            diagonal=None if row.diagonal is None else row.diagonal.pattern(),
            slots=tuple(tuple(path(p) for p in slot) for slot in row.slots),
        )
        for row in dictionary.rows
    )
    return dictionary.with_rows(rows)


def measure(
    dictionary: StructuredDictionary, progress: Callable[[int, int], None] | None = None
) -> tuple[tuple[Block, ...], tuple[ColumnNorms, ...]]:
    """Measure every block and every latent's column norms."""
    unit, lengths, structural = normalised(dictionary)
    gram = unit.T @ unit
    shapes = dictionary.shapes
    sizes = [shape.numel() for shape in shapes]
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    own = ~torch.eye(len(gram), dtype=torch.bool)
    mask = structural & own
    found: list[Block] = []
    names = dictionary.names
    for j, name in enumerate(names):
        for k in range(j, len(names)):
            cut = slice(starts[j], starts[j] + sizes[j]), slice(starts[k], starts[k] + sizes[k])
            here = mask[cut]
            number = int(here.sum())
            if not number:
                continue
            values = torch.where(here, gram[cut], 0)
            times = 1 if j == k else 2
            index = int(values.abs().argmax())
            a, b = divmod(index, sizes[k])
            (ca, *pa), (cb, *pb) = _place(a, shapes[j]), _place(b, shapes[k])
            pair = Pair(
                (name, names[k]), (ca, cb), (tuple(pa), tuple(pb)), float(values.reshape(-1)[index])
            )
            found.append(
                Block(
                    (name, names[k]),
                    abs(pair.value),
                    times * number,
                    times * float(values.square().sum()),
                    times * float(values.abs().sum()),
                    pair,
                )
            )
        if progress is not None:
            progress(j + 1, len(names))
    stats = []
    for name, part in zip(names, lengths.split(sizes), strict=True):  # type: ignore[no-untyped-call]
        low, mean, high = float(part.min()), float(part.mean()), float(part.max())
        stats.append(ColumnNorms(name, low, mean, high, float((part == 0).sum())))
    return tuple(found), tuple(stats)


def _place(index: int, shape: torch.Size) -> tuple[int, ...]:
    """Return the coordinates (channel, *position) of a flat index."""
    place: list[int] = []
    for n in reversed(shape[1:]):
        index, last = divmod(index, n)
        place.insert(0, last)
    return tuple(place)
