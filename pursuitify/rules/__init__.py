"""Rules: each torch op and module has one, which says what kind of operation it is.

The classes that rules of one's own need, linear maps and activations, are exported too.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from pursuitify.operators import Chain, Identity, LinearMap, Scale, dottest
from pursuitify.operators.activations import Activation, Clip, LeakyReLU, ReLU
from pursuitify.rules import (
    activations,
    elementwise,
    normalization,
    pooling,
    preprocessing,
    reshape,
    selections,
    weighted,
)
from pursuitify.rules.custom import activation, frozen, linear
from pursuitify.rules.functions import applied
from pursuitify.rules.registry import Affine, Call, Key, Registry, Rule, match, static_parameters

__all__ = [
    "Activation",
    "Affine",
    "Call",
    "Chain",
    "Clip",
    "Identity",
    "Key",
    "LeakyReLU",
    "LinearMap",
    "ReLU",
    "Registry",
    "Rule",
    "Scale",
    "activation",
    "default",
    "dottest",
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
    families += [normalization.registry, pooling.registry, reshape.registry]
    families.append(selections.registry)
    if "torchvision" in sys.modules:
        families.append(elementwise.torchvision_rules())
    families += preprocessing.registries()
    for family in families:
        registry = registry.extended(family)
    return registry


def leaves_of(rules: Mapping[Key, Rule] | None) -> tuple[type[nn.Module] | Callable[..., Any], ...]:
    """Return what a user's rules keep tracing out of: their module types and functions."""
    return tuple(applied(key) for key in rules or {} if callable(key))
