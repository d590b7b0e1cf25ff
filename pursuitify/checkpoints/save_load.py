"""A network is saved to one safetensors file with a JSON header; there is no code and no pickle.

The file holds the network's tensors and says how it was converted and what identifies it: rows,
operations, constants (``identity``). Loading converts the given model afresh and refuses the file
of another network, so a checkpoint can never end up in the wrong rows, or under other strides or
slopes. Nothing in the file is ever executed. ``save_pretrained`` writes the same file into a
folder, beside a ``config.json``.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pursuitify.checkpoints.files import HEADER, ORIGIN, WEIGHTS, read_checkpoint, write_config
from pursuitify.checkpoints.network_identity import (
    PARTS,
    compare_operations,
    compare_rows,
    identity,
    shown,
)
from pursuitify.checkpoints.origin import Origin, origin_of
from pursuitify.compiler.tracing.tracer import LeafModule
from pursuitify.conversion.convert import pursuitify as convert
from pursuitify.dictionary.norm_bounds import CertifiedNorms
from pursuitify.errors import CheckpointError, OptionError
from pursuitify.network.pursuit_network import PursuitNetwork
from pursuitify.rules import Key, Rule
from pursuitify.solvers.settings import LATER_OPTIONS, OPTIONS, Settings
from pursuitify.solvers.step_sizes import PAPER_BETA
from pursuitify.utils import option_checks
from pursuitify.utils.atomic_files import make_folder, write_tensors
from pursuitify.version import VERSION

#: Format 1 held the rows, not the operations and constants: read, with a warning.
FORMAT = 2
_READS = (1, 2)
#: Key of the certified norm bounds in the header, which the first call would take long to find.
NORMS = "certified norms"


def save(
    net: PursuitNetwork, path: str | os.PathLike[str], *, origin: Origin | None = None
) -> None:
    """Write a network to one file, whole or not at all.

    Args:
        net: The network.
        path: Where to; an existing file is replaced only once the new one is complete.
        origin: The model's name, its inputs and its data, for the command line to find there
            (:func:`pursuitify.checkpoints.origin.read_origin`).

    Raises:
        OptionError: If ``net`` is no pursuit network, or ``origin`` no origin of it.
        CheckpointError: If the file cannot be written; what stood at ``path`` is still there.
    """
    _check(net, "save")
    write_tensors(Path(path), net.state_dict(), HEADER, header_of(net, origin))


def save_pretrained(
    net: PursuitNetwork, folder: str | os.PathLike[str], *, origin: Origin | None = None
) -> None:
    """Write a network to a folder as the Hugging Face Hub keeps models.

    ``model.safetensors`` is what :func:`save` writes, and ``config.json`` repeats the options and
    the origin. ``huggingface_hub.upload_folder`` pushes the folder, ``snapshot_download`` pulls it,
    and :func:`load` reads it. The origin is public then, paths of data and of the model's file
    included.

    Args:
        net: The network.
        folder: Where to; made if it is not there. Other files in it are left as they are.
        origin: As for :func:`save`.

    Raises:
        OptionError: If ``net`` is no pursuit network, or ``origin`` no origin of it.
        CheckpointError: If a file cannot be written.
    """
    _check(net, "save_pretrained")
    header = header_of(net, origin)
    target = make_folder(folder)
    write_tensors(target / WEIGHTS, net.state_dict(), HEADER, header)
    write_config(target, header)


def load(
    path: str | os.PathLike[str],
    model: nn.Module,
    *,
    rules: Mapping[Key, Rule] | None = None,
    leaf_modules: Sequence[LeafModule] = (),
) -> PursuitNetwork:
    """Convert a model as it was converted when saved, and load the saved tensors.

    Args:
        path: A file written by :func:`save`, or a folder written by :func:`save_pretrained`.
        model: A model of the architecture that was converted; its weights do not matter. Never
            changed.
        rules: As for ``pursuitify``, where the conversion used any.
        leaf_modules: Likewise.

    Returns:
        The network, in the model's own mode and on its device.

    Raises:
        CheckpointError: If the file is missing, damaged, of another kind or version, or belongs
            to another network; the message names the difference.
        OptionError: If ``rules`` or ``leaf_modules`` is invalid.
    """
    header, tensors = _read(Path(path))
    options = header["options"]
    net = convert(
        model,
        rules=rules,
        leaf_modules=leaf_modules,
        **options,
    )
    compare_rows(header, net, Path(path))
    net.make_room_for_gains(tensors)
    compare_tensors(tensors, net.state_dict(), Path(path))
    compare_operations(header, net, Path(path))
    net.load_state_dict(tensors)
    compare_shared(tensors, net, Path(path))
    net.restore_certified_norms(header[NORMS])
    return net


def source_state(net: PursuitNetwork, part: str = "") -> dict[str, Tensor]:
    """Return the state_dict of the source: the plain model loads it, strictly.

    It is the network at T = 0; ``pursuit.*`` and the settings have no place in it.

    Args:
        net: The network.
        part: Path of the submodule of the source whose state_dict is wanted; all of it by default.
    """
    own = net.state_dict()
    start = f"{part}." if part else ""
    return {
        name.removeprefix(start): value
        for name, value in own.items()
        if name.startswith(start) and not name.startswith("pursuit.")
    }


def save_source(net: PursuitNetwork, path: str | os.PathLike[str], *, part: str = "") -> None:
    """Write ``source_state`` as a plain safetensors file, for ``safetensors.torch.load_file``.

    Args:
        net: The network.
        path: Where to.
        part: Path of the submodule of the source that is written; all of it by default.

    Raises:
        OptionError: If ``net`` is no pursuit network, or its source has no such part.
        CheckpointError: If the file cannot be written; what stood at ``path`` is still there.
    """
    _check(net, "save_source")
    state = source_state(net, part)
    if not state:
        raise OptionError(f"part={part!r} is no submodule of the source that holds tensors")
    write_tensors(Path(path), state, "format", "pt")


def _check(net: object, function: str) -> None:
    if not isinstance(net, PursuitNetwork):
        raise OptionError(
            f"{function} takes a PursuitNetwork, as pursuitify(model) returns it, not a "
            f"{type(net).__name__}. Convert a plain model first, or keep its state_dict() in a "
            "file of its own; of a compiled or wrapped network pass what is inside"
        )


def header_of(net: PursuitNetwork, origin: Origin | None) -> dict[str, Any]:
    """Return the header of a network's file, which ``save`` writes beside its state_dict.

    Raises:
        OptionError: If the origin is none, or of another network.
    """
    header = {
        "format": FORMAT,
        "version": VERSION,
        "options": {
            **net.settings(),
            "layout": net.compiled_program.layout,
            "paper": net.pursuit.beta_range == PAPER_BETA,
            "nonnegative_thresholds": net.compiled_program.nonnegative,
        },
        **identity(net),
        NORMS: _norms_record(net.certified_norms()),
    }
    if origin is not None:
        if not isinstance(origin, Origin):
            raise OptionError(f"origin is a {type(origin).__name__}, not an Origin")
        origin.check_tensors(net.state_dict())
        header[ORIGIN] = origin.to_dict()
    return header


def _norms_record(known: CertifiedNorms) -> dict[str, Any]:
    record: dict[str, Any] = {"contents": known.contents, "bounds": dict(known.bounds)}
    return {**record, "check": _check_sum(record)}


def _check_sum(record: Mapping[str, Any]) -> str:
    text = json.dumps({k: v for k, v in record.items() if k != "check"}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _norms_of(header: Mapping[str, Any], path: Path) -> CertifiedNorms:
    """Return the certified norms that a header keeps; none of another version's, or of none.

    A bound that is too small would make steps too long, and nothing would show it: the check sum is
    there for files that were edited by hand or by mistake, not against who means harm.

    Raises:
        CheckpointError: If they were altered.
    """
    record = header.get(NORMS)
    if record is None or header.get("version") != VERSION:
        return CertifiedNorms()
    whole = isinstance(record, dict) and record.get("check") == _check_sum(record)
    if not whole or record.keys() != {"contents", "bounds", "check"}:
        raise CheckpointError(f"the header of {path} is altered: its {NORMS} are not those written")
    bounds = record["bounds"]
    if not isinstance(record["contents"], str) or not isinstance(bounds, dict):
        raise CheckpointError(f"the header of {path} is altered: {NORMS} of a wrong form")
    if not all(isinstance(b, float) and math.isfinite(b) and b >= 0 for b in bounds.values()):
        raise CheckpointError(f"the header of {path} is altered: a norm is no number >= 0")
    return CertifiedNorms(record["contents"], bounds)


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    header, tensors = read_checkpoint(path)
    version = header.get("format")
    if version not in _READS:
        raise CheckpointError(
            f"{path} has format {shown(version)}, written by version "
            f"{shown(header.get('version'))}; this is version {VERSION}, which reads formats "
            f"{' and '.join(map(str, _READS))}"
        )
    options = header.get("options")
    if isinstance(options, dict):
        header["options"] = options = {**LATER_OPTIONS, **options}
    wanted = {*OPTIONS, "layout", "paper", "nonnegative_thresholds"}
    parts = PARTS if version == FORMAT else PARTS[:1]
    if not isinstance(options, dict) or set(options) != wanted or not {*parts} <= {*header}:
        raise CheckpointError(f"the header of {path} is incomplete or altered")
    try:
        Settings(**{name: options[name] for name in OPTIONS})
        option_checks.one_of("layout", options["layout"], option_checks.LAYOUTS)
        option_checks.switch("paper", options["paper"])
        option_checks.switch("nonnegative_thresholds", options["nonnegative_thresholds"])
    except (OptionError, OverflowError) as error:
        raise CheckpointError(f"the header of {path} is altered: {error}") from error
    origin_of(header, tensors, path)  # refuses what was altered; the caller's model stands
    read = {name: header[name] for name in ("options", *parts)}
    return {**read, NORMS: _norms_of(header, path)}, tensors


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


def compare_shared(saved: Mapping[str, Tensor], module: nn.Module, path: Path) -> None:
    """Refuse a file that gave one tensor of a module several values.

    A module may hold one tensor under several names (tied weights), and loading then writes to it
    once for each, so the last value stands for all.

    Args:
        saved: What was loaded.
        module: The module that it was loaded into.
        path: The file, for the error.

    Raises:
        CheckpointError: If a tensor of the module that shares its memory with another one is not
            what the file holds for it; lists all.
    """
    sharing: dict[int, list[str]] = {}
    own = module.state_dict()
    for name, value in own.items():
        if isinstance(value, Tensor) and value.layout == torch.strided and value.numel():
            sharing.setdefault(value.untyped_storage().data_ptr(), []).append(name)
    lost = []
    for names in sharing.values():
        groups = len(names) > 1 and [n for n in names if n in saved and _lost(saved[n], own[n])]
        if groups:
            lost.append(
                f"{', '.join(map(repr, names))} are one tensor in the model and "
                f"of several values in the file ({', '.join(map(repr, groups))} would be lost)"
            )
    if lost:
        raise CheckpointError(
            f"{path} belongs to a model whose weights are not tied: {'; '.join(lost)}. Load it "
            "into a model that ties what the saved one tied"
        )


def _lost(saved: Tensor, own: Tensor) -> bool:
    """Whether a loaded tensor is not the saved one, in its own precision; NaN is NaN."""
    wanted = saved.to(own.device, own.dtype)
    return not torch.equal(wanted.nan_to_num(nan=0), own.nan_to_num(nan=0)) or not torch.equal(
        wanted.isnan(), own.isnan()
    )
