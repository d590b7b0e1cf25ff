"""The report of explain() at 80 columns: grouped problems, names that stay different."""

from __future__ import annotations

import io
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from torch import Tensor, nn

from pursuitify import explain, relu_twin
from pursuitify.conversion.report import Report, grouped, shortened
from pursuitify.errors import Problem


class LongNamedResidualBlock(nn.Module):
    """A block whose nodes have long names that differ in the middle or at the end."""

    def __init__(self, activation: Callable[[], nn.Module]) -> None:
        super().__init__()
        names = ("pointwise_expansion_convolution", "pointwise_reduction_convolution")
        self.layers = nn.ModuleDict({name: nn.Conv2d(4, 4, 1) for name in names})
        self.activation_after_expansion = activation()

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.layers.values()
        return x + second(self.activation_after_expansion(first(x)))


def model(activation: Callable[[], nn.Module] = nn.GELU, blocks: int = 12) -> nn.Module:
    stages = [LongNamedResidualBlock(activation) for _ in range(blocks)]
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), *stages, nn.Conv2d(4, 2, 1), nn.ReLU())


def printed(report: Report, width: int) -> str:
    out = io.StringIO()
    Console(file=out, width=width, color_system=None, force_jupyter=False).print(report)
    return out.getvalue()


def rows_of(text: str) -> list[list[str]]:
    """Return the table's rows; a cell that is folded over several lines is one cell."""
    rows: list[list[str]] = []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.split("│")[1:-1]]
        if cells and cells[0]:
            rows.append(cells)
    return rows


@pytest.mark.parametrize("width", [60, 80, 109, 140])
@pytest.mark.parametrize("activation", [nn.GELU, nn.ReLU])
def test_no_two_rows_look_alike(width: int, activation: Callable[[], nn.Module]) -> None:
    report = explain(model(activation))
    text = printed(report, width)
    assert max(map(len, text.splitlines())) <= max(width, 71)  # the picture of B has a legend
    rows = rows_of(text.split("\n┌")[0])
    assert len(rows) >= len(report.entries)
    assert len({cells[0] for cells in rows}) == len(rows)
    assert ("┃ module" in text) == (width >= 110)


def test_each_hint_is_said_once_and_places_are_counted() -> None:
    report = explain(model())
    hint = report.problems[0].hint
    assert len(report.problems) == 12
    for text in (printed(report, 10_000), report.markdown()):
        assert text.count(hint) == 1
        assert "GELU, 12 times" in text
        assert "and 6 more" in text
        assert report.problems[5].node in text
    assert printed(report, 80).count("see 1.") == 12


def test_what_differs_in_anything_but_its_place_is_a_group_of_its_own() -> None:
    base = Problem("a", "GELU", "m.a", "no rule", "Replace it")
    others = [
        Problem("b", "SiLU", "m.b", "no rule", "Replace it"),
        Problem("c", "GELU", "m.c", "hooked", "Replace it"),
        Problem("d", "GELU", "m.d", "no rule", "Rewrite it"),
    ]
    again = Problem("e", "GELU", "m.e", "no rule", "Replace it")
    found = grouped([base, *others, again])
    assert [[p.node for p in group] for group in found.values()] == [
        ["a", "e"],
        ["b"],
        ["c"],
        ["d"],
    ]
    assert [*found][1:] == [str(other) for other in others]
    assert next(iter(found)) == "GELU, 2 times: no rule. Replace it. It is a, e"


@pytest.mark.parametrize("activation", [nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish])
def test_the_rest_of_a_refused_model_has_its_roles(activation: Callable[[], nn.Module]) -> None:
    """They are those of the model in which ReLU stands in the place of what is refused."""
    refused = model(activation, blocks=2)
    found = {e.node: (e.role, e.note) for e in explain(refused).entries}
    wanted = {e.node: (e.role, e.note) for e in explain(relu_twin(refused).model).entries}
    assert found.keys() == wanted.keys()
    own = {node for node, (role, _) in found.items() if role == "refused"}
    assert {wanted[node][0] for node in own} == {"latent"}
    assert {n: r for n, r in found.items() if n not in own} == {
        n: r for n, r in wanted.items() if n not in own
    }


class Attention(nn.Module):
    """Two values of the network are multiplied, and a softmax stands between."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.queries, self.last = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        weights = torch.softmax(self.queries(x) @ x.mT, -1)
        return torch.relu(self.last(weights @ x)).mean(1)


def test_roles_on_both_sides_of_an_attention() -> None:
    report = explain(Attention())
    roles = {e.node: e.role for e in report.entries}
    assert {p.node for p in report.problems} <= {n for n, r in roles.items() if r == "refused"}
    assert (roles["first"], roles["relu"]) == ("diagonal operator", "latent")
    assert (roles["last"], roles["relu_1"]) == ("diagonal operator", "latent")
    assert roles["mean"] == "head"
    assert roles["queries"] == "unknown"


@given(st.lists(st.text("ab_1", min_size=1, max_size=30), max_size=12), st.integers(8, 24))
def test_shortened_names_stay_different(names: list[str], width: int) -> None:
    found = shortened(names, width)
    assert len(found) == len(names)
    assert len(set(found)) == len(set(names))
    assert all(len(name) <= width for name in found)
    for before, after in zip(names, found, strict=True):
        head, cut, tail = after.partition("…")
        ends = before.endswith(tail) or tail.startswith("#")
        assert before == after or (cut and before.startswith(head) and ends)
