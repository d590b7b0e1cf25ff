"""The state of a run in one file: what training needs to go on as if it had never stopped.

One safetensors file with a JSON header, written whole or not at all; no pickle. Random numbers are
functions of seed, epoch and step, so no generator's state is among it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
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
from pursuitify.training import run_identity
from pursuitify.training.config import FREE, Config
from pursuitify.training.optimizer import restore_state, state_tensors
from pursuitify.utils import fingerprint
from pursuitify.utils.atomic_files import read_tensors, write_tensors
from pursuitify.version import VERSION

FORMAT = 1
_KEY = "pursuitify.training"
#: More steps, epochs or batches than any run has.
_MANY = 2**62
#: Differences that a message lists.
_SHOWN = 12
_PARTS = ("net", "optimizer", "ema", "norms", "train", "val")
#: The fact that says how steps are run so that they fit into memory, where that was chosen.
STEP_PLAN = "steps in memory"
#: By name of the data, the states of the generators that its loader and samplers draw from.
Generators = Mapping[str, Sequence[Tensor]]


@dataclass
class Progress:
    """The progress of a run.

    Attributes:
        epoch: Epochs done.
        batch: Batches done of the next one.
        step: Optimizer steps done.
        waited: Epochs since the best.
        sums: Per process the running sums of the epoch.
        history: One entry per epoch.
        best: The best of them.
        read: What stands for the batches read of the next epoch, where the data makes them.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    waited: int = 0
    sums: list[dict[str, float]] = field(default_factory=list)
    history: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, Any] | None = None
    read: str | None = None


