"""These tests check who sees the calls of a thread, and that profilers go on as they were."""

from __future__ import annotations

import cProfile
import sys
from types import FrameType
from typing import Any

import pytest

from pursuitify.utils import frames


def called() -> int:
    return len("four")


def seen_by(names: list[str]) -> frames.Note:
    def note(frame: FrameType, event: str, arg: Any) -> None:
        if event == "call":
            names.append(frame.f_code.co_name)
        elif event == "c_call":
            names.append(arg.__name__)

    return note


def test_calls_are_noted_inside_alone() -> None:
    names: list[str] = []
    called()
    with frames.noted(seen_by(names)) as noted:
        called()
    called()
    assert noted
    assert names.count("called") == names.count("len") == 1
    assert sys.getprofile() is None


def test_watches_inside_each_other_both_see() -> None:
    outer: list[str] = []
    inner: list[str] = []
    with frames.noted(seen_by(outer)):
        with frames.noted(seen_by(inner)):
            called()
        called()
    assert (outer.count("called"), inner.count("called")) == (2, 1)


def test_a_profiler_written_in_c_is_off_meanwhile_and_goes_on() -> None:
    names: list[str] = []
    with cProfile.Profile() as profile:
        held = sys.getprofile()
        with frames.noted(seen_by(names)) as noted:
            called()
        assert sys.getprofile() is held
        "after".upper()
    assert noted
    assert names.count("called") == 1
    profile.create_stats()
    assert any("upper" in name for _, _, name in profile.stats)
    assert not any("called" in name for _, _, name in profile.stats)


def test_an_error_ends_the_watch() -> None:
    with pytest.raises(KeyError), frames.noted(lambda *_: None):
        raise KeyError
    assert sys.getprofile() is None
