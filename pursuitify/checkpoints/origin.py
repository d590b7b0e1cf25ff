"""The origin of a network: its model by name, and the data that it was trained on.

A checkpoint keeps it in its header, so that commands need not be told again. It is read as data
and checked; nothing that it names is loaded or run here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pursuitify.checkpoints.files import ORIGIN, read_checkpoint
from pursuitify.errors import CheckpointError, OptionError
from pursuitify.utils import option_checks


@dataclass(frozen=True)
class Origin:
    """An origin says where a network comes from; a field that is not known is empty.

    Attributes:
        model: The model's name: ``resnet18``, ``timm:NAME`` or ``path/to/file.py:factory``.
        code: The SHA-256 of the model's file, in hexadecimal, where a file makes it.
        shape: Shape of one input, channels first.
        classes: The number of classes that the model was made with; None for its own number.
        mean: Mean per channel of a normalisation (``data.Normalised``) around the model.
        std: Standard deviation likewise.
        data: Name of the data set, or its folder.
        labels: Names of the data's classes, in the order of the network's outputs.
        root: Folder of torchvision's data sets.
        size: Side to which images were resized, where that was asked for.
        channels: Channels of the images, likewise.
        skip_bad: Whether files that cannot be read were left out of the data.
        seed: Seed by which the data was split.
    """

    model: str = ""
    code: str = ""
    shape: tuple[int, ...] = ()
    classes: int | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    data: str = ""
    labels: tuple[str, ...] = ()
    root: str = ""
    size: int | None = None
    channels: int | None = None
    skip_bad: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        """Check every field, and that they agree.

        Raises:
            OptionError: If one is of the wrong kind or out of range, or two contradict.
        """
        for name in ("model", "code", "data", "root"):
            _need(isinstance(getattr(self, name), str), name, getattr(self, name), "a text")
        for name in ("shape", "mean", "std", "labels"):
            _need(isinstance(getattr(self, name), tuple), name, getattr(self, name), "a tuple")
        for side in self.shape:
            option_checks.positive("shape", side)
        for name in ("classes", "size", "channels"):
            if getattr(self, name) is not None:
                option_checks.positive(name, getattr(self, name))
        for value in self.mean:
            option_checks.number("mean", value)
        for value in self.std:
            option_checks.number("std", value, above=0)
        for label in self.labels:
            _need(isinstance(label, str), "labels", label, "a text")
        option_checks.switch("skip_bad", self.skip_bad)
        option_checks.seed("seed", self.seed)
        hexadecimal = not self.code or (len(self.code) == 64 and not {*self.code} - _HEX)
        _need(hexadecimal, "code", self.code, "a SHA-256 in hexadecimal")
        agree = len(self.mean) == len(self.std) and self.shape[:1] in ((), (len(self.mean),))
        _need(not (self.mean or self.std) or agree, "std", self.std, "one value per channel")
        _need(len({*self.labels}) == len(self.labels), "labels", self.labels, "free of repetitions")
        enough = self.classes is None or self.classes >= len(self.labels)
        _need(enough, "classes", self.classes, f"enough for {len(self.labels)} labels")

    def to_dict(self) -> dict[str, Any]:
        """Return all fields as JSON can hold them."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    def check_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Check that the network whose tensors these are is normalised as this says.

        Raises:
            OptionError: If it is not.
        """
        for name, wanted in (("mean", self.mean), ("std", self.std)):
            held = tensors.get(name)
            if not wanted:
                continue
            if held is None or held.cpu().flatten().tolist() != (
                torch.tensor(wanted).to(held.dtype).tolist()
            ):
                raise OptionError(
                    f"{name}={wanted!r} is not the normalisation that the network's tensor "
                    f"{name!r} holds: a normalised network is data.normalise(model)"
                )


_HEX = frozenset("0123456789abcdef")


def _need(holds: bool, name: str, value: object, what: str) -> None:
    if not holds:
        raise OptionError(f"{name}={value!r} is not {what}")


def origin_of(
    header: Mapping[str, Any], tensors: Mapping[str, Tensor], path: Path
) -> Origin | None:
    """Return the origin that a file's header states; None where it states none.

    Args:
        header: The header.
        tensors: The tensors of the file, which must agree with it.
        path: The file, for the error.

    Raises:
        CheckpointError: If the header is altered: fields are missing, unknown, of the wrong kind
            or out of range, or contradict each other or the tensors.
    """
    if ORIGIN not in header:
        return None
    stated = header[ORIGIN]
    names = [field.name for field in fields(Origin)]
    if not isinstance(stated, dict) or {*stated} != {*names}:
        found = sorted(stated) if isinstance(stated, dict) else type(stated).__name__
        raise CheckpointError(
            f"the header of {path} is altered, or of a later version: its origin has {found}, not "
            f"{names}"
        )
    values: dict[str, Any] = {}
    for name, value in stated.items():
        values[name] = tuple(value) if isinstance(value, list) else value
    try:
        origin = Origin(**values)
        origin.check_tensors(tensors)
    except (OptionError, OverflowError) as error:
        raise CheckpointError(f"the header of {path} is altered: its origin has {error}") from error
    return origin


def read_origin(path: Path) -> Origin | None:
    """Return the origin that a checkpoint, a file or a folder, remembers; None if it has none.

    Raises:
        CheckpointError: If it is missing, damaged, altered or of another kind.
    """
    header, tensors = read_checkpoint(path)
    return origin_of(header, tensors, path)
