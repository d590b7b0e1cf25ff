"""Problems that stand in the way of a conversion: unknown values, containers, cutting freezes."""

from __future__ import annotations

import operator
from collections.abc import Collection

from torch import Tensor, fx, nn

from pursuitify.compiler.graph.classify import Site, Sites, Value, gate_operands
from pursuitify.compiler.tracing.nodes import before, describe, module_path, upstream
from pursuitify.errors import Problem
from pursuitify.rules import hints as advice


def _activates(site: Site) -> bool:
    return site.rule is not None and site.rule.kind == "activation"


def _reaching(graph: fx.Graph, sites: Sites, ends: Collection[fx.Node]) -> set[fx.Node]:
    """Nodes that some of ``ends`` read, or the output if there are none, other than as a gate."""

    def read(node: fx.Node) -> list[fx.Node]:
        if node.op == "output":
            return node.all_input_nodes
        gates = gate_operands(sites[node])
        return [n for n in node.all_input_nodes if n not in gates and n is not sites[node].gate]

    return before(ends or [n for n in graph.nodes if n.op == "output"], read)


def unknown_values(graph: fx.Graph, root: nn.Module, sites: Sites) -> list[Problem]:
    """Return what stands in the way: values of no known kind with an activation after them.

    Where there is no activation at all, everything of no known kind is listed. Factors that would
    be frozen gates if what they multiply were mended are not listed. Where something stands in the
    way, so do the other values of no known kind that a weighted operator reads: once the first is
    mended they would be left to the head, and the layers between them with it.
    """
    main = _reaching(graph, sites, ())
    activations = {
        n
        for n, s in sites.items()
        if s.value in {Value.LATENT, Value.OTHER} and n in main and _activates(s)
    }
    unknown = [n for n, s in sites.items() if s.value is Value.OTHER and s.reason]
    wanted = _reaching(graph, sites, activations) if activations else main
    if not wanted.isdisjoint(unknown):
        weighted = {
            n for n, s in sites.items() if n in main and s.rule and s.rule.kind == "weighted"
        }
        wanted = wanted | _reaching(graph, sites, weighted) if weighted else wanted
    found = []
    for node in unknown:
        if node in wanted:
            op, reason = describe(node, root), sites[node].reason
            hint = advice.hint_for(op, reason)
            found.append(Problem(node.name, op, module_path(node), reason, hint))
    return found


def container_inputs(sites: Sites) -> list[Problem]:
    """Return a problem for every input that is read as a container, in graph order.

    A network's inputs are tensors whose first dimension is the batch: picking one entry of it, or
    one by name, is either the item of a container or one sample out of the batch.
    """
    found = []
    for node, site in sites.items():
        if site.value is not Value.INPUT:
            continue
        users = [user for user in node.users if user.args and user.args[0] is node]
        reads = [(user, read) for user in users if (read := _container_read(user))]
        if reads:
            user, read = reads[0]
            found.append(
                Problem(
                    node.name,
                    "argument",
                    module_path(user),
                    f"it is no tensor of samples, for the forward reads {read.format(node.target)}",
                    "Convert a wrapper that takes one tensor for each item, and builds the list, "
                    "tuple or dict itself",
                )
            )
    return found


def _container_read(user: fx.Node) -> str:
    """Return the expression by which a node reads an input as a container; empty if it does not."""
    if user.op == "call_function" and user.target in {operator.getitem, getattr}:
        key = user.args[1]
        if user.target is getattr:
            return "" if hasattr(Tensor, str(key)) else f"{{}}.{key}"
        return f"{{}}[{key!r}]" if isinstance(key, (int, str)) else ""
    if user.op == "call_method" and not hasattr(Tensor, str(user.target)):
        return f"{{}}.{user.target}()"
    return ""


_HINT = (
    "frozen() is for side branches: here, convert the part before it or the part after it as a "
    "model of its own, or replace it by operations that convert"
)


def cutting_freezes(root: nn.Module, sites: Sites) -> list[Problem]:
    """Return a problem for every frozen operation that leaves activations without a row.

    Freezing an operation fixes the activations after it that read no other value, and those before
    it whose value nothing else reads: they would keep their feed-forward values.
    """
    gates = set(upstream([o for site in sites.values() for o in gate_operands(site)]))
    lost = [
        node
        for node, site in sites.items()
        if site.value is Value.FROZEN and site.rule is not None and site.rule.kind == "activation"
        if not site.rule.smooth or node not in gates
    ]
    frozen = [(n, s) for n, s in sites.items() if s.rule is not None and s.rule.kind == "frozen"]
    leads = {a: before([a]) for a in lost} if frozen else {}
    found = []
    for node, _ in frozen:
        led = before([node])
        early = [a.name for a in lost if a in led]
        late = [a.name for a in lost if node in leads[a]]
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
