"""The report of an audit: what it says of a network that knows nothing."""

from __future__ import annotations

import pytest

from pursuitify.robust import AuditReport
from pursuitify.robust.auditing.red_flags import CurvePoint


@pytest.mark.parametrize(
    ("right", "images", "classes", "at_chance"),
    [
        (0, 100, 10, True),
        (10, 100, 10, True),
        (15, 100, 10, True),
        (20, 100, 10, False),
        (98, 100, 10, False),
        (5, 8, 2, True),
        (625, 1000, 2, False),
    ],
)
def test_a_network_that_guesses_is_said_to(
    right: int, images: int, classes: int, at_chance: bool
) -> None:
    setting = {"images": images, "classes": classes, "eps": 0.1, "norm": "linf", "protocol": "own"}
    points = (CurvePoint(0.1, 0.5),)
    report = AuditReport(setting, {"network": right / images}, (), points, (), (), 0.0)
    assert report.at_chance is at_chance
    assert report.to_dict()["at_chance"] is at_chance
    text = " ".join(str(report).split())
    assert (f"cannot be told from guessing among {classes} classes" in text) is at_chance
