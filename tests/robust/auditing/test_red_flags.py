"""Each red flag on made-up results: raised one input beyond its tolerance, not at it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pursuitify.robust.auditing.gradient_statistics import GradientStatistics
from pursuitify.robust.auditing.red_flags import (
    FLAGS,
    CurvePoint,
    of_attacks,
    of_curve,
    of_gradients,
    tolerance,
)
from pursuitify.robust.auditing.results_record import AttackResult

IMAGES = 1000


def result(name, kind, fooled, *, attacked=IMAGES, error=""):
    return AttackResult(name, kind, "network", 0.1, attacked, tuple(fooled), 0, 0.0, error)


def honest(**more):
    """Results that raise nothing, and more of them."""
    base = {
        "FGSM": result("FGSM", "one-step", range(300)),
        "PGD": result("PGD", "white-box", range(400)),
    }
    return [*(base | more).values()]


def names(flags):
    assert {flag.name for flag in flags} <= set(FLAGS)
    return [flag.name for flag in flags]


def test_tolerance():
    assert (tolerance(1000, 0.01), tolerance(64, 0.01), tolerance(10, 0.02)) == (10, 2, 2)


def test_honest_results_raise_nothing():
    assert of_attacks(honest(), IMAGES) == []


KINDS = {
    "one step beats iterative": ("one-step", 10),
    "noise beats gradients": ("noise", 10),
    "black-box beats white-box": ("black-box", 20),
    "other sweeps do better": ("other-sweeps", 20),
    "adaptive attacks do better": ("adaptive", 20),
}


@pytest.mark.parametrize("flag", KINDS)
def test_what_gradients_miss(flag):
    kind, slack = KINDS[flag]
    for extra in (slack, slack + 1):
        # As many fooled as by PGD, some of them others; its success on PGD's own does not count.
        found = result("it", kind, range(extra, 400 + extra), attacked=77)
        raised = of_attacks(honest(it=found), IMAGES)
        assert names(raised) == ([flag] if extra > slack else [])
    assert raised[0].detail == f"{slack + 1} of 1000 inputs, most of them by it"


def test_one_step_counts_as_a_gradient_against_the_others():
    fooled = {"FGSM": result("FGSM", "one-step", range(100, 408))}
    noise = result("noise", "noise", range(395, 412))
    assert of_attacks(honest(**fooled, noise=noise), IMAGES) == []


def test_weak_attacks():
    for fooled, raised in ((290, 0), (289, 1)):
        flags = of_attacks(honest(APGD=result("APGD", "white-box", range(fooled))), IMAGES)
        assert names(flags) == ["weak attack"] * raised
    assert flags[0].detail == "APGD fools 11 of 1000 fewer than FGSM"
    for fooled, rival in ((380, None), (379, "PGD"), (290, "PGD"), (289, "FGSM")):
        flags = of_attacks(honest(own=result("own", "yours", range(fooled))), IMAGES)
        assert names(flags) == ["weak attack"] * (rival is not None)
        assert rival is None or flags[0].detail.endswith(f"fewer than {rival}")
    survivors = result("APGD-T", "white-box", range(10), attacked=600)
    assert of_attacks(honest(it=survivors), IMAGES) == []


def test_an_attack_that_could_not_run():
    failed = result("APGD", "white-box", range(50), error="no gradient")
    (flag,) = of_attacks(honest(it=failed), IMAGES)
    assert str(flag) == "weak attack: APGD could not run: no gradient"


def curve(*accuracies, start=0.1):
    points = [CurvePoint(start * 2**n, a) for n, a in enumerate(accuracies)]
    return [*points[:-1], replace(points[-1], unbounded=True)]


@pytest.mark.parametrize(
    ("accuracies", "raised"),
    [
        ((0.9, 0.5, 0.0), []),
        ((0.5, 0.51, 0.0), ["larger epsilon does not help"]),  # well below clean, no better
        ((0.5, 0.5, 0.0), ["larger epsilon does not help"]),
        ((0.5, 0.499, 0.0), []),
        ((0.95, 0.95, 0.0), []),  # too small a budget yet
        ((0.15, 0.15, 0.0), []),  # near chance there is nothing left to gain
        ((0.94, 0.951, 0.0), ["larger epsilon does not help"]),  # it rises beyond tolerance
        ((0.94, 0.95, 0.0), []),
        ((0.5, 0.3, 0.1), []),  # chance
        ((0.5, 0.3, 0.12), []),  # Wilson's lower limit is 10.1 %: see the next
        ((0.5, 0.3, 0.13), ["unbounded attack fails"]),
    ],
)
def test_curves(accuracies, raised):
    images = 400 if accuracies[-1] == 0.12 else IMAGES
    assert names(of_curve(curve(*accuracies), 0.96, 10, images)) == raised


def test_two_radii_close_by_may_tie():
    points = [CurvePoint(0.1, 0.5), CurvePoint(0.12, 0.5), CurvePoint(1.0, 0.0, unbounded=True)]
    assert of_curve(points, 0.96, 10, IMAGES) == []


HEALTHY = GradientStatistics("T = 5 (own)", 100, 1.0, 1.0, 0.0, 0.0, 0.5, 4.0, 0.0)


@pytest.mark.parametrize(
    ("change", "raised"),
    [
        ({}, []),
        ({"zero_entries": 0.9}, []),  # dead pixels alone are common
        ({"zero_ce": 0.05, "zero_margin": 0.05, "faint": 0.25}, []),
        ({"zero_ce": 0.06}, ["zero gradients"]),
        ({"zero_margin": 0.06}, ["zero gradients"]),
        ({"faint": 0.26}, ["vanishing gradients"]),
    ],
)
def test_gradients(change, raised):
    own, other = replace(HEALTHY, **change), replace(HEALTHY, zero_ce=1.0, faint=1.0)
    assert names(of_gradients([own, other])) == raised
    assert of_gradients([]) == []
