"""Records of audits that somebody altered are refused, and never read as numbers."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pursuitify.errors import OptionError
from pursuitify.robust import AuditReport, Protocol, Step, audit
from pursuitify.robust.auditing import results_record

STEPS = (Step("FGSM", "fgsm", "one-step"),)
TINY = Protocol("tiny", STEPS, STEPS, STEPS, (1.0,))
JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner),
    max_leaves=4,
)


def run(path: Path | None = None, net: nn.Module | None = None) -> AuditReport:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = net or nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).eval()
        x, y = torch.rand(8, 1, 4, 4), torch.randint(0, 3, (8,))
    return audit(net, (x, y), eps=0.1, protocol=TINY, progress=False, resume=path)


def facts(report: AuditReport) -> Any:
    assert str(report)
    found = json.loads(json.dumps(report.to_dict()))
    return {key: found[key] for key in ("networks", "curve", "flags", "verdict")}


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """Return what an audit of 8 images found, and the content of its record."""
    path = tmp_path_factory.mktemp("record") / "record.json"
    return facts(run(path)), json.loads(path.read_text())


def places(content: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the way to every value in nested dicts and lists."""
    if above:
        yield above
    parts: Any = ()
    if isinstance(content, dict):
        parts = content.items()
    elif isinstance(content, list):
        parts = enumerate(content)
    for key, part in parts:
        yield from places(part, (*above, key))


def altered(content: Any, place: tuple[Any, ...], value: Any) -> Any:
    found = copy.deepcopy(content)
    inner = found
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    return found


@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data(), again=st.booleans())
def test_an_altered_record_is_refused(
    record: tuple[Any, Any], tmp_path_factory: pytest.TempPathFactory, data: Any, again: bool
) -> None:
    """``again``: whoever altered it put the check right, so that the values alone tell."""
    good, content = record
    place = data.draw(st.sampled_from(list(places(content))))
    changed = altered(content, place, data.draw(JUNK))
    whole = isinstance(changed["results"], dict) and isinstance(changed["identity"], dict)
    if again and whole and place[0] != "check":
        changed["check"] = results_record._check(changed["identity"], changed["results"])
    path = tmp_path_factory.getbasetemp() / "altered.json"
    path.write_text(json.dumps(changed))
    try:
        found = facts(run(path))
    except OptionError as error:
        text = str(error)
        assert "not the record of an audit" in text or "differs in" in text or "altered" in text
        return
    if not (again and "results" in place):
        assert json.dumps(changed, sort_keys=True) == json.dumps(content, sort_keys=True)
        assert found == good


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("fooled", [99]),
        ("fooled", [3, 1]),
        ("fooled", [1, 1]),
        ("fooled", [True]),
        ("fooled", [8]),
        ("fooled", "01"),
        ("kind", "invented"),
        ("attacked", 9),
        ("new", -1),
        ("seconds", None),
        ("seconds", float("nan")),
        ("eps", "0.1"),
        ("error", None),
        ("more", 1),
    ],
)
def test_values_that_no_result_has_are_refused(
    record: tuple[Any, Any], tmp_path: Path, field: str, value: Any
) -> None:
    content = copy.deepcopy(record[1])
    content["results"]["network | FGSM"][field] = value
    content["check"] = results_record._check(content["identity"], content["results"])
    (tmp_path / "record.json").write_text(json.dumps(content))
    with pytest.raises(OptionError, match="not the record of an audit"):
        run(tmp_path / "record.json")


def test_a_result_that_was_taken_out_by_hand_is_noticed(
    record: tuple[Any, Any], tmp_path: Path
) -> None:
    content = copy.deepcopy(record[1])
    del content["results"]["network | FGSM"]
    (tmp_path / "record.json").write_text(json.dumps(content))
    with pytest.raises(OptionError, match="was altered after it was written"):
        run(tmp_path / "record.json")


class Counting(nn.Module):
    """Counts its calls in a buffer, and may answer by another buffer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner = nn.Linear(16, 3)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("mean", torch.zeros(16))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.inner(x.flatten(1) - self.mean)


def test_a_network_that_counts_its_calls_goes_on(tmp_path: Path) -> None:
    net, path = Counting().eval(), tmp_path / "record.json"
    first = run(path, net)
    calls = int(net.calls)
    again = run(path, net)
    assert facts(again) == facts(first)
    assert int(net.calls) - calls < calls, "nothing was attacked anew"
    net.mean += 0.25  # which no pass writes into
    with pytest.raises(OptionError, match="another audit: it differs in network"):
        run(path, net)
