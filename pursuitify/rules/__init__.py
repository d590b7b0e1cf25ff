"""What each torch op and module is: one rule each, found in one place."""

from __future__ import annotations

import sys

from pursuitify.rules import activation, elementwise, pooling, shape, weighted
from pursuitify.rules.registry import Affine, Call, Key, Registry, Rule, match, static_parameters

__all__ = ["Affine", "Call", "Key", "Registry", "Rule", "default", "match", "static_parameters"]


def default() -> Registry:
    """Return the built-in rules; torchvision's own functions only where it is imported."""
    registry = Registry()
    families = [weighted.registry, elementwise.registry, activation.registry]
    families += [pooling.registry, shape.registry]
    if "torchvision" in sys.modules:
        families.append(elementwise.torchvision_rules())
    for family in families:
        registry = registry.extended(family)
    return registry
