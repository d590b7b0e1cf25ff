"""No option of the command line is accepted and ignored: each changes something, or is refused.

Every command's options are read off the command itself; one without an entry fails the first test.
An entry gives what is put after the command without the option and with it. What is seen of a call
is what it prints, its exit code, its error, the files it leaves and, of the functions that do the
work, what they were called with: their own options are walked in tests/test_options.py.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("typer")
import typer
from PIL import Image
from typer.testing import CliRunner

from pursuitify import pursuitify, save
from pursuitify.analysis import ArchitectureBounds, Comparison
from pursuitify.cli import audit_command, output_commands, subject, training_commands
from pursuitify.cli import demo as demo_module
from pursuitify.cli.app import app
from pursuitify.data import load_data
from pursuitify.errors import PursuitifyError
from pursuitify.robust import AuditReport
from pursuitify.robust.auditing.red_flags import CurvePoint
from pursuitify.training import Result, evaluation
from pursuitify.utils.fingerprint import of_tensors

FACTORY = """
from torch import nn
from pursuitify.models import ChainNet

def make():
    return ChainNet(3, 2, width=2)

def grey():
    return ChainNet(1, 2, width=2)

def pooled():
    return nn.Sequential(nn.Conv2d(3, 3, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(3, 2, 3),
                         nn.ReLU())

def residual():
    from pursuitify.models import ResidualNet
    return ResidualNet(3, 2, depth=1, width=2)
"""
runner = CliRunner()


@dataclass
class Place:
    """A folder with a model's file, its checkpoint, its weights, and images.

    Attributes:
        root: The folder.
        calls: What the functions that do the work were called with.
    """

    root: Path
    calls: list[Any] = field(default_factory=list)

    def model(self, name: str = "make") -> str:
        """Return a model by name."""
        return f"{self.root / 'mine.py'}:{name}"

    def file(self, name: str) -> str:
        """Return the path of a file in the folder."""
        return str(self.root / name)

    def fresh(self) -> Path:
        """Return a folder that is not there yet."""
        return self.root / f"out{len(list(self.root.glob('out*')))}"


def made(root: Path) -> None:
    from pursuitify.models import ChainNet, ResidualNet

    (root / "mine.py").write_text(FACTORY)
    torch.manual_seed(5)
    model = ChainNet(3, 2, width=2).eval()
    save(pursuitify(model, iterations=4), root / "net.safetensors")
    save(pursuitify(ResidualNet(3, 2, depth=1, width=2).eval()), root / "residual.safetensors")
    torch.save(model.state_dict(), root / "weights.pth")
    torch.save(ResidualNet(3, 2, depth=1, width=2).state_dict(), root / "residual.pth")
    for name in ("images", "others"):
        for kind in ("cats", "dogs"):
            (root / name / kind).mkdir(parents=True)
            for number in range(10):
                colour = (20 * number, 7 * len(kind) * number % 256, 30 * (name == "others"))
                Image.new("RGB", (9, 9), colour).save(root / name / kind / f"{number}.png")
    (root / "others" / "cats" / "broken.png").write_bytes(b"no image")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("options")
    made(root)
    return root


def described(value: Any) -> Any:
    """Return what tells one argument from another."""
    if isinstance(value, nn.Module):
        rows = list(value.graph.nodes(data="layout")) if hasattr(value, "graph") else []
        settings = value.settings() if rows else {}
        return repr(value), rows, settings, of_tensors(*value.state_dict().values())
    if isinstance(value, Tensor):
        return of_tensors(value)
    if isinstance(value, (tuple, list)):
        return [described(part) for part in value]
    if isinstance(value, torch.utils.data.Dataset):
        samples: Any = value
        return [described(samples[index]) for index in range(len(samples))]
    if hasattr(value, "__dataclass_fields__"):
        return asdict(value)
    if callable(value):
        return repr(value)
    return str(value) if isinstance(value, Path) else value


@pytest.fixture
def place(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """Return a place in which functions that take long only note what they are called with."""
    found = Place(folder)

    def noted(name: str, answer: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            given = {key: described(value) for key, value in kwargs.items()}
            found.calls.append((name, described(args), given))
            return answer(*args, **kwargs)

        return call

    def report(*args: Any, **kwargs: Any) -> AuditReport:
        setting = {"images": 4, "classes": 2, "eps": 0.1, "norm": "linf", "protocol": "quick"}
        points = (CurvePoint(0.1, 0.5), CurvePoint(1.0, 0.0, unbounded=True))
        return AuditReport(setting, {"network": 1.0}, (), points, (), (), 0.0)

    def trained(*args: Any, **kwargs: Any) -> Result:
        return Result([], {"epoch": 1, "val_accuracy": 0.5}, False)

    def rows(*args: Any, **kwargs: Any) -> list[dict[str, Any]]:
        if kwargs["attack_steps"] is not None and not kwargs["eps"]:
            return real(*args, **kwargs)  # refuses
        row = {"sweeps": 0, "samples": 2, "accuracy": 0.5, "loss": 1.0}
        return [row | ({"attacked": 0.1} if kwargs["eps"] else {})]

    def bounds(*args: Any, **kwargs: Any) -> Comparison:
        row = ArchitectureBounds("net", 1, 0, 1, 2, 4.0, 0.1, 0.2, 1, 1, True, 0.5)
        return Comparison((row,), (3, 6, 6), "auto", None, 1.0)

    real = evaluation.against_sweeps
    monkeypatch.setattr("pursuitify.cli.app.compare_models", noted("compare", bounds))
    monkeypatch.setattr(audit_command, "run", noted("audit", report))
    monkeypatch.setattr(training_commands, "train", noted("finetune", trained))
    monkeypatch.setattr(evaluation, "against_sweeps", noted("against_sweeps", rows))
    monkeypatch.setattr(demo_module, "digits", noted("demo", lambda *args, **kwargs: {"gap": 0.0}))
    monkeypatch.setattr(subject, "load_data", noted("load_data", load_data))
    for name in ("plot_objective", "plot_structure"):
        monkeypatch.setattr(output_commands, name, noted(name, lambda *args: None))
    monkeypatch.setattr(output_commands, "export_onnx", noted("export", lambda *args: 0.0))
    return found


def observed(place: Place, command: str, arguments: list[str]) -> Any:
    """Return everything that can be seen of a call; the folder that it may fill is called OUT."""
    place.calls.clear()
    out = place.fresh()
    done = runner.invoke(app, [command, *(a.replace("OUT", str(out)) for a in arguments)])
    error = done.exception
    if error is not None and not isinstance(error, (SystemExit, PursuitifyError)):
        raise error
    files = {}
    if out.is_dir():
        for path in sorted(out.rglob("*")):
            files[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
    elif out.is_file():
        files["OUT"] = hashlib.sha256(out.read_bytes()).hexdigest()
    out.mkdir(exist_ok=True) if not out.exists() else None  # the next call gets another one
    seen = (done.exit_code, done.output, repr(error), files, place.calls)
    text = json.dumps(seen, default=repr).replace(str(out), "OUT")
    return text


#: What is seen of calls that several options are compared with.
SEEN: dict[tuple[str, ...], Any] = {}


def repeated(place: Place, command: str, arguments: list[str]) -> Any:
    """Return what is seen of a call, which must be the same when it is repeated."""
    key = (str(place.root), command, *arguments)
    if key not in SEEN:
        SEEN[key] = observed(place, command, arguments)
        assert observed(place, command, arguments) == SEEN[key], "what is seen repeats"
    return SEEN[key]


Two = tuple[list[str], list[str]]


def after(base: list[str], **given: list[str]) -> dict[str, Two]:
    """Return entries that put an option behind a base."""
    return {name.replace("_", "-"): (base, [*base, *words]) for name, words in given.items()}


def twice(base: list[str], *words: str) -> Two:
    """Return an entry that puts words behind a base."""
    return base, [*base, *words]


def entries(place: Place) -> dict[str, dict[str, Two]]:
    """Return the entries of every command."""
    make, net, weights = place.model(), place.file("net.safetensors"), place.file("weights.pth")
    residual = place.model("residual")
    small = ["--shape", "3,6,6"]
    images = ["--data", place.file("images"), "--size", "8"]
    others = ["--data", place.file("others"), "--size", "8"]
    data: dict[str, list[str]] = {
        "normalise": ["--normalise"],
        "root": ["--root", "/elsewhere"],
        "download": ["--download"],
        "size": ["--size", "9"],
        "channels": ["--channels", "3"],
        "seed": ["--seed", "3"],
    }
    plain = [make, *images]
    audited = [make, "--eps", "0.1", *images, "--weights", weights]
    tuned = [make, "--output", "OUT", *images]
    convert = [make, "--output", "OUT"]
    diagnosed = [residual, *small, "--iterations", "2"]
    drawn = [make, "--output", "OUT/a.png", "--iterations", "1", "--what", "objective"]
    exported = [make, "--output", "OUT/a.onnx"]
    calibrated = [make, "--weights", weights, "--iterations", "2", *images]
    measured = [place.model("pooled"), "--shape", "3,9,9"]

    def of_data(base: list[str]) -> dict[str, Two]:
        found = after(base, **data)
        found["data"] = (base, [*base, *others[:2]])
        found["skip-bad"] = ([*base, *others], [*base, *others, "--skip-bad"])
        return found

    return {
        "explain": after(
            [residual],
            layout=["--layout", "encoder"],
            shape=["--shape", "1,6,6"],
            size=["--size", "-1"],
            weights=["--weights", place.file("residual.pth")],
            classes=["--classes", "5"],
            json=["--json"],
        ),
        "convert": {
            **after(
                convert,
                iterations=["--iterations", "2"],
                weights=["--weights", weights],
                checkpoint=["--checkpoint", net],
                seed=["--seed", "3"],
                classes=["--classes", "5"],
                solver=["--solver", "layered"],
                steps=["--steps", "adaptive"],
                json=["--json"],
            ),
            "layout": ([residual, *convert[1:]], [residual, *convert[1:], "--layout", "encoder"]),
            "output": ([make], convert),
            "to-source": ([make], [make, "--to-source", "OUT"]),
            "hub": ([make], [make, "--hub", "OUT"]),
        },
        "diagnose": {
            **after(
                diagnosed,
                shape=["--shape", "3,8,8"],
                solver=["--solver", "layered"],
                steps=["--steps", "adaptive"],
                device=["--device", "nowhere"],
                size=["--size", "6"],
                iterations=["--iterations", "3"],
                layout=["--layout", "encoder"],
                checkpoint=["--checkpoint", place.file("residual.safetensors")],
                weights=["--weights", place.file("residual.pth")],
                classes=["--classes", "5"],
                batch=["--batch", "3"],
                seed=["--seed", "3"],
                json=["--json"],
            ),
        },
        "coherence": {
            **after(
                measured,
                shape=["--shape", "3,11,11"],
                layout=["--layout", "encoder"],
                boundary=["--boundary", "exact"],
                switches=["--switches", "worst"],
                classes=["--classes", "5"],
                seed=["--seed", "3"],
                json=["--json"],
            ),
            "checkpoint": ([make, *small], [make, *small, "--checkpoint", net]),
            "weights": ([make, *small], [make, *small, "--weights", weights]),
            "size": (measured[:1], [*measured[:1], "--size", "9"]),
        },
        "calibrate": {
            **of_data(calibrated),
            **after(
                calibrated,
                output=["--output", "OUT"],
                count=["--count", "1"],
                iterations=["--iterations", "3"],
                layout=["--layout", "auto"],
                solver=["--solver", "layered"],
                steps=["--steps", "adaptive"],
                device=["--device", "nowhere"],
                json=["--json"],
            ),
            "weights": ([make, *images], [make, *images, "--weights", weights]),
            "checkpoint": ([make, *images], [make, *images, "--checkpoint", net]),
        },
        "plot": {
            **after(
                [*drawn, *small],
                what=["--what", "structure"],
                shape=["--shape", "3,8,8"],
                iterations=["--iterations", "3"],
                solver=["--solver", "layered"],
                steps=["--steps", "adaptive"],
                device=["--device", "nowhere"],
                layout=["--layout", "encoder"],
                checkpoint=["--checkpoint", net],
                weights=["--weights", weights],
                classes=["--classes", "5"],
                seed=["--seed", "3"],
                json=["--json"],
            ),
            "output": ([make], [make, "--output", "OUT/a.png"]),
            "size": ([*drawn, "--size", "5"], [*drawn, "--size", "6"]),
        },
        "export": {
            **after(
                [*exported, *small],
                shape=["--shape", "3,8,8"],
                iterations=["--iterations", "3"],
                solver=["--solver", "layered"],
                steps=["--steps", "adaptive"],
                layout=["--layout", "encoder"],
                checkpoint=["--checkpoint", net],
                classes=["--classes", "5"],
                weights=["--weights", weights],
                seed=["--seed", "3"],
                json=["--json"],
            ),
            "output": ([make], exported),
            "size": ([*exported, "--size", "5"], [*exported, "--size", "6"]),
        },
        "compare": after(
            [residual, *small],
            shape=["--shape", "3,9,9"],
            size=["--size", "6"],
            layout=["--layout", "encoder"],
            steps=["--steps", "2"],
            budget=["--budget", "1"],
            seeds=["--seeds", "2"],
            plot=["--plot", "OUT/bounds.png"],
            latex=["--latex"],
            json=["--json"],
        ),
        "audit": {
            **of_data(audited),
            **after(
                audited,
                eps=["--eps", "8/255"],
                plain=["--plain"],
                protocol=["--protocol", "full"],
                norm=["--norm", "l2"],
                count=["--count", "1"],
                iterations=["--iterations", "2"],
                batch_size=["--batch-size", "2"],
                solver=["--solver", "layered"],
                steps=["--steps", "adaptive"],
                memory=["--memory", "recompute"],
                device=["--device", "nowhere"],
                output=["--output", "OUT"],
                json=["--json"],
            ),
            "layout": twice([residual, "--eps", "0.1", *images], "--layout", "encoder"),
            "weights": ([*plain, "--eps", "0.1"], audited),
            "checkpoint": (
                [*plain, "--eps", "0.1"], [*plain, "--eps", "0.1", "--checkpoint", net]
            ),
            "picture": (
                [*audited, "--output", "OUT"], [*audited, "--output", "OUT", "--picture"]
            ),
        },
        "finetune": {
            **of_data(tuned),
            **after(
                tuned,
                output=["--output", "OUT/deeper"],
                checkpoint=["--checkpoint", net],
                weights=["--weights", weights],
                resume=["--resume"],
                iterations=["--iterations", "2"],
                epochs=["--epochs", "2"],
                batch_size=["--batch-size", "2"],
                lr=["--lr", "0.5"],
                optimizer=["--optimizer", "sgd"],
                recipe=["--recipe", "noise"],
                objective=["--objective", "pgd"],
                set=["--set", "ema=0.5"],
                solver=["--solver", "layered"],
                steps=["--steps", "adaptive"],
                memory=["--memory", "recompute"],
                no_augment=["--no-augment"],
                augment=["--no-augment"],
                json=["--json"],
            ),
            "layout": twice([residual, *tuned[1:]], "--layout", "encoder"),
            "eps": (
                [*tuned, "--objective", "pgd"], [*tuned, "--objective", "pgd", "--eps", "0.3"]
            ),
        },
        "evaluate": {
            **of_data(plain),
            "layout": twice([residual, *images], "--layout", "encoder"),
            "memory": twice([*plain, "--eps", "0.1"], "--memory", "recompute"),
            **after(
                plain,
                solver=["--solver", "layered"],
                steps=["--steps", "adaptive"],
                device=["--device", "nowhere"],
                checkpoint=["--checkpoint", net],
                weights=["--weights", weights],
                sweeps=["--sweeps", "3"],
                part=["--part", "val"],
                limit=["--limit", "2"],
                eps=["--eps", "0.1"],
                attack_steps=["--attack-steps", "3"],
                batch_size=["--batch-size", "2"],
                iterations=["--iterations", "2"],
                json=["--json"],
            ),
        },
        "demo": after([], output=["--output", "OUT"], quick=["--quick"], json=["--json"]),
    }  # fmt: skip


def commands() -> dict[str, Any]:
    found: Any = typer.main.get_command(app)
    return dict(found.commands)


def option_names(command: Any) -> set[str]:
    """Return the options of a command without their dashes, the positive one of a pair."""
    return {
        max(option.opts, key=len).lstrip("-")
        for option in command.params
        if option.param_type_name == "option" and option.name != "help"
    }


COMMANDS = sorted(commands())
PAIRS = [(name, option) for name in COMMANDS for option in sorted(option_names(commands()[name]))]


def test_every_command_and_every_option_has_an_entry(place: Place) -> None:
    assert len(PAIRS) > 80
    known = entries(place)
    assert sorted(known) == COMMANDS
    for name in COMMANDS:
        assert known[name].keys() - {"no-augment"} == option_names(commands()[name]), name


@pytest.mark.parametrize(("command", "option"), PAIRS)
def test_every_option_changes_something(place: Place, command: str, option: str) -> None:
    without, given = entries(place)[command][option]
    assert observed(place, command, given) != repeated(place, command, without)


@pytest.mark.parametrize(
    ("command", "arguments", "words"),
    [
        ("convert", ["MAKE", "--output", "OUT", "--classes", "3"], "--classes 3 would have no"),
        ("diagnose", ["MAKE", "--shape", "3,6,6", "--classes", "3"], "--classes 3 would have no"),
        ("coherence", ["MAKE", "--shape", "3,6,6", "--classes", "3"], "--classes 3 would have no"),
        (
            "evaluate",
            ["MAKE", "DATA", "--attack-steps", "3"],
            "attack_steps=3 would have",
        ),
        (
            "finetune",
            ["MAKE", "DATA", "--output", "OUT", "--eps", "0.3"],
            "--eps 0.3 has no",
        ),
        ("audit", ["MAKE", "DATA", "--eps", "1", "WEIGHTS", "--root", "x"], "root='x' would have"),
        ("audit", ["MAKE", "DATA", "--eps", "1", "WEIGHTS", "--picture"], "--picture needs"),
        (
            "audit",
            ["MAKE", "DATA", "--eps", "1", "WEIGHTS", "--plain", "--iterations", "2"],
            "--plain audits the model itself",
        ),
    ],
)
def test_an_option_that_would_have_no_effect_is_refused(
    place: Place, command: str, arguments: list[str], words: str
) -> None:
    meant = {
        "MAKE": [place.model()],
        "DATA": ["--data", place.file("images"), "--size", "8"],
        "WEIGHTS": ["--weights", place.file("weights.pth")],
    }
    seen = observed(place, command, [word for a in arguments for word in meant.get(a, [a])])
    assert words in seen
    assert json.loads(seen)[0] == 1
