"""compare(): two bounds of every architecture, by one method."""

from __future__ import annotations

import itertools
import math
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pursuitify import ConversionError, InputError, OptionError, coherence, pursuitify
from pursuitify.analysis import compare, minimum_frame_potential
from pursuitify.analysis.measures import min_frame_potential
from pursuitify.analysis.measures.compare import Comparison
from pursuitify.models import ChainNet, DenselyConnectedNet, ResidualNet

SHAPE = (1, 6, 6)
MODELS = {
    "chain": lambda: ChainNet(1, 3, width=2),
    "residual": lambda: ResidualNet(1, 3, width=2),
    "dense": lambda: DenselyConnectedNet(1, 3, width=2),
}


def small(**options: object) -> Comparison:
    given = {"steps": 1} | options
    return compare({k: make() for k, make in MODELS.items()}, SHAPE, **given)


@pytest.fixture(scope="module")
def looked() -> Comparison:
    """A comparison in which one start of each network is looked at."""
    return small()


@settings(max_examples=12)
@given(
    name=st.sampled_from(sorted(MODELS)),
    seed=st.integers(0, 999),
    gain=st.sampled_from([0.1, 1.0, 30.0]),
)
def test_no_weights_are_below_the_lower_bound(
    looked: Comparison, name: str, seed: int, gain: float
) -> None:
    torch.manual_seed(seed)
    model = MODELS[name]().double().eval()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(gain)
    (row,) = [r for r in looked.rows if r.name == name]
    assert coherence(pursuitify(model), SHAPE).frame_potential >= row.lower - 1e-12


def test_the_upper_bound_is_what_the_search_finds(looked: Comparison) -> None:
    longer = small(steps=8, seeds=2)
    for one, more in zip(looked.rows, longer.rows, strict=True):
        assert (one.starts, one.steps, one.stopped) == (1, 1, True)
        assert (more.starts, more.steps, more.stopped) == (2, 8, True)
        assert more.lower == one.lower
        assert more.lower <= more.upper < one.upper
        assert math.isclose(more.gap, more.upper - more.lower)
    # A chain is searched as the others are, although it has a closed form.
    chain = minimum_frame_potential(MODELS["chain"](), SHAPE, method="optimise", seeds=1, steps=3)
    assert longer.rows[0].upper <= chain.value


def test_steps_give_the_same_numbers_whatever_the_clock_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delitem(MODELS, "dense")
    monkeypatch.delitem(MODELS, "residual")
    found = small(steps=6, seeds=2)
    ticks = itertools.count()
    monkeypatch.setattr(time, "monotonic", lambda: 1e4 * next(ticks))  # a very slow machine
    again = small(steps=6, seeds=2)
    assert [row.upper for row in again.rows] == [row.upper for row in found.rows]
    assert "6 steps" in str(found)
    timed = small(steps=None, budget=1.0)
    assert {(row.starts, row.steps) for row in timed.rows} == {(1, 1)}
    assert "1 s" in timed.rules


def test_steps_follow_from_the_size_of_the_architecture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(min_frame_potential, "_WORK", 1.2e10)
    found = small(steps=None, seeds=2)
    assert found.limits == "steps by the architecture's size"
    steps = {row.name: row.steps for row in found.rows}
    assert steps["chain"] > steps["residual"] > steps["dense"] > 1
    monkeypatch.setattr(min_frame_potential, "_WORK", 8e9)
    for work, seeds, expected in ((1e9, 2, 5), (1e10, 3, 1), (3e9, 3, 2), (2e9, 1, 2)):
        assert min_frame_potential.steps_for(work, seeds) == expected


def test_a_search_that_converges_says_so() -> None:
    found = compare({"one": nn.Sequential(nn.Linear(4, 3), nn.ReLU())}, (4,), seeds=1)
    assert not found.rows[0].stopped
    assert found.rows[0].upper < 1e-6


def test_models_stay_as_they_are_and_networks_keep_their_layout() -> None:
    model = MODELS["residual"]().train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    net = pursuitify(MODELS["chain"](), layout="encoder")
    found = compare({"model": model, "net": net}, SHAPE, steps=1)
    assert model.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert found.rows[1].encoder_rows > 0
    assert found.rows[1].parameters == sum(p.numel() for p in MODELS["chain"]().parameters())


def test_it_is_shown_in_every_form(looked: Comparison, tmp_path: Path) -> None:
    text, latex = str(looked), looked.to_latex()
    for row in looked.rows:
        for shown in (row.name, f"{row.lower:.5f}", f"{row.upper:.5f}"):
            assert shown in text
            assert shown in latex
    assert "unit norm" in text
    facts = looked.to_dict()
    assert [n["name"] for n in facts["networks"]] == list(MODELS)
    assert facts["networks"][0]["gap"] == looked.rows[0].gap
    figure = looked.plot(tmp_path / "bounds.svg")
    assert (tmp_path / "bounds.svg").stat().st_size > 0
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == list(MODELS)
    assert looked.plot().axes  # without a file


def test_names_are_no_latex() -> None:
    found = compare({"a_b & 50%": MODELS["chain"]()}, SHAPE, steps=1)
    assert r"a\_b \& 50\% &" in found.to_latex()


def test_what_cannot_be_compared_is_said_at_once() -> None:
    wrong = nn.Sequential(nn.Conv2d(1, 2, 3), nn.GELU())
    with pytest.raises(ConversionError) as raised:
        compare({"one": wrong, "good": MODELS["chain"](), "two": wrong}, SHAPE)
    assert "'one'" in str(raised.value)
    assert "'two'" in str(raised.value)
    assert len(raised.value.problems) == 2
    with pytest.raises(OptionError, match="at least one model"):
        compare({}, SHAPE)
    for name, value in (("budget", -1), ("steps", 0)):
        with pytest.raises(OptionError, match=f"{name}={value}"):
            small(**{name: value})
    rows = nn.Sequential(nn.Linear(4, 3), nn.ReLU())  # of an image
    with pytest.raises(InputError, match=r"'rows'.*no interior form"):
        compare({"rows": rows}, (2, 4), steps=1)
    with pytest.raises(InputError, match="'chain'"):
        compare({"chain": MODELS["chain"]()}, (5, 6, 6), steps=1)


def test_a_budget_ends_the_search_of_one() -> None:
    model = MODELS["residual"]()
    begun = minimum_frame_potential(model, SHAPE, budget=0.0)
    assert begun.stopped
    assert len(begun.seeds) == 1
    assert "budget" in str(begun)
    free = minimum_frame_potential(model, SHAPE, seeds=1, steps=3)
    assert not free.stopped
    assert free.value <= begun.value
    report = coherence(pursuitify(model), SHAPE)
    assert report.minimum_frame_potential(seeds=1, steps=3).value == free.value
