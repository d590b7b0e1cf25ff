"""The subject of a command: models by name, and what runs remember."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner

from pursuitify import CheckpointError, OptionError, PursuitifyError, pursuitify, save
from pursuitify.checkpoints.origin import Origin, read_origin
from pursuitify.cli import subject
from pursuitify.cli.app import app
from pursuitify.cli.subject import Subject, code_of, subject_of
from pursuitify.data import Data, Images, Normalised
from pursuitify.models import ChainNet

FACTORY = (
    "from pursuitify.models import ChainNet\ndef make():\n    return ChainNet(1, 2, width=2)\n"
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes of images, and a file that is none."""
    for name in ("cats", "dogs"):
        (tmp_path / name).mkdir()
        for number in range(8):
            Image.new("L", (8, 8), 20 * number).save(tmp_path / name / f"{number}.png")
    (tmp_path / "cats" / "broken.png").write_bytes(b"no image")
    return tmp_path


def read(folder: Path, **options: Any) -> Any:
    given = {"root": None, "download": False, "size": 8, "channels": 1, "seed": 0}
    return Subject("net", None, Origin()).data(str(folder), **given, **options)[0]


def test_bad_files_are_left_out_and_listed_on_request(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = read(folder, skip_bad=True)
    shown = capsys.readouterr()
    assert "left out 1 files" in shown.err
    assert "broken.png" in shown.err
    assert shown.out == ""
    parts: Any = (data.train, data.val, data.test)
    assert sum(len(part) for part in parts) == 16


def test_a_bad_file_is_an_error_otherwise(folder: Path) -> None:
    data = read(folder, skip_bad=False)
    parts: Any = (data.train, data.val, data.test)
    with pytest.raises(PursuitifyError, match=r"broken\.png"):
        _ = [part[number] for part in parts for number in range(len(part))]


@pytest.fixture
def run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Origin:
    """Put a run of a normalised network, trained on the folder, into the working directory."""
    monkeypatch.chdir(folder.parent)
    Path("nets.py").write_text(FACTORY)
    Path("run").mkdir(exist_ok=True)
    (folder / "cats" / "broken.png").unlink()
    origin = Origin(
        model="nets.py:make",
        code=code_of("nets.py:make"),
        shape=(1, 8, 8),
        classes=2,
        mean=(0.4,),
        std=(0.3,),
        data=folder.name,
        labels=("cats", "dogs"),
        size=8,
        channels=1,
        seed=5,
    )
    model = Normalised(ChainNet(1, 2, width=2), (0.4,), (0.3,)).eval()
    save(pursuitify(model, iterations=2), "run/best.safetensors", origin=origin)
    return origin


def invoke(*arguments: str) -> Any:
    return CliRunner().invoke(app, arguments)


def test_a_run_stands_for_its_model_and_options(run: Origin) -> None:
    for name in ("run", "run/", "run/best.safetensors"):
        found = subject_of(name, None)
        assert found == Subject("nets.py:make", Path("run/best.safetensors"), run)
    assert found.moments == ((0.4,), (0.3,))
    assert found.shape(None, None) == (1, 8, 8)
    assert found.shape(None, 4) == (1, 4, 4)
    assert found.shape("3,5,6", None) == (3, 5, 6)
    with pytest.raises(OptionError, match="give one of them"):
        found.shape("3,5,6", 4)
    by_hand = subject_of("nets.py:make", Path("run/best.safetensors"))
    assert by_hand == found, "options are remembered beside a model's name, too"


ASKED: dict[str, Any] = {
    "name": "others",
    "root": Path("elsewhere"),
    "size": 4,
    "channels": 3,
    "seed": 0,
    "skip_bad": True,
}


@pytest.mark.parametrize("option", [None, *ASKED])
@pytest.mark.parametrize("named", [True, False])
def test_what_is_not_asked_for_is_remembered(
    option: str | None, named: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``named``: whether the data is; then its folder and its bad files are its own, too."""
    was = Origin(
        data="images", labels=("a", "b"), root="there", size=8, channels=1, skip_bad=True, seed=5
    )
    calls: list[dict[str, Any]] = []

    def load(name: str, **options: Any) -> Data:
        calls.append({"name": name, **options})
        part = Images(torch.rand(2, 1, 8, 8), torch.zeros(2).long())
        return Data(name, part, part, part, (1, 8, 8), ("a", "b"), (0.5,), (0.2,), None)

    monkeypatch.setattr(subject, "load_data", load)
    asked = dict.fromkeys(ASKED) | {"skip_bad": False, "download": False}
    if named:
        asked["name"] = "others"
    if option is not None:
        asked[option] = ASKED[option]
    own = asked["name"] is None
    wanted = {
        "name": "images" if own else "others",
        "root": Path("there" if own else "data"),
        "size": 8,
        "channels": 1,
        "seed": 5,
        "skip_bad": own,
        "download": False,
    }
    if option is not None:
        wanted[option] = ASKED[option]
    _, origin = Subject("resnet18", None, was).data(**asked)
    assert calls == [wanted]
    kept = {
        "name": origin.data,
        "root": Path(origin.root),
        "size": origin.size,
        "channels": origin.channels,
        "seed": origin.seed,
        "skip_bad": origin.skip_bad,
        "download": False,
    }
    assert kept == wanted, "and a network that is trained on it remembers the same"
    assert (origin.model, origin.classes, origin.labels) == ("resnet18", 2, ("a", "b"))


def test_the_whole_way(run: Origin, folder: Path) -> None:
    done = invoke("evaluate", "run", "--sweeps", "1", "--json")
    assert done.exit_code == 0, done.output
    assert "run/best.safetensors: nets.py:make, trained on" in done.stderr
    done = invoke("convert", "run", "--to-source", "plain.safetensors", "--output", "again")
    assert done.exit_code == 0, done.output
    assert "less (0.4,), divided by (0.3,)" in done.output
    ChainNet(1, 2, width=2).load_state_dict(load_file("plain.safetensors"), strict=True)
    assert read_origin(Path("again")) == run
    (folder / "dogs").rename(folder / "wolves")
    done = invoke("evaluate", "run")
    assert "with the classes cats, dogs, and" in str(done.exception)
    named = invoke("evaluate", "run", "--data", run.data, "--sweeps", "1", "--json")
    assert named.exit_code == 0, "the advice of the message works"
    assert "note: run/best.safetensors was trained on" in named.stderr


@pytest.mark.parametrize("command", ["evaluate", "audit"])
def test_another_size_than_it_was_trained_on_is_said(command: str, run: Origin) -> None:
    more = {"evaluate": ("--sweeps", "1"), "audit": ("--eps", "0.1", "--count", "1")}[command]
    for size, said in (("8", False), ("12", True)):
        done = invoke(command, "run", "--size", size, *more, "--json")
        note = f"trained on inputs 1 x 8 x 8, and {run.data} is read at 1 x 12 x 12"
        assert (note in done.stderr) == said, done.output


def test_a_folder_as_the_hub_keeps_it_is_taken_as_a_run_is(run: Origin) -> None:
    done = invoke("convert", "run", "--hub", "shared/net", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["hub"] == "shared/net"
    assert subject_of("shared/net", None) == Subject("nets.py:make", Path("shared/net"), run)
    assert subject_of("nets.py:make", Path("shared/net")).origin == run
    Path("plain").mkdir(exist_ok=True)
    to_source = ("convert", "shared/net", "--to-source", "plain/model.safetensors")
    for arguments in (to_source, ("evaluate", "shared/net", "--sweeps", "0")):
        done = invoke(*arguments, "--json")
        assert done.exit_code == 0, done.output
        assert "shared/net: nets.py:make, trained on" in done.stderr
    ChainNet(1, 2, width=2).load_state_dict(load_file("plain/model.safetensors"), strict=True)
    plain = invoke("convert", "nets.py:make", "--weights", "plain", "--output", "again")
    assert plain.exit_code == 0, "a folder of a plain model's weights"
    again = load_file("again")
    for key, value in load_file("plain/model.safetensors").items():
        assert torch.equal(again[key], value)
    shutil.copytree("run", "both", dirs_exist_ok=True)
    shutil.copy("shared/net/model.safetensors", "both")
    with pytest.raises(OptionError, match=r"best\.safetensors and model\.safetensors: name one"):
        subject_of("both", None)
    assert subject_of("both/model.safetensors", None).origin == run


def test_the_code_of_a_model_that_has_changed_is_not_run(run: Origin) -> None:
    Path("nets.py").write_text(FACTORY + "open('ran', 'w').close()\n")
    for arguments in (("evaluate", "run"), ("coherence", "run"), ("explain", "run")):
        done = invoke(*arguments)
        assert "is not the file that it was made by" in str(done.exception)
        assert not Path("ran").exists()
    assert "nets.py:make --checkpoint run/best.safetensors" in str(done.exception)
    by_hand = invoke("diagnose", "nets.py:make", "--checkpoint", "run/best.safetensors")
    assert by_hand.exit_code == 0, "the advice of the message works"
    assert Path("ran").exists()
    Path("nets.py").unlink()
    with pytest.raises(OptionError, match=r"there is no file nets\.py here"):
        subject_of("run", None)


def test_names_that_stand_for_no_run(run: Origin, tmp_path: Path) -> None:
    Path("empty").mkdir()
    Path("resnet18").mkdir()
    save(pursuitify(ChainNet(1, 2, width=2)), "old.safetensors")
    assert subject_of("resnet18", None).name == "resnet18", "a model's name goes before a folder's"
    for name, words in (
        ("empty", "holds neither best.safetensors"),
        ("resnet18/", "holds neither best.safetensors"),
        ("old.safetensors", "MODEL --checkpoint old.safetensors"),
        ("run/bset.safetensors", "did you mean 'run/best.safetensors'"),
    ):
        with pytest.raises(OptionError) as error:
            subject_of(name, None)
        assert words in str(error.value)
    with pytest.raises(OptionError, match="give one of them"):
        subject_of("run", Path("old.safetensors"))
    with pytest.raises(CheckpointError, match=r"did you mean 'run/best\.safetensors'"):
        subject_of("resnet18", Path("run/bset.safetensors"))
    assert subject_of("nets.py:make", Path("old.safetensors")).origin == Origin()


def test_classes_are_the_run_s_unless_they_are_asked_for() -> None:
    found = Subject("resnet18", None, Origin(classes=7))
    assert (found.classes(None), found.classes(3)) == (7, 3)
    assert found.named(3) == Origin(model="resnet18", classes=3)
    with pytest.raises(OptionError, match="makes the model as it is"):
        replace(found, name="nets.py:make").classes(3)


@pytest.mark.parametrize(
    ("was", "made_with"),
    [
        (Origin(), 3),
        (Origin(model="resnet18", classes=5), 5),
        (Origin(model="resnet18"), None),
        (Origin(model="resnet18", classes=2), "made with 2 classes, and toy has 3"),
    ],
    ids=str,
)
def test_a_model_is_made_with_the_classes_of_its_weights(
    was: Origin, made_with: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = Images(torch.rand(2, 1, 8, 8), torch.zeros(2).long())
    data = Data("toy", part, part, part, (1, 8, 8), ("a", "b", "c"), (0.5,), (0.2,), None)
    monkeypatch.setattr(subject, "load_data", lambda *args, **kwargs: data)
    asked: dict[str, Any] = dict.fromkeys(ASKED)
    asked |= {"name": "toy", "download": False, "skip_bad": False}
    found = Subject("resnet18", Path("net"), was)
    if isinstance(made_with, str):
        with pytest.raises(OptionError, match=made_with):
            found.data(**asked)
    else:
        _, origin = found.data(**asked)
        assert origin.classes == found.classes_for(data) == made_with
        assert origin.labels == ("a", "b", "c")
