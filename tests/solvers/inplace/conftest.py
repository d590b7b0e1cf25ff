"""These tests are about the fast path itself."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def sweeps_path() -> None:
    """Leave the fast path on."""
