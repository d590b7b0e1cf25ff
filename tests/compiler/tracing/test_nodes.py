"""The walk to what leads to a node agrees with networkx on graphs; questions about dtypes."""

from __future__ import annotations

import operator
from typing import Any

import networkx as nx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, fx, nn

from pursuitify import pursuitify
from pursuitify.compiler.tracing.nodes import before, reads_input, type_of, upstream
from pursuitify.errors import InputError, TraceError


@st.composite
def graphs(draw: st.DrawFn) -> fx.Graph:
    """A graph of calls and attributes that read some of the nodes made before them."""
    graph = fx.Graph()
    nodes = [graph.placeholder("x")]
    for i in range(draw(st.integers(1, 9))):
        read = draw(st.lists(st.sampled_from(nodes), max_size=3))
        call = graph.call_function(max, tuple(read)) if read else graph.get_attr(f"a{i}")
        nodes.append(call)
    graph.output(draw(st.sampled_from(nodes)))
    return graph


def edges(graph: fx.Graph) -> nx.DiGraph[fx.Node]:
    found: nx.DiGraph[fx.Node] = nx.DiGraph()
    found.add_nodes_from(graph.nodes)
    found.add_edges_from((n, node) for node in graph.nodes for n in node.all_input_nodes)
    return found


@given(graphs(), st.data())
def test_what_leads_to_nodes_is_their_ancestors(graph: fx.Graph, data: st.DataObject) -> None:
    ends = data.draw(st.lists(st.sampled_from(list(graph.nodes)), max_size=3))
    ancestors = set().union(*(nx.ancestors(edges(graph), end) for end in ends))
    assert before(ends) == ancestors
    walked = list(upstream(ends))
    assert set(walked) == ancestors.union(ends)
    assert len(walked) == len(set(walked)), "each once"
    for end in ends:
        placeholders = [n for n in upstream([end]) if n.op == "placeholder"]
        assert reads_input(end) == bool(placeholders)


@given(graphs(), st.data())
def test_a_walk_goes_through_the_operands_it_is_told(graph: fx.Graph, data: st.DataObject) -> None:
    nodes = list(graph.nodes)
    closed = data.draw(st.sets(st.sampled_from(nodes)))
    ends = data.draw(st.lists(st.sampled_from(nodes), max_size=3))
    open_edges = edges(graph)
    open_edges.remove_edges_from([(n, m) for n, m in open_edges.edges if m in closed])

    def operands(node: fx.Node) -> list[fx.Node]:
        return [] if node in closed else node.all_input_nodes

    ancestors = set().union(*(nx.ancestors(open_edges, end) for end in ends))
    assert before(ends, operands) == ancestors
    assert set(upstream(ends, operands)) == ancestors.union(ends)


def test_an_operand_is_asked_for_after_its_reader_was_seen() -> None:
    """A loop may decide, node by node, where the walk goes on."""
    graph = fx.Graph()
    x = graph.placeholder("x")
    y = graph.call_function(abs, (x,))
    z = graph.call_function(abs, (y,))
    seen: list[fx.Node] = []
    for node in upstream([z], lambda n: n.all_input_nodes if n in seen and n is not y else []):
        seen.append(node)
    assert seen == [z, y]


def test_the_type_of_a_power_of_a_size() -> None:
    graph = fx.Graph()
    size = graph.call_method("size", (graph.placeholder("x"), 0))

    def power(exponent: object) -> type | None:
        return type_of(graph.call_function(operator.pow, (size, exponent)))

    assert [power(2), power(0.5), power(-1), power(size)] == [int, float, None, None]


ASKED: dict[str, Any] = {
    "method": lambda x: x.is_floating_point(),
    "function": torch.is_floating_point,
    "complex": lambda x: not x.is_complex(),
    "attribute": lambda x: x.dtype.is_floating_point and x.dtype.is_signed,
    "can cast": lambda x: torch.can_cast(x.dtype, torch.complex64),
    "promoted": lambda x: torch.promote_types(x.dtype, torch.int64) == x.dtype,
    "item size": lambda x: x.dtype.itemsize < 4 or x.dtype.itemsize == 8,
    "result": lambda x: torch.result_type(x, 1.0) == torch.float64,
    "result of two": lambda x: torch.result_type(x, torch.ones(1).double()) == torch.float64,
}
#: What is no longer so in float32.
OF_FLOAT64 = {"item size", "result", "result of two"}


class Asking(nn.Module):
    """A layer whose values are doubled where a question about the dtype is answered by yes."""

    def __init__(self, ask: Any) -> None:
        super().__init__()
        self.layer, self.ask = nn.Linear(3, 3), ask

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.layer(x))
        return 2 * y if self.ask(y) else y


@pytest.mark.parametrize("example", [False, True])
@pytest.mark.parametrize("name", ASKED)
def test_a_question_about_the_dtype_has_an_answer_and_is_guarded(name: str, example: bool) -> None:
    model, x = Asking(ASKED[name]).double(), torch.ones(2, 3, dtype=torch.float64)
    net = pursuitify(model, iterations=0, **({"example_inputs": x} if example else {}))
    assert torch.equal(net(x), model(x))
    net.float()
    if name in OF_FLOAT64:
        with pytest.raises(InputError, match="the model branches on"):
            net(x.float())
    else:
        assert torch.equal(net(x.float()), model.float()(x.float()))


def test_the_advice_on_finfo_works() -> None:
    with pytest.raises(TraceError, match=r"name the dtype, as in torch\.finfo\(torch\.float32\)"):
        pursuitify(Asking(lambda x: torch.finfo(x.dtype).eps > 0))
    model, x = Asking(lambda x: torch.finfo(torch.float32).eps > 0), torch.ones(2, 3)
    assert torch.equal(pursuitify(model, iterations=0)(x), model(x))
