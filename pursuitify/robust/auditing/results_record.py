"""Results of finished attacks, the file that keeps them, and what tells one audit from another."""

from __future__ import annotations

import copy
import json
import math
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pursuitify.checkpoints.tensor_sketch import sketch
from pursuitify.data.samples import dtypes_explained
from pursuitify.errors import OptionError
from pursuitify.robust.attacks.input_checks import batches, evaluation_mode
from pursuitify.robust.attacks.objective import attacked_logits
from pursuitify.robust.auditing.protocols import KINDS
from pursuitify.utils import random_state
from pursuitify.utils.atomic_files import as_json, make_folder, write_json
from pursuitify.utils.fingerprint import attributes_of, of_values

#: Answers that differ by more than this share of their norm are another network's. The weights and
#: attributes are compared exactly; this leaves room for sums in another order.
_ANSWERS = 1e-4
_FEW = 64  # inputs that are answered twice


@dataclass(frozen=True)
class AttackResult:
    """The result of one attack on one network.

    Attributes:
        name: The attack.
        kind: A key of ``protocols.KINDS``.
        subject: The network attacked: ``network``, or a twin's name.
        eps: The budget.
        attacked: How many inputs it was let loose on.
        fooled: Indices of all inputs that it fooled, those wrong from the start included.
        new: How many of them nothing before had fooled.
        seconds: How long it took.
        error: Why it could not run, else empty.
        changed: What it changed in a network, in words; it was put right before the attack's
            points were judged.
    """

    name: str
    kind: str
    subject: str
    eps: float
    attacked: int
    fooled: tuple[int, ...]
    new: int
    seconds: float
    error: str = ""
    changed: str = ""


class AuditRecord:
    """Finished results by key; written after every attack, the old file staying until then."""

    def __init__(self, path: str | os.PathLike[str] | None, identity: Mapping[str, Any]) -> None:
        """Open a file of the same audit, or start one.

        Args:
            path: The file; None keeps results in memory only.
            identity: What the results depend on. Of entries ``answers of ...`` and ``attributes of
                ...`` only those that file and audit share are compared.

        Raises:
            OptionError: If the file is of another audit, was altered, or is none at all.
        """
        self.path = None if path is None else Path(path)
        self.identity = dict(identity)
        self.results: dict[str, AttackResult] = {}
        if self.path is None or not self.path.exists():
            return
        try:
            held = json.loads(self.path.read_text(encoding="utf-8"))
            other = dict(held["identity"])
            images = int(self.identity["images"])
            results = {key: _read(value, images) for key, value in held["results"].items()}
            whole = held["check"] == _check(other, held["results"])
        except (ValueError, KeyError, TypeError, AttributeError, OSError, RecursionError) as error:
            raise OptionError(f"{self.path} is not the record of an audit") from error
        differing = _differences(other, self.identity)
        if differing:
            raise OptionError(
                f"{self.path} holds another audit: it differs in {', '.join(differing)}. Its "
                "results would not be this audit's: give resume= a file of its own"
            )
        if not whole:
            raise OptionError(
                f"{self.path} was altered after it was written: its results are not those that "
                "an audit found. Give resume= a file of its own"
            )
        self.results = results

    def find(self, key: str, fooled: set[int]) -> AttackResult | None:
        """Return a finished result, None if there is none.

        Args:
            key: Says all that the attack's points depend on.
            fooled: What was fooled before it in this run, from which ``new`` follows.
        """
        found = self.results.get(key)
        return None if found is None else replace(found, new=len({*found.fooled} - fooled))

    def keep(self, key: str, result: AttackResult) -> None:
        """Add a result and write the file; an attack that failed is tried again when resumed."""
        self.results[key] = result
        if self.path is not None:
            self._write(self.path)

    def rescue(self) -> Path | None:
        """Return where the finished results are, after writing them there if nothing did yet."""
        if self.path is None and any(not result.error for result in self.results.values()):
            handle, name = tempfile.mkstemp(prefix="pursuitify-audit-", suffix=".json")
            os.close(handle)
            self.path = Path(name)
            self._write(self.path)
        return self.path

    def _write(self, path: Path) -> None:
        held = {key: asdict(r) for key, r in self.results.items() if not r.error}
        check = _check(self.identity, held)
        write(path, {"identity": self.identity, "results": held, "check": check})


def _check(identity: Mapping[str, Any], results: Mapping[str, Any]) -> str:
    """Return what a record that was written whole, and not altered since, says of itself."""
    return of_values(as_json({"identity": identity, "results": results}))


