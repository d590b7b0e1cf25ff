"""The identity of a network beyond the names and shapes of its tensors.

Three parts, each plain JSON: the rows of the dictionary, every operation with its static
parameters (stride, padding, slopes, dimensions ...), and a sketch of the tensors that the
operations read and a checkpoint does not hold (constants, buffers that are not persistent).
"""

from __future__ import annotations

import json
import operator
import reprlib
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from pursuitify.checkpoints.tensor_sketch import same, sketch
from pursuitify.compiler.lowering.program import Program
from pursuitify.compiler.tracing.nodes import describe
from pursuitify.errors import CheckpointError
from pursuitify.network.pursuit_network import PursuitNetwork

#: The parts, by the name they have in a file.
PARTS = ("graph", "operations", "constants")
_ADVICE = "Load it into a model made as the one that was saved"
_REPR = reprlib.Repr()
_REPR.maxlevel, _REPR.maxlist, _REPR.maxstring, _REPR.maxother = 4, 8, 120, 120
_ROW = ("name", "layout", "module", "diagonal operator", "paths")
#: What an operation's value does not depend on, what is a state and no parameter, and what training
#: alone reads: dropout's p and BatchNorm's momentum may be others in the next training.
_IGNORED = {"training", "inplace", "p", "momentum"}


def identity(net: PursuitNetwork) -> dict[str, Any]:
    """Return what identifies a network: its rows and operations, by mode, and its constants."""
    return {
        "graph": _by_mode(net, _rows),
        "operations": _by_mode(net, _operations),
        "constants": _constants(net),
    }


def _by_mode(
    net: PursuitNetwork, part: Callable[[Program, PursuitNetwork], list[Any]]
) -> dict[str, list[Any]]:
    modes = {"evaluation": False, "training": True}
    return {name: part(net.compiled_programs[mode], net) for name, mode in modes.items()}


def _as_json(part: Any) -> Any:
    """Return a part as a file gives it back."""
    return json.loads(json.dumps(part))


def _rows(program: Program, _net: PursuitNetwork) -> list[list[Any]]:
    names = {-1 - i: node.name for i, node in enumerate(program.leaves)}
    names |= {row.index: row.name for row in program.rows}
    rows = []
    for row in program.rows:
        reads = [
            [[names[path.leaf], [list(use) for use in path.uses]] for path in slot.paths]
            for slot in row.slots
        ]
        rows.append([row.name, row.layout, row.source, [n for n, _ in row.diagonal], reads])
    return rows


def _operations(program: Program, net: PursuitNetwork) -> list[dict[str, str]]:
    """Return one entry per node of the source graph: its name, what it does, with what."""
    entries = []
    for node in program.graph.nodes:
        entry = {"name": node.name, "operation": describe(node, net)}
        site = program.sites.get(node)
        rule = None if site is None else site.rule
        if rule is not None:
            entry["rule"] = rule.name
        entry["arguments"] = _text(node.args)
        entry |= {k: _text(v) for k, v in node.kwargs.items() if k not in _IGNORED}
        if node.op == "call_module":
            module = net.get_submodule(str(node.target))
            read = () if rule is None else rule.parameters
            entry |= {n: _number(v) for n, v in _attributes(module, read)}
        entries.append(entry)
    return entries


