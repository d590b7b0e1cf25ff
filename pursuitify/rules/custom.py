"""Rules for a user's own modules and functions, in one line each.

    pursuitify(model, rules={MyBlur: linear(lambda module, x: BlurMap(module.kernel))})
    pursuitify(model, rules={SoftThreshold: activation(lambda module, z: Shrink(module.lam))})
    pursuitify(model, rules={MyAttention: frozen()})

The key is a module type, a function, or a method's name; a module type is then not traced into.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from pursuitify.errors import OptionError
from pursuitify.operators import LinearMap
from pursuitify.operators.activations import Activation
from pursuitify.rules.registry import Affine, Rule

#: A linear map or activation, or a function that makes one from what is called and its operand.
Made = Callable[..., Any]


def linear(
    make: LinearMap | Made,
    *,
    weighted: bool = False,
    offset: Callable[..., Tensor | None] | None = None,
    channelwise: bool = False,
    elementwise: bool = False,
    input_dependent: bool = True,
) -> Rule:
    """Return the rule of a linear (or affine) operation on one tensor.

    Args:
        make: ``make(op, x, *arguments)`` returns the :class:`~pursuitify.operators.LinearMap` for
            an input like ``x``; ``op`` is the module, or for a function ``op(x)`` is its value, and
            ``arguments`` is what the call passes beyond ``x``. Or the map, if it never changes.
        weighted: Whether it mixes entries by weights, as a convolution does, so that it may stand
            on the diagonal of a row. Free of parameters otherwise.
        offset: ``offset(op, x, *arguments)`` returns what the operation gives at zero; None for a
            linear one.
        channelwise: Whether it treats the slots of dimension 1 independently (and its map can
            ``narrow``).
        elementwise: Whether it scales each entry on its own.
        input_dependent: Whether the map or the offset may differ between inputs of one shape, or
            the value of a sample with what else is in the batch. Say False only if neither can be:
            ``pursuitify.robust.certified_radius`` covers no other rule.
    """
    made: Made = (lambda *_: make) if isinstance(make, LinearMap) else _callable(make, "linear")

    def bind(op: Callable[..., Any], input: Tensor, *_arguments: Any, **_named: Any) -> Affine:
        built = made(op, input, *_arguments, **_named)
        if not isinstance(built, LinearMap):
            raise OptionError(f"a linear rule made a {type(built).__name__}, not a LinearMap")
        rest = None if offset is None else offset(op, input, *_arguments, **_named)
        called = op(input, *_arguments, **_named) if isinstance(op, nn.Module) else op(input)
        return Affine(called, (built,), rest)

    return Rule(
        _name(make),
        "weighted" if weighted else "linear",
        bind,
        channelwise=channelwise,
        elementwise=elementwise,
        input_dependent=input_dependent,
    )


def activation(make: Activation | Made, *, input_dependent: bool = True) -> Rule:
    """Return the rule of an activation, a proximal operator.

    Args:
        make: ``make(op, z, *arguments)`` returns the activation, or it is the activation itself if
            that is always the same. At step 1 its ``prox`` must be what the module or function
            computes.
        input_dependent: Whether the activation may be another one at another input. Say False
            only if it cannot, and if ``prox`` is the proximal operator of a convex penalty that
            acts on each sample alone: ``pursuitify.robust.certified_radius`` covers no other.
    """
    made: Made = (
        (lambda *_: make) if isinstance(make, Activation) else _callable(make, "activation")
    )

    def bind(op: Callable[..., Any], input: Tensor, *_arguments: Any, **_named: Any) -> Activation:
        built = made(op, input, *_arguments, **_named)
        if not isinstance(built, Activation):
            raise OptionError(f"an activation rule made a {type(built).__name__}, no Activation")
        return built

    return Rule(_name(make), "activation", bind, input_dependent=input_dependent)


def frozen() -> Rule:
    """Return the rule of an operation whose value is fixed at the feed-forward pass.

    Anything may be frozen; pursuit then treats the value as a constant of this input. Gradients
    flow through it. For side branches: what reads nothing but frozen values is fixed, too, and so
    is what only they read; on the only way from input to output a frozen value leaves nothing to
    pursue, and is refused. With no activation after it it runs in the head, on pursued latents.
    """
    return Rule("frozen", "frozen")


def _callable(make: Any, what: str) -> Made:
    if not callable(make) or isinstance(make, type):
        raise OptionError(f"{what}() takes a map or a function that makes one, not {make!r}")
    found: Made = make
    return found


def _name(make: Any) -> str:
    name = str(getattr(make, "__name__", type(make).__name__))
    return "own rule" if name == "<lambda>" else name
