"""These tests check what writing does to its path: links, modes, and what is no file at all."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from pursuitify import CheckpointError
from pursuitify.robust.auditing.results_record import write
from pursuitify.utils.atomic_files import (
    clear_leftovers,
    whole,
    write_copy,
    write_tensors,
    write_text,
)


def write_whole(path: Path) -> None:
    with whole(path) as written:
        written.write_text("new")


Write = Callable[[Path], Any]
WRITERS: dict[str, Write] = {
    "tensors": lambda path: write_tensors(path, {"a": torch.ones(2)}, "key", {}),
    "text": lambda path: write_text(path, "new"),
    "copy": lambda path: write_copy(path, Path(__file__)),
    "another library's": write_whole,
    "json": lambda path: write(path, {"a": 1}),
}
pytestmark = [
    pytest.mark.skipif(os.name != "posix", reason="modes, pipes and links as POSIX has them"),
    pytest.mark.parametrize("name", WRITERS),
]


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def umask() -> Iterator[None]:
    before = os.umask(0o027)
    yield
    os.umask(before)


@pytest.mark.usefixtures("umask")
def test_a_new_file_has_the_mode_the_umask_allows(name: str, tmp_path: Path) -> None:
    WRITERS[name](tmp_path / "new")
    assert mode_of(tmp_path / "new") == 0o640


@pytest.mark.parametrize("mode", [0o664, 0o600, 0o444])
def test_an_existing_file_keeps_its_mode(name: str, mode: int, tmp_path: Path) -> None:
    path = tmp_path / "old"
    path.write_text("old")
    path.chmod(mode)
    WRITERS[name](path)
    assert mode_of(path) == mode
    assert path.read_bytes() != b"old"


def test_links_are_followed(name: str, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    target, link = tmp_path / "elsewhere" / "target", tmp_path / "link"
    link.symlink_to(target)
    for _ in range(2):  # to nothing yet, then to a file
        WRITERS[name](link)
        assert link.is_symlink()
        assert target.is_file()
    assert [p.name for p in target.parent.iterdir()] == ["target"]


def test_what_is_no_file_is_left_alone(name: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "round").symlink_to(tmp_path / "round")
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    for path, kind in [
        ("pipe", "a pipe"),
        ("link", "a pipe"),
        ("folder", "a folder"),
        ("round", "a symbolic link that leads back"),
    ]:
        with pytest.raises(CheckpointError, match=f"cannot write .*it is {kind}.*Give the path"):
            WRITERS[name](tmp_path / path)
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    assert len(list(tmp_path.iterdir())) == 4, "something is left over"


def test_leftovers_are_found_where_the_link_leads(name: str, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "elsewhere" / "target")
    WRITERS[name](link)
    (tmp_path / "elsewhere" / ".target.01234567").touch()
    clear_leftovers(link)
    assert [p.name for p in (tmp_path / "elsewhere").iterdir()] == ["target"]
