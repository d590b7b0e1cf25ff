"""Which networks can be certified: nothing in them may be frozen from data, the head is affine."""

from __future__ import annotations

from torch import fx, nn

from pursuitify.compiler.graph.classify import Value
from pursuitify.compiler.tracing import nodes
from pursuitify.errors import OptionError
from pursuitify.network.pursuit_network import PursuitNetwork

#: Rules whose map is the same at every input. What is not listed, a user's own rule included, is
#: refused: the certificate must not depend on a promise nobody made.
FIXED = frozenset(
    {
        "add", "adaptive_average_pool", "average_pool", "cat", "channel_shuffle", "chunk_piece",
        "conv", "conv_transpose", "expand", "fixed_padding", "getitem", "identity", "linear",
        "matmul", "mean", "narrow", "neg", "padding", "permute", "permute_method",
        "pixel_shuffle", "pixel_unshuffle", "reshape", "resample", "select", "split_piece",
        "stack", "sub", "sum_", "transpose", "matrix_transpose", "unbind_piece",
    }
)  # fmt: skip
ACTIVATIONS = frozenset(
    {"relu", "threshold", "relu6", "hardtanh", "clamp", "clamp_min", "leaky_relu", "prelu"}
)


def check_certifiable(net: object) -> None:
    """Refuse a network whose answer the certificate would not cover.

    Raises:
        OptionError: With every reason.
    """
    if not isinstance(net, PursuitNetwork):
        raise OptionError(f"net must be a PursuitNetwork, not {type(net).__name__}")
    reasons = []
    if net.solver != "synchronous":
        reasons.append(f'the solver is {net.solver!r}: set net.solver = "synchronous"')
    if net.iterations == 0 or net.step_scale == 0:
        reasons.append("there is no sweep: set net.iterations and net.step_scale above 0")
    if net.training:
        reasons.append("it is in training mode: call net.eval()")
    program = net._program
    if len(program.inputs) != 1:
        reasons.append(f"it takes {len(program.inputs)} arguments; one input can be certified")
    for node, site in program.sites.items():
        reason = _reason(node, site.value, net)
        if reason:
            reasons.append(f"{node.name}: {reason}")
    reasons += [f"{node.name}: it leaves the network unpursued" for node in _bypasses(net)]
    if reasons:
        lines = "\n".join(f"  - {reason}" for reason in reasons)
        raise OptionError(f"this network cannot be certified:\n{lines}")


def _reason(node: fx.Node, value: Value, net: PursuitNetwork) -> str:
    """Say why a node's map may differ between inputs, or that it is not affine."""
    site = net._program.sites[node]
    if value in {Value.INPUT, Value.CONSTANT, Value.SHAPE}:
        return "it draws at random" if nodes.is_random(node) else ""
    if value is Value.FROZEN:
        return "its value is frozen from the input"
    if value is Value.OTHER or site.rule is None or site.call is None:
        return "it is not affine"
    name = site.rule.name
    if value is Value.LATENT and name in ACTIVATIONS:
        return ""
    if name in FIXED:
        return ""
    if name in {"mul", "div"}:
        return _factor(node, net)
    module = net.get_submodule(str(node.target)) if node.op == "call_module" else None
    if name == "batch_norm":
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            fixed = module.running_mean is not None and not module.training
            return "" if fixed else "its statistics are those of the batch"
        return "a functional batch_norm: use the module, in evaluation mode"
    if name == "dropout":
        training = site.call.parameters.get("training", True)
        training = module.training if module is not None else training
        return "it draws a mask" if training else ""
    return f"the rule {name} may depend on the input"


def _factor(node: fx.Node, net: PursuitNetwork) -> str:
    site = net._program.sites[node]
    assert site.call is not None
    for operand, affine in zip(site.call.operands, site.operands, strict=False):
        if affine is None and isinstance(operand, fx.Node):
            value = net._program.sites[operand].value
            if value not in {Value.CONSTANT, Value.SHAPE}:
                return "it multiplies by a value that depends on the input"
    return ""


def _bypasses(net: PursuitNetwork) -> list[fx.Node]:
    """Return the inputs that the head reads past the latents."""
    program = net._program
    latents = {program.nodes[row.name] for row in program.rows}
    output = next(n for n in program.graph.nodes if n.op == "output")
    seen: set[fx.Node] = set()
    stack, found = list(output.all_input_nodes), []
    while stack:
        node = stack.pop()
        if node in seen or node in latents or program.sites[node].value is Value.SHAPE:
            continue
        seen.add(node)
        if node.op == "placeholder":
            found.append(node)
        stack.extend(node.all_input_nodes)
    return found
