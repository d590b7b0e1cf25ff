"""``pursuitify audit``: its report in every form, exit codes, no traceback on a refusal."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("typer")
pytest.importorskip("sklearn")
import torch
from PIL import Image
from typer.testing import CliRunner

from pursuitify import pursuitify, save
from pursuitify.cli.app import app
from pursuitify.data import load_data
from pursuitify.errors import CheckpointError, PursuitifyError
from pursuitify.models import ChainNet
from tests.support.command_line import command

runner = CliRunner()
FACTORY = """
import torch
from torch import nn
from pursuitify.models import ChainNet
from pursuitify.data import load_data

def linear():
    x, y = load_data("digits").train.tensors()
    x = torch.cat([x.flatten(1), torch.ones(len(x), 1)], 1).double()
    fit = torch.linalg.lstsq(x, torch.eye(10)[y].double()).solution.float()
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    net[1].weight.data, net[1].bias.data = fit[:64].T.contiguous(), fit[64]
    return net

class Quantised(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = linear()
    def forward(self, x):
        return self.net(torch.round(4 * x) / 4)

def chain():
    return ChainNet(1, 10, width=2)
"""


@pytest.fixture
def factory(tmp_path: Path) -> str:
    (tmp_path / "mine.py").write_text(FACTORY)
    return str(tmp_path / "mine.py")


@pytest.fixture
def saved(tmp_path: Path) -> str:
    torch.manual_seed(0)
    save(pursuitify(ChainNet(1, 10, width=2).eval(), iterations=2), tmp_path / "net.safetensors")
    return str(tmp_path / "net.safetensors")


def audit(*arguments: object):
    return runner.invoke(app, ["audit", *map(str, arguments)])


def test_no_flag_is_exit_code_0(factory, tmp_path):
    common = (f"{factory}:linear", "--plain", "--eps", "1/10", "--count", 64)
    done = audit(*common)
    assert done.exit_code == 0, done.output
    assert "Verdict: no flag raised" in done.output
    assert "64 inputs, linf ball of 0.1, protocol quick" in " ".join(done.output.split())
    other = audit(*common[:-1], 32, "--norm", "l2", "--seed", 1, "--json")
    facts = json.loads(other.stdout)
    assert facts["setting"]["images"] == 32
    assert (facts["setting"]["norm"], facts["setting"]["seed"]) == ("l2", 1)


def test_flags_are_exit_code_3(factory):
    done = audit(f"{factory}:Quantised", "--plain", "--eps", 0.1, "--count", 64, "--json")
    assert done.exit_code == 3
    assert "zero gradients" in json.loads(done.stdout)["verdict"]


def test_a_saved_network_its_folder_and_its_picture(factory, saved, tmp_path):
    pytest.importorskip("matplotlib")
    folder = tmp_path / "a" / "b"
    common = (f"{factory}:chain", "--checkpoint", saved, "--data", "digits", "--eps", 0.1)
    common = (*common, "--count", 12, "--output", folder, "--json")
    done = audit(*common, "--picture")
    assert done.exit_code in (0, 3), done.output
    facts = json.loads(done.stdout)
    assert facts["setting"]["iterations"] == 2
    assert set(facts["networks"]) == {"network", "same weights at T = 0"}
    names = {"record.json", "report.json", "report.txt", "accuracy.png"}
    assert {path.name for path in folder.iterdir()} == names
    assert json.loads((folder / "report.json").read_text()) == facts
    again = json.loads(audit(*common).stdout)
    assert again["seconds"] == facts["seconds"]  # every attack was found in the record
    other = audit(*common, "--iterations", 3)
    assert other.exit_code == 1
    assert isinstance(other.exception, PursuitifyError)
    assert "differs in iterations" in str(other.exception)


def test_a_folder_of_images_and_normalisation(factory, tmp_path):
    for part in ("train", "test"):
        for label in ("3", "7"):
            (tmp_path / "set" / part / label).mkdir(parents=True)
            for n in range(8):
                image = torch.randint(0, 256, (9, 9, 3), dtype=torch.uint8)
                Image.fromarray(image.numpy()).save(tmp_path / "set" / part / label / f"{n}.png")
    data = load_data(tmp_path / "set", size=8)
    torch.manual_seed(0)
    model = data.normalise(ChainNet(3, 2, width=2)).eval()
    save(pursuitify(model, iterations=1), tmp_path / "colour.safetensors")
    source = tmp_path / "colour.py"
    source.write_text(FACTORY.replace("ChainNet(1, 10", "ChainNet(3, 2"))
    common = (f"{source}:chain", "--checkpoint", tmp_path / "colour.safetensors")
    common = (*common, "--data", tmp_path / "set", "--size", 8, "--eps", "8/255", "--json")
    done = audit(*common, "--normalise")
    assert done.exit_code in (0, 3), done.output
    facts = json.loads(done.stdout)
    assert facts["setting"]["images"] == 16  # the whole test part, and nothing else
    assert facts["setting"]["classes"] == 2
    assert facts["setting"]["iterations"] == 1
    done = audit(*common)
    assert done.exit_code == 1
    assert "with a normalisation in front, and does not say which" in str(done.exception)
    assert "give --normalise" in str(done.exception)


REFUSED = {
    "no weights": (["resnet18", "--data", "digits"], "checkpoint"),
    "no model": (["resnet_of_dreams", "--weights", "x"], "no model"),
    "eps of another scale": (["LINEAR", "--data", "digits", "--eps", "8"], "8/255 meant?"),
    "no data": (["LINEAR", "--data", "moons"], "neither a data set"),
    "eps": (["LINEAR", "--data", "digits", "--eps", "8/0"], "8/255"),
    "negative eps": (["LINEAR", "--data", "digits", "--eps", "-1"], "positive"),
    "protocol": (["LINEAR", "--data", "digits", "--protocol", "fast"], "'quick'"),
    "norm": (["LINEAR", "--data", "digits", "--norm", "l7"], "'linf'"),
    "count": (["LINEAR", "--data", "digits", "--count", "0"], "nothing to attack"),
    "picture": (["LINEAR", "--data", "digits", "--picture"], "--output"),
    "sweeps": (["LINEAR", "--data", "digits", "--iterations", "3"], "--plain"),
    "batch size": (["LINEAR", "--data", "digits", "--batch-size", "0"], "batch_size"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(factory, case):
    arguments, message = REFUSED[case]
    if arguments[0] == "LINEAR":
        arguments = [f"{factory}:linear", "--plain", *arguments[1:]]
    if "--eps" not in arguments:
        arguments += ["--eps", "0.1"]
    done = audit(*arguments)
    assert done.exit_code == 1
    assert isinstance(done.exception, PursuitifyError)
    assert message in str(done.exception)


def test_a_refusal_has_no_traceback_and_a_wrong_call_is_exit_code_2():
    for arguments, code in ((["resnet18", "--data", "digits", "--eps", "x"], 1), ([], 2)):
        done = command("audit", *arguments)
        assert done.returncode == code
        assert "Traceback" not in done.stderr


def test_an_output_that_is_a_file(factory, tmp_path):
    (tmp_path / "file").write_text("")
    done = audit(f"{factory}:linear", "--plain", "--eps", 0.1, "--output", tmp_path / "file")
    assert isinstance(done.exception, CheckpointError)
    assert "cannot make the folder" in str(done.exception)
