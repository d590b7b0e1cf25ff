"""From what a user has (tensors, a data set, a loader, batches) to this process's share of it.

Tensors and data sets are put into batches here. A DataLoader, or anything else that yields
batches, is read as it is, to its end: its sampler, collation, workers and last batch are its own
business. A batch is the same whatever the number of processes: each takes its part of the rows. So
two processes do what one does, and a run can be resumed at any batch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    default_collate,
)

from pursuitify.data import Images, forms
from pursuitify.data.forms import Batch, Rows
from pursuitify.errors import DataError, OptionError
from pursuitify.training.config import Draw
from pursuitify.utils import option_checks, random_state
from pursuitify.utils.fingerprint import of_sample

_END = object()


@dataclass(frozen=True)
class Share:
    """The part of every batch that a process takes: ``index`` of ``count``."""

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


class _Reader(Protocol):
    """A reader of the epochs of one data set."""

    @property
    def length(self) -> int | None:
        """The number of batches in a pass; None where it is not known."""
        ...

    def read(self, epoch: int, start: int) -> Iterator[Batch]:
        """Yield this process's share of the batches of an epoch, from batch ``start`` on."""
        ...

    def digest(self, count: int) -> str | None:
        """Return what stands for the epoch's first batches; None where seeds alone decide them."""
        ...

    def states(self, epoch: int) -> list[Tensor]:
        """Return the states of the data's own generators, from which an epoch is read anew."""
        ...

    def set_states(self, states: Sequence[Tensor]) -> None:
        """Set them."""
        ...


