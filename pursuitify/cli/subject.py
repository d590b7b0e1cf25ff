"""The subject of a command: a model by name, or a run or a checkpoint, which names it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import typer

from pursuitify.checkpoints.files import WEIGHTS
from pursuitify.checkpoints.origin import Origin, read_origin
from pursuitify.data import Data, load_data
from pursuitify.errors import OptionError
from pursuitify.utils import option_checks

#: The file of a run's folder that is taken.
BEST = "best.safetensors"


@dataclass(frozen=True)
class Subject:
    """A subject is the model, and perhaps the checkpoint, that a command works on.

    Attributes:
        name: The model's name, as ``load_model`` takes it.
        checkpoint: The checkpoint, a file or a folder, or None for the model as it is.
        origin: What the checkpoint remembers; an empty origin where there is nothing.
    """

    name: str
    checkpoint: Path | None
    origin: Origin

    @property
    def moments(self) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
        """Mean and standard deviation of the normalisation around the model, if there is one."""
        return (self.origin.mean, self.origin.std) if self.origin.mean else None

    def classes(self, asked: int | None) -> int | None:
        """Return the number of classes to make the model with, None for the model's own.

        Raises:
            OptionError: If a number is asked for, and a factory of the user's own makes the model,
                which decides for itself.
        """
        if asked is not None and is_own(self.name):
            raise OptionError(
                f"--classes {asked} would have no effect: {self.name} makes the model as it is. "
                "Leave it out, or let the function make as many"
            )
        return self.origin.classes if asked is None else asked

    def classes_for(self, data: Data) -> int | None:
        """Return the number of classes to make the model with for a data set.

        It is that of the checkpoint's model, which has weights for so many (None for the model's
        own number); where none is remembered, it is that of the data.
        """
        return self.origin.classes if self.origin.model else len(data.classes)

    def named(self, classes: int | None) -> Origin:
        """Return the origin of a network of the subject's model, made with so many classes."""
        was = self.origin if classes is None else replace(self.origin, classes=classes)
        return replace(was, model=self.name, code=code_of(self.name))

    def shape(self, text: str | None, size: int | None) -> tuple[int, ...]:
        """Return the shape of one input: as asked for, else as remembered, else 3,224,224.

        Args:
            text: What ``--shape`` says, like 3,224,224.
            size: What ``--size`` says: the side of square images.
        """
        if text is not None and size is not None:
            raise OptionError(f"--shape {text} and --size {size}: give one of them")
        if text is not None:
            return shape_of(text)
        known = self.origin.shape or (3, 224, 224)
        if size is None:
            return known
        option_checks.positive("--size", size)
        return (known[0], size, size)

    def data(
        self,
        name: str | None,
        *,
        root: Path | None,
        download: bool,
        size: int | None,
        channels: int | None,
        seed: int | None,
        skip_bad: bool,
    ) -> tuple[Data, Origin]:
        """Return the data set that is asked for, else the one that is remembered, else digits.

        What is not asked for is as it was when the network was trained, for the same inputs and
        the same split; the normalisation too. Files that were left out are listed on standard
        error.

        Returns:
            The data, and the origin of a network that is trained on it.

        Raises:
            OptionError: If the remembered data now has other classes, or the data has more classes
                than the model of the checkpoint was made with.
        """
        was = self.origin
        remembered = name is None and bool(was.data)
        chosen = name or was.data or "digits"
        if root is None:
            root = Path(was.root) if remembered and was.root else Path("data")
        wanted = replace(
            was,
            data=chosen,
            root=str(root),
            size=was.size if size is None else size,
            channels=was.channels if channels is None else channels,
            seed=was.seed if seed is None else seed,
            skip_bad=skip_bad or (remembered and was.skip_bad),
        )
        data = load_data(
            chosen,
            root=root,
            download=download,
            size=wanted.size,
            channels=wanted.channels,
            seed=wanted.seed,
            skip_bad=wanted.skip_bad,
        )
        if data.skipped:
            typer.echo(f"left out {len(data.skipped)} files:", err=True)
            for reason in data.skipped:
                typer.echo(f"  {reason}", err=True)
        if was.labels and data.classes != was.labels:
            text = (
                f"{self.checkpoint} was trained on {was.data} with the classes "
                f"{_some(was.labels)}, and {chosen} has {_some(data.classes)}"
            )
            if remembered:
                raise OptionError(f"{text}. To take it all the same, name it: --data {chosen}")
            typer.echo(f"note: {text}", err=True)
        if was.shape and tuple(data.shape) != tuple(was.shape):
            typer.echo(
                f"note: {self.checkpoint} was trained on inputs {_by(was.shape)}, and {chosen} is "
                f"read at {_by(data.shape)}: its accuracy may be another one there",
                err=True,
            )
        classes = self.classes_for(data)
        if classes is not None and classes < len(data.classes):
            raise OptionError(
                f"{self.checkpoint} is of {self.name} made with {classes} classes, and {chosen} "
                f"has {len(data.classes)}: no image of the others could ever be right"
            )
        if self.moments is not None:
            data = replace(data, mean=was.mean, std=was.std)
        named = replace(wanted, model=self.name, code=code_of(self.name), classes=classes)
        return data, replace(named, shape=data.shape, labels=data.classes)


