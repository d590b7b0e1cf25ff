"""The examples of everyday use run as they are, on little data."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

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


def test_hub(example: object, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    hub = example("hub")
    assert hub.main(["--output", str(tmp_path / "repo"), "--images", "300"]) == 0
    assert "the same as saved: True" in capsys.readouterr().out
    files = sorted(p.name for p in (tmp_path / "repo").iterdir())
    assert files == ["README.md", "config.json", "model.safetensors"]
    config = json.loads((tmp_path / "repo" / "config.json").read_text())
    config["builder"] = "os.system"
    (tmp_path / "repo" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"os\.system.*not one of"):
        hub.from_pretrained(tmp_path / "repo")


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
