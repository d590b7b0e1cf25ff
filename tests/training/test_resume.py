"""Killed, interrupted, full disks, damaged files: a run goes on to the same numbers or says why."""

from __future__ import annotations

import errno
import functools
import json
import multiprocessing
import random
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

pytest.importorskip("accelerate")

from pursuitify import CheckpointError, load, pursuitify
from pursuitify.errors import TrainingError
from pursuitify.models import ChainNet
from pursuitify.training import (
    Interrupted,
    Result,
    adversarial_inputs,
    finetune,
    loop,
    run_folder,
)
from pursuitify.utils.atomic_files import read_tensors, write_tensors
from tests.support import resumable
from tests.support.damaged_files import DAMAGE, damaged
from tests.support.resumable import STEPS, WRITES, run
from tests.support.toy import model, network, rows


def exit_code(action: Callable[[], Any]) -> int:
    """Do something in a process of its own and return how that ended."""
    process = multiprocessing.get_context("fork").Process(target=action)
    process.start()
    process.join(300)
    assert process.exitcode is not None
    return process.exitcode


def same(first: Path, second: Path) -> None:
    """Compare the files of two runs, bit by bit."""
    for name in ("best", "last", "state"):
        one = load_file(first / f"{name}.safetensors")
        two = load_file(second / f"{name}.safetensors")
        assert one.keys() == two.keys()
        for key, value in one.items():
            assert torch.equal(value, two[key]), f"{name} differs in {key}"
    assert (first / "log.csv").read_text() == (second / "log.csv").read_text()
    names = {"best.safetensors", "last.safetensors", "state.safetensors", "log.csv"}
    assert {path.name for path in second.iterdir()} == names


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Result]]:
    """Undisturbed runs by their optimizer, each made once: their folders and their results."""

    @functools.cache
    def made(optimizer: str) -> tuple[Path, Result]:
        folder = tmp_path_factory.mktemp("whole")
        return folder, run(folder, optimizer)

    return made


def write_every_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_folder, "PAUSE", 0.0)
    monkeypatch.setattr(run_folder, "TIMES", 0.0)


