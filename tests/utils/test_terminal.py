"""Tables as text."""

from __future__ import annotations

import ast
import builtins
import dataclasses
import html
import importlib
import pkgutil
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table
from rich.text import Text

import pursuitify as package
from pursuitify.utils.terminal import Shown, as_text, bar


def table() -> Table:
    found = Table("name", title="numbers")
    found.add_row(Text("one", style="bold red"))
    return found


@pytest.mark.parametrize("colour", [{}, {"FORCE_COLOR": "1"}, {"TTY_COMPATIBLE": "1"}])
def test_a_table_as_text_has_no_colours(
    colour: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Text goes into files and tests: it may not depend on the terminal it is made on."""
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    plain = as_text(table(), width=60)
    for name, value in colour.items():
        monkeypatch.setenv(name, value)
    found = as_text(table(), width=60)
    assert found == plain
    assert "one" in found
    assert "\x1b" not in found


def test_text_keeps_to_the_width() -> None:
    lines = as_text("word " * 20, width=30).splitlines()
    assert max(map(len, lines)) <= 30
    assert "".join(lines).count("word") == 20


class ZMQInteractiveShell:
    """The name by which rich knows a notebook."""


@pytest.fixture
def notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builtins, "get_ipython", ZMQInteractiveShell, raising=False)
    assert Console().is_jupyter


@dataclass(frozen=True)
class Lines(Shown):
    """A report that is text."""

    value: int = 7

    def __str__(self) -> str:
        return f"a[b] < {self.value}"


@dataclass(frozen=True)
class Tabled(Shown):
    """A report with a table."""

    value: int = 7

    def __rich__(self) -> Table:
        return table()

    def __str__(self) -> str:
        return as_text(self, width=60)


@pytest.mark.usefixtures("notebook")
@pytest.mark.parametrize(
    ("report", "shown"), [(Lines(), "a[b] &lt; 7"), (Tabled(), "one")], ids=["text", "table"]
)
def test_a_notebook_shows_a_report(report: Shown, shown: str) -> None:
    """In a notebook rich writes to the cell: the text of a report was empty there."""
    text = html.unescape(shown)
    assert text in str(report)
    assert text in f"{report}"
    made = report._repr_html_()
    assert shown in made
    assert made.startswith("<pre")
    assert "value=" not in made


@pytest.mark.parametrize("report", [Lines(), Tabled()], ids=["text", "table"])
def test_rich_prints_the_text_of_a_report(report: Shown) -> None:
    assert as_text(report, width=60).strip() == str(report).strip()


def test_every_report_is_shown() -> None:
    """What a public function returns to be read has a text, and every form of it."""
    for module in pkgutil.walk_packages(package.__path__, "pursuitify."):
        if "__main__" not in module.name:
            importlib.import_module(module.name)
    reports = {
        kind
        for module in list(sys.modules.values())
        if module.__name__.startswith("pursuitify.")
        for kind in vars(module).values()
        if isinstance(kind, type)
        and kind.__module__ == module.__name__
        and dataclasses.is_dataclass(kind)
        and "__str__" in vars(kind)
    }
    plain = {kind.__name__ for kind in reports if not issubclass(kind, Shown)}
    assert plain == {"Problem", "Pair", "Flag"}, "these are one line of a report"
    assert len(reports) >= 12


def test_no_other_place_makes_text_of_tables() -> None:
    home = Path(package.__file__).parent
    found = [
        f"{path.relative_to(home)}:{node.lineno}"
        for path in sorted(home.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "Console"
        and any(keyword.arg == "file" for keyword in node.keywords)
    ]
    assert {place.partition(":")[0] for place in found} == {"utils/terminal.py"}


@pytest.mark.parametrize("wanted", [True, False])
def test_a_bar_is_on_standard_error(wanted: bool, capsys: pytest.CaptureFixture[str]) -> None:
    with bar(wanted, "counting", 2) as advance:
        advance()
        advance()
    out, err = capsys.readouterr()
    assert out == ""
    assert ("counting" in err) == wanted


@pytest.mark.parametrize(("total", "lines"), [(3, 3), (20, 20), (1000, 20)])
def test_without_a_terminal_lines_stand_for_the_bar(
    total: int, lines: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with bar(True, "counting", total) as advance:
        seen = []
        for _ in range(total):
            advance()
            seen += capsys.readouterr().err.splitlines()  # while it counts, not at the end
    assert len(seen) == lines
    assert seen[-1] == f"counting: {total} of {total}"


def test_on_a_terminal_there_is_a_bar(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    with bar(True, "counting", 3) as advance:
        advance()
    assert "━" in capsys.readouterr().err
