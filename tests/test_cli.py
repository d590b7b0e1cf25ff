"""The command line: what it prints, exit codes, no traceback on a refusal."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("typer")
from typer.testing import CliRunner

from pursuitify.cli import app
from pursuitify.errors import OptionError
from pursuitify.sources import load_model

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
    assert "N(G)" in runner.invoke(app, ["coherence", *common[:-1]]).stdout
    wrong = runner.invoke(app, ["coherence", *common, "--switches", "corner"])
    assert isinstance(wrong.exception, OptionError)
    exact = runner.invoke(app, ["coherence", *common, "--switches", "worst", "--boundary", "exact"])
    assert json.loads(exact.stdout)["boundary"] == "exact"


def test_refusals_have_no_traceback() -> None:
    command = [sys.executable, "-m", "pursuitify.cli"]
    for arguments in (["explain", "resnet_of_dreams"], ["diagnose", "resnet18", "--shape", "x"]):
        result = subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)
        assert result.returncode == 1
        assert "error:" in result.stderr
        assert "Traceback" not in result.stderr


@pytest.mark.parametrize("name", ["nothing", "no/such.py:make", "timm:no_such_model"])
def test_models_that_do_not_exist(name: str) -> None:
    if name.startswith("timm:"):
        pytest.importorskip("timm")
    with pytest.raises(OptionError):
        load_model(name)
