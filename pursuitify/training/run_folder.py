"""The folder of a run: state, best and last weights, log."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor, nn

from pursuitify.checkpoints.origin import Origin
from pursuitify.checkpoints.save_load import compare_tensors, save
from pursuitify.errors import CheckpointError
from pursuitify.network.pursuit_network import PursuitNetwork
from pursuitify.utils.atomic_files import (
    clear_leftovers,
    make_folder,
    read_tensors,
    write_tensors,
    write_text,
)

_KEYS = {True: "pursuitify", False: "pursuitify.weights"}


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

    def keep(self, net: nn.Module, best: bool) -> None:
        """Keep the weights as they are after an epoch."""
        if self.folder is None:
            if best:
                self._best = {k: v.detach().clone() for k, v in net.state_dict().items()}
            return
        for path in (self.best, self.last) if best else (self.last,):
            if isinstance(net, PursuitNetwork):
                save(net, path, origin=self.origin)
            else:
                write_tensors(path, net.state_dict(), _KEYS[False], {})

    def give_back(self, net: nn.Module) -> None:
        """Load the best weights into a network."""
        if self.folder is None:
            net.load_state_dict(self._best)
            return
        key = _KEYS[isinstance(net, PursuitNetwork)]
        _, tensors = read_tensors(self.best, key, "this run")
        compare_tensors(tensors, net.state_dict(), self.best)
        net.load_state_dict(tensors)

    def write_log(self, text: str) -> None:
        """Write the history."""
        if self.folder is not None:
            write_text(self.log, text)

    def _path(self, name: str) -> Path:
        assert self.folder is not None
        return self.folder / name
