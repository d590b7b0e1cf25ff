"""The architecture page is what its script writes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HOME = Path(__file__).resolve().parents[2]


def test_the_page_is_up_to_date() -> None:
    command = [sys.executable, str(HOME / "docs" / "make_architecture.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=HOME)
    assert done.returncode == 0, done.stderr


def test_every_file_that_the_page_names_is_there() -> None:
    import re

    text = (HOME / "docs" / "architecture.md").read_text()
    named = set(re.findall(r"`([a-z_]+(?:/[a-z_]+)+(?:\.py)?/?)`", text))
    assert len(named) > 15
    for path in named:
        assert any((root / path).exists() for root in (HOME, HOME / "pursuitify")), path
