"""Classification of the graph's nodes: affine in the latents, a latent, frozen, or neither.

Compile time only: no tensor is looked at. The result says for each node which of its operands are
affine in latents and input; products with anything else are *gates*, frozen at the feed-forward
pass together with all that only they read (mathematics.md, section 4).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum

from torch import fx, nn

from pursuitify.compiler.tracing import nodes
from pursuitify.rules import Call, Registry, Rule, match, split_ops, static_parameters
from pursuitify.rules import hints as advice
from pursuitify.utils import patched_methods


class Value(Enum):
    """The kinds of values that a node may have."""

    INPUT = "input"
    CONSTANT = "constant"
    SHAPE = "shape"
    AFFINE = "affine"
    LATENT = "latent"
    FROZEN = "frozen"
    OTHER = "other"


#: Roles that a value alone decides; the others depend on the rows.
_ROLES = {
    Value.INPUT: "input",
    Value.CONSTANT: "constant",
    Value.SHAPE: "constant",
    Value.FROZEN: "frozen",
}
_OUTPUT = (
    "no weighted operator reads it, so it belongs to the head, where no activation of the rows can "
    "follow it"
)
AFFINE_LIKE = {Value.INPUT, Value.AFFINE, Value.LATENT}


@dataclass(frozen=True)
class Site:
    """One node, classified.

    Attributes:
        node: The node.
        value: What its value is.
        rule: Its rule, if it has one.
        call: Its arguments, sorted by the rule.
        operands: Its tensor operands: the node where the operand is affine in the latents, None
            where it is constant or frozen.
        reason: Why the value is OTHER, at the node where that begins.
        gate: Of a product that is OTHER through no fault of its own, the factor that would be its
            frozen gate; None where there is none.
    """

    node: fx.Node
    value: Value
    rule: Rule | None = None
    call: Call | None = None
    operands: tuple[fx.Node | None, ...] = ()
    reason: str = ""
    gate: fx.Node | None = None

    @property
    def role(self) -> str:
        """``input``, ``constant`` or ``frozen``; empty where rows or the head hold the node."""
        return _ROLES.get(self.value, "")

    @property
    def unary(self) -> fx.Node | None:
        """The only affine operand, or None if there are several or none."""
        affine = [o for o in self.operands if o is not None]
        return affine[0] if len(affine) == 1 else None


Sites = Mapping[fx.Node, Site]


def classify(
    graph: fx.Graph, root: nn.Module, registry: Registry, given: Collection[fx.Node] = ()
) -> Sites:
    """Classify every node of a normalised graph.

    Args:
        graph: The graph.
        root: The module its targets are paths in.
        registry: The rules.
        given: Nodes that are taken as activations, whatever they are; as inputs where they read
            several values, or one that is not affine.
    """
    sites: dict[fx.Node, Site] = {}
    weighted = _before_kind(graph, root, registry, "weighted")
    leading = _before_kind(graph, root, registry, "activation", weighted)
    for node in graph.nodes:
        if node in given:
            sites[node] = _stand_in(node, sites)
        elif node.op != "output":
            sites[node] = _classify(node, root, registry, sites, weighted, leading)
            rule = sites[node].rule
            if rule is not None and rule.kind == "frozen" and node not in leading:
                sites[node] = replace(sites[node], value=Value.OTHER)
    alive = _alive(graph, sites, given)
    return {
        node: site
        if node in alive or site.value not in {Value.AFFINE, Value.LATENT, Value.OTHER}
        else replace(site, value=Value.FROZEN)
        for node, site in sites.items()
    }


def _before_kind(
    graph: fx.Graph,
    root: nn.Module,
    registry: Registry,
    kind: str,
    weighted: Collection[fx.Node] | None = None,
) -> set[fx.Node]:
    """Return the nodes that have one of a kind after them, or are one.

    Nodes without an activation after them are the head's, which needs no freezing.

    Args:
        graph: The graph.
        root: The module its targets are paths in.
        registry: The rules.
        kind: Of rules.
        weighted: The nodes that lead to a weighted operator: smooth activations elsewhere are not
            counted.
    """
    found = []
    for node in graph.nodes:
        rule = registry.find(node, root)
        if rule is None or rule.kind != kind:
            continue
        if not rule.smooth or weighted is None or node in weighted:
            found.append(node)
    return nodes.before(found)


def _classify(
    node: fx.Node,
    root: nn.Module,
    registry: Registry,
    sites: Sites,
    weighted: Collection[fx.Node],
    leading: Collection[fx.Node],
) -> Site:
    if node.op == "placeholder":
        return Site(node, Value.CONSTANT if node.args else Value.INPUT)
    if nodes.is_shape(node):
        return Site(node, Value.SHAPE)
    values = {sites[n].value for n in node.all_input_nodes}
    if node.op == "get_attr" or values <= {Value.CONSTANT, Value.SHAPE} or nodes.is_like(node):
        return Site(node, Value.CONSTANT)
    module = nodes.module_of(node, root)
    rule = registry.find(node, root)
    if rule is None:
        reason = "no rule says that it is linear or a proximal operator"
        return Site(node, Value.OTHER, reason=reason)
    if rule.smooth and node not in weighted:
        return Site(node, Value.OTHER, reason=_OUTPUT)
    if module is not None and (module._forward_hooks or module._forward_pre_hooks):
        return Site(node, Value.OTHER, rule, reason=advice.hooked(module))
    reason = "" if module is None else patched_methods.reason(module)
    if reason:
        return Site(node, Value.OTHER, rule, reason=reason)
    if rule.kind == "frozen":
        return Site(node, Value.FROZEN, rule, match(rule, node))
    try:
        call = match(rule, node)
    except (TypeError, KeyError) as error:
        return Site(node, Value.OTHER, rule, reason=f"the rule {rule.name} cannot read it: {error}")
    refusal = rule.check(**static_parameters(rule, call, module)) if rule.check else None
    if refusal:
        return Site(node, Value.OTHER, rule, call, reason=refusal)
    if rule.kind == "signal":
        return _signal(node, rule, call, sites)
    return _operands(node, rule, call, sites, leading)


def _signal(node: fx.Node, rule: Rule, call: Call, sites: Sites) -> Site:
    """Classify what is computed from inputs alone, and read as one."""
    if any(sites[n].value is Value.LATENT for n in nodes.upstream(node.all_input_nodes)):
        return Site(node, Value.OTHER, rule, call, reason=advice.LOOKS_UP)
    return Site(node, Value.INPUT, rule, call)


def inputs_of(sites: Sites) -> tuple[fx.Node, ...]:
    """Return the placeholders in order, then the values that rows read as they read an input."""
    own = [n for n, s in sites.items() if s.value is Value.INPUT and n.op != "placeholder"]
    return (*(n for n in sites if n.op == "placeholder"), *own)


def _operands(
    node: fx.Node,
    rule: Rule,
    call: Call,
    sites: Sites,
    leading: Collection[fx.Node],
) -> Site:
    def value_of(argument: object) -> Value:
        return sites[argument].value if isinstance(argument, fx.Node) else Value.CONSTANT

    moving = AFFINE_LIKE | {Value.OTHER}
    # One node may be both: F.linear(z, z) reads its operand as its weight, too.
    parameters = {n: None for n in node.all_input_nodes if n not in call.operands}
    fx.node.map_arg(call.parameters, parameters.setdefault)
    for parameter in parameters:
        if value_of(parameter) in moving:
            return Site(
                node,
                Value.OTHER,
                rule,
                call,
                reason=f"its parameter {parameter} depends on the input",
            )
    values = [value_of(o) for o in call.operands]
    affine = [i for i, v in enumerate(values) if v in AFFINE_LIKE]
    factors = _factors(rule, len(values))
    weighs = bool(affine) and affine != [rule.weighting]
    other = [
        i for i, v in enumerate(values) if v is Value.OTHER and not (weighs and i == rule.weighting)
    ]
    affine = [i for i in affine if not (weighs and i == rule.weighting)]
    if rule.kind == "product":
        pair = [i for i in affine if i in factors]
        if len(pair) == 2:
            gate = _gate(call, factors)
            gate = _smooth_gate(call, factors, sites) if gate is None else gate
            gate = _given_factor(call, pair, sites) if gate is None else gate
            if gate is None and node in leading:  # the head needs no freezing
                gate = _without_activations(call, pair, sites)
            if gate is None:
                return Site(node, Value.OTHER, rule, call, reason=advice.TWO_VALUES)
            affine.remove(gate)
        elif other and (len(pair) != 1 or not set(other) <= set(factors)):
            gate = _gate(call, factors) if _all_nodes(call, factors) else None
            return Site(
                node, Value.OTHER, rule, call, gate=None if gate is None else call.operands[gate]
            )
    elif other:
        return Site(node, Value.OTHER, rule, call)
    if not affine:
        return Site(node, Value.FROZEN, rule, call)
    while rule.bilinear and len(pair := [i for i in affine if i in factors]) > 1:
        fixed = _given_factor(call, pair, sites)
        fixed = _branch(call, pair, sites) if fixed is None else fixed
        if fixed is None:
            return Site(node, Value.OTHER, rule, call, reason=advice.TWO_FACTORS)
        affine.remove(fixed)
    read = {call.operands[i] for i in affine if value_of(call.operands[i]) is not Value.INPUT}
    masks = [*parameters, *(o for o in call.operands if isinstance(o, fx.Node) and o not in read)]
    if rule.chosen_by_size and any(read & _compared(mask, sites) for mask in masks):
        return Site(node, Value.OTHER, rule, call, reason=rule.chosen_by_size)
    if rule.linear_in is not None and not set(affine) <= set(rule.linear_in):
        return Site(node, Value.OTHER, rule, call, reason=rule.otherwise)
    if rule.all_moving and len(affine) < len(values):
        return Site(node, Value.OTHER, rule, call, reason=rule.all_moving)
    operands = tuple(o if i in affine else None for i, o in enumerate(call.operands))
    value = Value.LATENT if rule.kind == "activation" else Value.AFFINE
    return Site(node, value, rule, call, operands)


def _compared(mask: fx.Node, sites: Sites) -> set[fx.Node]:
    """Return the values that a mask compares, whatever it is cast to; none where it is no mask."""
    while split_ops.is_cast(mask) and isinstance(mask.args[0], fx.Node):
        mask = mask.args[0]
    rule = sites[mask].rule
    return set(mask.all_input_nodes) if rule is not None and rule.compares else set()


def _factors(rule: Rule, count: int) -> tuple[int, ...]:
    """Return the positions of the operands that a rule multiplies with each other."""
    if rule.kind != "product" and not rule.bilinear:
        return ()
    return tuple(range(count)) if rule.factors is None else rule.factors


def _all_nodes(call: Call, positions: Iterable[int]) -> bool:
    return all(isinstance(call.operands[i], fx.Node) for i in positions)


def _gate(call: Call, factors: Sequence[int]) -> int | None:
    """Return the position of the factor that is computed from the other one, None if neither is."""
    first, second = (call.operands[i] for i in factors)
    assert isinstance(first, fx.Node)
    assert isinstance(second, fx.Node)
    if first in nodes.before([second]):
        return factors[1]
    return factors[0] if second in nodes.before([first]) else None


def _smooth_gate(call: Call, factors: Sequence[int], sites: Sites) -> int | None:
    """Return the position of the only factor that a smooth activation leads to, None if not one."""

    def smooth(node: fx.Node) -> bool:
        rule = sites[node].rule
        return rule is not None and rule.smooth

    found = [
        i
        for i in factors
        if any(map(smooth, nodes.upstream([call.operands[i]], _affine_operands(sites))))
    ]
    return found[0] if len(found) == 1 else None


def _without_activations(call: Call, pair: Sequence[int], sites: Sites) -> int | None:
    """Return the position of the only factor whose freezing costs no activation, None if not one.

    Every activation that leads to it leads to the other factor as well.
    """
    latents = [
        {
            n
            for n in nodes.upstream([call.operands[i]], _affine_operands(sites))
            if sites[n].value is Value.LATENT
        }
        for i in pair
    ]
    if (latents[0] <= latents[1]) == (latents[1] <= latents[0]):
        return None
    return pair[0] if latents[0] <= latents[1] else pair[1]


def _affine_operands(sites: Sites) -> nodes.Operands:
    """Return the function that gives the operands in which a node is affine."""
    return lambda node: [operand for operand in sites[node].operands if operand is not None]


def _given_factor(call: Call, affine: Sequence[int], sites: Sites) -> int | None:
    """Return the position of a factor that is given with the input: a mask, an adjacency.

    It is computed from other inputs than the rest, without weighted operators or activations. Where
    several factors are, it is that of the last input. None where there is none.
    """
    read = {}
    for i in affine:
        above = [sites[n] for n in nodes.upstream([call.operands[i]])]
        plain = all(s.rule is None or s.rule.kind in _PLAIN for s in above)
        inputs = {s.node for s in above if s.node.op == "placeholder" and s.value is Value.INPUT}
        if plain and inputs:
            read[i] = inputs
    order = {node: k for k, node in enumerate(sites)}
    found = sorted(read, key=lambda i: max((order[n] for n in read[i]), default=-1))
    if not found:
        return None
    last = found[-1]
    others = {n for i in affine if i != last for n in nodes.upstream([call.operands[i]])}
    alone = len(found) == len(affine) and read[last] & others
    return None if alone else last


#: Kinds of operations that leave an input known.
_PLAIN = {"linear", "join", "product", "frozen"}


def _branch(call: Call, affine: Sequence[int], sites: Sites) -> int | None:
    """Return the position of a factor that a branch computes from another one, None if none.

    A branch has an activation, as a network that computes a transform of what it reads (a T-Net).
    """
    for i in affine:
        above = nodes.before([call.operands[i]])
        latents = [n for n in above if sites[n].value is Value.LATENT]
        for j in affine:
            whole = _rearranged(call.operands[j], sites)
            if i != j and any(whole in nodes.before([n]) for n in latents):
                return i
    return None


def _rearranged(node: fx.Node, sites: Sites) -> fx.Node:
    """Return the value that a node rearranges, itself if it does something else."""
    while (rule := sites[node].rule) is not None and rule.kind == "linear":
        inner = sites[node].unary
        if inner is None:
            break
        node = inner
    return node


def scaling_positions(site: Site) -> tuple[int, ...]:
    """Return the positions of the operands that scale the others: constants and frozen gates."""
    if site.rule is None or not site.operands:
        return ()
    if site.rule.weighting is not None:
        return (site.rule.weighting,)
    factors = _factors(site.rule, len(site.operands))
    if not factors:
        return ()
    moving = next((i for i in factors if site.operands[i] is not None), factors[0])
    return tuple(i for i in factors if i != moving)


def gate_operands(site: Site) -> set[fx.Node]:
    """Return the operands that a product reads as frozen gates."""
    if site.call is None:
        return set()
    operands = (site.call.operands[i] for i in scaling_positions(site))
    return {o for o in operands if isinstance(o, fx.Node)}


def leading_to(latents: Iterable[fx.Node], sites: Sites) -> set[fx.Node]:
    """Return the nodes from which values that no gate or constant breaks reach some of latents."""
    return nodes.before(latents, _affine_operands(sites))


def _stand_in(node: fx.Node, sites: Sites) -> Site:
    """Classify a node as an activation of the one affine value that it reads, else as an input."""
    read = [n for n in node.all_input_nodes if sites[n].value is not Value.SHAPE]
    if len(read) == 1 and sites[read[0]].value in AFFINE_LIKE:
        return Site(node, Value.LATENT, operands=(read[0],))
    return Site(node, Value.INPUT)


def _alive(graph: fx.Graph, sites: Sites, given: Collection[fx.Node] = ()) -> set[fx.Node]:
    """Nodes whose value is read other than through gates and shapes (or by nobody at all)."""

    def read(node: fx.Node) -> list[fx.Node]:
        if node.op == "output" or node in given:
            return node.all_input_nodes
        site = sites[node]
        if site.value in {Value.SHAPE, Value.FROZEN, Value.INPUT}:
            return []
        gates = gate_operands(site) - set(site.operands)
        return [n for n in node.all_input_nodes if n not in gates]

    def idle(node: fx.Node) -> bool:
        return all(u.op != "output" and sites[u].value is Value.SHAPE for u in node.users)

    return set(nodes.upstream([n for n in graph.nodes if idle(n)], read))
