"""AutoAttack (Croce & Hein 2020) as pyautoattack publishes it, behind our call."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from pursuitify.errors import OptionError
from pursuitify.robust.attacks.external_library import outside, verified
from pursuitify.robust.attacks.input_checks import check_choice
from pursuitify.robust.attacks.threat_model import Ball

_NORMS = {"linf": "Linf", "l2": "L2"}


def autoattack(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    norm: str = "linf",
    version: str = "standard",
    attacks: Sequence[str] | None = None,
    seed: int = 0,
    batch_size: int = 256,
) -> Tensor:
    """Run AutoAttack; needs the extra ``robust``.

    Args:
        model: Returns logits, one row per input.
        x: Inputs in [0, 1], batch first.
        y: Class labels, one per input.
        eps: Radius of the ball.
        norm: ``"linf"`` or ``"l2"``.
        version: ``"standard"``, ``"plus"``, ``"rand"``, or ``"custom"`` with ``attacks``.
        attacks: Of ``"apgd-ce"``, ``"apgd-dlr"``, ``"apgd-t"``, ``"fab"``, ``"fab-t"``,
            ``"square"``.
        seed: Makes it repeat; the global random state is left alone.
        batch_size: How many inputs to attack at a time.

    Returns:
        The perturbed inputs, inside the ball and [0, 1].

    Raises:
        MissingExtraError: If pyautoattack is not installed.
    """
    library = outside("pyautoattack")
    name = check_choice("norm", norm, _NORMS)
    if (attacks is not None) != (version == "custom"):
        raise OptionError("attacks goes with version='custom', and with no other")

    def attack(ball: Ball, labels: Tensor) -> Tensor:
        run = library.AutoAttack(
            model,
            attacks=None if attacks is None else list(attacks),
            device=ball.x.device,
            eps=ball.eps,
            norm=name,
            seed=seed,
            version=version,
        )
        found = run.run_standard_evaluation(ball.x.clone(), labels, batch_size=batch_size)
        points: Tensor = found[0] if isinstance(found, tuple) else found
        return points

    # It makes its own batches, so it gets all inputs at once.
    return verified(attack, model, x, y, eps=eps, norm=norm, seed=seed, batch_size=None)
