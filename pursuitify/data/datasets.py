"""Data sets by name: digits, Fashion-MNIST, CIFAR-10, CIFAR-100, or a folder of images."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from pursuitify.data.idx_files import read_idx
from pursuitify.data.image_folder import image_folder
from pursuitify.data.images import SHARE, Data, Images, augmentation, moments, split
from pursuitify.errors import DataError, MissingExtraError, OptionError
from pursuitify.utils import option_checks

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
_GARMENTS = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
Parts = tuple[Images, Images, tuple[str, ...], bool]


def load_data(
    name: str | os.PathLike[str],
    *,
    root: str | os.PathLike[str] = "data",
    download: bool = False,
    validation: float | None = None,
    size: int | None = None,
    channels: int | None = None,
    seed: int = 0,
    skip_bad: bool = False,
) -> Data:
    """Load a data set, inputs in [0, 1].

    Args:
        name: ``digits`` (scikit-learn's, 8x8), ``fashion-mnist``, ``cifar10``, ``cifar100``, or
            the path of a folder of images, one subfolder per class, perhaps below ``train``,
            ``val`` and ``test`` (or ``training``, ``validation``, ``testing``).
        root: Folder in which torchvision's data sets lie or are put. A Fashion-MNIST installed by
            Debian's package dataset-fashion-mnist is found without it.
        download: Let torchvision download what is not there. Its CIFAR files are pickles, which
            torchvision opens after checking their MD5 sums.
        validation: Share of the training data split off for validation, 0.1 by default; of a folder
            where it has no part for that, and as much for testing likewise.
        size: Side to which images are resized; a folder's are cropped to it too (224 by default).
        channels: 3 repeats a grey channel, for models that read colour. A folder's images are read
            as colour, with 1 as grey.
        seed: Seed of the split.
        skip_bad: Of a folder: read every file first, and leave out those that cannot be read;
            ``skipped`` of the result lists them. Else such a file is an error when it is read.

    Raises:
        OptionError: If an argument is out of range or would have no effect, or there is no such
            data set.
        DataError: If files are missing or damaged.
        MissingExtraError: If scikit-learn is not installed, for digits.
    """
    if validation is not None:
        option_checks.number("validation", validation, above=0, below=1)
    if channels not in (None, 1, 3):
        raise OptionError(f"channels={channels!r} is neither 1 nor 3")
    if size is not None and (option_checks.whole(size) or 0) < 1:
        raise OptionError(f"size={size!r} is not a number of pixels")
    option_checks.switch("download", download)
    option_checks.switch("skip_bad", skip_bad)
    key = str(name).lower().replace("_", "-")
    make = NAMES.get(key)
    if make is None:
        if not Path(name).is_dir():
            raise OptionError(
                f"{str(name)!r} is neither a data set ({', '.join(NAMES)}) nor a folder"
                f"{option_checks.nearest(key, NAMES) or option_checks.nearest_path(Path(name))}"
            )
        _without_effect(str(name), root=(root, "data"), download=(download, False))
        return image_folder(
            Path(name),
            validation=validation,
            size=224 if size is None else size,
            channels=3 if channels is None else channels,
            seed=seed,
            skip_bad=skip_bad,
        )
    _without_effect(key, skip_bad=(skip_bad, False))
    if make is _digits:
        _without_effect(key, root=(root, "data"), download=(download, False))
    train, test, classes, augmented = make(Path(root), download)
    train, test = (_fitted(part, size, channels) for part in (train, test))
    kept, held = split(len(train), SHARE if validation is None else validation, seed)
    mean, std = moments(train.x[kept])
    shape = tuple(train.x.shape[1:])
    return Data(
        name=str(name),
        train=train.part(kept),
        val=train.part(held),
        test=test,
        shape=shape,
        classes=classes,
        mean=mean,
        std=std,
        augment=augmentation(shape[1:]) if augmented else None,
    )


def _without_effect(data: str, **options: tuple[object, object]) -> None:
    """Refuse options, given with their defaults, that loading this data does not read."""
    plain = {
        name: (os.fspath(value) if isinstance(value, os.PathLike) else value, default)
        for name, (value, default) in options.items()
    }
    given = [f"{name}={value!r}" for name, (value, default) in plain.items() if value != default]
    if given:
        raise OptionError(f"{', '.join(given)} would have no effect on {data!r}: leave it out")


def _fitted(images: Images, size: int | None, channels: int | None) -> Images:
    x = images.x
    if channels == 1 and x.shape[1] != 1:
        raise OptionError(f"the images have {x.shape[1]} channels; they are not made grey")
    if size is not None and tuple(x.shape[2:]) != (size, size):
        from torchvision.transforms.v2 import functional

        x = functional.resize(x, [size, size], antialias=True)
        x = x if x.dtype == torch.uint8 else x.clamp(0, 1)
    if channels == 3 and x.shape[1] == 1:
        x = x.expand(-1, 3, -1, -1)
    return Images(x, images.y)


def _digits(root: Path, download: bool) -> Parts:
    """scikit-learn's 1797 handwritten digits; a fixed fifth is the test part."""
    del root, download
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingExtraError(
            "the digits come with scikit-learn: pip install 'pursuitify[demo]'"
        ) from error
    bunch = load_digits()
    x = torch.from_numpy(bunch.images).float().div(16).unsqueeze(1)
    whole = Images(x, torch.from_numpy(bunch.target).long())
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    train, test = order[: len(x) * 4 // 5], order[len(x) * 4 // 5 :]
    return whole.part(train), whole.part(test), tuple(map(str, range(10))), False


def _fashion(root: Path, download: bool) -> Parts:
    """Return Zalando's garments, from Debian's package or torchvision's folder."""
    raw = root / "FashionMNIST" / "raw"
    folder = next((f for f in (raw, DEBIAN) if _idx(f, "train-images-idx3-ubyte")), None)
    if folder is None and download:
        from torchvision import datasets

        datasets.FashionMNIST(str(root), download=True)
        folder = raw
    if folder is None:
        raise DataError(
            f"there is no Fashion-MNIST in {raw} or {DEBIAN}. Install Debian's package "
            "dataset-fashion-mnist, or let torchvision download it (download=True, --download)"
        )
    return _garments(folder, "train"), _garments(folder, "t10k"), _GARMENTS, True


def _idx(folder: Path, name: str) -> Path | None:
    return next((p for p in (folder / name, folder / f"{name}.gz") if p.is_file()), None)


def _garments(folder: Path, part: str) -> Images:
    found = []
    for name in (f"{part}-images-idx3-ubyte", f"{part}-labels-idx1-ubyte"):
        path = _idx(folder, name)
        if path is None:
            raise DataError(f"{folder} lacks {name}")
        found.append(read_idx(path))
    x, y = found
    if x.dim() != 3 or y.dim() != 1 or len(x) != len(y):
        raise DataError(
            f"{folder} holds {part} images of shape {tuple(x.shape)} and labels of shape "
            f"{tuple(y.shape)}, which do not belong together"
        )
    if len(y) and int(y.max()) >= len(_GARMENTS):
        raise DataError(f"{folder} holds the label {int(y.max())}; there are {len(_GARMENTS)}")
    return Images(x.unsqueeze(1), y.long())


def _cifar(kind: str) -> Callable[[Path, bool], Parts]:
    def load(root: Path, download: bool) -> Parts:
        from torchvision import datasets

        try:
            parts = [
                getattr(datasets, kind)(str(root), t, download=download) for t in (True, False)
            ]
        except (RuntimeError, OSError) as error:
            raise DataError(
                f"{kind} is not in {root}, or damaged ({error}). Let torchvision download it "
                "(download=True, --download) or name its folder (root=, --root)"
            ) from error
        images = [Images(_bytes(p.data), torch.tensor(p.targets)) for p in parts]
        return images[0], images[1], tuple(parts[0].classes), True

    return load


def _bytes(values: object) -> Tensor:
    return torch.as_tensor(values, dtype=torch.uint8).permute(0, 3, 1, 2).contiguous()


#: Name -> (root, download) -> training and test part, class names, whether to augment.
NAMES: dict[str, Callable[[Path, bool], Parts]] = {
    "digits": _digits,
    "fashion-mnist": _fashion,
    "fashionmnist": _fashion,
    "cifar10": _cifar("CIFAR10"),
    "cifar-10": _cifar("CIFAR10"),
    "cifar100": _cifar("CIFAR100"),
    "cifar-100": _cifar("CIFAR100"),
}
