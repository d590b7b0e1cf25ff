"""The command line: what it prints, exit codes, no traceback on a refusal."""

from __future__ import annotations

import fnmatch
import functools
import json
import pickle
import re
import signal
import subprocess
import sys
from dataclasses import asdict
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

pytest.importorskip("typer")
from typer.testing import CliRunner

from pursuitify import cli
from pursuitify.cli.app import app
from pursuitify.cli.model_sources import load_model, load_weights, names_like
from pursuitify.errors import CheckpointError, MissingExtraError, OptionError, PursuitifyError
from pursuitify.version import VERSION

runner = CliRunner()
FACTORY = """
from pursuitify.models import ResidualNet
def make():
    return ResidualNet(in_channels=1, width=2)
def gelu():
    from torch import nn
    return nn.Sequential(nn.Linear(3, 3), nn.GELU(), nn.Linear(3, 3), nn.ReLU())
"""


@pytest.fixture
def factory(tmp_path: Path) -> str:
    (tmp_path / "mine.py").write_text(FACTORY)
    return str(tmp_path / "mine.py")


def test_explain(factory: str) -> None:
    result = runner.invoke(app, ["explain", f"{factory}:make", "--json"])
    assert result.exit_code == 0
    facts = json.loads(result.stdout)
    assert facts["ok"]
    assert facts["latents"] == 6
    refused = runner.invoke(app, ["explain", f"{factory}:gelu"])
    assert refused.exit_code == 1
    assert "GELU" in refused.stdout


def test_convert_then_diagnose_and_coherence(factory: str, tmp_path: Path) -> None:
    file = tmp_path / "net.safetensors"
    done = runner.invoke(app, ["convert", f"{factory}:make", "--output", str(file)])
    assert done.exit_code == 0, done.output
    common = [f"{factory}:make", "--shape", "1,8,8", "--checkpoint", str(file), "--json"]
    trace = json.loads(runner.invoke(app, ["diagnose", *common]).stdout)
    objectives = [sweep["objective"] for sweep in trace["sweeps"]]
    assert len(objectives) == 11
    assert objectives == sorted(objectives, reverse=True)
    report = json.loads(runner.invoke(app, ["coherence", *common]).stdout)
    assert 0 < report["mutual_coherence"] <= 1 + 1e-6
    text = runner.invoke(app, ["coherence", *common[:-1]]).stdout
    assert "N(G)" in text
    assert report["pair"] in text  # with its channels in square brackets
    wrong = runner.invoke(app, ["coherence", *common, "--switches", "corner"])
    assert isinstance(wrong.exception, OptionError)
    exact = runner.invoke(app, ["coherence", *common, "--switches", "worst", "--boundary", "exact"])
    assert json.loads(exact.stdout)["boundary"] == "exact"


@pytest.mark.parametrize(
    "arguments",
    [
        ["compare", "resnet18", "--plot", "a.png"],
        ["audit", "resnet18", "--eps", "0.1", "--output", "a", "--picture"],
        ["demo", "--output", "a"],
    ],
    ids=lambda words: words[0],
)
def test_a_missing_extra_is_said_before_the_work(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    done = runner.invoke(app, arguments)
    assert isinstance(done.exception, MissingExtraError)
    assert "matplotlib is not installed: pip install 'pursuitify[" in str(done.exception)
    assert not list(tmp_path.iterdir())


def test_version() -> None:
    done = runner.invoke(app, ["--version"])
    assert done.exit_code == 0
    assert done.stdout == f"pursuitify {VERSION}, torch {torch.__version__}\n"


def test_without_typer_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "pursuitify.cli.app", raising=False)
    monkeypatch.setitem(sys.modules, "typer", None)
    with pytest.raises(SystemExit, match="pip install typer"):
        cli.main()