class Batches:
    """Passes over the data, each repeatable and startable at any batch.

    Attributes:
        name: For errors.
    """

    def __init__(self, reader: _Reader, name: str) -> None:
        """Take what reads the batches."""
        self._reader = reader
        self._opened: tuple[int, int, Iterator[Batch]] | None = None
        self.name = name

    def __len__(self) -> int:
        """Return the number of batches in a pass, as the data states it."""
        if self._reader.length is None:
            raise TypeError(f"{self.name} has no length")
        return self._reader.length

    def __call__(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield this process's share of the batches of an epoch, from batch ``start`` on."""
        opened, self._opened = self._opened, None
        if opened is not None and opened[:2] == (epoch, start):
            return opened[2]
        return self._reader.read(epoch, start)

    def peek(self, epoch: int, start: int = 0) -> Batch | None:
        """Return the batch that a pass would begin with, or None at its end.

        Nothing is read twice: the pass itself then goes on with what was opened here.
        """
        self._opened = None
        source = self._reader.read(epoch, start)
        first = next(source, None)
        whole = iter(()) if first is None else chain([first], source)
        self._opened = (epoch, start, whole)
        return first

    def look(self, epoch: int) -> Batch | None:
        """Return the first batch of a pass, or None, and leave the data's generators as they were.

        What was opened before is closed.
        """
        self._opened = None
        before = self._reader.states(epoch)
        source = self._reader.read(epoch, 0)
        first = next(source, None)
        del source
        self._reader.set_states(before)
        return first

    def digest(self, count: int) -> str | None:
        """Return what stands for the first ``count`` batches that were read of the last pass.

        None stands for data whose batches follow from seeds alone, and for batches not read.
        """
        return self._reader.digest(count)

    def states(self, epoch: int) -> list[Tensor]:
        """Return the states of the data's own generators, from which an epoch is read anew."""
        return self._reader.states(epoch)

    def set_states(self, states: Sequence[Tensor]) -> None:
        """Set the data's own generators.

        Raises:
            DataError: If the data has others.
        """
        self._reader.set_states(states)


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
        rows: ``(x, y)`` tensors; a Dataset or a list of pairs ``(x, y)``; a DataLoader; or
            anything that yields batches ``(x, y)``, the same ones again under the same random
            seeds. For training it needs a length.
        size: Rows per batch over all processes, where batches are made here.
        share: What this process takes of each.
        train: Shuffle, and leave out the last batch if it is incomplete, where batches are made
            here.
        seed: Seed of the order and of every item's own random numbers.
        workers: Processes that read a Dataset.
        augment: Applied to each x on its own; a DataLoader's batches are taken apart for it.
        name: For errors.

    Raises:
        OptionError: If the data is of another kind, or there is too little of it.
    """
    size = option_checks.positive("batch_size", size)
    if forms.is_table(rows):
        return Batches(
            _Indexed(forms.as_samples(rows), size, share, train, seed, workers, augment, name), name
        )
    if isinstance(rows, IterableDataset):  # as torch would read it, with this size and workers
        _Streamed.stated(rows, train, name)
        rows = DataLoader(rows, size, drop_last=train, num_workers=workers)
    if isinstance(rows, Tensor) or not isinstance(rows, Iterable):
        raise OptionError(
            f"{name} is a {type(rows).__name__}; give (x, y) tensors, a Dataset, a DataLoader or "
            "an iterable of batches"
        )
    if augment is not None and not isinstance(rows, DataLoader):
        raise OptionError(
            f"augment needs single samples, but {name} is an iterable of batches: augment there, "
            "or give a Dataset or a DataLoader"
        )
    return Batches(_Streamed(rows, share, train, seed, augment, name), name)


def makes_batches(rows: Rows) -> bool:
    """Whether data comes in batches of its own, so that nobody asks for a size or workers."""
    return not (forms.is_table(rows) or isinstance(rows, IterableDataset))


def refuse_void(rows: Rows, **options: int | None) -> None:
    """Refuse options about batches, None where not given, for data with batches of its own.

    Raises:
        OptionError: Naming those that are given.
    """
    given = [f"{name}={value!r}" for name, value in options.items() if value is not None]
    if given and makes_batches(rows):
        raise OptionError(
            f"{' and '.join(given)} would have no effect: data is a {type(rows).__name__}, which "
            "makes batches of its own. Leave them out, or set them there"
        )


class _Seeded(Dataset[Any]):
    """A data set whose items are read under a seed of their own: (seed, epoch, index)."""

    def __init__(self, inner: Any, seed: int, augment: Any, name: str) -> None:
        self._inner, self._seed, self._augment, self._name = inner, seed, augment, name
        self._plain = isinstance(inner, Images) and augment is None
        self.epoch = 0

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        if self._plain:
            x, y = self._inner[indices]
        else:
            with random_state.kept(cuda=False):
                items = [self[i] for i in indices]
            x, y = forms.collated(items, f"the samples {list(indices)} of {self._name}")
        return forms.tensors((x, y), f"a batch of {self._name}")

    def __getitem__(self, index: int) -> Batch:
        """Return a sample; it draws from generators that are seeded here and belong to nobody."""
        random_state.seed_all(random_state.derived(self._seed, Draw.ITEM, self.epoch, index))
        x, y = forms.pair(self._inner[index], f"sample {index} of {self._name}")
        return (x if self._augment is None else self._augment(x)), y


def sample(rows: Rows, index: int, seed: int, augment: Any, name: str) -> Batch:
    """Return a sample of the first epoch, as training reads it."""
    with random_state.kept(cuda=False):
        return _Seeded(forms.as_samples(rows), seed, augment, name)[index]


def _as_it_is(batch: Any) -> Any:
    return batch


class _Indexed:
    """Batches of a data set with indices."""

    length: int

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
    ) -> None:
        try:
            count = len(rows)
        except TypeError as error:
            raise OptionError(
                f"{name} is a {type(rows).__name__} without a length: give it __len__, or make it "
                "an IterableDataset"
            ) from error
        if train and size % share.count:
            raise OptionError(
                f"batch_size={size} cannot be dealt out evenly to {share.count} processes"
            )
        if count < max(share.count, 1):
            raise OptionError(f"{name} has {count} samples for {share.count} processes")
        self._data = _Seeded(rows, seed, augment, name)
        self._size = min(size, count - count % share.count) if train else size
        self._workers = workers
        self._share, self._train, self._seed, self._count = share, train, seed, count
        self.length = count // self._size if train else -(-count // self._size)

    def read(self, epoch: int, start: int) -> Iterator[Batch]:
        self._data.epoch = epoch
        order = torch.arange(self._count)
        if self._train:
            generator = torch.Generator()
            generator.manual_seed(random_state.derived(self._seed, Draw.ORDER, epoch))
            order = torch.randperm(self._count, generator=generator)
        whole = torch.split(order, self._size)[start : self.length]
        parts = [self._share.of(part, self._train) for part in whole]
        sampler = [part.tolist() for part in parts if len(part)]
        # The loader draws a seed for its workers: from a generator of its own.
        loader: DataLoader[Any] = DataLoader(
            self._data,
            batch_sampler=sampler,
            collate_fn=_as_it_is,
            generator=torch.Generator().manual_seed(self._seed),
            num_workers=self._workers,
        )
        return iter(loader)

    def digest(self, count: int) -> str | None:
        del count
        return None

    def states(self, epoch: int) -> list[Tensor]:
        del epoch
        return []

    def set_states(self, states: Sequence[Tensor]) -> None:
        if states:
            raise DataError("the data set has no generators of its own")


class _Streamed:
    """Batches that somebody else makes; a process reads all and takes its rows.

    What the source draws comes from a random stream of its own, seeded per epoch, so that batches
    repeat when they are read again and do not depend on what the network draws meanwhile. Its own
    generators go on from epoch to epoch, as in any loop; their states are kept for resuming.
    """

    def __init__(
        self, rows: Any, share: Share, train: bool, seed: int, augment: Any, name: str
    ) -> None:
        if isinstance(rows, Iterator):
            raise OptionError(
                f"{name} is an iterator, which can be read only once; give a list of batches, a "
                "DataLoader, or an object whose __iter__ starts anew"
            )
        self.length = self.stated(rows, train, name)
        if self.length == 0:
            raise OptionError(f"{name} is empty: it has no batch")
        self._rows, self._share, self._train = rows, share, train
        self._seed, self._augment, self._name = seed, augment, name
        self._loader = isinstance(rows, DataLoader)
        _refuse_own_shares(rows, share, name)
        self._generators = _generators(rows)
        self._begun: tuple[int, list[Tensor]] | None = None
        self._digests: list[str] = []

    @staticmethod
    def stated(rows: Any, train: bool, name: str) -> int | None:
        """Return the length that data states; None where it states none and needs none."""
        try:
            return len(rows)
        except TypeError as error:
            if not train:
                return None
            raise OptionError(
                f"{name} is a {type(rows).__name__} without a length, which the schedules need: "
                "give it, or the IterableDataset in it, a __len__"
            ) from error

    def read(self, epoch: int, start: int) -> Iterator[Batch]:
        self._begun = (epoch, [g.get_state() for g in self._generators])
        self._digests = []
        return self._read(epoch, start)

    def _read(self, epoch: int, start: int) -> Iterator[Batch]:
        stream = random_state.RandomStream(random_state.derived(self._seed, Draw.SOURCE, epoch))
        with stream:
            source = iter(self._rows)
        seen, number = hashlib.blake2b(digest_size=16), 0
        while True:
            with stream:
                batch = next(source, _END)
            if batch is _END:
                break
            self._check_length(number)
            x, y = forms.tensors(
                forms.pair(batch, f"a batch of {self._name}"), f"a batch of {self._name}"
            )
            of_sample(seen, x, y)
            self._digests.append(seen.hexdigest())
            if number >= start:
                if self._augment is not None:
                    x = self._augmented(x, epoch, number)
                x, y = self._share.of(x, self._train), self._share.of(y, self._train)
                if len(x):
                    yield x, y
            number += 1
        if number == 0 or (not self._loader and self.length not in (None, number)):
            stated = "" if self.length is None else f"says it has {self.length} batches but "
            raise OptionError(f"{self._name} {stated}ended after {number} batches")

    def _check_length(self, number: int) -> None:
        """Refuse a batch beyond the stated length; a loader's is an estimate, as torch says."""
        if not self._loader and self.length is not None and number >= self.length:
            raise OptionError(
                f"{self._name} says it has {self.length} batches but goes on after them: let its "
                "__iter__ end there, or its __len__ count all"
            )

    def _augmented(self, x: Tensor, epoch: int, number: int) -> Tensor:
        with random_state.kept(cuda=False):
            keys = (self._seed, Draw.ITEM, epoch, number)
            random_state.seed_all(random_state.derived(*keys))
            changed = [self._augment(one) for one in x]
        try:
            found = default_collate(changed)
        except (TypeError, RuntimeError) as error:
            raise OptionError(
                f"what augment makes of a batch of {self._name} cannot be put together ({error}): "
                "it takes one x and returns one x, a tensor of the same shape for each"
            ) from error
        if not isinstance(found, Tensor):
            raise OptionError(
                f"augment returned a {type(changed[0]).__name__} for a sample of {self._name}: it "
                "takes one x and returns one x"
            )
        return found

    def digest(self, count: int) -> str | None:
        return self._digests[count - 1] if 0 < count <= len(self._digests) else None

    def states(self, epoch: int) -> list[Tensor]:
        if self._begun is not None and self._begun[0] == epoch:
            return self._begun[1]
        return [g.get_state() for g in self._generators]

    def set_states(self, states: Sequence[Tensor]) -> None:
        if len(states) != len(self._generators):
            raise DataError(
                f"{self._name} has {len(self._generators)} generators of its own, and the run "
                f"began with {len(states)}"
            )
        for generator, state in zip(self._generators, states, strict=True):
            generator.set_state(state)


def _parts(rows: Any) -> list[Any]:
    """Return a loader, its samplers and the samplers in these."""
    if not isinstance(rows, DataLoader):
        return [rows]
    found = [rows, rows.sampler, rows.batch_sampler]
    return [*found, *(getattr(part, "sampler", None) for part in found)]


def _refuse_own_shares(rows: Any, share: Share, name: str) -> None:
    dealing = [p for p in _parts(rows) if isinstance(p, DistributedSampler) and p.num_replicas > 1]
    if dealing:
        raise OptionError(
            f"{name} has a DistributedSampler, which would deal out what finetune deals out to its "
            f"{share.count} processes once more: give the loader without it"
        )


def _generators(rows: Any) -> list[torch.Generator]:
    """Return the generators that a loader and its samplers draw from, each once."""
    found = [getattr(part, "generator", None) for part in _parts(rows)]
    own = [generator for generator in found if isinstance(generator, torch.Generator)]
    return [g for i, g in enumerate(own) if not any(g is other for other in own[:i])]
