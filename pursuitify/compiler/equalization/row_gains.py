"""Gains: by how much each row of a network enlarges its operands, from the weights alone."""

from __future__ import annotations

import math
from collections.abc import Iterator

from torch import Tensor, fx, nn

from pursuitify.compiler.graph.rows import Use
from pursuitify.compiler.lowering.program import Program


def gains_of(model: nn.Module, program: Program) -> Iterator[tuple[fx.Node, fx.Node, str, float]]:
    """Yield (leaf, latent, the row's name, logarithm of the gain) for every weighted path."""
    leaves = {-1 - i: node for i, node in enumerate(program.leaves)}
    leaves |= {row.index: program.nodes[row.name] for row in program.rows}
    for row in program.rows:
        tail = _log_gain(row.diagonal, model, program)
        for _, _, path in row.paths:
            own = _log_gain(path.uses, model, program)
            if tail is not None or own is not None:
                gain = (tail or 0.0) + (own or 0.0)
                if math.isfinite(gain):
                    yield leaves[path.leaf], leaves[row.index], row.name, gain


def _log_gain(uses: tuple[Use, ...], model: nn.Module, program: Program) -> float | None:
    """Return the logarithm of a chain's gain: the root mean square norm of its filters.

    A diagonal scale after the operator counts with its filters. None where nothing has weights.
    """
    rows: Tensor | None = None
    for name, _ in uses:
        node = program.nodes[name]
        site = program.sites[node]
        if node.op != "call_module" or site.rule is None:
            continue
        gains_by_channel = site.rule.channel_gains
        own = None
        if gains_by_channel is not None:
            own = gains_by_channel(model.get_submodule(str(node.target)))
        if site.rule.kind == "weighted":
            rows = own
        elif own is not None:
            rows = own if rows is None or rows.shape != own.shape else rows * own
    if rows is None:
        return None
    mean = float(rows.square().mean().sqrt())
    return math.log(mean) if mean > 0 else -math.inf
