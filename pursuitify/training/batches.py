"""From what a user has (tensors, a data set, batches) to this process's share of every batch.

A batch is the same whatever the number of processes: each takes its part of the rows. So two
processes do what one does, and a run can be resumed at any batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    RandomSampler,
    SequentialSampler,
    default_collate,
)

from pursuitify.data import Images
from pursuitify.errors import OptionError
from pursuitify.training import seeding
from pursuitify.utils import option_checks

Batch = tuple[Any, Any]
Rows = Any  # (x, y) tensors, a Dataset, a DataLoader, or an iterable of batches


@dataclass(frozen=True)
class Share:
    """Which part of every batch a process takes: ``index`` of ``count``."""

    index: int = 0
    count: int = 1

    def of(self, rows: Any, even: bool) -> Any:
        """Return this process's rows of a batch.

        For training the shares are even, so that means of means are means, and what cannot be
        dealt out evenly is left out; else every row counts once.
        """
        if not even:
            return rows[self.index :: self.count]
        size = len(rows) // self.count
        return rows[self.index * size : (self.index + 1) * size]


class Batches(Protocol):
    """A pass over the data, repeatable and startable anywhere."""

    def __len__(self) -> int:
        """Return the number of batches in a pass."""
        ...

    def __call__(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield this process's share of the batches of an epoch, from batch ``start`` on."""
        ...


def batches(
    rows: Rows,
    size: int,
    share: Share,
    *,
    train: bool,
    seed: int = 0,
    workers: int = 0,
    augment: Callable[[Tensor], Tensor] | None = None,
    name: str = "train",
) -> Batches:
    """Take what a user calls his data.

    Args:
        rows: ``(x, y)`` tensors; a Dataset of such pairs; a DataLoader; or anything with a length
            that yields batches ``(x, y)``, the same ones again under the same random seeds.
        size: Rows per batch over all processes, where batches are made here.
        share: What this process takes of each.
        train: Shuffle, and leave out the last batch if it is incomplete.
        seed: Seed of the order and of every item's own random numbers.
        workers: Processes that read a Dataset.
        augment: Applied to each x on its own.
        name: For errors.

    Raises:
        OptionError: If the data is of another kind, or there is too little of it.
    """
    size = option_checks.positive("batch_size", size)
    if isinstance(rows, (tuple, list)) and len(rows) == 2 and all(map(torch.is_tensor, rows)):
        return _Table(Images(*rows), size, share, train, seed, workers, augment, name)
    if isinstance(rows, DataLoader):
        made = _of_loader(rows, share, train, seed, augment, name)
        if made is not None:
            return made
    elif isinstance(rows, Dataset):
        return _Table(rows, size, share, train, seed, workers, augment, name)
    if isinstance(rows, Tensor) or not isinstance(rows, Iterable):
        raise OptionError(
            f"{name} is a {type(rows).__name__}; give (x, y) tensors, a Dataset, a DataLoader or "
            "an iterable of batches"
        )
    if augment is not None:
        raise OptionError(f"augment needs single samples, but {name} is an iterable of batches")
    return _Stream(rows, share, train, seed, name)


class _Seeded(Dataset[Any]):
    """A data set whose items are read under a seed of their own: (seed, epoch, index)."""

    def __init__(self, inner: Any, seed: int, augment: Any, collate: Any) -> None:
        self._inner, self._seed, self._augment, self._collate = inner, seed, augment, collate
        self._plain = isinstance(inner, Images) and augment is None
        self.epoch = 0

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        if self._plain:
            x, y = self._inner[indices]
        else:
            with seeding.kept(cuda=False):
                x, y = self._collate([self._item(i) for i in indices])
        return x, y

    def __getitem__(self, index: int) -> Any:
        return self._item(index)

    def _item(self, index: int) -> Any:
        seeding.seed_all(seeding.derived(self._seed, seeding.ITEM, self.epoch, index))
        x, y = self._inner[index]
        return (x if self._augment is None else self._augment(x)), y


