"""The report of an audit: what it says of a network that knows nothing."""

from __future__ import annotations

from typing import Any

import pytest

from pursuitify.robust import AuditReport
from pursuitify.robust.auditing import audit_report
from pursuitify.robust.auditing.red_flags import CurvePoint
from pursuitify.robust.auditing.results_record import AttackResult


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
    assert report.verdict.startswith("none, because" if at_chance else "no flag raised")
    text = " ".join(str(report).split())
    assert (f"cannot be told from guessing among {classes} classes" in text) is at_chance


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("factor", [1 / 255, 0.1, 3.0])
def test_the_picture_shows_every_network_and_no_negative_epsilon(norm: str, factor: float) -> None:
    pytest.importorskip("matplotlib")
    eps = 8 * factor
    setting = {"images": 20, "classes": 10, "eps": eps, "norm": norm, "protocol": "quick"}
    clean = {"network": 0.9, "same weights at T = 0": 0.95, "before": 0.1}
    attack = AttackResult("PGD", "white-box", "network", eps, 20, tuple(range(9)), 9, 1.0)
    curve = (CurvePoint(eps / 4, 0.8), CurvePoint(eps, 0.55), CurvePoint(2 * eps, 0.0, True))
    report = AuditReport(setting, clean, (attack,), curve, (), (), 0.0)
    (axes,) = report.plot().axes
    assert list(axes.get_xticks()) == [0, 1, 2, 3]
    labels = [t.get_text() for t in axes.get_xticklabels()]
    assert labels[0] == "0"
    assert labels[-1].endswith("any image")
    assert not any(label.startswith("-") for label in labels)
    if factor == 1 / 255:
        assert labels == ["0", "2/255", "8/255", "16/255\nany image"]
    containers: list[Any] = list(axes.containers)  # matplotlib types bars as any container
    drawn = {bar.get_label(): bar for bar in containers}
    assert list(drawn) == list(clean)
    for name, bar in drawn.items():
        start, attacked = bar.lines[0].get_ydata()
        assert start == clean[name]
        assert attacked == report.worst(name)
        low, high = bar.lines[2][0].get_segments()[1][:, 1]
        assert (low, high) == pytest.approx(report.interval(name))
    places = sorted(x for bar in drawn.values() for x in bar.lines[0].get_xdata())
    assert len(set(places)) == 6, "bars stand beside each other"
    assert list(axes.lines[0].get_ydata()) == [0.9, 0.8, 0.55, 0.0]
    assert list(axes.lines[0].get_xdata()) == [0, 1, 2, 3]
    assert axes.get_ylim()[0] == 0


@pytest.mark.parametrize(
    ("eps", "written"),
    [(8 / 255, "8/255"), (2 / 255, "2/255"), (0.2, "0.2"), (0.1, "0.1"), (1.0, "1"), (0.0, "0")],
)
def test_radii_are_written_in_the_shorter_way(eps: float, written: str) -> None:
    assert audit_report._radius(eps) == written