def _attributes(module: nn.Module, read: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    """Yield the static parameters of a module and of those inside it: its plain attributes."""
    for path, part in module.named_modules():
        names = [*vars(part), *(read if part is module else ())]
        if path:
            yield f"{path}.operation", type(part).__name__
        for name in dict.fromkeys(names):
            value = getattr(part, name, None)
            if not name.startswith("_") and name not in _IGNORED and _is_plain(value):
                yield f"{path}.{name}" if path else name, value


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(_is_plain(v) for v in value)
    return value is None or isinstance(value, (bool, int, float, str, torch.dtype))


def _number(value: Any) -> str:
    """Return an attribute as text; (2, 2) is 2 and 2.0 is 2, as sizes and factors are read."""
    if isinstance(value, (list, tuple)) and value and all(v == value[0] for v in value):
        return _number(value[0])
    if isinstance(value, (list, tuple)):
        return f"({', '.join(map(_number, value))})"
    return str(int(value)) if isinstance(value, float) and value.is_integer() else repr(value)


def _text(value: Any) -> str:
    """Return an argument as text that is the same in every process."""
    if isinstance(value, fx.Node):
        return value.name
    if isinstance(value, slice):
        return f"slice({_text(value.start)}, {_text(value.stop)}, {_text(value.step)})"
    if isinstance(value, (list, tuple)):
        return f"({', '.join(map(_text, value))})"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{k}: {_text(v)}' for k, v in value.items())}}}"
    if _is_plain(value) or isinstance(value, (torch.device, type(...))):
        return repr(value)
    return type(value).__name__


def _constants(net: PursuitNetwork) -> dict[str, Any]:
    """Return a sketch of every tensor that operations read and the state_dict does not hold."""
    held = net.state_dict().keys()
    found: dict[str, Any] = {}
    for node in [n for program in net.compiled_programs.values() for n in program.graph.nodes]:
        target = str(node.target)
        if node.op == "get_attr":
            found[target] = operator.attrgetter(target)(net)
        elif node.op == "call_module":
            for path, part in net.get_submodule(target).named_modules(prefix=target):
                found |= {f"{path}.{name}": value for name, value in part._buffers.items()}
    tensors = {k: v for k, v in found.items() if isinstance(v, Tensor) and k not in held}
    return {name: sketch(value) for name, value in sorted(tensors.items())}


def compare_rows(saved: Mapping[str, Any], net: PursuitNetwork, path: Path) -> None:
    """Refuse rows that are not those of a network.

    Args:
        saved: The parts, as a file has them: not to be trusted.
        net: The network.
        path: The file, for the error.

    Raises:
        CheckpointError: If they differ or are damaged; the message names the difference.
    """
    for mode, rows in _as_json(_by_mode(net, _rows)).items():
        _compare_rows(_part(saved.get("graph"), mode, list, path), rows, mode, path)


def compare_operations(saved: Mapping[str, Any], net: PursuitNetwork, path: Path) -> None:
    """Refuse operations and constants that are not those of a network.

    A file from before they were recorded is let through with a warning. Arguments and errors are
    those of ``compare_rows``.
    """
    if "operations" not in saved:
        warnings.warn(
            f"{path} is of a version that did not record what every operation does: only its rows "
            "and shapes were compared with the model's. That strides, slopes and constants are "
            "the same is for you to know; save the network again to have them compared, too",
            stacklevel=3,
        )
        return
    for mode, entries in _as_json(_by_mode(net, _operations)).items():
        _compare_operations(_part(saved["operations"], mode, list, path), entries, mode, path)
    theirs, own = _part(saved, "constants", dict, path), _as_json(_constants(net))
    for name in sorted({*theirs, *own}):
        if not same(theirs.get(name), own.get(name)):
            raise CheckpointError(
                f"{path} belongs to another network: the constant {name!r}, which is no part of "
                f"the file, is another one than in the model, or only one has it. {_ADVICE}"
            )


def shown(value: object) -> str:
    """Return what a file holds as text for an error, short and of any depth."""
    return _REPR.repr(value)


def _part(saved: Any, name: str, kind: type, path: Path) -> Any:
    part = saved.get(name) if isinstance(saved, Mapping) else None
    if not isinstance(part, kind):
        raise CheckpointError(f"the header of {path} is incomplete or altered")
    return part


def _compare_rows(theirs: list[Any], own: list[Any], mode: str, path: Path) -> None:
    for i, (a, b) in enumerate(zip(theirs, own, strict=False)):
        if a == b:
            continue
        if not isinstance(a, list) or len(a) != len(_ROW):
            raise CheckpointError(f"the header of {path} is incomplete or altered")
        what = next(k for k in range(len(_ROW)) if a[k] != b[k])
        raise CheckpointError(
            f"{path} belongs to another graph: in {mode} mode, at row {i} ({b[0]!r}), the "
            f"{_ROW[what]} is {shown(a[what])} in the file and {shown(b[what])} in the model"
        )
    _compare_lengths("rows", theirs, own, mode, path)


def _compare_operations(theirs: list[Any], own: list[Any], mode: str, path: Path) -> None:
    for a, b in zip(theirs, own, strict=False):
        if a == b:
            continue
        keys = (*b, *a) if isinstance(a, dict) else ()
        key = next((k for k in keys if a.get(k) != b.get(k)), None)
        if key is None:
            raise CheckpointError(f"the header of {path} is incomplete or altered")
        was, now = (shown(entry[key]) if key in entry else "missing" for entry in (a, b))
        raise CheckpointError(
            f"{path} belongs to another graph: in {mode} mode, at {b['name']!r} "
            f"({b['operation']}), the {key} is {was} in the file and {now} in the model. {_ADVICE}"
        )
    _compare_lengths("operations", theirs, own, mode, path)


def _compare_lengths(what: str, theirs: list[Any], own: list[Any], mode: str, path: Path) -> None:
    if len(theirs) != len(own):
        raise CheckpointError(
            f"{path} belongs to another graph: it has {len(theirs)} {what} in {mode} mode and "
            f"the model {len(own)}"
        )
