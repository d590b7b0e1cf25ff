"""The pages render: every Markdown table stands alone and has as many cells in each row."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import pytest

HOME = Path(__file__).resolve().parents[2]
PAGES = [HOME / "README.md", HOME / "CONTRIBUTING.md", *sorted(HOME.glob("docs/**/*.md"))]
#: GFM reads a bar as the end of a cell, in code and in formulas too, unless it is escaped.
BAR = re.compile(r"(?<!\\)\|")
RULE = re.compile(r"\|( :?-+:? \|)+")


def problems(text: str) -> Iterator[str]:
    """Say what keeps the tables of a page from rendering.

    A block of lines that begin with a bar is a table: blank lines are around it (a heading may come
    before), its second line and no other is the rule, and its rows have as many cells.
    """
    fenced = False
    lines = [("", False)]
    for line in text.split("\n"):
        fenced ^= line.startswith("```")
        lines.append((line, line.startswith("|") and not fenced))
    for inside, block in groupby(enumerate([*lines, ("", False)]), lambda entry: entry[1][1]):
        if not inside:
            continue
        found = list(block)
        first, last = found[0][0], found[-1][0]
        rows = [row for _, (row, _) in found]
        before, after = lines[first - 1][0], [line for line, _ in lines[last + 1 : last + 2]]
        if any(after) or (before and not before.startswith("#")):
            yield f"no blank line around the table at line {first}"
        if [n for n, row in enumerate(rows) if RULE.fullmatch(row)] != [1]:
            yield f"the table at line {first} has not one rule, below its heads"
        counts = {len(BAR.findall(row)) for row in rows}
        if len(counts) > 1:
            yield f"rows of the table at line {first} have {sorted(counts)} bars"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(HOME)))
def test_every_table_renders(page: Path) -> None:
    assert list(problems(page.read_text())) == []


TABLE = "| a | b |\n| --- | --- |\n| 1 | 2 |\n"


@pytest.mark.parametrize(
    "text",
    [
        TABLE + "![picture](a.png)\n",
        "prose\n" + TABLE,
        TABLE + TABLE,
        TABLE.replace("a", "||r||"),
        TABLE.replace("2", "2 | 3"),
        "| a | b |\n| 1 | 2 |\n",
    ],
)
def test_what_does_not_render_is_found(text: str) -> None:
    assert list(problems(text))
    assert not list(problems(f"```\n{text}```\n"))


def test_what_renders_is_not() -> None:
    assert not list(problems(f"prose\n\n{TABLE}\n{TABLE}"))
    assert not list(problems(TABLE.replace("a", r"\|a\|")))


#: Pages whose paths are not looked at yet.
UNREAD = {"docs/performance.md"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(HOME)))
def test_every_path_that_a_page_names_is_there(page: Path) -> None:
    """Paths below a folder of the project in code spans, and the targets of links."""
    if str(page.relative_to(HOME)) in UNREAD:
        pytest.skip("not looked at yet")
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for path in re.findall(r"`((?:pursuitify|tests|docs|examples|benchmarks)/[\w./-]*)`", text):
        assert (HOME / path).exists(), path
    for path in re.findall(r"\]\(([^):#]+)(?:#[^)]*)?\)", text):
        assert (page.parent / path).exists(), path


def test_the_index_lists_every_page_once() -> None:
    index = HOME / "docs" / "index.md"
    listed = re.findall(r"^\| \[(.*?)\]\((.*?)\) \| .+ \|$", index.read_text(), re.MULTILINE)
    paths = [path for kind in ("md", "rst") for path in HOME.glob(f"docs/**/*.{kind}")]
    pages = {str(path.relative_to(HOME / "docs")) for path in paths} - {"index.md"}
    others = {"../CHANGELOG.md", "../CONTRIBUTING.md", "../examples/README.md"}
    assert sorted(target for _, target in listed) == sorted(pages | others)
    by_path = [name for name, target in listed if name == target.rpartition(".")[0]]
    assert len(by_path) == len(pages) - 1, "a page is named by its path, but for the gallery"


def test_the_readme_is_short() -> None:
    assert len((HOME / "README.md").read_text().splitlines()) < 120


def test_docstrings_cite_sections_that_are_there() -> None:
    page = HOME / "pursuitify" / "dictionary" / "mathematics.md"
    assert (HOME / "docs" / "mathematics.md").resolve() == page
    sections = set(re.findall(r"^## (\d+)\. ", page.read_text(), re.MULTILINE))
    for path in HOME.glob("pursuitify/**/*.py"):
        cited = re.findall(r"mathematics\.md,?\s+section (\d+)", path.read_text())
        assert set(cited) <= sections, path