def _as_it_is(batch: Any) -> Any:
    return batch


class _Table:
    """Batches of a data set with indices."""

    def __init__(
        self,
        rows: Any,
        size: int,
        share: Share,
        train: bool,
        seed: int,
        workers: int,
        augment: Any,
        name: str,
        collate: Any = default_collate,
        pin: bool = False,
    ) -> None:
        count = len(rows)
        if train and size % share.count:
            raise OptionError(
                f"batch_size={size} cannot be dealt out evenly to {share.count} processes"
            )
        if count < share.count:
            raise OptionError(f"{name} has {count} samples for {share.count} processes")
        self._data = _Seeded(rows, seed, augment, collate)
        self._size = min(size, count - count % share.count) if train else size
        self._workers, self._pin = workers, pin
        self._share, self._train, self._seed, self._count = share, train, seed, count

    def __len__(self) -> int:
        return self._count // self._size if self._train else -(-self._count // self._size)

    def __call__(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        self._data.epoch = epoch
        order = torch.arange(self._count)
        if self._train:
            generator = torch.Generator()
            generator.manual_seed(seeding.derived(self._seed, seeding.ORDER, epoch))
            order = torch.randperm(self._count, generator=generator)
        whole = torch.split(order, self._size)[start : len(self)]
        parts = [self._share.of(part, self._train) for part in whole]
        sampler = [part.tolist() for part in parts if len(part)]
        # The loader draws a seed for its workers: from a generator of its own.
        loader: DataLoader[Any] = DataLoader(
            self._data,
            batch_sampler=sampler,
            collate_fn=_as_it_is,
            generator=torch.Generator().manual_seed(self._seed),
            num_workers=self._workers,
            pin_memory=self._pin,
        )
        return iter(loader)


class _Stream:
    """Batches that somebody else makes; a process reads all and takes its rows.

    What the source draws comes from a random stream of its own, seeded per epoch, so that batches
    repeat when they are read again and do not depend on what the network draws meanwhile.
    """

    def __init__(self, rows: Any, share: Share, train: bool, seed: int, name: str) -> None:
        if iter(rows) is rows:
            raise OptionError(
                f"{name} is an iterator, which can be read only once; give a list of batches, a "
                "DataLoader, or an object whose __iter__ starts anew"
            )
        try:
            self._length = len(rows)
        except TypeError as error:
            raise OptionError(
                f"{name} is a {type(rows).__name__} without a length, which the schedules need"
            ) from error
        if self._length == 0:
            raise OptionError(f"{name} is empty")
        self._rows, self._share, self._train = rows, share, train
        self._seed, self._name = seed, name

    def __len__(self) -> int:
        return self._length

    def __call__(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        stream = seeding.Stream(seeding.derived(self._seed, seeding.SOURCE, epoch))
        with stream:
            source = iter(self._rows)
        for number in range(self._length):
            with stream:
                batch = next(source, None)
            if batch is None:
                raise OptionError(
                    f"{self._name} says it has {self._length} batches but ended after {number}"
                )
            if number >= start:
                x, y = _pair(batch, self._name)
                x, y = self._share.of(x, self._train), self._share.of(y, self._train)
                if len(x):
                    yield x, y


def _pair(batch: Any, name: str) -> Batch:
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        raise OptionError(f"a batch of {name} is a {type(batch).__name__}, not a pair (x, y)")
    return batch[0], batch[1]


def _of_loader(
    loader: Any, share: Share, train: bool, seed: int, augment: Any, name: str
) -> Batches | None:
    """Return the loader's data set with the loader's settings, or None if it orders by itself."""
    usual = type(loader.batch_sampler) is BatchSampler and isinstance(loader.dataset, Sized)
    if not usual or type(loader.sampler) not in (RandomSampler, SequentialSampler):
        return None
    return _Table(
        loader.dataset,
        loader.batch_size,
        share,
        train,
        seed,
        loader.num_workers,
        augment,
        name,
        loader.collate_fn,
        loader.pin_memory,
    )
