"""The Python blocks of the pages run as they are printed, in order, one name space per page."""

from __future__ import annotations

import contextlib
import io
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import pytest
import torch

HOME = Path(__file__).resolve().parents[2]
#: A block, and the block of text right behind it: what it prints.
BLOCK = re.compile(r"^```python\n(.*?)^```$(?:\n\n```text\n(.*?)^```$)?", re.MULTILINE | re.DOTALL)
NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e-?\d+)?")


@dataclass(frozen=True)
class Page:
    """How the blocks of one page run.

    Attributes:
        given: Code for the names that the page takes as given.
        smaller: Text of a block -> what stands in its place, so that it takes seconds.
        needs: Libraries beyond the dependencies; without one the page is skipped.
        slow: Why the page takes long, or empty.
    """

    given: str = ""
    smaller: Mapping[str, str] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    slow: str = ""


MODEL = """
import torch
from pursuitify import calibrate, pursuitify
from pursuitify.models import ResidualNet
torch.manual_seed(0)
model = ResidualNet(3, 4, width=2).eval()
"""
#: Data and epochs of a training of seconds.
SHORT = "[data.train[n] for n in range(32)], [data.val[n] for n in range(8)], epochs=1"
PAGES = {
    "README.md": Page(),
    "docs/accuracy.md": Page(MODEL + "batches = [torch.rand(4, 3, 8, 8) for _ in range(2)]"),
    "docs/api.md": Page(
        "from tests.support.controls import TINY",
        smaller={
            'protocol="quick"': "protocol=TINY",
            "DataLoader(data.test, 32)": "DataLoader(data.test, 4)",
            "data.train, data.val, epochs=5": SHORT,
            "data.val, 256)": "data.val, 8)",
            "steps=20, restarts=5": "steps=2, restarts=1",
        },
        needs=("accelerate", "matplotlib", "onnxruntime", "onnxscript", "sklearn"),
    ),
    "docs/from-your-model.md": Page(MODEL + "batches = [torch.rand(4, 3, 8, 8) for _ in range(2)]"),
    "docs/certified.md": Page(
        "import torch\nfrom torch import nn\ntorch.manual_seed(0)\n"
        "model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))\n"
        "x, y, eps = torch.rand(4, 6), torch.randint(3, (4,)), 0.1"
    ),
    "docs/coherence.md": Page(
        "from pursuitify.models import ResidualNet",
        smaller={
            'torchvision.models.resnet50(weights="DEFAULT")': "ResidualNet(3, 1000, width=2)",
            "torch.rand(2, 3, 224, 224)": "torch.rand(2, 3, 8, 8)",
            "net, (3, 224, 224))\nprint": "net, (3, 16, 16))\nprint",
            "net, (3, 224, 224))  #": "net, (3, 16, 16))  #",
        },
        needs=("matplotlib",),
        slow="the search of the least frame potential",
    ),
    "docs/export.md": Page(
        MODEL,
        smaller={
            "iterations=5": "iterations=1",
            "torch.rand(2, 3, 224, 224)": "torch.rand(2, 3, 8, 8)",
        },
        needs=("onnxruntime", "onnxscript"),
    ),
    "docs/extending.md": Page(
        f"""
import sys
from dataclasses import dataclass
import torch
from torch import nn
sys.path.insert(0, {str(HOME / "examples")!r})
from custom_op import LowPass, SoftThreshold, lowpass
sys.path.pop(0)
class MyAttention(nn.Module):
    def forward(self, x): return x.softmax(1)
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 8), nn.Softshrink(0.1), nn.Linear(8, 8), nn.ReLU())
        self.gate = MyAttention()
    def forward(self, x):
        x = lowpass(self.body(x), keep=4)
        return torch.relu(x * self.gate(x))
model = Net()
"""
    ),
    "docs/memory.md": Page(
        MODEL + "net = pursuitify(model, iterations=2)",
        smaller={"(3, 224, 224), batch=128": "(3, 8, 8), batch=4"},
    ),
    "docs/robustness.md": Page(
        MODEL
        + "net = pursuitify(model, iterations=1)\n"
        + "x, y = torch.rand(4, 3, 8, 8), torch.randint(4, (4,))",
        needs=("matplotlib",),
        slow="a quick audit",
    ),
    "docs/training.md": Page(
        smaller={
            "data.train, data.val, epochs=3": SHORT,
            "evaluate(net, data.test)": "evaluate(net, [data.test[0]])",
        },
        needs=("accelerate", "sklearn"),
    ),
    "docs/tutorials/image-folder.md": Page(
        needs=("accelerate", "matplotlib"), slow="training of a resnet"
    ),
    "docs/tutorials/robustness.md": Page(
        needs=("accelerate", "matplotlib", "sklearn"), slow="audits"
    ),
    "docs/tutorials/sparse-coding.md": Page(needs=("matplotlib", "scipy")),
}
#: Pages whose Python is no program of its own.
PARTS = {
    "docs/architecture.md": "the source and the generated code of one network; a script writes it",
}


