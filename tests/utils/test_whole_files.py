"""Files written by other libraries, JSON that every reader takes, exports that leave no ruin."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from pursuitify import CheckpointError, load, pursuitify, save
from pursuitify.cli.model_sources import load_weights
from pursuitify.errors import ExportError
from pursuitify.export import export_onnx
from pursuitify.utils.atomic_files import as_json, whole


def test_a_block_that_fails_leaves_the_old_files(tmp_path: Path) -> None:
    target = tmp_path / "net.onnx"
    for text, failing in (("good", False), ("bad", True)):
        try:
            with whole(target) as path:
                assert path.name == target.name
                path.write_text(text)
                path.with_name("net.onnx.data").write_text(text)
                if failing:
                    raise KeyboardInterrupt
        except KeyboardInterrupt:
            assert failing
        assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {
            "net.onnx": "good",
            "net.onnx.data": "good",
        }


def test_what_is_not_finite_is_null() -> None:
    content = {"a": math.nan, "b": [1.5, math.inf, (-math.inf, 2)], "c": "NaN"}
    assert json.loads(as_json(content)) == {"a": None, "b": [1.5, None, [None, 2]], "c": "NaN"}
    assert "NaN" not in as_json([math.nan])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_an_export_that_cannot_run_keeps_the_good_file(tmp_path: Path, dtype: torch.dtype) -> None:
    for name in ("onnxruntime", "onnxscript", "onnx"):
        pytest.importorskip(name)
    path = tmp_path / "net.onnx"
    body = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(72, 2)).eval()
    net, x = pursuitify(body, iterations=1).eval(), torch.rand(2, 1, 8, 8)
    export_onnx(net, x, path)
    good = path.read_bytes()
    with pytest.raises(ExportError, match=f"cannot run this network in {dtype}.*net.float"):
        export_onnx(net.to(dtype), x.to(dtype), path)
    assert path.read_bytes() == good
    assert [p.name for p in tmp_path.iterdir()] == ["net.onnx"]
    difference = export_onnx(net.float(), x, path)  # the advice, followed
    assert difference is not None
    assert difference < 1e-3


class Tied(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        if how == "one parameter":
            self.b.weight = self.a.weight
        elif how == "one module":
            self.b = self.a
        elif how == "a view":
            self.b.weight = nn.Parameter(self.a.weight.data.T)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.c(torch.relu(self.b(torch.relu(self.a(x)))))
        return y


TIES = ("none", "one parameter", "one module", "a view")


@pytest.mark.parametrize("into", TIES)
@pytest.mark.parametrize("of", TIES)
def test_a_loaded_network_is_the_saved_one_or_is_refused(
    tmp_path: Path, of: str, into: str
) -> None:
    torch.manual_seed(0)
    x, source = torch.rand(4, 6), Tied(of).eval()
    net = pursuitify(source, iterations=2).eval()
    save(net, tmp_path / "net")
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    plain = Tied(into).eval()
    for read in (
        lambda: load(tmp_path / "net", Tied(into).eval()).eval()(x) - net(x),
        lambda: (load_weights(plain, tmp_path / "weights.pth"), plain(x) - source(x))[1],
    ):
        try:
            assert read().abs().max() <= 1e-6
        except CheckpointError as error:
            assert of != into
            text = str(error)
            assert "are one tensor in the model" in text or "belongs to another" in text
