"""This module decides whether a pass of the source may draw from the global random generators.

Of torch's own operations that have a built-in rule it is known. Code that was not traced, hooks,
rules of the user's own and operations without a rule may do anything.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx, nn

from pursuitify.compiler.graph.classify import Sites
from pursuitify.compiler.tracing import nodes

#: Packages whose functions draw nothing, where they have no rule.
_STILL = {"_operator", "builtins", "math", "pursuitify"}


@dataclass(frozen=True)
class Draws:
    """The operations of a graph that may draw.

    Attributes:
        always: Whether some may in any mode.
        training: Paths of the modules that do in training mode.
    """

    always: bool
    training: tuple[str, ...]

    def now(self, root: nn.Module) -> bool:
        """Whether a pass may draw, with the modes and hooks that the modules have now."""
        if self.always or any(root.get_submodule(path).training for path in self.training):
            return True
        return any(m._forward_hooks or m._forward_pre_hooks for m in root.modules())


def draws_of(graph: fx.Graph, sites: Sites) -> Draws:
    """Return which operations of a graph may draw."""
    found = {node: _may_draw(node, sites) for node in graph.nodes}
    modules = [node for node, may in found.items() if may and _has_mode(node, sites)]
    always = any(may for node, may in found.items() if node not in modules)
    # The target of a node that calls a module is the module's path.
    paths = [node.target for node in modules if isinstance(node.target, str)]
    return Draws(always, tuple(paths))


def _has_mode(node: fx.Node, sites: Sites) -> bool:
    """Whether a node is a module that draws in training mode alone."""
    rule = sites[node].rule if node in sites else None
    return node.op == "call_module" and rule is not None and rule.draws is True


def _may_draw(node: fx.Node, sites: Sites) -> bool:
    if node.op in {"placeholder", "get_attr", "output"}:
        return False
    if nodes.is_random(node):
        return True
    if nodes.is_shape(node) or nodes.is_like(node):
        return False
    site = sites.get(node)
    rule = None if site is None else site.rule
    if rule is None or rule.bind is None:
        module = str(getattr(node.target, "__module__", None))
        return node.op != "call_function" or module.partition(".")[0] not in _STILL
    if rule.draws and node.op != "call_module":
        call = None if site is None else site.call
        return call is None or call.parameters.get("training", True) is not False
    return rule.draws is not False
