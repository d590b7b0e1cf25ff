"""The tables of docs/performance.md are what the committed measurements say."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

pytest.importorskip("torchvision")
from benchmarks import render, scaling

PAGE = (
    "a\n<!-- table: baselines -->\nold\n<!-- end -->\nb\n<!-- table: exponents -->\n<!-- end -->\n"
)


def record(path: Path, rows: list[dict[str, object]]) -> None:
    where = {"threads": 1, "processor": "abacus", "torch": "2"}
    path.write_text(json.dumps({"environment": where, "rows": rows}))


def test_the_page_is_what_the_committed_measurements_render_to() -> None:
    page = render.PAGE.read_text()
    assert render.render(page) == page, "run python benchmarks/render.py"


def test_every_table_is_on_the_page() -> None:
    found = [name for _, name, _ in render.MARKED.findall(render.PAGE.read_text())]
    assert sorted(found) == sorted(render.TABLES)


def test_rendering_twice_changes_nothing_and_follows_the_measurements(tmp_path: Path) -> None:
    row = {"model": "net", "batch": 4, "size": 96, "sweeps": 3, "way": "ours", "sources": 7.5}
    record(tmp_path / "baselines.json", [row])
    once = render.render(PAGE, tmp_path)
    assert render.render(once, tmp_path) == once
    assert once.startswith("a\n")
    assert "\nb\n" in once
    assert "old" not in once
    assert "batch 4, 96 px, 1 thread, abacus" in once
    assert "| net | 3 | ours | 7.5 |" in once
    assert "Not run. `python benchmarks/scaling.py`" in once
    record(tmp_path / "baselines.json", [{**row, "sources": 8.5}])
    again = render.render(once, tmp_path)
    assert again == once.replace("7.5", "8.5") != once


def test_an_unknown_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="'speed'"):
        render.render("<!-- table: speed -->\n<!-- end -->\n", tmp_path)


def test_the_fit_finds_the_exponent() -> None:
    xs = [1, 2, 4, 8]
    assert scaling.fit(xs, [3 * x**1.5 for x in xs]) == pytest.approx((1.5, 1.0))
    assert scaling.fit(xs, [2.0] * 4) == pytest.approx((0.0, 1.0))
    # By hand: logs base 2 of x are 0 1 2, of y 0 0 3; slope 3/2, residuals 1/2 -1 1/2 of a total 6.
    power, r2 = scaling.fit([1, 2, 4], [1, 1, 8])
    assert (power, r2) == pytest.approx((1.5, 0.75))
    assert not math.isnan(r2)
