"""Tables as text."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from rich.table import Table
from rich.text import Text

import pursuitify as package
from pursuitify.utils.terminal import as_text, bar


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


def test_parts_begin_lines_and_keep_to_the_width() -> None:
    lines = as_text("first", "word " * 20, width=30).splitlines()
    assert lines[0] == "first"
    assert max(map(len, lines)) <= 30
    assert "".join(lines).count("word") == 20


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
    assert [place.partition(":")[0] for place in found] == ["utils/terminal.py"]


@pytest.mark.parametrize("wanted", [True, False])
def test_a_bar_is_on_standard_error(wanted: bool, capsys: pytest.CaptureFixture[str]) -> None:
    with bar(wanted, "counting", 2) as advance:
        advance()
        advance()
    out, err = capsys.readouterr()
    assert out == ""
    assert ("counting" in err) == wanted
