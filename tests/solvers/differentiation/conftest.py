"""These tests are about recorded sweeps, which are never in place."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def sweeps_path() -> None:
    """Leave the fast path on."""
