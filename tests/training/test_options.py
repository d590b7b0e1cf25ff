"""No option of training and evaluation is accepted and ignored."""

from __future__ import annotations

import inspect
import typing
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset, get_worker_info

pytest.importorskip("accelerate")

from pursuitify import OptionError, pursuitify
from pursuitify.errors import MissingExtraError
from pursuitify.training import Config, evaluate, finetune, recipe
from pursuitify.training.config import ConfigOptions
from pursuitify.training.evaluation import against_sweeps
from pursuitify.utils import atomic_files
from tests.support.toy import model, rows

#: What a field is changed to, and what else must be set for it to be read.
CHANGES: dict[str, tuple[Any, dict[str, Any]]] = {
    "epochs": (3, {}),
    "batch_size": (4, {}),
    "optimizer": ("sgd", {}),
    "lr": (0.02, {}),
    "pursuit_lr": (0.5, {}),
    "warmup": (0.6, {}),
    "final_lr": (0.9, {}),
    "weight_decay": (0.9, {}),
    "clip": (1e-3, {"optimizer": "sgd"}),
    "memory": ("implicit", {}),
    "micro_batches": (2, {}),
    "label_smoothing": (0.3, {}),
    "ema": (0.9, {}),
    "objective": ("pgd", {}),
    "eps": (0.3, {"objective": "pgd"}),
    "attack_steps": (2, {"objective": "pgd", "eps": 0.3}),
    "attack_step_size": (0.05, {"objective": "pgd", "eps": 0.3}),
    "noise": (0.2, {}),
    "trades_weight": (1.0, {"objective": "trades", "eps": 0.3}),
    "reconstruction": (0.5, {}),
    "frame_potential": (0.5, {}),
    "first_sweeps": (0, {}),
    "sweeps_ramp": (0.2, {"first_sweeps": 0}),
    "step_ramp": (0.9, {}),
    "patience": (1, {"epochs": 6, "val": "wrong"}),
    "keep": ("last", {"epochs": 6, "val": "wrong"}),
    "log_every": (1, {}),
    "seed": (3, {}),
}
#: Fields that change how a run is watched and not what it computes; each has a test of its own.
WATCHED = {"save_every", "workers", "tensorboard", "progress"}


def outcome(**options: Any) -> tuple[list[Any], dict[str, Tensor]]:
    net = pursuitify(model(), iterations=2)
    given = {"epochs": 2, "batch_size": 8, "progress": False, "attack_steps": 1, **options}
    if given.get("objective", "standard") == "standard":
        del given["attack_steps"]
    x, y = rows(16, 1)
    # Where validation has wrong labels, it gets worse the better the network learns.
    val = (x, (y + 1) % 3) if given.pop("val", None) == "wrong" else (x, y)
    result = finetune(net, rows(32), val, **given)
    return result.history, net.state_dict()


#: Outcomes without the field that a test is about, which many fields share; by their options.
_BASES: dict[str, tuple[list[Any], dict[str, Tensor]]] = {}


def base(options: dict[str, Any]) -> tuple[list[Any], dict[str, Tensor]]:
    if str(options) not in _BASES:
        _BASES[str(options)] = outcome(**options)
    return _BASES[str(options)]


def test_the_list_is_complete() -> None:
    assert CHANGES.keys() | WATCHED == {field.name for field in fields(Config)}


@pytest.mark.parametrize("name", sorted(CHANGES))
def test_every_field_changes_what_is_learnt_or_logged(name: str) -> None:
    value, needed = CHANGES[name]
    (history, weights), (before, were) = outcome(**needed, **{name: value}), base(needed)
    same = history == before and all(torch.equal(v, were[k]) for k, v in weights.items())
    assert not same


class Watching(Dataset[Any]):
    """Samples that say by their label in which process they were read."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, i: int) -> Any:
        return torch.zeros(1, 6, 6), int(get_worker_info() is not None)


def test_how_a_run_is_watched(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def fit(**options: Any) -> Any:
        given = {"epochs": 1, "batch_size": 2, "progress": False, **options}
        return finetune(model(), Watching(), Watching(), **given)

    here, there = (fit(workers=w, lr=1e-12).history[0]["val_loss"] for w in (0, 1))
    assert here != there
    assert capsys.readouterr().err == ""
    fit(progress=True)
    assert "fine-tuning" in capsys.readouterr().err
    counts = []
    for every in (None, 1):
        written = []
        with pytest.MonkeyPatch.context() as patch:
            inner = atomic_files._replace
            patch.setattr(atomic_files, "_replace", lambda t, w: (written.append(t), inner(t, w)))  # noqa: B023
            fit(save_every=every, output=tmp_path / str(every))
        counts.append(len(written))
    assert counts[1] == counts[0] + 4
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(__import__("sys").modules, "torch.utils.tensorboard", None)
        with pytest.raises(MissingExtraError, match="tensorboard"):
            fit(tensorboard=True)


def test_the_arguments_of_finetune_and_evaluate_are_all_walked() -> None:
    known = {
        "net",
        "train",
        "val",
        "config",
        "output",
        "resume",
        "augment",
        "accelerator",
        "origin",
    }
    assert inspect.signature(finetune).parameters.keys() - {"options"} == known
    assert inspect.signature(evaluate).parameters.keys() == {"net", "data", "batch_size", "workers"}


def test_the_arguments_of_evaluate() -> None:
    seen: list[int] = []
    net = model()
    net.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    evaluate(net, Watching(), batch_size=3)
    assert seen == [3, 3, 2]
    one, other = (evaluate(net, Watching(), workers=w).loss for w in (0, 1))
    assert one != other


def test_the_arguments_of_against_sweeps() -> None:
    net = pursuitify(model(), iterations=2)
    loader = DataLoader(TensorDataset(*rows(8)), 4)
    with pytest.raises(OptionError, match="batch_size=3 would have no effect"):
        against_sweeps(net, loader, [0], batch_size=3)
    assert against_sweeps(net, loader, [0])[0]["samples"] == 8
    with pytest.raises(OptionError, match="attack_steps=3 would have no effect without eps"):
        against_sweeps(net, loader, [0], attack_steps=3)


def test_the_types_for_signatures_are_those_of_the_configuration() -> None:
    assert typing.get_type_hints(ConfigOptions) == typing.get_type_hints(Config)
    for function in (finetune, recipe):
        options = inspect.signature(function).parameters["options"]
        assert options.annotation == "Unpack[ConfigOptions]"