@pytest.mark.parametrize(
    ("where", "optimizer", "often"),
    [("step", "adamw", False), ("step", "sgd", True), ("write", "adamw", True)],
)
def test_killed_and_resumed_is_never_stopped(
    where: str,
    optimizer: str,
    often: bool,
    whole_run: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder, whole = whole_run(optimizer)
    if often:
        write_every_epoch(monkeypatch)
    assert whole.history[-1]["step"] == STEPS
    at = random.randrange(1, STEPS if where == "step" else WRITES)
    print(f"killed at {where} {at}")

    def deadly() -> None:
        resumable.arm(at, where)
        run(tmp_path / "killed", optimizer)

    assert exit_code(deadly) == -signal.SIGKILL
    resumed = run(tmp_path / "killed", optimizer)
    assert resumed.history == whole.history
    same(folder, tmp_path / "killed")


def test_files_written_once_are_those_written_every_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def states(folder: Path) -> int:
        written = 0
        with monkeypatch.context() as patch:

            def write(path: Path, *rest: Any) -> None:
                nonlocal written
                written += 1
                write_tensors(path, *rest)

            patch.setattr("pursuitify.training.state.write_tensors", write)
            result = run(folder, "adamw", save_every=None)
        assert result.best["epoch"] == 2
        best, last = (load_file(folder / f"{name}.safetensors") for name in ("best", "last"))
        assert not all(torch.equal(value, last[name]) for name, value in best.items())
        return written

    # The best weights are then not the last ones.
    monkeypatch.setattr(loop, "_rank", lambda entry: -abs(entry["epoch"] - 2))
    assert states(tmp_path / "once") == 1
    write_every_epoch(monkeypatch)
    assert states(tmp_path / "often") == 4
    same(tmp_path / "once", tmp_path / "often")


def test_what_epochs_left_is_written_where_training_cannot_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner, calls = loop._note, 0

    def note(*args: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 15:  # in the third epoch
            raise TrainingError("these are not finite")
        inner(*args)

    monkeypatch.setattr(loop, "_note", note)
    with pytest.raises(TrainingError):
        run(tmp_path, "adamw", save_every=None)
    assert {path.name for path in tmp_path.iterdir()} == {
        "best.safetensors",
        "last.safetensors",
        "log.csv",
    }
    assert len((tmp_path / "log.csv").read_text().splitlines()) == 3


def interrupt_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = adversarial_inputs.attack
    calls = 0

    def attack(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == step:
            signal.raise_signal(signal.SIGINT)
        return inner(*args)

    monkeypatch.setattr(loop, "attack", attack)


@pytest.fixture
def plain_ctrl_c() -> Iterator[None]:
    """SIGINT as an interpreter has it; workers of a parallel test run ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("plain_ctrl_c")
def test_ctrl_c_leaves_a_state_and_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(tmp_path / "whole", "adamw", epochs=2)
    with monkeypatch.context() as patch:
        interrupt_at(7, patch)
        with pytest.raises(Interrupted, match=r"after 7 of 12 steps.*resume=True"):
            run(tmp_path / "stopped", "adamw", epochs=2)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert run(tmp_path / "stopped", "adamw", epochs=2).history == whole.history
    same(tmp_path / "whole", tmp_path / "stopped")


@pytest.mark.usefixtures("plain_ctrl_c")
def test_without_a_folder_ctrl_c_is_what_it_always_is(monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt_at(2, monkeypatch)
    with pytest.raises(KeyboardInterrupt) as caught:
        finetune(network(), rows(), rows(), epochs=1, batch_size=8, progress=False)
    assert not isinstance(caught.value, Interrupted)


def test_a_run_that_is_done_stays_done(tmp_path: Path) -> None:
    first = run(tmp_path / "run", "adamw", epochs=1)
    before = (tmp_path / "run" / "state.safetensors").read_bytes()
    assert run(tmp_path / "run", "adamw", epochs=1).history == first.history
    assert (tmp_path / "run" / "state.safetensors").read_bytes() == before
    with pytest.raises(CheckpointError, match="holds a run"):
        finetune(network(), rows(), rows(), output=tmp_path / "run", progress=False)


def test_a_full_disk_leaves_the_state_before_it(
    whole_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    run(folder, "adamw", epochs=1)
    undisturbed, whole = whole_run("adamw")

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    run_on = lambda: run(folder, "adamw")  # noqa: E731
    with pytest.raises(CheckpointError, match="epochs was 1 and is 4"):
        run_on()
    for path in folder.iterdir():
        path.unlink()
    with monkeypatch.context() as patch:
        interrupt_at(6, patch)
        with pytest.raises(Interrupted):
            run_on()
    kept = {path.name: path.read_bytes() for path in folder.iterdir()}
    with monkeypatch.context() as patch:
        patch.setattr("pursuitify.utils.atomic_files.save_file", full)
        with pytest.raises(CheckpointError, match="No space left"):
            run_on()
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == kept
    assert run_on().history == whole.history
    same(undisturbed, folder)


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    finetune(network(), rows(), rows(), output=folder, epochs=1, batch_size=8, progress=False)
    return folder / "state.safetensors"


def resumed(folder: Path, net: Any = None, **options: Any) -> Result:
    config = {"epochs": 1, "batch_size": 8, "progress": False, **options}
    own = network() if net is None else net
    return finetune(own, rows(), rows(), output=folder, resume=True, **config)


@pytest.mark.parametrize("content", DAMAGE)
def test_damaged_and_hostile_states(content: str, state: Path, tmp_path: Path) -> None:
    whole = state.read_bytes()
    ran = tmp_path / "ran"
    bad = damaged(whole, ran)[content]
    (tmp_path / state.name).write_bytes(bad)
    net = network()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        resumed(tmp_path, net)
    assert not ran.exists(), "the file was executed"
    assert (tmp_path / state.name).read_bytes() == bad
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h, t: h.update(format=99), "format 99"),
        (lambda h, t: h.pop("config"), "incomplete or altered"),
        (lambda h, t: h["progress"].update(code="import os"), "incomplete or altered"),
        (lambda h, t: h["config"].update(lr=7.0), r"lr was 7\.0 and is 0\.001"),
        (lambda h, t: h.update(graph=[]), "incomplete or altered"),
        (lambda h, t: t.update({"net/extra": torch.zeros(1)}), "unexpected extra"),
        (lambda h, t: t.update({"code/x": torch.zeros(1)}), "unexpected tensor"),
        (lambda h, t: t.pop("net/pursuit.beta"), r"missing pursuit\.beta"),
        (lambda h, t: t.update({"optimizer/no|step": torch.zeros(())}), "unexpected optimizer"),
        (
            lambda h, t: t.update({"optimizer/pursuit.beta|exp_avg": torch.zeros(2, 2)}),
            r"has shape \(2, 2\)",
        ),
    ],
)
def test_altered_states(change: Any, message: str, state: Path, tmp_path: Path) -> None:
    altered(state, tmp_path, change)
    with pytest.raises(CheckpointError, match=message):
        resumed(tmp_path)


def altered(state: Path, folder: Path, change: Any) -> None:
    """Copy a run to a folder with the header and the tensors of its state changed."""
    shutil.copytree(state.parent, folder, dirs_exist_ok=True)
    with safe_open(state, framework="pt") as file:
        header = json.loads(file.metadata()["pursuitify.training"])
    tensors = load_file(state)
    del header["check"]  # as states of earlier versions, of which the values alone tell
    change(header, tensors)
    text = {"pursuitify.training": json.dumps(header)}
    save_file(tensors, folder / state.name, metadata=text)


PROGRESS = [
    {"epoch": -1},
    {"epoch": True},
    {"epoch": 2},
    {"batch": 1.5},
    {"step": 10**30},
    {"step": "x"},
    {"waited": None},
    {"history": []},
    {"history": [None]},
    {"history": [{"loss": 1.0}]},
    {"history": {}},
    {"best": None},
    {"best": [1]},
    {"best": {"val_accuracy": 1.0}},
    {"sums": None},
    {"sums": [None]},
    {"sums": [{"loss": "x"}]},
    {"sums": [{"loss": [1.0]}]},
    {"read": 1},
]


@pytest.mark.parametrize("value", PROGRESS, ids=str)
def test_progress_that_no_run_has_is_refused(
    value: dict[str, Any], state: Path, tmp_path: Path
) -> None:
    altered(state, tmp_path, lambda h, t: h["progress"].update(value))
    with pytest.raises(CheckpointError, match="incomplete or altered"):
        resumed(tmp_path)


@given(data=st.data())
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_one_number_changed_anywhere_is_noticed(
    state: Path, tmp_path_factory: pytest.TempPathFactory, data: Any
) -> None:
    """A number of the log or of the sums, or one entry of any weight or of the optimizer."""
    folder = tmp_path_factory.mktemp("changed")
    header, tensors = read_tensors(state, "pursuitify.training", "this run")
    rows = [*header["progress"]["history"], header["progress"]["best"]]
    places: list[tuple[Any, Any]] = [(row, name) for row in rows for name in row]
    places += [(tensors, name) for name, value in tensors.items() if value.numel()]
    held, name = data.draw(st.sampled_from(places))
    if isinstance(held[name], torch.Tensor):
        entries = held[name].view(-1)
        place = data.draw(st.integers(0, entries.numel() - 1))
        entries[place] = entries[place] + 1
    else:
        held[name] += 1
    write_tensors(folder / state.name, tensors, "pursuitify.training", header)
    with pytest.raises(CheckpointError, match="was altered after it was written, or is damaged"):
        resumed(folder)


@pytest.mark.parametrize("epochs", [1, 2])
def test_best_weights_that_are_gone_are_missed_before_the_work(epochs: int, tmp_path: Path) -> None:
    config = {"batch_size": 8, "progress": False, "epochs": epochs}
    finetune(network(), rows(), rows(), output=tmp_path, **config)
    (tmp_path / "best.safetensors").unlink()
    net = network()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"best\.safetensors is gone"):
        resumed(tmp_path, net, epochs=epochs)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_a_state_from_before_an_option_existed(state: Path, tmp_path: Path) -> None:
    altered(state, tmp_path, lambda h, t: h["config"].pop("noise"))
    assert len(resumed(tmp_path).history) == 1
    with pytest.raises(CheckpointError, match=r"noise was 0\.0 and is 0\.1"):
        resumed(tmp_path, noise=0.1)


def test_another_network_is_refused(state: Path) -> None:
    before = state.read_bytes()
    with pytest.raises(CheckpointError, match="settings was"):
        resumed(state.parent, network(iterations=3))
    with pytest.raises(CheckpointError, match="another graph"):
        resumed(state.parent, pursuitify(ChainNet(1, 3, width=2), iterations=2))
    with pytest.raises(CheckpointError, match=r"missing blocks\.0\.0\.conv1\.bias"):
        resumed(state.parent, network(batch_norm=False))
    with pytest.raises(CheckpointError, match="another"):
        resumed(state.parent, model())
    assert state.read_bytes() == before


def test_best_and_last_are_checkpoints_of_the_library(state: Path) -> None:
    for name in ("best", "last"):
        net = load(state.with_name(f"{name}.safetensors"), model(seed=3))
        assert net.iterations == 2