def blocks(page: str) -> list[tuple[int, str, str | None]]:
    """Return of every Python block the number of its first line, its text, and what it prints."""
    text = (HOME / page).read_text()
    return [
        (text.count("\n", 0, found.start(1)) + 1, found.group(1), found.group(2))
        for found in BLOCK.finditer(text)
    ]


def same_output(printed: str, shown: str) -> bool:
    """Whether two outputs agree but for spaces at line ends and rounding in their numbers."""
    lines = [[line.rstrip() for line in text.strip("\n").split("\n")] for text in (printed, shown)]
    words, others = (NUMBER.sub("#", "\n".join(part)) for part in lines)
    numbers, expected = ([float(n) for n in NUMBER.findall("\n".join(part))] for part in lines)
    return re.sub(" +", " ", words) == re.sub(" +", " ", others) and numbers == pytest.approx(
        expected, rel=1e-2, abs=1e-5
    )


def test_every_page_with_python_is_listed() -> None:
    texts = [HOME / "README.md", HOME / "CONTRIBUTING.md", *sorted((HOME / "docs").rglob("*.md"))]
    names = {str(path.relative_to(HOME)) for path in texts}
    assert {name for name in names if blocks(name)} == {*PAGES, *PARTS}


def test_python_stands_in_python_fences() -> None:
    """An indented block of Python would be read by nobody and run by no test."""
    for path in [HOME / "README.md", *sorted((HOME / "docs").rglob("*.md"))]:
        outside = re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
        found = re.findall(r"^    (?:from \S+ import|import |net = ).*$", outside, re.MULTILINE)
        assert [line for line in found if path.name != "training.md"] == [], path.name


def run(page: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Run a page's blocks in a module of their own, in a folder; lines are those of the page."""
    wanted = PAGES[page]
    monkeypatch.chdir(folder)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    name = "snippets_" + re.sub(r"\W", "_", page)
    module = ModuleType(name)
    monkeypatch.setitem(sys.modules, name, module)
    exec(compile(wanted.given, f"<given to {page}>", "exec"), vars(module))
    left = set(wanted.smaller)
    for line, text, shown in blocks(page):
        for printed, smaller in wanted.smaller.items():
            if printed in text:
                left.discard(printed)
                text = text.replace(printed, smaller)
        written = io.StringIO()
        with contextlib.redirect_stdout(written):
            exec(compile("\n" * (line - 1) + text, str(HOME / page), "exec"), vars(module))
        if shown is not None:
            assert same_output(written.getvalue(), shown), written.getvalue()
    assert not left, f"no block of {page} holds {left} any more"
    return module


@pytest.mark.parametrize(
    "page",
    [pytest.param(p, marks=pytest.mark.slow) if PAGES[p].slow else p for p in PAGES],
)
def test_the_page_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for library in PAGES[page].needs:
        pytest.importorskip(library)
    with torch.random.fork_rng():
        run(page, tmp_path, monkeypatch)


def test_what_does_not_run_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test can fail: a block that reads a name that nothing has made ends in its error."""
    monkeypatch.setitem(PAGES, "docs/accuracy.md", Page())
    with pytest.raises(NameError, match="pursuitify"):
        run("docs/accuracy.md", tmp_path, monkeypatch)


@pytest.mark.parametrize(
    ("printed", "same"),
    [("a 1.004  \n b", True), ("a  1.0\n b", True), ("a 1.1\n b", False), ("c 1\n b", False)],
)
def test_an_output_that_is_not_the_page_s_is_found(printed: str, same: bool) -> None:
    assert same_output(printed, "a 1\n b") is same