@dataclass(eq=False)
class TrainingState:
    """The state of a run: all that is saved and restored together.

    Attributes:
        net: The network.
        optimizer: Its optimizer.
        ema: The average of its weights, if there is one.
        config: The configuration.
        facts: What else must be the same: settings of the network, the data, the augmentation.
        scaler: The gradient scaler of float16 training, if there is one.
        probe: A batch of the data's shape that the network answers, to tell it from others.
        sources: The data, to tell its caches and counters.
    """

    net: nn.Module
    optimizer: torch.optim.Optimizer
    ema: AveragedModel | None
    config: Config
    facts: dict[str, Any]
    scaler: torch.amp.GradScaler | None = None
    probe: Tensor | None = None
    sources: run_identity.Sources = field(default_factory=dict)

    def save(
        self, path: Path, progress: Progress, generators: Generators, done: bool = False
    ) -> None:
        """Write the state; the file before it stays until the new one is complete.

        Args:
            path: The file.
            progress: How far the run is.
            generators: The states of the generators that ``train`` and ``val`` draw from.
            done: Whether no step follows, so that the optimizer's state is of no more use.

        Raises:
            CheckpointError: If it cannot be written.
        """
        parts: dict[str, dict[str, Tensor]] = {
            "net": self.net.state_dict(),
            "optimizer": {} if done else state_tensors(self.net, self.optimizer),
            "ema": {} if self.ema is None else self.ema.state_dict(),
            "norms": self.net.norm_state() if isinstance(self.net, PursuitNetwork) else {},
        }
        for name, states in generators.items():
            parts[name] = {str(number): state for number, state in enumerate(states)}
        tensors = {f"{p}/{name}": value for p, own in parts.items() for name, value in own.items()}
        header = {
            "format": FORMAT,
            "version": VERSION,
            "config": asdict(self.config),
            "facts": run_identity.without_caches(self.facts, self.sources),
            **(identity(self.net) if isinstance(self.net, PursuitNetwork) else {"graph": None}),
            "progress": asdict(progress),
            "scaler": None if self.scaler is None else self.scaler.state_dict(),
            "answers": None if self.probe is None else self._answers(),
        }
        write_tensors(path, tensors, _KEY, {**header, "check": _check(header, tensors)})

    def _answers(self) -> dict[str, Any]:
        assert self.probe is not None
        # Two samples are enough, and a network that squeezes its batch takes no single one.
        return run_identity.answer_facts(run_identity.answers(self.net, self.probe[:2]))

    def restore(self, path: Path, check: Callable[[Progress, Generators], Any]) -> Progress:
        """Read a state back into network, optimizer and average.

        Args:
            path: The file.
            check: Called with how far the run is and with its data's generators, to refuse other
                data and to set ``probe``.

        Returns:
            How far the run is.

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
        # Last, since rows and operations say more clearly what other network this is.
        facts = _mapping(header, "facts", path)
        _refuse(path, facts, self.facts, run_identity.OF_MODULES)
        if "check" in header and header["check"] != _check(header, tensors):  # of old states none
            raise CheckpointError(
                f"{path} was altered after it was written, or is damaged: it holds something else "
                "than the run saved. Restore it from a copy, or start another run in another folder"
            )
        progress = _progress(header, path)
        generators = {
            name: [parts[name][key] for key in sorted(parts[name], key=int)]
            for name in ("train", "val")
        }
        if STEP_PLAN in facts:  # it was chosen by the memory that was free when the run began
            self.facts[STEP_PLAN] = facts[STEP_PLAN]
        check(progress, generators)
        self._compare_answers(header.get("answers"), parts["net"], path)
        restore_state(self.net, self.optimizer, parts["optimizer"], path)
        self.net.load_state_dict(parts["net"])
        if self.ema is not None:
            self.ema.load_state_dict(parts["ema"])
        if isinstance(self.net, PursuitNetwork):
            self.net.restore_norm_state(parts["norms"])
        if self.scaler is not None and header.get("scaler") is not None:
            self.scaler.load_state_dict(header["scaler"])
        return progress

    def _compare_answers(self, saved: Any, weights: dict[str, Tensor], path: Path) -> None:
        """Refuse a network that answers otherwise with the saved weights; its own come back."""
        if self.probe is None or saved is None:
            return
        before = {name: value.clone() for name, value in self.net.state_dict().items()}
        self.net.load_state_dict(weights)
        try:
            same = run_identity.same_answers(saved, self._answers())
        finally:
            self.net.load_state_dict(before)
        if not same:
            raise CheckpointError(
                f"{path} belongs to another run: with the weights in it, this network answers "
                "otherwise than the one that was trained. Something that is no weight differs, "
                "for instance a constant in its forward. Resume with the network that the run "
                "began with"
            )

    def _compare(self, header: dict[str, Any], path: Path) -> None:
        own = {**asdict(self.config), **self.facts}
        # A state from before an option existed ran with what is its default now.
        config = {**asdict(Config()), **_mapping(header, "config", path)}
        saved = {**config, **_mapping(header, "facts", path)}
        _refuse(path, saved, own, {*own, *saved} - FREE - run_identity.OF_MODULES - {STEP_PLAN})
        if isinstance(self.net, PursuitNetwork):
            compare_rows(header, self.net, path)
        elif header.get("graph") is not None:
            raise CheckpointError(f"{path} belongs to a pursuit network, and this is none")


def _refuse(
    path: Path, saved: Mapping[str, Any], own: Mapping[str, Any], names: Collection[str]
) -> None:
    """Refuse a state that differs from this run in what is named.

    Raises:
        CheckpointError: Naming all of it.
    """
    known = json.loads(json.dumps(own))  # tuples are lists in a file
    differing = run_identity.differences(
        {name: value for name, value in saved.items() if name in names},
        {name: value for name, value in known.items() if name in names},
    )
    if differing:
        more = f" and {len(differing) - _SHOWN} more" if len(differing) > _SHOWN else ""
        raise CheckpointError(
            f"{path} belongs to another run: {'; '.join(differing[:_SHOWN])}{more}. Resume with "
            "what the run began with, or start another one in another folder"
        )


def _check(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """Return what a state that was written whole, and not altered since, says of itself."""
    text = json.dumps({k: v for k, v in header.items() if k != "check"}, sort_keys=True)
    held = [tensors[name] for name in sorted(tensors)]
    return fingerprint.of_values(text, sorted(tensors), fingerprint.of_tensors(*held))


def _progress(header: Mapping[str, Any], path: Path) -> Progress:
    """Return the progress that a header holds.

    Raises:
        CheckpointError: If a value is none that a run has there.
    """
    try:
        found = Progress(**header["progress"])
        counts = (found.epoch, found.batch, found.step, found.waited)
        rows = [*found.history, *([] if found.best is None else [found.best])]
        whole = (
            all(type(count) is int and 0 <= count < _MANY for count in counts)
            and type(found.history) is list
            and len(found.history) == found.epoch
            and (found.best is None) == (found.epoch == 0)
            and all({"epoch", "step", "val_loss", "val_accuracy"} <= row.keys() for row in rows)
            and type(found.sums) is list
            and all(_numbers(row) for row in (*rows, *found.sums))
            and (found.read is None or type(found.read) is str)
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"the header of {path} is incomplete or altered") from error
    if not whole:
        raise CheckpointError(f"the header of {path} is incomplete or altered")
    return found


def _numbers(row: object) -> bool:
    """Whether a row of a log holds numbers by name, and nothing else."""
    return isinstance(row, dict) and all(type(value) in (int, float) for value in row.values())


def _mapping(header: dict[str, Any], name: str, path: Path) -> dict[str, Any]:
    value = header.get(name)
    if not isinstance(value, dict):
        raise CheckpointError(f"the header of {path} is incomplete or altered")
    return value
