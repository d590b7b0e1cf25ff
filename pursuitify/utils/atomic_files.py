"""Files written whole or not at all, and read without executing anything in them.

Everything that this library writes goes through here: tensors, text, JSON, pictures, and with
``whole`` what another library writes to a path (ONNX files).
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pursuitify.errors import CheckpointError, OptionError
from pursuitify.utils import option_checks

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def write_tensors(target: Path, tensors: Mapping[str, Tensor], key: str, header: Any) -> None:
    """Write tensors and one JSON header to a safetensors file.

    Args:
        target: Where to; an existing file is replaced only once the new one is complete.
        tensors: The tensors; they may share memory.
        key: Name of the header in the file.
        header: A text, or anything JSON can hold.

    Raises:
        CheckpointError: If the file cannot be written, or holds no such tensor; what stood at
            ``target`` is still there.
    """
    sparse = [name for name, value in tensors.items() if value.layout is not torch.strided]
    if sparse:
        raise CheckpointError(
            f"'{sparse[0]}' is sparse ({tensors[sparse[0]].layout}), and a safetensors file holds "
            "no sparse tensors: register it with persistent=False "
            "(register_buffer(name, tensor, persistent=False)), so that the model makes it anew"
        )
    own: dict[str, Tensor] = {}
    taken: set[int] = set()
    for name, value in tensors.items():
        plain = value.detach().cpu().contiguous()
        storage = plain.untyped_storage()
        place = storage.data_ptr()
        # The format wants every tensor in memory of its own, and nothing else in that memory.
        if place in taken or storage.nbytes() != plain.numel() * plain.element_size():
            plain = plain.clone()
        taken.add(place)
        own[name] = plain
    metadata = {key: header if isinstance(header, str) else json.dumps(header)}
    _replace(target, lambda path: save_file(own, path, metadata=metadata))


def write_copy(target: Path, source: Path) -> None:
    """Write a copy of a file, whole or not at all.

    Raises:
        CheckpointError: If the file cannot be written; what stood at ``target`` is still there.
    """
    _replace(target, lambda path: shutil.copyfile(source, path))


def write_text(target: Path, text: str) -> None:
    """Write text, whole or not at all.

    Raises:
        CheckpointError: If the file cannot be written; what stood at ``target`` is still there.
    """
    _replace(target, lambda path: Path(path).write_text(text, encoding="utf-8"))


def write_json(target: Path, content: object) -> None:
    """Write JSON, whole or not at all; a number that is not finite is null.

    Raises:
        CheckpointError: If the file cannot be written; what stood at ``target`` is still there.
    """
    write_text(target, as_json(content, indent=1))


def write_picture(path: str | os.PathLike[str], figure: Figure) -> Figure:
    """Write a figure of matplotlib into a folder that is made if need be; return the figure.

    Args:
        path: Where to; the suffix chooses the format.
        figure: The figure.

    Raises:
        OptionError: If matplotlib writes no such format, or the path has no suffix.
        CheckpointError: If the file cannot be written; what stood at ``path`` is still there.
    """
    target = Path(path)
    formats, chosen = figure.canvas.get_supported_filetypes(), target.suffix[1:].lower()
    if chosen not in formats:
        raise OptionError(
            f"{target} names no picture that can be written: its suffix {target.suffix!r} chooses "
            f"the format, which must be one of {', '.join(sorted(formats))}"
        )
    make_folder(target.parent)
    with whole(target) as written:
        try:
            # The format is given, since a link's own name need not be that of the file it leads to.
            figure.savefig(written, format=chosen, dpi=100, bbox_inches="tight")
        except OSError as error:
            raise CheckpointError(f"cannot write {target}: {error}") from error
    return figure


def make_folder(path: str | os.PathLike[str]) -> Path:
    """Return a folder, made with those above it if it is not there.

    Raises:
        CheckpointError: If it cannot be made, for instance because a file has its name.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"cannot make the folder {folder}: {error}") from error
    return folder


def as_json(content: object, indent: int | None = None) -> str:
    """Return content as JSON that every reader takes: what is not finite is null, not NaN."""
    return json.dumps(_finite(content), indent=indent, allow_nan=False)


def is_finite(content: object) -> bool:
    """Whether every number in nested lists and dictionaries is finite."""
    if isinstance(content, Mapping):
        return all(map(is_finite, content.values()))
    if isinstance(content, (list, tuple)):
        return all(map(is_finite, content))
    return not isinstance(content, float) or math.isfinite(content)