def test_refusals_have_no_traceback(factory: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pursuitify"]
    hostile = str(tmp_path / "hostile")
    save_file({"a": torch.ones(1)}, hostile, metadata={"pursuitify": "[" * 100000})
    for arguments in (
        ["explain", "resnet_of_dreams"],
        ["diagnose", "resnet18", "--shape", "x"],
        ["diagnose", f"{factory}:make", "--shape", "1,8,8", "--checkpoint", hostile],
    ):
        result = subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)
        assert result.returncode == 1
        assert "error:" in result.stderr
        assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nothing", "no model of torchvision"),
        ("resnt18", "did you mean 'resnet18'"),
        ("no/such.py:make", "no file no/such.py"),
        ("timm:resnt18", "did you mean 'resnet18'"),
        ("FOLDER/mine.py:mak", "did you mean 'make'"),
        ("FOLDER/min.py:make", "did you mean 'FOLDER/mine.py'"),
        ("FOLDER/mine.py", "FOLDER/mine.py:FUNCTION"),
        ("FOLDER/mine", "no file or folder FOLDER/mine; did you mean 'FOLDER/mine.py'"),
    ],
)
def test_models_that_do_not_exist(name: str, words: str, factory: str) -> None:
    if name.startswith("timm:"):
        pytest.importorskip("timm")
    folder = str(Path(factory).parent)
    with pytest.raises(OptionError) as error:
        load_model(name.replace("FOLDER", folder))
    assert words in str(error.value).replace(folder, "FOLDER")


def run_json(*arguments: str) -> dict[str, Any]:
    result = runner.invoke(app, [*arguments, "--json"])
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, dict[str, Any]]:
    """Fine-tune once for several tests: the model, the folder, what was printed."""
    pytest.importorskip("accelerate")
    pytest.importorskip("sklearn")
    folder = tmp_path_factory.mktemp("cli")
    (folder / "mine.py").write_text(FACTORY)
    name = f"{folder / 'mine.py'}:make"
    options = ["--iterations", "2", "--epochs", "2", "--lr", "0.02", "--set", "step_ramp=0.5"]
    found = run_json("finetune", name, "--output", str(folder / "run"), *options)
    return name, folder / "run", found


def test_finetune(tuned: tuple[str, Path, dict[str, Any]]) -> None:
    _, folder, found = tuned
    assert [entry["epoch"] for entry in found["history"]] == [1, 2]
    assert found["history"][1]["loss"] < found["history"][0]["loss"]
    assert Path(found["best_path"]) == folder / "best.safetensors"
    names = {"best.safetensors", "last.safetensors", "state.safetensors", "log.csv"}
    assert {path.name for path in folder.iterdir()} == names


def test_evaluate(tuned: tuple[str, Path, dict[str, Any]]) -> None:
    name, folder, found = tuned
    best = ["--checkpoint", str(folder / "best.safetensors")]
    facts = run_json("evaluate", name, *best, "--sweeps", "0,1", "--part", "val")
    rows = {row["sweeps"]: row for row in facts["rows"]}
    assert set(rows) == {0, 1, 2}, "the checkpoint's own T is there too"
    assert rows[2]["accuracy"] == pytest.approx(found["best"]["val_accuracy"])
    assert rows[2]["loss"] == pytest.approx(found["best"]["val_loss"], rel=1e-4)
    attack = ["--limit", "40", "--eps", "0.1", "--attack-steps", "2", "--sweeps", "2"]
    (row,) = run_json("evaluate", name, *best, *attack)["rows"]
    assert row["samples"] == 40
    assert row["attacked"] <= row["accuracy"]
    text = runner.invoke(app, ["evaluate", name, *best, *attack])
    assert "PGD-2" in text.stdout


def test_a_run_needs_no_options(tuned: tuple[str, Path, dict[str, Any]], tmp_path: Path) -> None:
    name, folder, found = tuned
    facts = run_json("evaluate", str(folder), "--sweeps", "2", "--part", "val")
    assert facts["rows"][0]["accuracy"] == pytest.approx(found["best"]["val_accuracy"])
    report = run_json("coherence", str(folder))
    best = ["--checkpoint", str(folder / "best.safetensors")]
    told = run_json("coherence", name, *best, "--shape", "1,8,8")
    assert report["mutual_coherence"] == told["mutual_coherence"]
    assert report["blocks"] == told["blocks"]
    plain = tmp_path / "plain.safetensors"
    facts = run_json("convert", str(folder), "--to-source", str(plain))
    assert facts == {"latents": 6, "iterations": 2, "to_source": str(plain)}
    load_model(name).load_state_dict(load_file(plain), strict=True)
    trace = run_json("diagnose", str(folder))
    assert len(trace["sweeps"]) == 3


