"""Offsets of expression trees: their values at all-zero leaves (mathematics.md, section 1)."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from pursuitify.compiler.graph.rows import Tree
from pursuitify.compiler.lowering.program import Bound
from pursuitify.operators import LinearMap


def offset_of(tree: Tree | None, bound: Mapping[str, Bound]) -> Tensor | None:
    """Return the value of an expression tree at all-zero leaves; None for zero."""
    if tree is None:
        return None
    operation = bound[tree.name]
    total = operation.offset
    for k, operand in tree.operands:
        inner = offset_of(operand, bound)
        if inner is not None:
            term = _push(operation.maps[k], inner, bound[operand.name].shape)
            total = term if total is None else total + term
    return total


def _push(linear: LinearMap, offset: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Apply a map to an offset that broadcasts against ``shape``."""
    if linear.broadcasts:
        return linear.apply(offset)
    per_sample = offset.dim() == len(shape) and offset.shape[0] != 1
    batch = 1 if linear.filter_bank() is not None and not per_sample else shape[0]
    return linear.apply(offset.expand(batch, *shape[1:]))
