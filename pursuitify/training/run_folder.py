"""The folder of a run: state, best and last weights, log."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from pursuitify.checkpoints.files import HEADER
from pursuitify.checkpoints.origin import Origin
from pursuitify.checkpoints.save_load import compare_tensors, header_of
from pursuitify.errors import CheckpointError
from pursuitify.network.pursuit_network import PursuitNetwork
from pursuitify.utils.atomic_files import (
    clear_leftovers,
    make_folder,
    read_tensors,
    write_copy,
    write_tensors,
    write_text,
)

_KEYS = {True: HEADER, False: "pursuitify.weights"}
#: Seconds that are left between one writing after an epoch and the next, and how many times as long
#: as the writing took: short epochs are not spent on files.
PAUSE, TIMES = 30.0, 20.0
#: A file's tensors and its header.
_Content = tuple[dict[str, Tensor], dict[str, Any]]


@dataclass
class Output:
    """The folder in which a run leaves its files.

    Attributes:
        folder: The folder, or None to keep the best weights in memory and nothing else.
        origin: What the files of a pursuit network remember of its origin.
    """

    folder: Path | None
    origin: Origin | None = None
    _best: dict[str, Tensor] = field(default_factory=dict)
    _held: dict[Path, _Content] = field(default_factory=dict)
    _written: float = field(default_factory=time.monotonic)
    _took: float = 0.0

    @classmethod
    def at(
        cls,
        path: str | os.PathLike[str] | None,
        resume: bool,
        origin: Origin | None = None,
    ) -> Output:
        """Return the output at a path.

        Raises:
            CheckpointError: If it cannot be made, or holds a run and ``resume`` is not asked for.
        """
        output = cls(None if path is None else Path(path), origin)
        if output.folder is not None:
            if output.state.is_file() and not resume:
                raise CheckpointError(
                    f"{output.folder} holds a run: resume it (resume=True, --resume), or name "
                    "another folder"
                )
            make_folder(output.folder)
            for path in (output.state, output.best, output.last, output.log):
                clear_leftovers(path)
        return output

    @property
    def state(self) -> Path:
        """File of the state."""
        return self._path("state.safetensors")

    @property
    def best(self) -> Path:
        """File of the best weights."""
        return self._path("best.safetensors")

    @property
    def last(self) -> Path:
        """File of the last weights."""
        return self._path("last.safetensors")

    @property
    def log(self) -> Path:
        """File of the history."""
        return self._path("log.csv")

    def is_due(self) -> bool:
        """Whether enough time has gone by since the last writing, or since the run began."""
        return time.monotonic() - self._written >= max(PAUSE, TIMES * self._took)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Take the time of what is written in this block."""
        began = time.monotonic()
        yield
        self._written = time.monotonic()
        self._took = self._written - began

    def keep(self, net: nn.Module, best: bool, copy: bool) -> None:
        """Keep the weights as they are after an epoch, in memory; ``write`` writes them.

        Args:
            net: The network.
            best: Whether they are the best so far.
            copy: Whether the network is trained on before they are written.
        """
        if self.folder is None:
            if best:
                self._best = {k: v.detach().clone() for k, v in net.state_dict().items()}
            return
        header = header_of(net, self.origin) if isinstance(net, PursuitNetwork) else {}
        tensors = net.state_dict()
        if copy:
            tensors = {name: v.detach().to("cpu", copy=True) for name, v in tensors.items()}
        for path in (self.best, self.last) if best else (self.last,):
            self._held[path] = (tensors, header)

    def write(self, log: str) -> None:
        """Write the weights that are held, and the history."""
        if self.folder is None:
            return
        best, last = self._held.get(self.best), self._held.get(self.last)
        for path, content in self._held.items():
            if path == self.last and best is last:
                write_copy(path, self.best)
            else:
                tensors, header = content
                write_tensors(path, tensors, _KEYS["graph" in header], header)
        if self._held:
            write_text(self.log, log)
        self._held.clear()

    def give_back(self, net: nn.Module) -> None:
        """Load the best weights into a network."""
        if self.folder is None:
            net.load_state_dict(self._best)
            return
        key = _KEYS[isinstance(net, PursuitNetwork)]
        _, tensors = read_tensors(self.best, key, "this run")
        compare_tensors(tensors, net.state_dict(), self.best)
        net.load_state_dict(tensors)

    def _path(self, name: str) -> Path:
        assert self.folder is not None
        return self.folder / name
