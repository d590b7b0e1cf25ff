"""The state of a run in one file: what training needs to go on as if it had never stopped.

One safetensors file with a JSON header, written whole or not at all; no pickle. Random numbers are
functions of seed, epoch and step, so no generator's state is among it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from pursuitify.checkpoints.network_identity import compare_operations, compare_rows, identity
from pursuitify.checkpoints.save_load import compare_tensors
from pursuitify.errors import CheckpointError
from pursuitify.network.pursuit_network import PursuitNetwork
from pursuitify.training.config import FREE, Config
from pursuitify.training.optimizer import restore_state, state_tensors
from pursuitify.utils.atomic_files import read_tensors, write_tensors
from pursuitify.version import VERSION

FORMAT = 1
_KEY = "pursuitify.training"
_PARTS = ("net", "optimizer", "ema", "norms")


@dataclass
class Progress:
    """How far a run is.

    Attributes:
        epoch: Epochs done.
        batch: Batches done of the next one.
        step: Optimizer steps done.
        waited: Epochs since the best.
        sums: Per process the running sums of the epoch.
        history: One entry per epoch.
        best: The best of them.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    waited: int = 0
    sums: list[dict[str, float]] = field(default_factory=list)
    history: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, Any] | None = None


@dataclass(frozen=True, eq=False)
class State:
    """What is saved and restored together.

    Attributes:
        net: The network.
        optimizer: Its optimizer.
        ema: The average of its weights, if there is one.
        config: The configuration.
        facts: What else must be the same: settings of the network, size of the data.
        scaler: The gradient scaler of float16 training, if there is one.
    """

    net: nn.Module
    optimizer: torch.optim.Optimizer
    ema: AveragedModel | None
    config: Config
    facts: dict[str, Any]
    scaler: torch.amp.GradScaler | None = None

    def save(self, path: Path, progress: Progress) -> None:
        """Write the state; the file before it stays until the new one is complete.

        Raises:
            CheckpointError: If it cannot be written.
        """
        parts: dict[str, dict[str, Tensor]] = {
            "net": self.net.state_dict(),
            "optimizer": state_tensors(self.net, self.optimizer),
            "ema": {} if self.ema is None else self.ema.state_dict(),
            "norms": self.net._norms.state() if isinstance(self.net, PursuitNetwork) else {},
        }
        tensors = {f"{p}/{name}": value for p, own in parts.items() for name, value in own.items()}
        header = {
            "format": FORMAT,
            "version": VERSION,
            "config": asdict(self.config),
            "facts": self.facts,
            **(identity(self.net) if isinstance(self.net, PursuitNetwork) else {"graph": None}),
            "progress": asdict(progress),
            "scaler": None if self.scaler is None else self.scaler.state_dict(),
        }
        write_tensors(path, tensors, _KEY, header)

    def restore(self, path: Path) -> Progress:
        """Read a state back into network, optimizer and average.

        Raises:
            CheckpointError: If the file is damaged, or is of another network, configuration or
                data; everything is checked before anything is changed.
        """
        header, tensors = read_tensors(path, _KEY, "pursuitify.training")
        if header.get("format") != FORMAT:
            raise CheckpointError(
                f"{path} has format {header.get('format')!r}, written by version "
                f"{header.get('version')!r}; this is version {VERSION}, which reads {FORMAT}"
            )
        self._compare(header, path)
        parts: dict[str, dict[str, Tensor]] = {part: {} for part in _PARTS}
        for name, value in tensors.items():
            part, _, own = name.partition("/")
            if part not in parts:
                raise CheckpointError(f"{path} holds an unexpected tensor {name!r}")
            parts[part][own] = value
        compare_tensors(parts["net"], self.net.state_dict(), path)
        compare_tensors(parts["ema"], {} if self.ema is None else self.ema.state_dict(), path)
        if isinstance(self.net, PursuitNetwork):
            compare_operations(header, self.net, path)
        elif parts["norms"]:
            raise CheckpointError(f"{path} belongs to a pursuit network")
        try:
            progress = Progress(**header["progress"])
        except (KeyError, TypeError) as error:
            raise CheckpointError(f"the header of {path} is incomplete or altered") from error
        restore_state(self.net, self.optimizer, parts["optimizer"], path)
        self.net.load_state_dict(parts["net"])
        if self.ema is not None:
            self.ema.load_state_dict(parts["ema"])
        if isinstance(self.net, PursuitNetwork):
            like = next(self.net.parameters())
            self.net._norms.restore({k: v.to(like.device) for k, v in parts["norms"].items()})
        if self.scaler is not None and header.get("scaler") is not None:
            self.scaler.load_state_dict(header["scaler"])
        return progress

    def _compare(self, header: dict[str, Any], path: Path) -> None:
        own = {**asdict(self.config), **self.facts}
        # A state from before an option existed ran with what is its default now.
        config = {**asdict(Config()), **_mapping(header, "config", path)}
        saved = {**config, **_mapping(header, "facts", path)}
        differences = [
            f"{name} was {saved.get(name)!r} and is {own.get(name)!r}"
            for name in sorted({*own, *saved} - FREE)
            if saved.get(name) != own.get(name)
        ]
        if differences:
            raise CheckpointError(
                f"{path} belongs to another run: {'; '.join(differences)}. Resume with what the "
                "run began with, or start another one in another folder"
            )
        if isinstance(self.net, PursuitNetwork):
            compare_rows(header, self.net, path)
        elif header.get("graph") is not None:
            raise CheckpointError(f"{path} belongs to a pursuit network, and this is none")


def _mapping(header: dict[str, Any], name: str, path: Path) -> dict[str, Any]:
    value = header.get(name)
    if not isinstance(value, dict):
        raise CheckpointError(f"the header of {path} is incomplete or altered")
    return value
