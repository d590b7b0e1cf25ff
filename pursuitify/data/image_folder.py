"""A folder of image files, one subfolder per class, perhaps in parts for training and testing."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from pursuitify.data.image_files import fitted, read_picture
from pursuitify.data.images import SHARE, Data, augmentation, split
from pursuitify.errors import DataError, OptionError

#: The usual statistics of natural images (ImageNet's), since a folder is not read through first;
#: by channels. Grey is the luma of the colours.
_MOMENTS = {
    1: ((0.459,), (0.226,)),
    3: ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
#: Names of a folder's parts, as people write them.
_PARTS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
EXTENSIONS = frozenset(
    {".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp", ".gif"}
)
_SHOWN = 10
#: Bytes of decoded images that a part of a folder may take in memory; more are decoded every time.
_KEPT_AT_MOST = 2**28
#: When a file was last modified, its size, and its number on the disk.
_Stamp = tuple[int, int, int]


def image_folder(
    path: Path,
    *,
    validation: float | None,
    size: int,
    channels: int,
    seed: int,
    skip_bad: bool = False,
) -> Data:
    """Load a folder of images.

    Files and folders whose name begins with a dot are hidden and passed over; so are files that are
    no images by their extension.

    Args:
        path: Holds a part for training (``train`` or ``training``) and perhaps ones for validation
            (``val``, ``valid``, ``validation``) and testing (``test``, ``testing``), each with a
            subfolder per class; or the subfolders themselves.
        validation: Share of the training images split off where there is no part for validation;
            a share as large is split off for testing likewise. ``SHARE`` where None.
        size: Side to which images are resized and cropped.
        channels: 3 for colour, 1 for grey.
        seed: Seed of the splits.
        skip_bad: Read every file now, and leave out those that cannot be read.

    Raises:
        DataError: If there are no images, a class has none, or the parts have different classes.
        OptionError: If ``validation`` is given and nothing is left to split.
    """
    found = _parts_of(path)
    if validation is not None and {"val", "test"} <= found.keys():
        raise OptionError(
            f"validation={validation!r} would have no effect: {path} has parts for validation and "
            "testing. Leave it out"
        )
    parts = {name: _files(folder, size, channels) for name, folder in found.items()}
    classes = parts["train"].classes
    for name, part in parts.items():
        if part.classes != classes:
            differing = sorted(set(part.classes) ^ set(classes))
            raise DataError(f"{found[name]} and {found['train']} differ in classes: {differing}")
    if len(classes) < 2:
        raise DataError(
            f"{found['train']} has one class, {classes[0]!r}, and nothing can be told apart: name "
            f"the folder that holds the classes' folders{_nested(found['train'] / classes[0])}"
        )
    problems = [p for part in parts.values() for p in part.check()]
    if problems:
        raise DataError("\n".join([f"{path} is incomplete:", *_some(problems)]))
    bad: list[str] = []
    if skip_bad:
        for name, part in parts.items():
            parts[name], more = part.readable()
            bad += more
        lost = [p for part in parts.values() for p in part.check()]
        if lost:
            raise DataError(
                "\n".join([f"{path}: no readable image is left there:", *_some(lost)])
                + "\n".join(["\nSuch files:", *_some(bad)])
            )
    for name in ("test", "val"):
        if name not in parts:
            share = SHARE if validation is None else validation
            kept, held = split(len(parts["train"]), share, seed)
            parts[name] = parts["train"].part(held.tolist())
            parts["train"] = parts["train"].part(kept.tolist())
    short = [name for name, part in parts.items() if len(part) == 0]
    if short:
        raise DataError(f"{path} has too few images: nothing is left for {', '.join(short)}")
    mean, std = _MOMENTS[channels]
    return Data(
        name=str(path),
        train=parts["train"],
        val=parts["val"],
        test=parts["test"],
        shape=(channels, size, size),
        classes=classes,
        mean=mean,
        std=std,
        augment=augmentation((size, size), padding=max(size // 8, 1)),
        skipped=tuple(bad),
    )


@dataclass(frozen=True, eq=False)
class Folder(Dataset[tuple[Tensor, int]]):
    """Image files with their classes; read when they are asked for.

    Where all of them decoded take 256 MiB or less, each is decoded once, and again only if its file
    has changed since. Worker processes of a loader keep nothing.

    Attributes:
        root: The folder.
        classes: Names of the classes.
        files: Each file, relative to the folder, and the number of its class.
        size: Side of the images.
        channels: Their channels.
    """

    root: Path
    classes: tuple[str, ...]
    files: tuple[tuple[str, int], ...]
    size: int
    channels: int

    def __len__(self) -> int:
        """Return the number of files."""
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Return an image (channels, size, size) in [0, 1] and its class.

        Raises:
            DataError: If the file cannot be read; the message has its name.
        """
        name, label = self.files[index]
        stamp = _stamp(self.root / name) if self._keeps() else None
        if stamp is None:
            return self._decoded(name), label
        kept = _KEPT.setdefault(self, {})
        known = kept.get(name)
        if known is None or known[0] != stamp:
            known = kept[name] = (stamp, self._decoded(name))
        return known[1].clone(), label

    def _decoded(self, name: str) -> Tensor:
        image = read_picture(self.root / name, self.channels)
        try:
            return fitted(image, self.size)
        except DataError as error:
            raise DataError(f"{self.root / name} cannot be used: {error}") from error

    def _keeps(self) -> bool:
        """Whether decoded images are kept: if all of them are small, and not in a worker."""
        bytes_of_all = 4 * len(self.files) * self.channels * self.size**2
        return bytes_of_all <= _KEPT_AT_MOST and get_worker_info() is None

    @property
    def labels(self) -> Tensor:
        """The class of every file."""
        return torch.tensor([label for _, label in self.files], dtype=torch.int64)

    def part(self, indices: Iterable[int]) -> Folder:
        """Return the files at ``indices`` as a data set."""
        return replace(self, files=tuple(self.files[i] for i in indices))

    def identity(self) -> str:
        """Return what stands for the files' names, classes and size; not for what is in them."""
        seen = hashlib.blake2b(
            repr((self.classes, self.size, self.channels)).encode("utf-8", "replace")
        )
        for name, label in self.files:
            seen.update(os.fsencode(name) + b"\0" + str(label).encode())
        return "#" + seen.hexdigest()[:32]

    def check(self) -> list[str]:
        """Return the classes that have no image, in words."""
        held = {label for _, label in self.files}
        return [
            f"{self.root / name} has no image{_others(self.root / name)}"
            for label, name in enumerate(self.classes)
            if label not in held
        ]

    def readable(self) -> tuple[Folder, list[str]]:
        """Return the files that can be read, and those that cannot, with the reason."""
        good, bad = [], []
        for index in range(len(self)):
            try:
                self[index]
                good.append(index)
            except DataError as error:
                bad.append(str(error))
        return self.part(good), bad


