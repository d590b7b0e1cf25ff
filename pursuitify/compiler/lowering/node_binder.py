"""Functions that generated code calls: each runs one node of the source and binds it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pursuitify.compiler.graph.classify import Site, gate_operands, scaling_positions
from pursuitify.compiler.graph.rows import Row
from pursuitify.compiler.lowering import layout_freedom
from pursuitify.compiler.lowering.offsets import offset_of
from pursuitify.compiler.lowering.program import Bound
from pursuitify.compiler.tracing import nodes
from pursuitify.errors import ConversionError
from pursuitify.operators.activations import Activation
from pursuitify.rules import Affine, Rule, split_ops
from pursuitify.utils import torch_internals


def apply(bound: Bound, x: Tensor) -> Tensor:
    """Apply a bound operation in the head."""
    return bound(x)


def binder(rule: Rule, site: Site, still: bool = False) -> Callable[..., Any]:
    """Return the function that runs and binds one node.

    Args:
        rule: Its rule.
        site: The node, classified.
        still: Whether it is bound without derivatives, as the source runs it under ``no_grad``.
    """
    assert rule.bind is not None
    bind, names = rule.bind, rule.parameters
    constant = [i for i, o in enumerate(site.operands) if o is None]
    sequence = site.call is not None and site.call.sequence
    extra: dict[str, Any] = {}
    scaling = scaling_positions(site)
    if rule.kind == "product" or rule.bilinear:
        factors = rule.factors or range(len(site.operands))
        extra["_affine"] = next((i for i in factors if i not in scaling), 0)
        reads = nodes.reads_values if rule.bilinear else nodes.reads_input
        extra["_per_sample"] = any(map(reads, gate_operands(site)))
    single = tuple(site.operands) == () or constant == []

    def finish(result: Any, operands: tuple[Any, ...]) -> Any:
        if not isinstance(result, Affine):
            return result, None
        offset = result.offset
        for i in () if single else constant:
            if i not in scaling and isinstance(operands[i], Tensor):
                term = result.maps[i].apply(operands[i])
                offset = term if offset is None else offset + term
        value = result.value
        if offset is not None and offset.dtype is not value.dtype:
            offset = _widened(offset, value.dtype)
        return value, Bound(result.maps, offset, tuple(value.shape))

    def arguments(operands: tuple[Any, ...]) -> tuple[Any, ...]:
        return (list(operands),) if sequence else operands

    kinds = {parameter.kind for parameter in inspect.signature(bind).parameters.values()}
    variadic = inspect.Parameter.VAR_POSITIONAL in kinds
    keywords = inspect.Parameter.VAR_KEYWORD in kinds

    def passed(rest: Any, kwargs: Any) -> tuple[Any, Any]:
        """Return the call's own arguments that a bind with *args or **kwargs gets."""
        return (rest if variadic else ()), {**(kwargs if keywords else {}), **extra}

    def run_module(
        module: nn.Module, operands: Any, parameters: Any, rest: Any, kwargs: Any
    ) -> Any:
        own = {n: getattr(module, n) for n in names if hasattr(module, n)}
        own = _plain(own) if still else own
        more, named = passed(rest, kwargs)
        named = {**named, **own, **parameters}
        return finish(bind(module, *arguments(operands), *more, **named), operands)

    node = site.node
    if node.op == "call_method":
        # A reshape in place of a view: rows are bound in the format that the network chose.
        method = layout_freedom.flexible(str(node.target))

        def call(*args: Any, **kwargs: Any) -> Any:
            return getattr(args[0], method)(*args[1:], **kwargs)

    else:
        call = node.target  # type: ignore[assignment]

    def run(operands: Any, parameters: Any, rest: Any, kwargs: Any) -> Any:
        def op(*new: Any) -> Any:
            return call(*arguments(new), *rest, **kwargs)

        more, named = passed(rest, kwargs)
        return finish(bind(op, *arguments(operands), *more, **{**named, **parameters}), operands)

    made = run_module if node.op == "call_module" else run
    chosen = _run_still(made) if still else made
    # torch.fx calls it by this name in the generated code.
    chosen.__name__ = "bind_" + "".join(c if c.isalnum() else "_" for c in rule.name)
    return chosen


def _widened(offset: Tensor, dtype: torch.dtype) -> Tensor:
    """Return an offset in the precision of its value, where that is the wider one.

    A constant may be less exact than the network: a plain tensor attribute of a module, which
    ``net.double()`` does not reach. torch's own addition widens it, too.
    """
    return offset.to(dtype) if torch.promote_types(offset.dtype, dtype) is dtype else offset


def _run_still(run: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function without derivatives, those of what it binds included."""

    def still(*arguments: Any) -> Any:
        with torch.no_grad():
            return run(*map(_plain, arguments))

    return still


def _plain(argument: Any) -> Any:
    """Return operands and parameters without their derivatives; a module is left as it is."""
    if isinstance(argument, dict):
        return {name: _plain(value) for name, value in argument.items()}
    return argument if isinstance(argument, nn.Module) else split_ops.detached(argument)


def holder(row: Row) -> Callable[[Activation, Tensor, Mapping[str, Bound]], Tensor]:
    """Return the function that drops a negative threshold from a pre-activation."""

    def hold(activation: Activation, z: Tensor, bound: Mapping[str, Bound]) -> Tensor:
        offset = offset_of(row.preactivation_tree, bound)
        return z if offset is None or not activation.sparse else z - offset.clamp_min(0)

    return hold


def call_hooks(block: nn.Module, value: Tensor, path: str, read: bool) -> Tensor:
    """Call the forward hooks of a block that was traced, and return the value they leave.

    A hook gets the block, no inputs, and the value.

    Args:
        block: The module.
        value: What its forward returned.
        path: Its path, for messages.
        read: Whether rows read the value: they would not read what a hook makes of it.

    Raises:
        ConversionError: If a hook writes into the value, or returns another that rows would read.
    """
    for hook in torch_internals.forward_hooks(block):
        version = torch_internals.version_of(value)
        given = hook(block, (), value)
        written = torch_internals.version_of(value) != version
        if written:
            raise ConversionError(
                f"a forward hook of '{path}' writes into what the block returns, which is the "
                "network's own: write into a clone, and let the hook return that"
            )
        if read and not (given is None or given is value or _equal(given, value)):
            raise ConversionError(
                f"a forward hook of '{path}' returns another value than the block's, which the "
                "sweeps would not follow, for later latents read it: let the hook return None, or "
                "the value or a copy of it; or make the change in the model's own forward and call "
                "pursuitify(model) again"
            )
        value = value if given is None else given
    return value


def _equal(given: Any, value: Tensor) -> bool:
    if not isinstance(given, Tensor) or (given.shape, given.dtype) != (value.shape, value.dtype):
        return False
    return bool(((given == value) | (given.isnan() & value.isnan())).all())


def activate(activation: Activation, z: Tensor) -> Tensor:
    """Return the activation's value."""
    return activation(z)
