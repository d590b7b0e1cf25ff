"""The dependency graph as networkx sees it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import networkx as nx
from torch import fx, nn

from pursuitify.compiler.graph.classify import Sites, Value, inputs_of
from pursuitify.compiler.graph.rows import Path, Row
from pursuitify.compiler.tracing.nodes import describe


def edge_kind(path: Path, nodes: Mapping[str, fx.Node], sites: Sites) -> str:
    """Return ``weighted``, ``diagonal``, ``linear`` or ``identity``: the strongest on the path."""
    kinds = {rule.kind for name, _ in path.uses if (rule := sites[nodes[name]].rule) is not None}
    if "weighted" in kinds:
        return "weighted"
    if kinds & {"diagonal", "product"}:
        return "diagonal"
    joins_only = kinds <= {"join"}
    return "identity" if joins_only else "linear"


def to_networkx(rows: Sequence[Row], sites: Sites, root: nn.Module) -> nx.DiGraph[str]:
    """Return the dependency graph; the input is the node ``input``."""
    graph: nx.DiGraph[str] = nx.DiGraph()
    nodes = {node.name: node for node in sites}
    every = inputs_of(sites)
    inputs = [n for n in every if sites[n].value is Value.INPUT]
    if any(n.op != "placeholder" for n in inputs):  # what is looked up stands for its indices
        read = {-1 - path.leaf for row in rows for _, _, path in row.paths if path.leaf < 0}
        inputs = [n for i, n in enumerate(every) if i in read]
    names = {
        -1 - i: "input" if len(inputs) == 1 else n.name for i, n in enumerate(every) if n in inputs
    }
    for name in names.values():
        graph.add_node(name, index=-1, activation="input", layout=None, source="")
    for row in rows:
        names[row.index] = row.name
        activation = "identity" if row.identity else describe(nodes[row.name], root)
        graph.add_node(
            row.name, index=row.index, activation=activation, layout=row.layout, source=row.source
        )
    for row in rows:
        for _, _, path in row.paths:
            ends = (names[path.leaf], row.name)
            kind = edge_kind(path, nodes, sites)
            if graph.has_edge(*ends):
                graph.edges[ends]["paths"] += 1
                graph.edges[ends]["kind"] = f"{graph.edges[ends]['kind']}+{kind}"
            else:
                graph.add_edge(*ends, kind=kind, paths=1)
    return graph
