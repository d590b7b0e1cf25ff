"""The block structure of the dictionary in text."""

from __future__ import annotations

import networkx as nx

_EDGES = {"identity": "I", "linear": "o", "diagonal": "d", "weighted": "W"}


def block_picture(graph: nx.DiGraph[str], limit: int = 60) -> str:
    """Draw rows against columns of the dictionary.

    ``D`` is a weighted operator on the diagonal (decoder row), ``1`` the identity (encoder row);
    below it ``I`` an identity path, ``o`` a parameter-free linear one, ``d`` a diagonal one, ``W``
    a weighted one; ``x`` in the last column means that the row reads the input.

    Args:
        graph: The dependency graph.
        limit: Rows and columns at most; what is left out is said.
    """
    names = [n for n, data in graph.nodes(data=True) if data["index"] >= 0]
    inputs = [n for n, data in graph.nodes(data=True) if data["index"] < 0]
    shown = names[:limit]
    width = max(len(n) for n in shown)
    lines = []
    for i, name in enumerate(shown):
        cells = []
        for other in shown[:i]:
            kinds = str(graph.edges[other, name]["kind"]) if graph.has_edge(other, name) else ""
            first = kinds.split("+")[0]
            cells.append(_EDGES["weighted" if "weighted" in kinds else first] if kinds else ".")
        cells.append("D" if graph.nodes[name]["layout"] == "decoder" else "1")
        reads = any(graph.has_edge(x, name) for x in inputs)
        cells += [" "] * (len(shown) - i - 1) + [" x" if reads else ""]
        lines.append(f"{name:>{width}} |{''.join(cells)}".rstrip())
    if len(names) > limit:
        lines.append(f"... and {len(names) - limit} more rows and columns")
    lines.append(
        "D decoder row, 1 encoder row; I identity, o linear, d diagonal, W weighted; x input"
    )
    return "\n".join(lines)
