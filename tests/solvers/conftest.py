"""Every test of the solvers runs on both paths: sweeps in place, and the plain reference."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pursuitify import backends


@pytest.fixture(autouse=True, params=[True, False], ids=["inplace", "plain"])
def sweeps_path(request: pytest.FixtureRequest) -> Iterator[None]:
    """Choose the path of sweeps without derivatives; a folder or file may override it."""
    with backends.inplace(request.param):
        yield
