"""Files written by other libraries, JSON that every reader takes, exports that leave no ruin."""

from __future__ import annotations

import ast
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import pursuitify as package
from pursuitify import CheckpointError, OptionError, coherence, load, plots, pursuitify, save
from pursuitify.analysis.measures import plots as coherence_plots
from pursuitify.cli.model_sources import load_weights
from pursuitify.errors import ExportError
from pursuitify.export import export_onnx
from pursuitify.robust import AuditReport
from pursuitify.robust.auditing.red_flags import CurvePoint
from pursuitify.utils.atomic_files import as_json, whole


def small() -> Any:
    return pursuitify(nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU()).eval(), iterations=1)


def audited() -> AuditReport:
    setting = {"images": 4, "classes": 2, "eps": 0.1, "norm": "linf", "protocol": "quick"}
    points = (CurvePoint(0.1, 0.5), CurvePoint(1.0, 0.0, unbounded=True))
    return AuditReport(setting, {"network": 1.0}, (), points, (), (), 0.0)


#: Everything that draws a picture into a file.
PICTURES: dict[str, Callable[[Path], Any]] = {
    "structure": lambda path: plots.plot_structure(small(), path),
    "objective": lambda path: plots.plot_objective(small().diagnose(torch.rand(1, 1, 5, 5)), path),
    "Gram blocks": lambda path: coherence_plots.plot_gram_blocks(
        coherence(small(), (1, 5, 5)), path
    ),
    "sparsity": lambda path: coherence_plots.plot_block_sparsity(
        coherence(small(), (1, 5, 5)), path
    ),
    "families": lambda path: coherence_plots.plot_families({"a": [(1, 1)]}, path, size="layers"),
    "audit": lambda path: audited().plot(path),
}
pictures = pytest.mark.parametrize("name", PICTURES)


@pictures
@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt(), RuntimeError("font")])
def test_a_picture_that_fails_leaves_the_old_one(
    name: str, error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figure = pytest.importorskip("matplotlib.figure").Figure
    target = tmp_path / "picture.png"
    PICTURES[name](target)
    good, draw = target.read_bytes(), figure.savefig
    assert good.startswith(b"\x89PNG")

    def half(self: Any, path: Path, **options: Any) -> None:
        draw(self, path, **options)
        path.write_bytes(path.read_bytes()[:100])
        raise error

    monkeypatch.setattr(figure, "savefig", half)
    with pytest.raises(CheckpointError if isinstance(error, OSError) else type(error)):
        PICTURES[name](target)
    assert target.read_bytes() == good
    assert list(tmp_path.iterdir()) == [target]


@pictures
@pytest.mark.parametrize("file", ["picture", "picture.", "picture.docx", ".png"])
def test_a_picture_without_a_format_is_refused(name: str, file: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    with pytest.raises(OptionError, match=r"must be one of .*pdf, .*png, .*svg"):
        PICTURES[name](tmp_path / file)
    assert list(tmp_path.iterdir()) == []


@pictures
def test_a_picture_below_a_file_or_behind_a_link(name: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    (tmp_path / "file").write_text("a")
    with pytest.raises(CheckpointError, match="cannot make the folder"):
        PICTURES[name](tmp_path / "file" / "picture.png")
    link, aim = tmp_path / "link.PNG", tmp_path / "aim"
    link.symlink_to(aim)
    PICTURES[name](link)
    assert link.is_symlink()
    assert aim.read_bytes().startswith(b"\x89PNG")


#: What makes or writes a file or a folder, by name of the method or function.
_WRITES = {
    "mkdir",
    "makedirs",
    "write_text",
    "write_bytes",
    "savefig",
    "save_file",
    "touch",
    "mkstemp",
}
#: Files that may: the one place, and the one that asks for a temporary file's name.
_MAY = {"utils/atomic_files.py", "robust/auditing/results_record.py"}


def test_nothing_else_writes_files() -> None:
    """Every file is written in one place, so that none is ever left half written."""
    home = Path(package.__file__).parent
    found = []
    for path in sorted(home.rglob("*.py")):
        name = path.relative_to(home).as_posix()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            called = getattr(node.func, "attr", getattr(node.func, "id", ""))
            values = [*node.args, *(word.value for word in node.keywords)]
            texts = [v.value for v in values if isinstance(v, ast.Constant)]
            opens = called == "open" and any(
                isinstance(text, str) and set(text) <= set("rwaxbt+") and set(text) & set("wax+")
                for text in texts
            )
            ours = isinstance(node.func, ast.Name) and called == "write_text"
            if (called in _WRITES and not ours) or opens:
                found.append((name, node.lineno, called))
    assert {name for name, _, _ in found} == _MAY, found


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
