"""Operations that a user's rule freezes: which of them cut the way through the network."""

from __future__ import annotations

from torch import fx, nn

from pursuitify.classify import Sites, Value
from pursuitify.errors import Problem
from pursuitify.normalise import describe, module_path

_HINT = (
    "frozen() is for side branches: here, convert the part before it or the part after it as a "
    "model of its own, or replace it by operations that convert"
)


def problems(graph: fx.Graph, root: nn.Module, sites: Sites) -> list[Problem]:
    """Return a problem for every frozen operation that leaves activations without a row.

    What reads a frozen value alone is fixed with it, and so is what nothing but frozen values read.
    """
    lost = [
        node
        for node, site in sites.items()
        if site.value is Value.FROZEN and site.rule is not None and site.rule.kind == "activation"
    ]
    before: dict[fx.Node, set[fx.Node]] = {}
    for node in graph.nodes:
        inputs = node.all_input_nodes
        before[node] = set(inputs).union(*(before[n] for n in inputs))
    found = []
    for node, site in sites.items():
        if site.rule is None or site.rule.kind != "frozen":
            continue
        early = [a.name for a in lost if a in before[node]]
        late = [a.name for a in lost if node in before[a]]
        said = []
        if early:
            said.append(f"{', '.join(early)} before it lead to nothing else")
        if late:
            said.append(f"{', '.join(late)} after it depend on nothing else")
        if said:
            found.append(
                Problem(
                    node.name,
                    describe(node, root),
                    module_path(node),
                    f"its rule freezes it, and it cuts the way: {' and '.join(said)}",
                    _HINT,
                )
            )
    return found