def _read(value: Mapping[str, Any], images: int) -> AttackResult:
    """Return a result of a file.

    Raises:
        KeyError: If a field is missing.
        TypeError: If a field is there that no result has.
        ValueError: If a field is not what a result of so many images has there.
    """
    found = AttackResult(**{**value, "fooled": tuple(value["fooled"])})
    texts = (found.name, found.kind, found.subject, found.error, found.changed)
    counts = (found.attacked, found.new, *found.fooled)
    numbers = (found.eps, found.seconds)
    if not (
        all(type(text) is str for text in texts)
        and found.kind in KINDS
        and all(type(count) is int and 0 <= count <= images for count in counts)
        and list(found.fooled) == sorted({*found.fooled} - {images})
        and all(type(n) in (int, float) and 0 <= n < math.inf for n in numbers)
    ):
        raise ValueError(f"{value!r} is no result of an audit of {images} images")
    return found


def write(path: str | os.PathLike[str], content: Mapping[str, Any]) -> None:
    """Write JSON whole or not at all, into a folder that is made if need be.

    Raises:
        CheckpointError: If it cannot be written; what stood at ``path`` is still there.
    """
    target = Path(path)
    make_folder(target.parent)
    write_json(target, content)


def subject_identity(
    name: str, net: nn.Module, x: Tensor, y: Tensor, batch_size: int | None, seed: int
) -> dict[str, Any]:
    """Return what tells a network from another one beyond weights and text: entries of an identity.

    Attributes are hashed one by one; those that a pass itself changes (counters, caches) are state
    and left out. The answers are those on all inputs; where a network does not repeat itself under
    the same seed there is nothing to compare, and the entry is empty.
    """
    before = attributes_of(net)
    first = answers(net, x, y, batch_size, seed)
    again = answers(net, x[:_FEW], y[:_FEW], batch_size, seed)
    once = answers(net, x[:_FEW], y[:_FEW], batch_size, seed)
    after = attributes_of(net)
    repeats = close(again, once)
    return {
        f"attributes of {name}": {k: v for k, v in before.items() if after.get(k) == v},
        f"answers of {name}": first if repeats else {},
    }


def weights_identity(
    net: nn.Module, x: Tensor, y: Tensor, batch_size: int | None, seed: int
) -> str:
    """Return a fingerprint of a network's parameters and buffers.

    Buffers that a pass in evaluation mode writes into, such as a counter of calls, are state of the
    passes and not of the network: they count as zero.
    """
    before = {name: buffer.clone() for name, buffer in net.named_buffers()}
    if before:
        answers(net, x[:_FEW], y[:_FEW], batch_size, seed)
    moving = [name for name, now in net.named_buffers() if not torch.equal(now, before[name])]
    if moving:
        net = copy.deepcopy(net)
        for name in moving:
            net.get_buffer(name).zero_()
    return of_values(net, attributes=False)


@torch.no_grad()
def answers(
    net: nn.Module, x: Tensor, y: Tensor, batch_size: int | None, seed: int
) -> dict[str, list[float]]:
    """Return a few hundred numbers that stand for a network's logits on the inputs."""
    random_state.seed_all(seed)
    with evaluation_mode(net), dtypes_explained(net, x):
        parts = [attacked_logits(net(part), own) for part, own in batches(x, y, batch_size)]
    found = sketch(torch.cat(parts))
    return {key: found[key] for key in ("norms", "sums")}


def _differences(saved: Mapping[str, Any], own: Mapping[str, Any]) -> list[str]:
    """Name the entries of two identities that differ; answers alone if nothing else explains it."""
    soft = {k for k in (*saved, *own) if k.startswith(("attributes of ", "answers of "))}
    found = sorted(k for k in {*saved, *own} - soft if saved.get(k) != own.get(k))
    for key in sorted(k for k in soft if k.startswith("attributes of ")):
        theirs, mine = saved.get(key), own.get(key)
        if isinstance(theirs, dict) and isinstance(mine, dict):
            changed = sorted(k for k in theirs.keys() & mine.keys() if theirs[k] != mine[k])
            found += [f"attribute {k!r} of {key.removeprefix('attributes of ')}" for k in changed]
    if found:
        return found
    both = sorted(k for k in saved.keys() & own.keys() if k.startswith("answers of "))
    return [k for k in both if not close(saved[k], own[k])]


def close(one: Any, other: Any) -> bool:
    """Whether two sketches of answers are the same to rounding; an empty one fits only another."""
    try:
        for key in ("norms", "sums") if one or other else ():
            for a, b, norm in zip(one[key], other[key], other["norms"], strict=True):
                if not math.isclose(a, b, rel_tol=0, abs_tol=_ANSWERS * norm + 1e-30):
                    return False
    except (KeyError, TypeError, ValueError):
        return False
    return True
