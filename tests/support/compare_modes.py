"""Derivatives of a network in two memory modes, side by side; shared by this folder's tests."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from pursuitify import PursuitNetwork
from tests.support.agreement import flat

Derivatives = dict[str, Tensor | None]


def differentiate(
    net: PursuitNetwork, x: Tensor, extrapolation: bool = True, **settings: Any
) -> tuple[list[Tensor], Derivatives]:
    """Return outputs and derivatives of a fixed loss; the network is left as it was.

    The extrapolation weights, which a conversion freezes, are differentiated too if asked for.
    """
    net = copy.deepcopy(net)
    net.pursuit.alpha.requires_grad_(extrapolation)
    for name, value in settings.items():
        setattr(net, name, value)
    x = x.detach().clone().requires_grad_()
    torch.manual_seed(7)
    out = net(x)
    leaves = [out] if isinstance(out, Tensor) else _tensors(out)
    sum((t * torch.cos(t.detach() + 1)).sum() for t in leaves).backward()
    found: Derivatives = {name: p.grad for name, p in net.named_parameters()}
    return flat(out), {**found, "x": x.grad}


def assert_same_outputs(mine: list[Tensor], theirs: list[Tensor], tolerance: float) -> None:
    """Assert that outputs agree to rounding: sums in place may be taken in another order."""
    for value, reference in zip(mine, theirs, strict=True):
        scale = max(float(reference.abs().max()), 1.0)
        assert float((value - reference).abs().max()) <= tolerance * scale


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    items = value.values() if isinstance(value, dict) else value
    return [t for item in items for t in _tensors(item)]


def assert_same(
    mine: Derivatives, theirs: Derivatives, tolerance: float, floor: float = 1e-3
) -> None:
    """Assert that derivatives agree, and are missing in the same places.

    Args:
        mine: Derivatives by name.
        theirs: What they are compared with.
        tolerance: Largest difference, relative to the tensor's own largest entry.
        floor: That entry is taken to be at least this share of the largest of all: a bias before
            a BatchNorm has derivative zero but for rounding.
    """
    largest = max(float(t.abs().max()) for t in theirs.values() if t is not None and t.numel())
    for name, value in theirs.items():
        other = mine[name]
        assert (value is None) == (other is None), f"{name}: {value is None}, {other is None}"
        if value is None or other is None:
            continue
        scale = max(float(value.abs().max()), floor * largest)
        difference = float((value - other).abs().max())
        assert difference <= tolerance * scale, f"{name}: {difference / max(scale, 1e-300):.2e}"
