"""A folder of image files, one subfolder per class, through torchvision's ImageFolder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset

from pursuitify.data.images import Data, augmentation, split
from pursuitify.errors import DataError

#: The usual statistics of natural images (ImageNet's), since a folder is not read through first.
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def image_folder(path: Path, validation: float, size: int, seed: int) -> Data:
    """Load a folder of images.

    Args:
        path: Holds ``train`` and perhaps ``val`` and ``test``, each with a subfolder per class;
            or the subfolders themselves.
        validation: Share of the training images split off where there is no ``val``; a share as
            large is split off for testing where there is no ``test``.
        size: Side to which images are resized and cropped.
        seed: Seed of the splits.

    Raises:
        DataError: If there are no images, or the parts have different classes.
    """
    train = _folder(path / "train" if (path / "train").is_dir() else path, size)
    classes = tuple(train.classes)
    parts: dict[str, Dataset[Any]] = {"train": train}
    for name in ("test", "val"):
        folder = path / name
        if folder.is_dir() and (path / "train").is_dir():
            parts[name] = part = _folder(folder, size)
            if tuple(part.classes) != classes:
                differing = sorted(set(part.classes) ^ set(classes))
                raise DataError(f"{folder} and {path / 'train'} differ in classes: {differing}")
        else:
            rest = parts["train"]
            kept, held = split(len(rest), validation, seed)  # type: ignore[arg-type]
            parts[name] = Subset(rest, held.tolist())
            parts["train"] = Subset(rest, kept.tolist())
    short = [name for name, part in parts.items() if len(part) == 0]  # type: ignore[arg-type]
    if short:
        raise DataError(f"{path} has too few images: nothing is left for {', '.join(short)}")
    return Data(
        name=str(path),
        train=parts["train"],
        val=parts["val"],
        test=parts["test"],
        shape=(3, size, size),
        classes=classes,
        mean=_MEAN,
        std=_STD,
        augment=augmentation((size, size), padding=max(size // 8, 1)),
    )


class _Labelled(Dataset[tuple[Tensor, int]]):
    """torchvision's ImageFolder, with a clear error for a file that is no image."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self.classes: list[str] = inner.classes

    def __len__(self) -> int:
        return len(self._inner)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        try:
            x, y = self._inner[index]
        except OSError as error:
            raise DataError(f"{self._inner.samples[index][0]} cannot be read: {error}") from error
        return x, y


def _folder(path: Path, size: int) -> _Labelled:
    from torchvision import datasets
    from torchvision.transforms import v2

    transform = v2.Compose(
        [
            v2.ToImage(),
            v2.Resize(size, antialias=True),
            v2.CenterCrop(size),
            v2.ToDtype(torch.float32, scale=True),
            v2.ToPureTensor(),
        ]
    )
    try:
        return _Labelled(datasets.ImageFolder(str(path), transform))
    except (OSError, RuntimeError) as error:
        raise DataError(f"{path} is no folder with one subfolder of images per class") from error
