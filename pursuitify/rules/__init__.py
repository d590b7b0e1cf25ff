"""What each torch op and module is: one rule each, found in one place."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from pursuitify.rules import activations, elementwise, pooling, reshape, weighted
from pursuitify.rules.custom import activation, frozen, linear
from pursuitify.rules.registry import Affine, Call, Key, Registry, Rule, match, static_parameters

__all__ = [
    "Affine",
    "Call",
    "Key",
    "Registry",
    "Rule",
    "activation",
    "default",
    "frozen",
    "leaves_of",
    "linear",
    "match",
    "static_parameters",
]


def default() -> Registry:
    """Return the built-in rules; torchvision's own functions only where it is imported."""
    registry = Registry()
    families = [weighted.registry, elementwise.registry, activations.registry]
    families += [pooling.registry, reshape.registry]
    if "torchvision" in sys.modules:
        families.append(elementwise.torchvision_rules())
    for family in families:
        registry = registry.extended(family)
    return registry


def leaves_of(rules: Mapping[Key, Rule] | None) -> tuple[type[nn.Module] | Callable[..., Any], ...]:
    """Return what a user's rules keep tracing out of: their module types and functions."""
    return tuple(key for key in rules or {} if callable(key))
