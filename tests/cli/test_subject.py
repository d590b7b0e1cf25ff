"""The subject of a command: models by name, and what runs remember."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("typer")
from PIL import Image

from pursuitify import PursuitifyError
from pursuitify.checkpoints.origin import Origin
from pursuitify.cli.subject import Subject


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes of images, and a file that is none."""
    for name in ("cats", "dogs"):
        (tmp_path / name).mkdir()
        for number in range(8):
            Image.new("L", (8, 8), 20 * number).save(tmp_path / name / f"{number}.png")
    (tmp_path / "cats" / "broken.png").write_bytes(b"no image")
    return tmp_path


def read(folder: Path, **options: Any) -> Any:
    given = {"root": None, "download": False, "size": 8, "channels": 1, "seed": 0}
    return Subject("net", None, Origin()).data(str(folder), **given, **options)[0]


def test_bad_files_are_left_out_and_listed_on_request(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = read(folder, skip_bad=True)
    shown = capsys.readouterr()
    assert "left out 1 files" in shown.err
    assert "broken.png" in shown.err
    assert shown.out == ""
    parts: Any = (data.train, data.val, data.test)
    assert sum(len(part) for part in parts) == 16


def test_a_bad_file_is_an_error_otherwise(folder: Path) -> None:
    data = read(folder, skip_bad=False)
    parts: Any = (data.train, data.val, data.test)
    with pytest.raises(PursuitifyError, match=r"broken\.png"):
        _ = [part[number] for part in parts for number in range(len(part))]
