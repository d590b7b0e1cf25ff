"""Checks of options: what passes is a plain number, what does not is named with its limits."""

from __future__ import annotations

import ast
import json
import math
from collections.abc import Callable
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import pursuitify as package
from pursuitify.errors import MissingExtraError, OptionError
from pursuitify.training.config import Config
from pursuitify.utils import option_checks

NO_NUMBERS: tuple[Any, ...] = (None, True, "1", [1], torch.tensor(1.0), 1j, math.nan, math.inf)


@pytest.mark.parametrize("check", [option_checks.whole_number, option_checks.number])
@pytest.mark.parametrize("value", NO_NUMBERS, ids=repr)
def test_what_is_no_number_is_refused(check: Callable[..., Any], value: Any) -> None:
    with pytest.raises(OptionError, match=r"^size="):
        check("size", value)


@given(st.integers(-5, 5), st.integers(-3, 3))
def test_whole_numbers_are_those_from_the_least(value: int, least: int) -> None:
    for given_value in (value, np.int64(value)):
        if value >= least:
            found = option_checks.whole_number("size", given_value, least=least)
            assert found == value
            assert type(found) is int
        else:
            with pytest.raises(OptionError, match=rf"is not a whole number >= {least}"):
                option_checks.whole_number("size", given_value, least=least)
    assert option_checks.whole_number("size", value) == value
    with pytest.raises(OptionError):
        option_checks.whole_number("size", value + 0.5)


@given(st.sampled_from([-1.0, 0.0, 0.5, 1.0, 2.0]), st.sampled_from(["least", "above"]))
def test_numbers_are_those_within_limits(value: float, low: str) -> None:
    limits = {low: 0.0, "below" if low == "least" else "most": 1.0}
    fits = 0 <= value < 1 if low == "least" else 0 < value <= 1
    for given_value in (value, np.float32(value), Fraction(value)):
        if fits:
            found = option_checks.number("size", given_value, **limits)
            assert found == value
            assert type(found) is float
        else:
            with pytest.raises(OptionError, match=r"is not a finite number >=? 0 and <=? 1$"):
                option_checks.number("size", given_value, **limits)


def test_what_a_name_stands_for() -> None:
    assert option_checks.chosen("norm", "l2", {"linf": 1, "l2": 2}) == 2
    for value in ("l1", None, ["l2"]):
        with pytest.raises(OptionError, match=r"^norm=.* is not one of 'linf', 'l2'$"):
            option_checks.chosen("norm", value, {"linf": 1, "l2": 2})


def test_a_configuration_holds_plain_numbers_and_names_every_problem() -> None:
    config = Config(epochs=np.int64(3), lr=np.float32(0.5), seed=np.int32(1))
    assert json.loads(json.dumps(asdict(config)))["epochs"] == 3
    assert config == Config(epochs=3, lr=0.5, seed=1)
    wrong: dict[str, Any] = {"epochs": 0, "lr": 0, "patience": 1.5, "keep": "all", "progress": 1}
    with pytest.raises(OptionError) as error:
        Config(**wrong)
    assert all(f"  - {name}={value!r} is not " in str(error.value) for name, value in wrong.items())


def test_no_other_place_words_the_refusal_of_a_choice() -> None:
    """A list of what is valid comes from ``one_of``, wherever an OptionError has one."""
    home = Path(package.__file__).parent
    found = [
        f"{path.relative_to(home)}:{node.lineno}"
        for path in sorted(home.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) == "OptionError"
        and any(words in ast.unparse(node) for words in ("is unknown; valid", "is not one of"))
    ]
    assert [place.partition(":")[0] for place in found] == ["utils/option_checks.py"]


@pytest.mark.parametrize("value", [0, -3, 2**63, 2**64 - 1, -(2**63), np.int64(5)])
def test_seeds_are_what_torch_takes(value: int) -> None:
    found = option_checks.seed("seed", value)
    assert type(found) is int
    assert found == value
    torch.Generator().manual_seed(found)


@pytest.mark.parametrize("value", [2**64, -(2**63) - 1, 1.0, "1", None, True, torch.tensor(1)])
def test_what_is_no_seed_is_refused(value: Any) -> None:
    with pytest.raises(OptionError, match=r"seed=.* is not a whole number of 64 bits"):
        option_checks.seed("seed", value)


def test_paths() -> None:
    assert option_checks.path("output", "a/b") == option_checks.path("output", Path("a/b"))
    for value in (None, 5, True, "", ["a"]):
        with pytest.raises(OptionError, match=r"output=.* is not the path of a file or a folder"):
            option_checks.path("output", value)


def test_a_library_that_is_not_there_names_its_extra() -> None:
    option_checks.extra("plots", "math", "json")
    with pytest.raises(MissingExtraError, match=r"no_such_library is .*'pursuitify\[plots\]'"):
        option_checks.extra("plots", "math", "no_such_library")


def test_the_nearest_name_is_asked_for(tmp_path: Path) -> None:
    assert option_checks.nearest("epoch", ["epochs", "lr"]) == "; did you mean 'epochs'?"
    assert option_checks.nearest("zebra", ["epochs", "lr"]) == ""
    (tmp_path / "best.safetensors").touch()
    message = option_checks.no_file(tmp_path / "bset.safetensors")
    assert message.endswith(f"did you mean '{tmp_path / 'best.safetensors'}'?")
    assert option_checks.no_file(Path("no/folder")) == "there is no file no/folder"
    assert option_checks.nearest_path(Path("/")) == ""
