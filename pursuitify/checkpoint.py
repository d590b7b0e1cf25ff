"""Save and load: one safetensors file with a JSON header; no code, no pickle.

The file holds the network's tensors and says how it was converted and what its graph is. Loading
converts the given model afresh and refuses a file whose graph is another one, so a checkpoint can
never end up in the wrong rows. Nothing in the file is ever executed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from pursuitify.compiler import PAPER_BETA
from pursuitify.compiler import pursuitify as convert
from pursuitify.errors import CheckpointError
from pursuitify.files import read_tensors, write_tensors
from pursuitify.network import PursuitNetwork
from pursuitify.program import Program
from pursuitify.rules import Key, Rule
from pursuitify.settings import OPTIONS
from pursuitify.trace import LeafModule
from pursuitify.version import VERSION

FORMAT = 1
_KEY = "pursuitify"


def save(net: PursuitNetwork, path: str | os.PathLike[str]) -> None:
    """Write a network to one file, whole or not at all.

    Args:
        net: The network.
        path: Where to; an existing file is replaced only once the new one is complete.

    Raises:
        CheckpointError: If the file cannot be written; what stood at ``path`` is still there.
    """
    write_tensors(Path(path), net.state_dict(), _KEY, _header(net))


def load(
    path: str | os.PathLike[str],
    model: nn.Module,
    *,
    rules: Mapping[Key, Rule] | None = None,
    leaf_modules: Sequence[LeafModule] = (),
) -> PursuitNetwork:
    """Convert a model as it was converted when saved, and load the saved tensors.

    Args:
        path: A file written by :func:`save`.
        model: A model of the architecture that was converted; its weights do not matter. Never
            changed.
        rules: As for ``pursuitify``, where the conversion used any.
        leaf_modules: Likewise.

    Returns:
        The network, in the model's own mode and on its device.

    Raises:
        CheckpointError: If the file is missing, damaged, of another kind or version, or belongs
            to another graph; the message names the difference.
    """
    header, tensors = _read(Path(path))
    options = header["options"]
    net = convert(
        model,
        rules=rules,
        leaf_modules=leaf_modules,
        **options,
    )
    _compare_graphs(header["graph"], fingerprint(net), Path(path))
    compare_tensors(tensors, net.state_dict(), Path(path))
    net.load_state_dict(tensors)
    return net


def source_state(net: PursuitNetwork) -> dict[str, Tensor]:
    """Return the state_dict of the source: the plain model loads it, strictly.

    It is the network at T = 0; ``pursuit.*`` and the settings have no place in it.
    """
    own = net.state_dict()
    return {name: value for name, value in own.items() if not name.startswith("pursuit.")}


def save_source(net: PursuitNetwork, path: str | os.PathLike[str]) -> None:
    """Write ``source_state`` as a plain safetensors file, for ``safetensors.torch.load_file``.

    Raises:
        CheckpointError: If the file cannot be written; what stood at ``path`` is still there.
    """
    write_tensors(Path(path), source_state(net), "format", "pt")


def fingerprint(net: PursuitNetwork) -> dict[str, list[list[Any]]]:
    """Return what identifies a network's graphs: every row and what it reads, by mode."""
    modes = {"evaluation": False, "training": True}
    return {name: _rows(net._programs[mode]) for name, mode in modes.items()}


def _rows(program: Program) -> list[list[Any]]:
    names = {-1 - i: node.name for i, node in enumerate(program.inputs)}
    names |= {i: plan.name for i, plan in enumerate(program.plans)}
    rows = []
    for row, plan in zip(program.rows, program.plans, strict=True):
        reads = [
            [[names[path.leaf], [list(use) for use in path.uses]] for path in slot.paths]
            for slot in plan.slots
        ]
        rows.append([plan.name, row.layout, row.source, [n for n, _ in plan.diagonal], reads])
    return rows


def _header(net: PursuitNetwork) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "version": VERSION,
        "options": {
            **net.settings(),
            "layout": net._program.layout,
            "paper": net.pursuit.beta_range == PAPER_BETA,
            "nonnegative_thresholds": net._program.nonnegative,
        },
        "graph": fingerprint(net),
    }


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    header, tensors = read_tensors(path, _KEY, "pursuitify.save")
    version = header.get("format")
    if version != FORMAT:
        raise CheckpointError(
            f"{path} has format {version!r}, written by version {header.get('version')!r}; this "
            f"is version {VERSION}, which reads format {FORMAT}"
        )
    options = header.get("options")
    wanted = {*OPTIONS, "layout", "paper", "nonnegative_thresholds"}
    if not isinstance(options, dict) or set(options) != wanted or "graph" not in header:
        raise CheckpointError(f"the header of {path} is incomplete or altered")
    return header, tensors


def _compare_graphs(saved: Any, own: Mapping[str, list[list[Any]]], path: Path) -> None:
    if saved == json.loads(json.dumps(own)):
        return
    for mode, rows in own.items():
        theirs = saved.get(mode) if isinstance(saved, dict) else None
        if not isinstance(theirs, list):
            raise CheckpointError(f"the header of {path} is incomplete or altered")
        for i, (a, b) in enumerate(zip(theirs, json.loads(json.dumps(rows)), strict=False)):
            if a != b:
                raise CheckpointError(
                    f"{path} belongs to another graph: in {mode} mode its row {i} is {a[:3]} and "
                    f"the model's is {b[:3]} (name, layout, module)"
                )
        if len(theirs) != len(rows):
            raise CheckpointError(
                f"{path} belongs to another graph: it has {len(theirs)} rows in {mode} mode and "
                f"the model {len(rows)}"
            )
    raise CheckpointError(f"{path} belongs to another graph")


def compare_tensors(saved: Mapping[str, Tensor], own: Mapping[str, Tensor], path: Path) -> None:
    """Refuse tensors that are not, name by name, those of a network.

    Raises:
        CheckpointError: If names, shapes or kinds of number differ; lists all differences.
    """
    differences = [f"missing {name}" for name in own if name not in saved]
    differences += [f"unexpected {name}" for name in saved if name not in own]
    for name, value in saved.items():
        if name in own and value.shape != own[name].shape:
            differences.append(f"{name} is {tuple(value.shape)}, not {tuple(own[name].shape)}")
        elif name in own and value.dtype.is_floating_point != own[name].dtype.is_floating_point:
            differences.append(f"{name} is {value.dtype}, not {own[name].dtype}")
    if differences:
        raise CheckpointError(f"{path} does not fit the model: " + "; ".join(differences))
