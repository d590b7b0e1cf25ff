"""Any fixed-budget attack of foolbox (Rauber et al. 2017), behind our call."""

from __future__ import annotations

import inspect
import math
from typing import Any

from torch import Tensor, nn

from pursuitify.errors import OptionError
from pursuitify.robust.attacks.external_library import Target, outside, verified
from pursuitify.utils import option_checks

_ORDERS = {"linf": math.inf, "l2": 2.0}


def foolbox(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    attack: str = "LinfPGD",
    norm: str = "linf",
    seed: int = 0,
    batch_size: int | None = None,
    **options: Any,
) -> Tensor:
    """Run an attack of foolbox; needs the extra ``robust``.

    Args:
        model: Returns logits, one row per input.
        x: Inputs in [0, 1], batch first.
        y: Class labels, one per input.
        eps: Radius of the ball.
        attack: Name in ``foolbox.attacks``, for instance ``"LinfPGD"`` or ``"L2PGD"``.
        norm: ``"linf"`` or ``"l2"``; the attack must be one of this norm.
        seed: Makes it repeat; the global random state is left alone.
        batch_size: How many inputs to attack at a time; all at once by default.
        options: Keyword arguments of the attack's class.

    Returns:
        The perturbed inputs, inside the ball and [0, 1].

    Raises:
        MissingExtraError: If foolbox is not installed.
        OptionError: If there is no such attack, it is of another norm, or an option is not its.
    """
    library = outside("foolbox")
    made = _made(library, attack, option_checks.chosen("norm", norm, _ORDERS), norm, options)

    def run(target: Target) -> Tensor:
        ball = target.ball
        wrapped = library.PyTorchModel(target.model, bounds=(0, 1), device=ball.x.device)
        points: Tensor
        _, points, _ = made(wrapped, ball.x, target.labels, epsilons=ball.eps)
        return points

    return verified(
        f"foolbox's {attack}",
        run,
        model,
        x,
        y,
        eps=eps,
        norm=norm,
        seed=seed,
        batch_size=batch_size,
    )


def _made(library: Any, name: str, order: float, norm: str, options: dict[str, Any]) -> Any:
    """Return the attack, after a look at its norm and its options."""
    kind = getattr(library.attacks, name, None)
    if not (isinstance(kind, type) and issubclass(kind, library.attacks.base.Attack)):
        raise OptionError(f"foolbox.attacks has no {name!r}")
    if inspect.isabstract(kind):
        raise OptionError(f"foolbox.attacks has no {name!r} that could run: it is a base class")
    valid = inspect.signature(kind).parameters
    unknown = [option for option in options if option not in valid]
    if unknown:
        raise OptionError(
            f"foolbox's {name} has no option {', '.join(map(repr, unknown))}; "
            f"valid: {', '.join(map(repr, valid))}"
        )
    if "distance" in valid:  # it minimises any distance, and has none of its own
        options = {"distance": library.distances.LpDistance(order), **options}
    try:
        made = kind(**options)
    except (AssertionError, TypeError, ValueError) as error:
        raise OptionError(f"foolbox's {name} does not take {options!r}: {error}") from error
    found = getattr(getattr(made, "distance", None), "p", None)
    if found is not None and float(found) != order:
        raise OptionError(
            f"foolbox's {name} keeps to a ball in l{found:g}, and norm={norm!r} was asked for: "
            "give the norm it is made for, or an attack of this norm (LinfPGD, L2PGD)"
        )
    return made
