"""The examples of everyday use run as they are, on little data."""

from __future__ import annotations

import importlib
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> object:
    """Import an example as Python does when it runs: its folder comes first."""
    monkeypatch.syspath_prepend(str(EXAMPLES))

    def load(name: str) -> ModuleType:
        return importlib.import_module(name)

    yield load
    for path in EXAMPLES.glob("*.py"):
        sys.modules.pop(path.stem, None)


def percentages(text: str, label: str) -> list[float]:
    return [float(found) for found in re.findall(rf"{label}\D*?([\d.]+)%", text)]


def test_plain_loop(example: object, capsys: pytest.CaptureFixture[str]) -> None:
    assert example("plain_loop").main(["--epochs", "3", "--sweeps", "3", "--images", "600"]) == 0
    text = capsys.readouterr().out
    scales = [float(s) for s in re.findall(r"step scale ([\d.]+)", text)]
    assert scales == [0.5, 1.0, 1.0]
    assert percentages(text, "accuracy")[-1] >= percentages(text, "source")[0] - 10 > 40


SHORT = ["--epochs", "3", "--sweeps", "2", "--images", "500"]


def test_accelerate_loop(example: object, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("accelerate")
    assert example("accelerate_loop").main(SHORT) == 0
    text = capsys.readouterr().out
    assert [float(s) for s in re.findall(r"step scale ([\d.]+)", text)] == [0.5, 1.0, 1.0]
    assert percentages(text, ", accuracy")[-1] >= percentages(text, "source")[0] - 10 > 40


def stand_in_for_lightning() -> ModuleType:
    """Return a module ``lightning`` that runs the loop that the example hands over, as it does."""

    class LightningModule(nn.Module):
        current_epoch = 0

        def log(self, name: str, value: Tensor, prog_bar: bool = False) -> None:
            assert value.isfinite()

    class Trainer:
        def __init__(self, max_epochs: int, **options: object) -> None:
            self.epochs = max_epochs

        def fit(self, module: Any, train: Any, val: Any) -> None:
            assert module.net.training, "Lightning trains in the mode that it finds"
            optimizer = module.configure_optimizers()
            for module.current_epoch in range(self.epochs):
                module.on_train_epoch_start()
                for i, batch in enumerate(train):
                    optimizer.zero_grad()
                    module.training_step(batch, i).backward()
                    optimizer.step()
                module.eval()
                with torch.no_grad():
                    for i, batch in enumerate(val):
                        module.validation_step(batch, i)
                module.train()

    found = ModuleType("lightning")
    vars(found).update(LightningModule=LightningModule, Trainer=Trainer)
    return found


def test_lightning_module(
    example: object, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "lightning", stand_in_for_lightning())
    assert example("lightning_module").main(SHORT) == 0
    text = capsys.readouterr().out
    assert percentages(text, "T = 2:")[-1] >= percentages(text, "source")[0] - 10 > 40


def test_own_solver(example: object, capsys: pytest.CaptureFixture[str]) -> None:
    assert example("own_solver").main(["--size", "6"]) == 0
    lines = capsys.readouterr().out.splitlines()
    found = {line.split("│")[1].strip(): float(line.split("│")[2]) for line in lines if "│" in line}
    least = found["L-BFGS-B to the end"]
    assert found["Lasso to the end"] == pytest.approx(least, abs=2e-5)
    assert least <= min(found.values()) + 2e-5
    assert found["the network, T = 50, adaptive"] < 1.01 * least < found["the network fed forward"]
    assert f"{least:.6f}" in lines[-1]


@pytest.mark.parametrize(
    ("name", "library", "advice"),
    [
        ("accelerate_loop", "accelerate", "pursuitify[train]"),
        ("lightning_module", "lightning", "pip install lightning"),
        ("own_solver", "scipy", "pursuitify[scipy]"),
    ],
)
def test_what_an_example_misses_is_named(
    example: object,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    library: str,
    advice: str,
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    assert example(name).main([]) == 1
    assert advice in capsys.readouterr().out


def test_timm_model(example: object, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("timm")
    main = example("timm_model").main
    assert main(["--model", "test_resnet", "--size", "32", "--sweeps", "2"]) == 0
    text = capsys.readouterr().out
    assert "the outputs are the same" in text
    assert text.count("chosen") == 1
    assert main(["--model", "test_vit"]) == 1, "a refusal is not a success"
    assert "cannot be converted" in capsys.readouterr().out


def test_timm_missing(
    example: object, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    assert example("timm_model").main([]) == 1
    assert "pursuitify[timm]" in capsys.readouterr().out


def test_outside_attacks_missing(
    example: object, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "foolbox", None)
    assert example("autoattack").main() == 1
    assert "pursuitify[robust]" in capsys.readouterr().out


@pytest.mark.parametrize("push", [[], ["--push", "me/digits"]], ids=["alone", "pushed"])
def test_hub(
    push: list[str],
    example: object,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The Hub is a folder here: what is uploaded is what is downloaded."""
    store = tmp_path / "store"
    api = SimpleNamespace(
        create_repo=lambda repo, exist_ok: None,
        upload_folder=lambda repo_id, folder_path: shutil.copytree(folder_path, store / repo_id),
    )
    hub = SimpleNamespace(HfApi=lambda: api, snapshot_download=lambda repo: str(store / repo))
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    output = ["--output", str(tmp_path / "repo"), "--images", "300"]
    assert example("hub").main([*output, *push]) == 0
    assert "the same as saved: True" in capsys.readouterr().out
    files = sorted(p.name for p in (tmp_path / "repo").iterdir())
    assert files == ["README.md", "config.json", "model.safetensors"]
    assert (store / "me" / "digits").is_dir() == bool(push)


@pytest.mark.slow
def test_export_and_inference_without_the_library(
    example: object, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert example("export_digits").main(["--output", str(tmp_path), "--images", "600"]) == 0
    trained = percentages(capsys.readouterr().out, "accuracy at T = 3")[0]
    assert trained > 40
    code = (
        "import sys; sys.path.insert(0, sys.argv.pop(1)); import inference_only as example; "
        "code = example.main(sys.argv[1:]); "
        "print('imported', sorted({'pursuitify', 'sklearn'} & set(sys.modules))); sys.exit(code)"
    )
    for name in ("net.onnx", "net.pt2"):
        found = subprocess.run(
            [sys.executable, "-c", code, EXAMPLES, tmp_path / name, tmp_path / "images.npz"],
            capture_output=True,
            text=True,
            check=True,
            timeout=600,
        )
        assert percentages(found.stdout, "accuracy") == [trained], name
        assert "imported []" in found.stdout
