"""Data sets: images in [0, 1], labels, three parts that share no sample."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from pursuitify.errors import OptionError
from pursuitify.utils.terminal import Shown

#: Share of the training data that is split off for validation where nothing else is asked for.
SHARE = 0.1
#: One image in, one image out; random, drawn from torch's generator.
Augment = Callable[[Tensor], Tensor]


class Images(Dataset[tuple[Tensor, Tensor]]):
    """Images and labels held in memory.

    Bytes stay bytes until they are asked for, then become float32 in [0, 1].

    Attributes:
        x: Images, samples first; uint8, or floating point as it is handed out.
        y: Labels.
    """

    def __init__(self, x: Tensor, y: Tensor) -> None:
        """Check that the lengths agree."""
        if len(x) != len(y):
            raise OptionError(f"there are {len(x)} inputs and {len(y)} labels")
        self.x = x
        self.y = y

    def __repr__(self) -> str:
        """Return how many images there are, and of which shape."""
        return f"Images({len(self)} of {tuple(self.x.shape[1:])})"

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.x)

    def __getitem__(self, index: int | Tensor | Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return one sample, or a batch for several indices."""
        index = index if isinstance(index, int) else torch.as_tensor(index)
        return floating(self.x[index]), self.y[index]

    def part(self, index: Tensor) -> Images:
        """Return the samples at ``index`` as a data set."""
        return Images(self.x[index], self.y[index])

    def tensors(self) -> tuple[Tensor, Tensor]:
        """Return all samples in one batch."""
        return floating(self.x), self.y


def floating(x: Tensor) -> Tensor:
    """Return bytes as float32 in [0, 1], anything else as it is."""
    return x.float().div_(255) if x.dtype == torch.uint8 else x


@dataclass(frozen=True, eq=False)
class Data(Shown):
    """A data set in three parts. The test part is for the last evaluation, never for a choice.

    Attributes:
        name: How it was asked for.
        train: What to train on.
        val: What to choose by: a part of the training data, split off by a seed.
        test: The test part as it was published, where there is one.
        shape: Shape of one image.
        classes: Names of the classes.
        mean: Mean per channel of the training part, for images in [0, 1].
        std: Standard deviation likewise.
        augment: Random crop and flip as the data set is usually trained, or None.
        skipped: The files that ``skip_bad`` left out, each with the reason.
    """

    name: str
    train: Dataset[Any]
    val: Dataset[Any]
    test: Dataset[Any]
    shape: tuple[int, ...]
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augment: Augment | None
    skipped: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Return how many images of which shape and classes there are, in a few lines."""
        names = ", ".join(self.classes[:10]) + (", ..." if len(self.classes) > 10 else "")
        parts = ", ".join(f"{len(getattr(self, p))} {p}" for p in ("train", "val", "test"))
        moments = [", ".join(f"{n:.3f}" for n in values) for values in (self.mean, self.std)]
        lines = [
            f"{self.name}: images {self.shape} in [0, 1]; {parts}",
            f"  {len(self.classes)} classes: {names}",
            f"  mean {moments[0]}; standard deviation {moments[1]}",
        ]
        if self.skipped:
            lines.append(f"  {len(self.skipped)} files left out")
        return "\n".join(lines)

    def normalise(self, model: nn.Module) -> Normalised:
        """Put this data's normalisation in front of a model, so that inputs stay in [0, 1]."""
        return Normalised(model, self.mean, self.std)


class Normalised(nn.Module):
    """A model behind a normalisation: attacks and users see inputs in [0, 1].

    The model's own keys get the prefix ``model.``.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        """Take mean and standard deviation per channel of a batch (n, channels, ...)."""
        super().__init__()
        self.model = model
        self.register_buffer("mean", torch.tensor(mean).reshape(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).reshape(-1, 1, 1))

    def forward(self, x: Tensor) -> Any:
        """Return what the model makes of the normalised batch."""
        return self.model((x - self.mean) / self.std)


def split(count: int, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Return the indices of a random part of ``share`` taken off, and of the rest: (rest, part)."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    size = round(count * share)
    return order[size:].sort().values, order[:size].sort().values


def moments(x: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation per channel of images (n, channels, h, w) in [0, 1]."""
    means, spreads = [], []
    for channel in x.unbind(1):
        values = floating(channel).double()
        means.append(round(float(values.mean()), 4))
        spreads.append(round(float(values.std()), 4))
    return tuple(means), tuple(spreads)


def augmentation(size: Sequence[int], *, padding: int = 4, flip: bool = True) -> Augment:
    """Return a random crop after zero padding, and a random horizontal flip.

    Args:
        size: Height and width of the images.
        padding: Pixels of padding on each side.
        flip: Whether to mirror half of the images.
    """
    from torchvision.transforms import v2

    steps: list[nn.Module] = [v2.RandomCrop(list(size), padding=padding)]
    if flip:
        steps.append(v2.RandomHorizontalFlip())
    composed: Augment = v2.Compose(steps)
    return composed
