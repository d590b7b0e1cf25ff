"""The forms in which a user gives data, told apart and taken apart in this one place.

Data is two tensors (x, y); samples (x, label) with indices, as a Dataset or a list; or anything
that yields batches (x, y), such as a DataLoader. Training, evaluation and audits ask here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, Subset, TensorDataset, default_collate

from pursuitify.data.image_folder import Folder
from pursuitify.data.images import Images
from pursuitify.data.samples import recordable
from pursuitify.errors import InputError, OptionError

Batch = tuple[Any, Any]
Rows = Any  # (x, y) tensors, a Dataset, a DataLoader, or an iterable of batches
_PAIR = "Give pairs (x, y): a DataLoader's collate_fn may pick them out of what the samples are"


def is_tensors(rows: Rows, name: str = "data") -> bool:
    """Whether rows are all inputs and all labels as two tensors.

    Raises:
        OptionError: If only the inputs are a tensor.
    """
    if isinstance(rows, (tuple, list)) and len(rows) == 2 and isinstance(rows[0], Tensor):
        if isinstance(rows[1], Tensor):
            return True
        raise OptionError(
            f"{name} is a pair of a tensor and a {type(rows[1]).__name__}: labels must be a tensor "
            "too. Give torch.as_tensor(labels)"
        )
    return False


def is_table(rows: Rows) -> bool:
    """Whether rows are single samples with indices."""
    if isinstance(rows, Dataset):
        return not isinstance(rows, IterableDataset)
    return is_tensors(rows) or is_samples(rows)


def is_samples(rows: Rows) -> bool:
    """Whether a list is one of samples and not of batches: a label is one number, or of one x.

    A batch has a first dimension in common with its labels. A vector of fractions can only be one
    sample's probabilities, since class numbers of a batch are integers.
    """
    if not isinstance(rows, (tuple, list)) or not rows:
        return False
    first = rows[0]
    if not isinstance(first, (tuple, list)) or len(first) != 2:
        return False
    y = first[1]
    if isinstance(y, Tensor):
        return y.dim() == 0 or (y.dim() == 1 and y.is_floating_point())
    return isinstance(y, (int, float)) or hasattr(y, "__index__")


def as_samples(rows: Rows) -> Any:
    """Return the samples of tensors, of a Dataset or of a list, by index."""
    return Images(*rows) if is_tensors(rows) else rows


def all_labels(rows: Rows) -> Tensor | None:
    """Return every label of data that holds them in memory; None of all other data.

    They can be checked before any work is done; those of other data are checked batch by batch.
    """
    if is_tensors(rows):
        return rows[1] if len(rows[0]) == len(rows[1]) else None
    if isinstance(rows, Images):
        return rows.y
    if isinstance(rows, Folder):
        return rows.labels
    if isinstance(rows, TensorDataset):
        return rows.tensors[1] if len(rows.tensors) == 2 else None
    if isinstance(rows, Subset):
        inner = all_labels(rows.dataset)
        return None if inner is None else inner[torch.as_tensor(rows.indices, dtype=torch.int64)]
    if isinstance(rows, (tuple, list)) and all(
        isinstance(pair, (tuple, list)) and len(pair) == 2 for pair in rows
    ):
        labels = [torch.as_tensor(y) for _, y in rows if isinstance(y, (int, float, Tensor))]
        if len(labels) < len(rows) or len({(y.dim(), y.dtype, y.shape[1:]) for y in labels}) != 1:
            return None
        if is_samples(rows):
            same = len({y.shape for y in labels}) == 1
            return torch.stack(labels) if same else None
        return torch.cat(labels) if labels[0].dim() else None
    return None


def pair(found: Any, what: str) -> Batch:
    """Return a sample or batch as a pair.

    Raises:
        OptionError: If it is none.
    """
    if isinstance(found, Mapping):
        listed = ", ".join(map(repr, found))
        raise OptionError(f"{what} is a dict with {listed}, not a pair (x, y). {_PAIR}")
    if not isinstance(found, (tuple, list)) or len(found) != 2:
        count = f" of {len(found)}" if isinstance(found, (tuple, list)) else ""
        raise OptionError(f"{what} is a {type(found).__name__}{count}, not a pair (x, y). {_PAIR}")
    return found[0], found[1]


def tensors(pair: Batch, what: str) -> tuple[Tensor, Tensor]:
    """Return a batch that consists of two tensors of one length.

    Raises:
        OptionError: If it does not.
    """
    x, y = pair
    if not isinstance(x, Tensor) or not isinstance(y, Tensor):
        raise OptionError(f"{what} must hold tensors, not {type(x).__name__}, {type(y).__name__}")
    if x.dim() == 0 or y.dim() == 0 or len(x) != len(y):
        raise OptionError(
            f"{what} has inputs of shape {tuple(x.shape)} and labels of shape {tuple(y.shape)}: "
            "both need the samples as their first dimension. A single sample is no batch: give "
            "DataLoader a batch_size"
        )
    return recordable(x), recordable(y)


def collated(samples: Sequence[Batch], what: str) -> Batch:
    """Return samples as one batch.

    Raises:
        OptionError: If they cannot be put together.
    """
    try:
        x, y = default_collate(list(samples))
    except (TypeError, RuntimeError) as error:
        raise OptionError(
            f"{what} cannot be put into one batch ({error}). Each must be a pair (x, y) of tensors "
            "or numbers, of the same shapes: resize or crop them, or give a DataLoader with a "
            "collate_fn"
        ) from error
    return x, y


def whole(rows: Rows, name: str = "data") -> tuple[Tensor, Tensor]:
    """Return all inputs and labels of data in any form, and of an iterable of samples, too.

    Raises:
        OptionError: If the data is of another kind.
        InputError: If there is none, or its inputs differ in shape, type or device.
    """
    if is_tensors(rows):
        return rows[0].detach(), rows[1]  # their lengths are checked with what the labels are
    parts = [
        tensors(batch, f"entry {number} of {name}")
        for number, batch in enumerate(_each(rows, name))
    ]
    if not parts:
        raise InputError(f"{name} is empty: there is no sample in it")
    kinds = {(tuple(x.shape[1:]), x.dtype, x.device.type) for x, _ in parts}
    if len(kinds) > 1:
        listed = sorted(f"{shape} {dtype} on {device}" for shape, dtype, device in kinds)
        raise InputError(f"{name} has inputs of several kinds, which are not one tensor: {listed}")
    return torch.cat([x.detach() for x, _ in parts]), torch.cat([y for _, y in parts])


def _each(rows: Rows, name: str) -> Iterator[Batch]:
    """Yield batches, and samples as batches of one; a data set is read by index, as loaders do."""
    if is_table(rows):
        found = as_samples(rows)
        for index in range(len(found)):
            what = f"sample {index} of {name}"
            yield collated([pair(found[index], what)], what)
        return
    if isinstance(rows, (Tensor, str, Mapping)) or not isinstance(rows, Iterable):
        raise OptionError(
            f"{name} is a {type(rows).__name__}; give (x, y) tensors, a Dataset, a DataLoader or "
            "an iterable of batches"
        )
    for number, entry in enumerate(rows):
        what = f"entry {number} of {name}"
        found = pair(entry, what)
        yield collated([found], what) if is_samples([found]) else found
