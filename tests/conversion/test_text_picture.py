"""The block structure in text."""

from __future__ import annotations

import networkx as nx
import pytest
from torch import nn

from pursuitify import pursuitify
from pursuitify.conversion.text_picture import block_picture
from pursuitify.models import DenselyConnectedNet, ResidualNet
from tests.support.nets import BY_NAME, CASES, LAYOUTS, Case


def body(graph: nx.DiGraph, **options: int) -> list[str]:
    lines = block_picture(graph, **options).splitlines()
    assert lines[-1].startswith("D decoder row, 1 encoder row")
    return [line.split("|")[1] for line in lines if "|" in line]


def test_residual_net() -> None:
    assert body(pursuitify(ResidualNet(2, 5, depth=1, width=4)).graph) == [
        "D      x",
        "W1     x",
        ".ID",
        ".oW1",
        "...ID",
        "...oW1",
    ]


def test_chain_and_dense_net() -> None:
    assert body(pursuitify(BY_NAME["linear_chain"].build()).graph) == ["D   x", "ID", ".ID"]
    net = DenselyConnectedNet(2, 5, depth=2, width=2)
    rows = body(pursuitify(net).graph)
    assert len(rows) == 12
    assert rows[0].rstrip().endswith("x")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_agrees_with_the_graph(case: Case, layout: str) -> None:
    graph = pursuitify(case.build(), layout=layout).graph
    names = list(case.order)
    rows = body(graph)
    assert len(rows) == len(names)
    for i, line in enumerate(rows):
        for k in range(i):
            assert (line[k] != ".") is graph.has_edge(names[k], names[i])
        assert line[i] == {"decoder": "D", "encoder": "1"}[graph.nodes[names[i]]["layout"]]
        assert line.endswith("x") is graph.has_edge("input", names[i])
        weighted = [k for k in range(i) if line[k] == "W"]
        for k in weighted:
            assert "weighted" in graph.edges[names[k], names[i]]["kind"]


def test_what_is_left_out_is_said() -> None:
    layers = [m for _ in range(12) for m in (nn.Linear(2, 2), nn.ReLU())]
    graph = pursuitify(nn.Sequential(*layers)).graph
    text = block_picture(graph, limit=5)
    assert "... and 7 more rows and columns" in text
    assert len(body(graph, limit=5)) == 5
    assert "more rows" not in block_picture(graph, limit=12)
