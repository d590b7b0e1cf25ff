"""Data in every form is the same two tensors, or is refused in our words."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, Subset, TensorDataset

from pursuitify.data.forms import all_labels, is_table, whole
from pursuitify.data.images import Images
from pursuitify.errors import InputError, OptionError

X = torch.rand(7, 1, 4, 4, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([0, 2, 1, 1, 0, 2, 2])


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter([(x, int(y)) for x, y in zip(X, Y, strict=True)])


def pairs(label: Callable[[Tensor], Any]) -> list[Any]:
    return [(x, label(y)) for x, y in zip(X, Y, strict=True)]


FORMS: dict[str, Callable[[], Any]] = {
    "tensors": lambda: (X, Y),
    "a list of two": lambda: [X, Y],
    "TensorDataset": lambda: TensorDataset(X, Y),
    "Images": lambda: Images(X, Y),
    "Subset": lambda: Subset(TensorDataset(X.flip(0), Y.flip(0)), range(6, -1, -1)),
    "pairs": lambda: pairs(lambda y: y),
    "whole numbers": lambda: pairs(int),
    "numpy's": lambda: pairs(lambda y: np.int64(y)),
    "arrays": lambda: [(x.numpy(), int(y)) for x, y in zip(X, Y, strict=True)],
    "DataLoader": lambda: DataLoader(TensorDataset(X, Y), 3),
    "batches": lambda: [(X[:3], Y[:3]), (X[3:], Y[3:])],
    "batches of one": lambda: [(x[None], y[None]) for x, y in zip(X, Y, strict=True)],
    "a generator": lambda: (part for part in [(X[:5], Y[:5]), (X[5:], Y[5:])]),
    "samples of a generator": lambda: (pair for pair in pairs(int)),
    "IterableDataset": Stream,
}


@pytest.mark.parametrize("name", FORMS)
def test_every_form_is_the_same_tensors(name: str) -> None:
    x, y = whole(FORMS[name]())
    assert torch.equal(x, X)
    assert torch.equal(y, Y)
    known = all_labels(FORMS[name]()) if is_table(FORMS[name]()) else None
    assert known is None or torch.equal(known.long(), Y)


WRONG: dict[str, tuple[Any, type[Exception], str]] = {
    "nothing": ([], InputError, "empty"),
    "a tensor": (X, OptionError, "data is a Tensor; give"),
    "a path": ("images", OptionError, "data is a str; give"),
    "a dict": ({"x": X, "y": Y}, OptionError, "data is a dict; give"),
    "a number": (3, OptionError, "data is a int; give"),
    "labels in a list": ((X, Y.tolist()), OptionError, r"torch\.as_tensor\(labels\)"),
    "triples": ([(X, Y, Y)], OptionError, "entry 0 of data is a tuple of 3"),
    "dicts": ([{"x": X, "y": Y}], OptionError, "entry 0 of data is a dict with 'x', 'y'"),
    "texts": ([(X[0], "cat")], OptionError, "must hold tensors"),
    "of two lengths": ([(X, Y[:3])], OptionError, "samples as their first dimension"),
    "of two sizes": ([(X[0], 1), (X[0, :, :3], 2)], InputError, "several kinds"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_data_is_refused(name: str) -> None:
    data, kind, words = WRONG[name]
    with pytest.raises(kind, match=words):
        whole(data)