#: By folder, and by name of the file: its stamp when it was decoded, and the image. It is no
#: attribute of the folder, so that it is neither pickled nor taken for what tells folders apart.
_KEPT: WeakKeyDictionary[Folder, dict[str, tuple[_Stamp, Tensor]]] = WeakKeyDictionary()


def _stamp(path: Path) -> _Stamp | None:
    """Return what changes when a file is written again; None where it cannot be looked at."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def _some(lines: list[str]) -> list[str]:
    more = [f"  ... and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else []
    return [*(f"  - {line}" for line in lines[:_SHOWN]), *more]


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _folders(path: Path) -> list[Path]:
    """Return the subfolders that are not hidden, in order."""
    try:
        inside = sorted(path.iterdir())
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    return [p for p in inside if p.is_dir() and not _is_hidden(p.name)]


def _walk(path: Path, above: frozenset[Path] = frozenset()) -> Iterator[Path]:
    """Yield the files below a folder that are not hidden, in order; links that lead back end."""
    real = path.resolve()
    if real in above:
        return
    try:
        inside = sorted(path.iterdir())
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    for entry in inside:
        if _is_hidden(entry.name):
            continue
        if entry.is_dir():
            yield from _walk(entry, above | {real})
        elif entry.is_file():
            yield entry


def _images(path: Path) -> Iterator[Path]:
    return (file for file in _walk(path) if file.suffix.lower() in EXTENSIONS)


def _others(path: Path) -> str:
    """Return which files lie in a folder without images, for a message."""
    found = sorted({file.suffix.lower() or file.name for file in _walk(path)})
    return f": only {', '.join(found[:5])}" if found else ""


def _part_of(name: str) -> str | None:
    return next((part for part, names in _PARTS.items() if name.lower() in names), None)


def _parts_of(path: Path) -> dict[str, Path]:
    """Return the folder of each part; of ``train`` alone the path itself where it has no parts.

    Raises:
        DataError: If it cannot be told which folders are parts and which are classes.
    """
    folders = _folders(path)
    named = [(part, folder) for folder in folders if (part := _part_of(folder.name)) is not None]
    parts = dict(named)
    if "train" not in parts:
        # A class may be called "test"; a part holds folders of classes and no images itself.
        split_off = [folder for _, folder in named if _folders(folder)]
        if split_off:
            listed = ", ".join(repr(folder.name) for folder in split_off)
            raise DataError(
                f"{path} has {listed} but no part for training: name it 'train' or 'training'"
            )
        return {"train": path}
    twice = sorted(folder.name for part, folder in named if parts[part] != folder)
    if twice:
        raise DataError(f"{path} has two parts of one kind: {twice[0]!r} and another one")
    others = [f.name for f in folders if f not in parts.values() and any(_images(f))]
    if others:
        raise DataError(
            f"{path} has the part {parts['train'].name!r} and, beside it, images in "
            f"{', '.join(map(repr, others[:5]))}: classes and parts do not go together. Move them "
            "into the parts, or elsewhere"
        )
    return parts


def _nested(path: Path) -> str:
    return f"; {path} looks like it" if len(_folders(path)) > 1 else ""


def _files(path: Path, size: int, channels: int) -> Folder:
    folders = _folders(path)
    if not folders:
        raise DataError(f"{path} is no folder with one subfolder of images per class")
    files = []
    for label, folder in enumerate(folders):
        nested = [f.name for f in _folders(folder) if _part_of(f.name) is not None]
        if nested:
            raise DataError(
                f"{folder}, a class by its place, holds {', '.join(map(repr, nested))}: the parts "
                f"come first, then the classes, as in {nested[0]}/{folder.name}"
            )
        files += [(str(file.relative_to(path)), label) for file in _images(folder)]
    return Folder(path, tuple(f.name for f in folders), tuple(files), size, channels)
