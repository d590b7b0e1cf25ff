"""A checkpoint is one file, or a folder as the Hugging Face Hub keeps models.

The folder holds that same file, named ``model.safetensors``, and ``config.json``, which repeats the
part of its header that people and the Hub read. ``huggingface_hub`` uploads and downloads it as it
is, and is not needed here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from pursuitify.checkpoints.network_identity import shown
from pursuitify.errors import CheckpointError
from pursuitify.utils.atomic_files import read_tensors, write_json

#: Key of the header in the file of a network.
HEADER = "pursuitify"
#: Key of the origin in the header.
ORIGIN = "origin"
#: The files of a folder, as the Hub names them.
WEIGHTS, CONFIG = "model.safetensors", "config.json"
#: What config.json repeats of the header.
_REPEATED = ("format", "version", "options", ORIGIN)


def weights_of(path: Path) -> Path:
    """Return the file that holds the tensors: that of a folder, or ``path`` itself.

    Raises:
        CheckpointError: If it is a folder without such a file.
    """
    if not path.is_dir():
        return path
    if not (path / WEIGHTS).is_file():
        raise CheckpointError(
            f"the folder {path} holds no {WEIGHTS}, as save_pretrained(folder) writes it. Name a "
            "file, or the folder that holds one"
        )
    return path / WEIGHTS


def read_checkpoint(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the header and the tensors of a checkpoint, a file or a folder.

    Raises:
        CheckpointError: If it is missing, damaged or of another kind, or the folder's config.json
            says something else than the header of its weights.
    """
    file = weights_of(path)
    header, tensors = read_tensors(file, HEADER, "pursuitify.save")
    if file != path and (path / CONFIG).exists():
        _compare(_config_in(path / CONFIG), header, path)
    return header, tensors


def write_config(folder: Path, header: Mapping[str, Any]) -> None:
    """Write a folder's config.json.

    Args:
        folder: The folder, which holds the weights already.
        header: The header of the weights.

    Raises:
        CheckpointError: If it cannot be written.
    """
    repeated = {key: header[key] for key in _REPEATED if key in header}
    write_json(folder / CONFIG, {"library_name": "pursuitify", **repeated})


def _config_in(file: Path) -> dict[str, Any]:
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} is no JSON that can be read: {error}") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{file} holds a {type(config).__name__}, not an object")
    return config


def _compare(config: Mapping[str, Any], header: Mapping[str, Any], folder: Path) -> None:
    """Refuse a config.json that says something else than the weights' own header, which is read."""
    for key in _REPEATED:
        one, other = config.get(key), header.get(key)
        if one == other:
            continue
        if isinstance(one, dict) and isinstance(other, dict):
            part = next(k for k in (*other, *one) if one.get(k) != other.get(k))
            key, one, other = f"{key}.{part}", one.get(part), other.get(part)
        raise CheckpointError(
            f"{folder / CONFIG} and the header of {folder / WEIGHTS} contradict each other: "
            f"{key} is {shown(one)} and {shown(other)}. The network is "
            "made as the header says: to change an option, load it, set it and save it again. "
            f"Without {CONFIG}, the folder is read as its weights say"
        )
