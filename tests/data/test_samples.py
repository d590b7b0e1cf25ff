"""Inputs, labels and logits: what torch takes, or an error that says what to do."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from pursuitify import InputError, OptionError, PursuitifyError
from pursuitify.data.samples import (
    IGNORED,
    check_inputs,
    check_labels,
    check_logits,
    cross_entropy,
    labelled,
    right,
)

CLASSES = 4
INTEGERS = [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool]


@given(
    labels=st.lists(st.integers(-2, CLASSES + 1) | st.just(IGNORED), min_size=1, max_size=9),
    kind=st.sampled_from(INTEGERS),
)
def test_class_numbers_are_what_torch_takes_or_are_refused(
    labels: list[int], kind: torch.dtype
) -> None:
    y = torch.tensor(labels).to(kind)
    logits = torch.randn(len(y), CLASSES, generator=torch.Generator().manual_seed(0))
    numbers = y.long().tolist()
    if any(n != IGNORED and not 0 <= n < CLASSES for n in numbers):
        with pytest.raises(InputError, match="has the label"):
            check_labels(y, len(y), CLASSES)
        return
    found = check_labels(y, len(y), CLASSES)
    assert found.tolist() == numbers
    kept = [n for n in numbers if n != IGNORED]
    assert int(labelled(found).sum()) == len(kept)
    hits = [int(a) == b for a, b in zip(logits.argmax(1), numbers, strict=True)]
    assert right(logits, found).tolist() == hits
    wanted = F.cross_entropy(logits, found) if kept else torch.tensor(0.0)
    assert torch.equal(cross_entropy(logits, found), wanted)


def test_probabilities() -> None:
    y = torch.softmax(torch.randn(5, CLASSES), 1)
    logits = torch.randn(5, CLASSES)
    assert check_labels(y, 5, CLASSES) is y
    assert torch.equal(
        cross_entropy(logits, y, 0.1), F.cross_entropy(logits, y, label_smoothing=0.1)
    )
    assert torch.equal(right(logits, y), logits.argmax(1) == y.argmax(1))
    assert bool(labelled(y).all())
    assert check_labels(y.half(), 5, CLASSES).dtype == torch.float16


SOFT = torch.full((3, CLASSES), 0.25)


@pytest.mark.parametrize(
    ("y", "words"),
    [
        ([0, 1, 2], "a list, not a tensor"),
        (torch.tensor([0.5, 1.0, 2.0]), r"integers: give y\.long\(\)"),
        (torch.zeros(3, dtype=torch.complex64), "complex64"),
        (torch.zeros(3, 1, dtype=torch.int64), r"give y\.squeeze\(1\)"),
        (torch.eye(3, CLASSES, dtype=torch.int64), r"one-hot rows as y\.argmax\(1\)"),
        (torch.zeros(2, dtype=torch.int64), r"not \(3,\)"),
        (torch.tensor([1, 2, CLASSES]), "count from 1: subtract 1"),
        (torch.tensor([0, 2, CLASSES]), "numbered 0 to 3: 1 of 3 labels are beyond them$"),
        (torch.tensor([0, -1, 2]), "label -1; .*-100 for a sample without"),
        (SOFT[:2], r"not \(3, 4\)"),
        (SOFT[:, :3], r"not \(3, 4\)"),
        (SOFT * 2, "is 1 away from 1"),
        (SOFT * float("nan"), "not all numbers"),
        (SOFT - 1, "at least 0"),
    ],
)
def test_refusals(y: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        check_labels(y, 3, CLASSES)


def test_where_only_class_numbers_will_do() -> None:
    with pytest.raises(InputError, match=r"give y\.argmax\(1\)"):
        check_labels(SOFT, 3, CLASSES, soft=False)
    with pytest.raises(InputError, match=r"label -100; .* has to be left out here$"):
        check_labels(torch.tensor([0, IGNORED]), 2, CLASSES, ignored=False)
    assert check_labels(torch.empty(0, dtype=torch.int64), 0, CLASSES).tolist() == []


@pytest.mark.parametrize(
    ("logits", "words"),
    [
        (torch.zeros(3, 1), "one logit per sample"),
        (torch.zeros(3), "one logit per sample"),
        (torch.zeros(2, 4), r"logits \(3, classes\), not \(2, 4\)"),
        (torch.zeros(3, 4, 5), r"not \(3, 4, 5\)"),
        ({"out": SOFT}, "not dict"),
    ],
)
def test_outputs_that_are_no_logits(logits: Any, words: str) -> None:
    with pytest.raises(OptionError, match=words):
        check_logits(logits, 3)


def test_the_advice_on_one_logit_keeps_the_probabilities() -> None:
    z = torch.randn(6, 1, dtype=torch.float64)
    y = torch.tensor([0, 1, 1, 0, 1, 0])
    both: Tensor = torch.cat([torch.zeros_like(z), z], 1)
    wanted = F.binary_cross_entropy_with_logits(z[:, 0], y.double())
    assert float(F.cross_entropy(check_logits(both, 6), y)) == pytest.approx(
        float(wanted), rel=1e-12
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_are_refused_where_that_is_asked_for(value: float) -> None:
    logits = torch.zeros(2, 3)
    logits[1, 2] = value
    assert check_logits(logits, 2) is logits
    with pytest.raises(InputError, match="not finite"):
        check_logits(logits, 2, finite=True)


@given(
    shape=st.lists(st.integers(0, 3), max_size=4),
    kind=st.sampled_from([torch.float32, torch.float64, torch.float16, torch.uint8, torch.int64]),
    values=st.sampled_from([0.0, 1.0, 0.5, -0.1, 1.1, float("nan")]),
)
def test_inputs_that_an_attack_can_move(shape: list[int], kind: torch.dtype, values: float) -> None:
    x = torch.full(shape, 0.0 if values != values and not kind.is_floating_point else values)
    x = x.to(kind)
    good = (
        kind in (torch.float32, torch.float64)
        and len(shape) >= 2
        and x.numel() > 0
        and 0 <= values <= 1
    )
    if good:
        assert check_inputs(x) is x
        return
    with pytest.raises(InputError, match="my x"):
        check_inputs(x, name="my x")


#: Labels that are wrong whoever asks: for three samples and four classes.
WRONG: dict[str, Any] = {
    "none at all": None,
    "a list": [0, 1, 2],
    "fractions": torch.tensor([0.5, 1.0, 2.0]),
    "complex": torch.zeros(3, dtype=torch.complex64),
    "too few": torch.zeros(2, dtype=torch.int64),
    "a column": torch.zeros(3, 1, dtype=torch.int64),
    "one-hot": torch.eye(3, CLASSES, dtype=torch.int64),
    "beyond the classes": torch.tensor([0, 1, CLASSES]),
    "negative": torch.tensor([0, 1, -1]),
    "no probabilities": torch.full((3, CLASSES), 0.5),
}


def reason(act: Any) -> str:
    """Return the refusal, its labels called by one name."""
    with pytest.raises(PursuitifyError) as caught:
        act()
    text = str(caught.value)
    for name in ("train", "val", "data", "y"):
        text = re.sub(rf"^(the labels of |the soft labels of )?{name} ", r"\1DATA ", text)
    return text


@pytest.mark.parametrize("name", WRONG)
def test_attacks_audits_training_and_evaluation_refuse_alike(name: str) -> None:
    """One place says what labels may be: whoever is asked gives the same reason."""
    pytest.importorskip("accelerate")
    from pursuitify.robust import audit, fgsm
    from pursuitify.training import evaluate, finetune

    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, CLASSES))
    x, y = torch.rand(3, 1, 2, 2), WRONG[name]
    good = x, torch.zeros(3, dtype=torch.int64)
    by_attack = reason(lambda: fgsm(net, x, y, eps=0.1))
    if isinstance(y, Tensor):
        assert reason(lambda: audit(net, (x, y), eps=0.1, progress=False)) == by_attack
    if isinstance(y, Tensor) and len(y) == len(x) and name != "no probabilities":
        wanted = by_attack
        if name == "negative":
            wanted += f", or {IGNORED} for a sample without one"
        assert reason(lambda: evaluate(net, (x, y))) == wanted
        options: dict[str, Any] = {"epochs": 1, "batch_size": 3, "progress": False}
        assert reason(lambda: finetune(net, (x, y), good, **options)) == wanted
        assert reason(lambda: finetune(net, good, (x, y), **options)) == wanted