def _by(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


def subject_of(name: str, checkpoint: Path | None) -> Subject:
    """Return what a command's MODEL stands for, with the options of its training.

    A line on standard error says which model a run's folder or file names.

    Args:
        name: A model's name, the folder of a run (of which the best weights are taken), or a
            checkpoint: its file, or its folder as ``save_pretrained`` writes it.
        checkpoint: What ``--checkpoint`` says, beside a model's name.

    Raises:
        OptionError: If the folder holds no run, the checkpoint remembers no model, two checkpoints
            are named, or the model's file is gone or has changed.
        CheckpointError: If the checkpoint is missing, damaged or altered.
    """
    file = _file_of(name)
    if file is None:
        origin = None if checkpoint is None else read_origin(checkpoint)
        return Subject(name, checkpoint, origin or Origin())
    if checkpoint is not None:
        raise OptionError(f"{name} and --checkpoint {checkpoint}: give one of them")
    origin = read_origin(file)
    if origin is None or not origin.model:
        raise OptionError(
            f"{file} does not say which model it is of: it was written by an earlier version, or "
            f"in Python without an origin. Name the model: MODEL --checkpoint {file}"
        )
    if is_own(origin.model):
        _check_code(origin, file)
    typer.echo(f"{file}: {origin.model}{_trained_on(origin)}", err=True)
    return Subject(origin.model, file, origin)


def is_own(name: str) -> bool:
    """Whether a model's name is that of a function in a file of the user's own."""
    return ".py:" in name


def code_of(name: str) -> str:
    """Return the SHA-256 of the file that a model's name states; empty where it states none.

    Raises:
        OptionError: If there is no such file.
    """
    if not is_own(name):
        return ""
    file = Path(name.rsplit(":", 1)[0])
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError as error:
        raise OptionError(option_checks.no_file(file)) from error


def shape_of(text: str) -> tuple[int, ...]:
    """Return the shape that a text like 3,224,224 states."""
    try:
        shape = tuple(int(n) for n in text.split(","))
    except ValueError:
        shape = ()
    if not shape or min(shape) < 1:
        raise OptionError(f"--shape {text!r} is not like 3,224,224")
    return shape


def _file_of(name: str) -> Path | None:
    """Return the checkpoint that a name stands for; None where it is a model's name.

    Raises:
        OptionError: If there is no such file, or the folder holds no checkpoint or two.
    """
    if is_own(name) or name.startswith("timm:"):
        return None
    path = Path(name)
    if path.suffix == ".safetensors":
        if not path.is_file():
            raise OptionError(option_checks.no_file(path))
        return path
    if not path.is_dir() or _is_torchvision(name):
        return None
    found = [file for file in (path / BEST, path / WEIGHTS) if file.is_file()]
    if len(found) == 2:
        raise OptionError(f"{path} holds {BEST} and {WEIGHTS}: name one of the files")
    if not found:
        raise OptionError(
            f"{path} holds neither {BEST}, as `pursuitify finetune --output {path}` writes it, nor "
            f"{WEIGHTS}, as `pursuitify convert MODEL --hub {path}` does: it is no folder of a run"
        )
    return path if found == [path / WEIGHTS] else found[0]


def _is_torchvision(name: str) -> bool:
    from torchvision import models

    return name in models.list_models()


def _check_code(origin: Origin, file: Path) -> None:
    """Refuse a model's file that is gone or is not the one that the network was made by.

    It is run as Python code, so nothing but the file that the checkpoint was made with will do.
    """
    source = Path(origin.model.rsplit(":", 1)[0])
    by_hand = f"name the model yourself: {origin.model} --checkpoint {file}"
    if not source.is_file():
        raise OptionError(
            f"{file} is of the model {origin.model}, and {option_checks.no_file(source)} here: "
            f"start the command in the folder that {source} stands in, or {by_hand}"
        )
    if code_of(origin.model) != origin.code:
        raise OptionError(
            f"{file} is of the model {origin.model}, and {source} is not the file that it was made "
            f"by: it has changed, or is another one. It is run as Python code, so look at it, and "
            f"{by_hand}"
        )


def _trained_on(origin: Origin) -> str:
    return f", trained on {origin.data}" if origin.data else ""


def _some(labels: Sequence[str]) -> str:
    more = f" and {len(labels) - 5} more" if len(labels) > 5 else ""
    return ", ".join(labels[:5]) + more
