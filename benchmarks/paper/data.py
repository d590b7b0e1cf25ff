"""Images in [0, 1]: Fashion-MNIST of Debian's package, CIFAR-10 where the user has it, digits."""

from __future__ import annotations

import gzip
import os
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

FASHION = Path(os.environ.get("FASHION_MNIST", "/usr/share/datasets/fashion-mnist"))
CIFAR = Path(os.environ.get("CIFAR10", "data"))
CHANNELS = {"fashion16": 1, "fashion28": 1, "cifar10": 3, "digits": 1}


@lru_cache(maxsize=2)
def images(name: str, train: bool) -> tuple[Tensor, Tensor]:
    """Return all images (n, channels, height, width) and labels of one half."""
    if name in ("fashion16", "fashion28"):
        x, y = _fashion(train)
        return (F.adaptive_avg_pool2d(x, 16) if name == "fashion16" else x), y
    if name == "cifar10":
        return _cifar(train)
    if name == "digits":
        return _digits(train)
    raise SystemExit(f"no data set {name!r}; there are {', '.join(CHANNELS)}")


def _fashion(train: bool) -> tuple[Tensor, Tensor]:
    kind = "train" if train else "t10k"
    found = FASHION / f"{kind}-images-idx3-ubyte.gz"
    if not found.exists():
        raise SystemExit(
            f"{found} is missing: install Debian's dataset-fashion-mnist, or set FASHION_MNIST to "
            "the folder that holds its four .gz files"
        )
    with gzip.open(found) as file:
        x = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 1, 28, 28)
    with gzip.open(FASHION / f"{kind}-labels-idx1-ubyte.gz") as file:
        y = np.frombuffer(file.read(), np.uint8, offset=8)
    return torch.from_numpy(x.copy()).float() / 255, torch.from_numpy(y.copy()).long()


def _cifar(train: bool) -> tuple[Tensor, Tensor]:
    from torchvision.datasets import CIFAR10

    try:
        found = CIFAR10(CIFAR, train=train, download=False)
    except RuntimeError as error:
        raise SystemExit(f"CIFAR-10 is not in {CIFAR.resolve()}: set CIFAR10") from error
    x = torch.from_numpy(found.data).permute(0, 3, 1, 2).float() / 255
    return x.contiguous(), torch.tensor(found.targets)


def _digits(train: bool) -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    x = torch.from_numpy(bunch.images).float().div(16).unsqueeze(1)
    y = torch.from_numpy(bunch.target).long()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    part = order[: len(x) * 4 // 5] if train else order[len(x) * 4 // 5 :]
    return x[part], y[part]