def test_resume_and_refusals(tuned: tuple[str, Path, dict[str, Any]]) -> None:
    name, folder, found = tuned
    same = ["--output", str(folder), "--iterations", "2", "--epochs", "2", "--lr", "0.02"]
    same += ["--set", "step_ramp=0.5"]
    assert run_json("finetune", name, *same, "--resume")["history"] == found["history"]
    for arguments, message in (
        (same, "holds a run"),
        ([*same, "--resume", "--seed", "1"], "seed was 0 and is 1"),
        ([*same, "--set", "epoch=3"], "did you mean 'epochs'"),
        ([*same, "--set", "epochs"], "is not like NAME=VALUE"),
        ([*same, "--optimizer", "lion", "--lr", "-1"], "lion"),
        ([*same, "--data", "nowhere"], "neither a data set"),
    ):
        with pytest.raises(PursuitifyError, match=message):
            runner.invoke(app, ["finetune", name, *arguments], catch_exceptions=False)


def test_ctrl_c_says_how_to_resume(
    factory: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("accelerate")
    pytest.importorskip("sklearn")
    from pursuitify.training import adversarial_inputs, loop

    inner = adversarial_inputs.attack

    def attack(*args: Any) -> Any:
        signal.raise_signal(signal.SIGINT)
        return inner(*args)

    monkeypatch.setattr(loop, "attack", attack)
    arguments = ["finetune", f"{factory}:make", "--output", str(tmp_path / "run"), "--json"]
    result = runner.invoke(app, [*arguments, "--iterations", "1"])
    assert result.exit_code == 130
    assert "--resume" in result.stderr
    assert re.search(r"images \(.*\d+ train, \d+ val, \d+ test", result.stderr)
    assert (tmp_path / "run" / "state.safetensors").is_file()


def test_back_to_torchvision(tmp_path: Path) -> None:
    from torchvision import models

    own = models.resnet18(weights=None, num_classes=7)
    torch.save(own.state_dict(), tmp_path / "own.pth")
    net, plain = tmp_path / "net.safetensors", tmp_path / "plain.safetensors"
    common = ["convert", "resnet18", "--classes", "7"]
    there = [*common, "--weights", str(tmp_path / "own.pth"), "--output", str(net)]
    back = [*common, "--checkpoint", str(net), "--to-source", str(plain)]
    for arguments in (there, back):
        result = runner.invoke(app, arguments)
        assert result.exit_code == 0, result.output
    again = models.resnet18(weights=None, num_classes=7)
    again.load_state_dict(load_file(plain), strict=True)
    for name, value in own.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    with pytest.raises(OptionError, match="--to-source"):
        runner.invoke(app, common, catch_exceptions=False)


def test_no_option_is_ignored_beside_a_checkpoint(factory: str, tmp_path: Path) -> None:
    file = str(tmp_path / "net.safetensors")
    model = f"{factory}:make"
    runner.invoke(app, ["convert", model, "--iterations", "4", "--output", file])
    diagnose = ["diagnose", model, "--shape", "1,8,8", "--checkpoint", file, "--json"]
    for more, sweeps in (([], 4), (["--iterations", "2"], 2), (["--iterations", "0"], 0)):
        trace = json.loads(runner.invoke(app, [*diagnose, *more]).stdout)
        assert len(trace["sweeps"]) == sweeps + 1
    refused = runner.invoke(app, [*diagnose, "--layout", "encoder"])
    assert isinstance(refused.exception, OptionError)
    assert "layout of its own" in str(refused.exception)
    both = ["convert", model, "--checkpoint", file, "--weights", file, "--output", file]
    assert "give one of them" in str(runner.invoke(app, both).exception)
    plain = ["audit", model, "--plain", "--eps", "0.1", "--layout", "encoder"]
    assert "--layout" in str(runner.invoke(app, plain).exception)


def test_weights_are_never_executed(tmp_path: Path) -> None:
    ran = tmp_path / "ran"

    class Hostile:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (ran,))

    model = load_model("resnet18", 2)
    for name in ("w.pth", "w.safetensors"):
        (tmp_path / name).write_bytes(pickle.dumps(Hostile()))
        with pytest.raises(CheckpointError, match="no plain tensors"):
            load_weights(model, tmp_path / name)
    torch.save({"state": Hostile()}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match="no plain tensors"):
        load_weights(model, tmp_path / "w.pth")
    assert not ran.exists(), "the file was executed"
    torch.save({"fc.weight": torch.zeros(1)}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match="does not fit ResNet"):
        load_weights(model, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match="no file"):
        load_weights(model, tmp_path / "nowhere.pth")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], {"objective": "standard", "noise": 0.0, "eps": 8 / 255}),
        (["--recipe", "noise"], {"objective": "standard", "noise": 0.1}),
        (["--recipe", "adversarial", "--eps", "0.1"], {"objective": "pgd", "eps": 0.1}),
        (["--recipe", "noise", "--set", "noise=0.2"], {"noise": 0.2}),
    ],
    ids=str,
)
def test_recipe_and_what_goes_before_it(
    arguments: list[str],
    expected: dict[str, object],
    factory: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("sklearn")
    seen: dict[str, object] = {}

    def train(_net: object, _train: object, _val: object, config: Any, **_: object) -> None:
        seen.update(asdict(config))
        raise OptionError("that is enough")

    cli_training = pytest.importorskip("pursuitify.cli.training_commands")
    monkeypatch.setattr(cli_training, "train", train)
    output = ["--output", str(tmp_path / "run"), "--iterations", "1"]
    result = runner.invoke(app, ["finetune", f"{factory}:make", *output, *arguments])
    assert "that is enough" in result.output + str(result.exception)
    assert seen | expected == seen


def test_a_radius_without_an_attack_is_refused(factory: str, tmp_path: Path) -> None:
    arguments = ["finetune", f"{factory}:make", "--output", str(tmp_path / "run"), "--eps", "0.1"]
    result = runner.invoke(app, arguments)
    assert result.exit_code == 1
    assert isinstance(result.exception, OptionError)
    assert "--eps 0.1 has no effect" in str(result.exception)


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        ("expl", ["explain"]),
        ("explain resnet1", ["resnet101", "resnet152", "resnet18"]),
        ("compare resnet18 squeeze", ["squeezenet1_0", "squeezenet1_1"]),
        ("finetune tim", ["timm:"]),
        ("explain nets.py:", []),
    ],
)
def test_the_shell_completes_names(words: str, completed: list[str]) -> None:
    typed = {"COMP_WORDS": f"pursuitify {words}", "COMP_CWORD": str(len(words.split()))}
    asked = {"_PURSUITIFY_COMPLETE": "complete_bash", **typed}
    found = runner.invoke(app, [], prog_name="pursuitify", env=asked)
    assert [name for name in found.output.split() if name] == completed


