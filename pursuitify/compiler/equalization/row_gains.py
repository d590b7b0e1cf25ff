"""How much each row of a network enlarges what it reads, from the weights alone."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, fx, nn

from pursuitify.compiler.equalization.scale_groups import ABSORBING
from pursuitify.compiler.graph.classify import Site
from pursuitify.compiler.graph.rows import Use
from pursuitify.compiler.lowering.program import Program
from pursuitify.rules import weighted


def gains_of(model: nn.Module, program: Program) -> Iterator[tuple[fx.Node, fx.Node, str, float]]:
    """Yield (leaf, latent, the row's name, logarithm of the gain) for every weighted path."""
    leaves = {-1 - i: node for i, node in enumerate(program.inputs)}
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
        module = model.get_submodule(str(node.target))
        if site.rule.kind == "weighted":
            rows = _filter_norms(module, site)
        elif site.rule.bind is weighted.batch_norm:
            scale = _batch_norm_scale(module)
            rows = scale if rows is None or rows.shape != scale.shape else rows * scale
    if rows is None:
        return None
    mean = float(rows.square().mean().sqrt())
    return math.log(mean) if mean > 0 else -math.inf


def _filter_norms(module: nn.Module, site: Site) -> Tensor | None:
    """Return the norm of each output channel's filter."""
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor) or site.rule is None or site.rule.bind not in ABSORBING:
        return None
    kernel = weight.detach().double()
    if site.rule.bind is weighted.conv_transpose:
        groups = getattr(module, "groups", 1)
        kernel = kernel.reshape(groups, -1, *kernel.shape[1:]).transpose(1, 2).flatten(0, 1)
    norms: Tensor = kernel.flatten(1).norm(dim=1)
    return norms


def _batch_norm_scale(module: nn.Module) -> Tensor:
    weight, var = getattr(module, "weight", None), getattr(module, "running_var", None)
    like = weight if var is None else var
    scale = torch.ones(()) if like is None else torch.ones_like(like)
    if var is not None:
        scale = torch.rsqrt(var + getattr(module, "eps", 1e-5))
    return (scale if weight is None else scale * weight).detach().double().abs()
