"""Checks that a network can be certified: nothing is frozen from data, and the head is affine.

What is known is what the rules of the graph say of themselves, ``Rule.input_dependent`` first of
all; a rule that says nothing is refused, for a certificate must not rest on a promise nobody made.
``input_independence`` then tries, at other inputs and batches, whether the promises are kept.
"""

from __future__ import annotations

from torch import fx

from pursuitify.compiler.graph.classify import Site, Value
from pursuitify.compiler.tracing import nodes
from pursuitify.errors import OptionError
from pursuitify.network.pursuit_network import PursuitNetwork
from pursuitify.rules import default, static_parameters
from pursuitify.solvers.synchronous import SynchronousPursuit


def check_certifiable(net: object) -> None:
    """Refuse a network whose answer the certificate would not cover.

    Raises:
        OptionError: With every reason.
    """
    if not isinstance(net, PursuitNetwork):
        raise OptionError(f"net must be a PursuitNetwork, not {type(net).__name__}")
    reasons = []
    if not isinstance(net.pursuit_solver, SynchronousPursuit):
        name = SynchronousPursuit.name
        reasons.append(f'the solver is {net.solver!r}: set net.solver = "{name}"')
    if net.iterations == 0 or net.step_scale == 0:
        reasons.append("there is no sweep: set net.iterations and net.step_scale above 0")
    if net.training:
        reasons.append("it is in training mode: call net.eval()")
    if net.start_share > 0:
        reasons.append(
            f"offsets={net.offsets!r} takes thresholds from the input: set net.offsets = "
            '"signal" or "threshold"'
        )
    program = net.compiled_program
    if len(program.inputs) != 1:
        reasons.append(f"it takes {len(program.inputs)} arguments; one input can be certified")
    for site in program.sites.values():
        reason = _reason(site, net)
        if reason:
            reasons.append(f"{site.node.name}: {reason}")
    reasons += [f"{node.name}: it leaves the network unpursued" for node in _bypasses(net)]
    if reasons:
        raise refusal(reasons)


def refusal(reasons: list[str]) -> OptionError:
    """Return the error that lists why a network cannot be certified."""
    lines = "\n".join(f"  - {reason}" for reason in reasons)
    return OptionError(f"this network cannot be certified:\n{lines}")


def has_own_rules(net: PursuitNetwork) -> bool:
    """Return whether an operation has a rule that is not one of the library's own objects."""
    known = {id(rule) for rule in default().values()}
    rules = (site.rule for site in net.compiled_program.sites.values())
    return any(rule is not None and id(rule) not in known for rule in rules)


def _reason(site: Site, net: PursuitNetwork) -> str | None:
    """Return why a node's map may differ between inputs, or that it is not affine."""
    node = site.node
    if site.value is Value.INPUT and node.op != "placeholder":
        return "it looks numbers up: how far its value moves with its input is unknown"
    if site.role == "frozen":
        return "its value is frozen from the input"
    if site.role:  # the input, or the same at every input of one shape
        return "it draws at random" if nodes.is_random(node) else None
    if site.value is Value.OTHER or site.rule is None or site.call is None:
        return "it is not affine"
    module = nodes.module_of(node, net)
    reason = site.rule.dependence(static_parameters(site.rule, site.call, module))
    return reason or _factor(site, net)


def _factor(site: Site, net: PursuitNetwork) -> str | None:
    """Return that an operand which counts as fixed is computed from the input, if one is."""
    assert site.call is not None
    for operand, affine in zip(site.call.operands, site.operands, strict=False):
        if affine is not None or not isinstance(operand, fx.Node):
            continue
        if net.compiled_program.sites[operand].role != "constant":
            return f"it multiplies by a value that depends on the input ({operand.name})"
    return None


def _bypasses(net: PursuitNetwork) -> list[fx.Node]:
    """Return the inputs that the head reads past the latents."""
    program = net.compiled_program
    latents = {program.nodes[row.name] for row in program.rows}
    output = next(n for n in program.graph.nodes if n.op == "output")

    def operands(node: fx.Node) -> list[fx.Node]:
        held = node in latents or program.sites[node].value is Value.SHAPE
        return [] if held else node.all_input_nodes

    read = nodes.upstream(output.all_input_nodes, operands)
    return [node for node in read if node.op == "placeholder"]
