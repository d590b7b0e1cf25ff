"""Results of finished attacks, and the file that keeps them between runs."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from pursuitify.errors import OptionError
from pursuitify.utils.atomic_files import write_text


@dataclass(frozen=True)
class Result:
    """What one attack did to one network.

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


class Record:
    """Finished results by key; written after every attack, the old file staying until then."""

    def __init__(self, path: str | os.PathLike[str] | None, identity: Mapping[str, Any]) -> None:
        """Open a file of the same audit, or start one.

        Args:
            path: The file; None keeps nothing.
            identity: What the results depend on.

        Raises:
            OptionError: If the file is of another audit, or none at all.
        """
        self.path = None if path is None else Path(path)
        self.identity = dict(identity)
        self.results: dict[str, Result] = {}
        if self.path is None or not self.path.exists():
            return
        try:
            held = json.loads(self.path.read_text())
            other = held["identity"]
            results = {
                key: Result(**{**value, "fooled": tuple(value["fooled"])})
                for key, value in held["results"].items()
            }
        except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
            raise OptionError(f"{self.path} is not the record of an audit") from error
        differing = sorted(k for k in {**other, **identity} if other.get(k) != identity.get(k))
        if differing:
            raise OptionError(
                f"{self.path} holds another audit: it differs in {', '.join(differing)}"
            )
        self.results = results

    def keep(self, key: str, result: Result) -> None:
        """Add a result and write the file."""
        self.results[key] = result
        if self.path is not None:
            held = {key: asdict(value) for key, value in self.results.items()}
            write(self.path, {"identity": self.identity, "results": held})


def write(path: str | os.PathLike[str], content: Mapping[str, Any]) -> None:
    """Write JSON so that the file is never seen half written.

    Raises:
        CheckpointError: If it cannot be written; what stood at ``path`` is still there.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_text(target, json.dumps(content, indent=1))


def fingerprint(*things: nn.Module | Tensor | str) -> str:
    """Return a short hash of modules (what they hold and how they print), tensors and text."""
    digest = hashlib.sha256()
    for thing in things:
        if isinstance(thing, str):
            digest.update(thing.encode())
            continue
        tensors = {"": thing} if isinstance(thing, Tensor) else thing.state_dict()
        if isinstance(thing, nn.Module):
            digest.update(repr(thing).encode())
        for name, value in tensors.items():
            digest.update(name.encode())
            if isinstance(value, Tensor):
                digest.update(f"{value.dtype}{tuple(value.shape)}".encode())
                flat = value.detach().cpu().contiguous().flatten()
                digest.update(flat.view(-1).numpy().tobytes() if _plain(flat) else _listed(flat))
    return digest.hexdigest()[:16]


def _plain(value: Tensor) -> bool:
    return str(value.dtype) not in ("torch.bfloat16", "torch.complex32")


def _listed(value: Tensor) -> bytes:
    return repr(value.tolist()).encode()