def test_timms_names_are_completed_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    assert names_like("timm:resnet") == []
    stand_in = ModuleType("timm")
    stand_in.__spec__ = ModuleSpec("timm", None)
    names = functools.partial(fnmatch.filter, ["resnet18", "vit"])
    vars(stand_in).update(list_models=names)
    monkeypatch.setitem(sys.modules, "timm", stand_in)
    assert names_like("timm:res") == ["timm:resnet18"]


def test_help_has_examples() -> None:
    for command in ("finetune", "evaluate", "demo", "convert"):
        text = runner.invoke(app, [command, "--help"]).stdout
        assert f"pursuitify {command}" in text


@pytest.mark.slow
def test_demo(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib")
    facts = run_json("demo", "--quick", "--output", str(tmp_path))
    assert facts["gap"] == 0
    assert facts["validation"] > 0.9
    clean = [row["clean"] for row in facts["networks"].values()]
    assert len(clean) == 4
    assert clean[0] > 0.9
    assert clean[3] > 0.9
    assert {path.name for path in tmp_path.iterdir()} == {"structure.png", "objective.png"}


NEIGHBOUR = "from torch import nn\ndef make_layer():\n    return nn.Linear(8, 8)\n"
AS_PYTHON = """
from __future__ import annotations
from dataclasses import dataclass
from torch import nn
{dot}

@dataclass
class Sizes:
    width: int = 8

def make():
    return nn.Sequential(make_layer(), nn.ReLU(), nn.Linear(Sizes().width, 2))

def broken():
    return nn.Linear(3)

nan = lambda: _spoiled(make())

def _spoiled(net):
    net[0].weight.data.fill_(float("nan"))
    return net
"""


@pytest.mark.parametrize("package", [False, True])
def test_a_file_is_imported_as_python_does(package: bool, tmp_path: Path) -> None:
    folder = tmp_path / "house_of_nets"
    folder.mkdir()
    (folder / "neighbour_of_net.py").write_text(NEIGHBOUR)
    line = f"from {'.' if package else ''}neighbour_of_net import make_layer"
    (folder / "own_net.py").write_text(AS_PYTHON.format(dot=line))
    if package:
        (folder / "__init__.py").write_text("")
    command = [sys.executable, "-m", "pursuitify.cli.app", "explain"]

    def run(name: str) -> subprocess.CompletedProcess[str]:
        full = [*command, f"{folder / 'own_net.py'}:{name}"]
        return subprocess.run(full, capture_output=True, text=True, check=False)

    done = run("make")
    assert done.returncode == 0, done.stderr
    refused = run("broken")
    assert refused.returncode == 1
    assert "Traceback" not in refused.stderr
    assert "line 15" in " ".join(refused.stderr.split())


def test_a_file_named_like_a_library_does_not_replace_it(tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text(FACTORY)
    held = sys.modules["json"]
    before = list(sys.path)
    try:
        assert load_model(f"{tmp_path / 'json.py'}:make") is not None
    finally:
        sys.path[:] = before
    assert sys.modules["json"] is held


def test_a_diverged_network_is_null_in_json_and_no_success(tmp_path: Path) -> None:
    (tmp_path / "neighbour_of_net.py").write_text(NEIGHBOUR)
    file = tmp_path / "spoiled_net.py"
    file.write_text(AS_PYTHON.format(dot="from neighbour_of_net import make_layer"))
    command = [sys.executable, "-m", "pursuitify.cli.app", "diagnose", f"{file}:nan"]
    full = [*command, "--shape", "8", "--json"]
    done = subprocess.run(full, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "NaN" not in done.stdout
    assert "finite" in done.stderr


def published(hub: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, torch.Tensor]:
    """Put weights where torchvision looks for what it has downloaded, and return them."""
    from torchvision import models

    state = models.get_model(name, weights=None).state_dict()
    state = {k: v + 0.25 if v.is_floating_point() else v for k, v in state.items()}
    file = Path(models.get_model_weights(name).DEFAULT.url).name
    (hub / "checkpoints").mkdir(parents=True)
    torch.save(state, hub / "checkpoints" / file)
    monkeypatch.setattr(torch.hub, "_hub_dir", str(hub))
    return state


def test_published_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "shufflenet_v2_x0_5"
    state = published(tmp_path, name, monkeypatch)
    own = load_model(name, published=True).state_dict()
    assert own.keys() == state.keys()
    assert all(torch.equal(own[key], value) for key, value in state.items())
    out = tmp_path / "net.safetensors"
    options = ["--classes", "7", "--weights", "DEFAULT", "--output", str(out)]
    done = runner.invoke(app, ["convert", name, *options])
    assert done.exit_code == 0, done.output
    assert "random ones in fc, which has 7 classes here" in done.stderr
    written = load_file(out)
    same = {key for key, value in state.items() if torch.equal(written[key], value)}
    assert state.keys() - same == {"fc.weight", "fc.bias"}


def test_weights_that_nobody_publishes_or_that_cannot_be_had(
    factory: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(OptionError, match="nobody publishes weights"):
        load_model(f"{factory}:make", published=True)
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nobody answers there
    with pytest.raises(CheckpointError, match=r"--weights my\.pth"):
        load_model("shufflenet_v2_x0_5", published=True)


def test_random_weights_are_said(factory: str, tmp_path: Path) -> None:
    out = str(tmp_path / "net.safetensors")
    named = runner.invoke(app, ["convert", "squeezenet1_1", "--output", out, "--seed", "3"])
    assert "the weights of squeezenet1_1 are random (seed 3)" in named.stderr
    for given in (
        ["convert", f"{factory}:make", "--output", out],
        ["convert", "squeezenet1_1", "--checkpoint", out, "--output", out],
        ["explain", "squeezenet1_1"],
    ):
        done = runner.invoke(app, given)
        assert "random" not in done.stderr
