"""``pursuitify calibrate``: what it writes is what the library's one call gives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("typer")
pytest.importorskip("sklearn")
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader, Subset
from typer.testing import CliRunner

from pursuitify import load, pursuitify, save
from pursuitify.cli.app import app
from pursuitify.data import load_data
from pursuitify.models import ResidualNet

runner = CliRunner()
FACTORY = """
from pursuitify.models import ResidualNet
def make():
    return ResidualNet(1, 10, width=2)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a model that has learnt the digits a little, and its weights."""
    root = tmp_path_factory.mktemp("calibrate")
    (root / "mine.py").write_text(FACTORY)
    torch.manual_seed(0)
    model = ResidualNet(1, 10, width=2)
    digits: Any = load_data("digits").train
    x, y = digits.tensors()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    for part in torch.randperm(len(x)).split(64):
        optimizer.zero_grad()
        F.cross_entropy(model(x[part]), y[part]).backward()
        optimizer.step()
    torch.save(model.state_dict(), root / "weights.pth")
    return root


def test_the_command_is_the_one_call(folder: Path) -> None:
    name, out = f"{folder / 'mine.py'}:make", folder / "net.safetensors"
    common = ["--weights", str(folder / "weights.pth"), "--iterations", "5", "--count", "100"]
    done = runner.invoke(app, ["calibrate", name, *common, "--output", str(out), "--json"])
    assert done.exit_code == 0, done.output
    facts = json.loads(done.stdout)
    model = ResidualNet(1, 10, width=2)
    model.load_state_dict(torch.load(folder / "weights.pth"))
    held: Any = load_data("digits").val
    chosen = torch.randperm(len(held), generator=torch.Generator().manual_seed(0))[:100]
    batches = DataLoader(Subset(held, chosen.tolist()), 64)
    net = pursuitify(model.eval(), 5, calibrate=batches)
    assert facts == json.loads(json.dumps(net.calibration.to_dict()))
    again = load(out, model).eval()
    x = held.tensors()[0][:8]
    assert torch.equal(again(x), net(x))
    assert (again.step_scale, again.offsets) == (net.step_scale, "stationary")
    assert again.atom_gains.keys() == net.atom_gains.keys()
    text = runner.invoke(app, ["calibrate", name, *common])
    assert "calibrate: " in text.stderr
    assert "calibrate: " not in done.stderr
    assert "offsets 'stationary'" in text.stdout
    assert "latents moved" in text.stdout


def test_a_checkpoint_keeps_its_layout_and_offsets(folder: Path) -> None:
    model = ResidualNet(1, 10, width=2)
    model.load_state_dict(torch.load(folder / "weights.pth"))
    save(pursuitify(model.eval(), 3, offsets="threshold"), folder / "paper.safetensors")
    name, out = f"{folder / 'mine.py'}:make", folder / "tuned.safetensors"
    options = ["--checkpoint", str(folder / "paper.safetensors"), "--output", str(out)]
    done = runner.invoke(app, ["calibrate", name, *options])
    assert done.exit_code == 0, done.output
    assert "paper.safetensors keeps its layout, auto." in done.stderr
    again = load(out, model)
    assert again.offsets == "threshold"
    assert again.iterations == 3
    assert len(again.atom_gains) > 1