def _finite(content: object) -> object:
    if isinstance(content, Mapping):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_finite(value) for value in content]
    return content if is_finite(content) else None


@contextlib.contextmanager
def whole(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Let another library write a file, and put it in place only if the block ends well.

    Inside the block the file is to be written to the path that is yielded, which has the target's
    own name in a folder of its own beside it. Files written beside it there (the weights of a large
    ONNX file) are put beside the target, before it. If the block raises, whatever the cause,
    nothing of this is left and what stood at ``path`` is still there.

    Args:
        path: Where the file is to stand.

    Raises:
        CheckpointError: If the file cannot be written there.
    """
    target = Path(os.path.realpath(path))
    _mode(target)
    folder = target.parent / f".{target.name}.{secrets.token_hex(4)}"
    try:
        folder.mkdir()
    except OSError as error:
        raise CheckpointError(
            f"cannot write to {target.parent}: {error.strerror or error}"
        ) from error
    try:
        written = folder / target.name
        yield written
        umask = stat.S_IMODE(written.parent.stat().st_mode) & 0o666
        others = sorted(part for part in folder.iterdir() if part != written)
        for part in (*others, written):
            part.chmod(umask)  # as a new file has it, whatever the writer chose
            _publish(part, target.parent / part.name)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def read_tensors(path: Path, key: str, writer: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read a file that ``write_tensors`` wrote.

    Args:
        path: The file.
        key: Name of the header.
        writer: Who writes such files, for the error.

    Returns:
        The header and the tensors.

    Raises:
        CheckpointError: If the file is missing, damaged or of another kind.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError as error:
        raise CheckpointError(option_checks.no_file(path)) from error
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"{path} is not a whole safetensors file ({error}). Pickled checkpoints are never "
            "opened: they can run code"
        ) from error
    try:
        header = json.loads(metadata[key])
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} was not written by {writer}") from error
    if not isinstance(header, dict):
        raise CheckpointError(f"{path} was not written by {writer}")
    return header, tensors


def clear_leftovers(target: Path) -> None:
    """Remove what a killed process left beside ``target`` while writing it."""
    target = Path(os.path.realpath(target))
    for path in target.parent.glob(f".{target.name}.{'?' * 8}"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _replace(target: Path, write: Callable[[str], Any]) -> None:
    """Let ``write`` fill a file beside the target, flush it to the disk, then rename it.

    A symbolic link is followed, an existing file keeps its mode and a new one has the mode that
    the umask allows. Only a regular file is ever replaced.
    """
    target = Path(os.path.realpath(target))
    _mode(target)
    temporary = target.parent / f".{target.name}.{secrets.token_hex(4)}"
    try:
        temporary.open("xb").close()
    except OSError as error:
        raise CheckpointError(
            f"cannot write to {target.parent}: {error.strerror or error}"
        ) from error
    try:
        mode = stat.S_IMODE(temporary.stat().st_mode)
        write(str(temporary))
        temporary.chmod(mode)  # writers may choose one of their own
        _publish(temporary, target)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot write {target}: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def _publish(temporary: Path, target: Path) -> None:
    """Flush a finished file to the disk and rename it to its target, whose mode it takes over."""
    mode = _mode(target)
    try:
        with open(temporary, "rb+") as written:
            os.fsync(written.fileno())
        if mode is not None:
            temporary.chmod(mode)
        os.replace(temporary, target)
        _flush(target.parent)
    except OSError as error:
        raise CheckpointError(f"cannot write {target}: {error}") from error


def _mode(target: Path) -> int | None:
    """Return the mode of an existing file, None where there is nothing yet.

    Raises:
        CheckpointError: If what is there is no regular file: a device, a pipe or a folder.
    """
    try:
        found = target.lstat().st_mode
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CheckpointError(f"cannot write {target}: {error}") from error
    if not stat.S_ISREG(found):
        raise CheckpointError(
            f"cannot write {target}: it is {_kind(found)}, and writing replaces what is there. "
            "Give the path of a regular file, new or old"
        )
    return stat.S_IMODE(found)


def _kind(mode: int) -> str:
    """Return what a path that is no regular file is, in words."""
    kinds = {
        stat.S_IFDIR: "a folder",
        stat.S_IFIFO: "a pipe",
        stat.S_IFSOCK: "a socket",
        stat.S_IFLNK: "a symbolic link that leads back to itself",
    }
    return kinds.get(stat.S_IFMT(mode), "a device")


def _flush(folder: Path) -> None:
    """Make a rename last through a power cut, where folders can be opened (not on Windows)."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
