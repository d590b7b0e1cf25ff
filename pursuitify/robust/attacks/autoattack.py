"""AutoAttack (Croce & Hein 2020) as pyautoattack publishes it, behind our call."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pursuitify.errors import OptionError
from pursuitify.robust.attacks.external_library import Target, outside, verified
from pursuitify.utils import option_checks

_NORMS = {"linf": "Linf", "l2": "L2"}
#: The attacks of each version, as the library chooses them, and those that ``"custom"`` takes.
_VERSIONS = {
    "standard": ("apgd-ce", "apgd-t", "fab-t", "square"),
    "plus": ("apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"),
    "rand": ("apgd-ce", "apgd-dlr"),
    "custom": ("apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"),
}
#: The classes that an attack needs: its loss divides by a gap between so many logits.
_CLASSES = {"apgd-dlr": 3, "apgd-t": 4}


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

    Where there are fewer than ten classes, the targeted attacks aim at all that there are. The
    library computes in float32; so does the model meanwhile see its inputs.

    Raises:
        MissingExtraError: If pyautoattack is not installed.
        OptionError: If an option is wrong, or one of the attacks needs more classes than there are
            or images where the inputs are none. Nothing has run then.
    """
    library = outside("pyautoattack")
    name = option_checks.chosen("norm", norm, _NORMS)
    known = option_checks.chosen("version", version, _VERSIONS)
    option_checks.positive("batch_size", batch_size)
    if (attacks is not None) != (version == "custom"):
        raise OptionError("attacks goes with version='custom', and with no other")
    chosen = known if attacks is None else tuple(attacks)
    unknown = [repr(entry) for entry in chosen if entry not in known]
    if unknown or not chosen or isinstance(attacks, str):
        valid = ", ".join(map(repr, known))
        raise OptionError(f"attacks={attacks!r} must list some of {valid}")

    def attack(target: Target) -> Tensor:
        ball, labels = target.ball, target.labels
        _check_suits(chosen, version, target)
        run = library.AutoAttack(
            _model_for(target),
            attacks=None if attacks is None else list(attacks),
            device=ball.x.device,
            eps=ball.eps,
            norm=name,
            seed=seed,
            version=version,
        )
        for part in (run.apgd_targeted, run.fab):
            part.n_target_classes = min(part.n_target_classes, target.classes - 1)
        given = ball.x.float()
        found = run.run_standard_evaluation(_as_images(given), labels, batch_size=batch_size)
        points: Tensor = found[0] if isinstance(found, tuple) else found
        return points.reshape(ball.x.shape)

    # It makes its own batches, so it gets all inputs at once.
    return verified(
        f"AutoAttack ({', '.join(chosen)})",
        attack,
        model,
        x,
        y,
        eps=eps,
        norm=norm,
        seed=seed,
        batch_size=None,
    )


def _check_suits(chosen: Sequence[str], version: str, target: Target) -> None:
    """Refuse attacks that the inputs or the classes do not allow, all at once."""
    shape, reasons = tuple(target.ball.x.shape), {}
    for entry in chosen:
        needed = _CLASSES.get(entry, 2)
        if target.classes < needed:
            reasons[entry] = f"{entry} needs {needed} classes, and the model has {target.classes}"
        if entry == "square" and len(shape) != 4:
            reasons[entry] = f"square needs images (batch, channels, height, width), not {shape}"
    if reasons:
        left = [entry for entry in _VERSIONS["custom"] if entry not in reasons]
        left = [e for e in left if target.classes >= _CLASSES.get(e, 2)]
        if len(shape) != 4:
            left = [entry for entry in left if entry != "square"]
        raise OptionError(
            f"version={version!r} does not suit: {'; '.join(reasons.values())}. What does: "
            f"version='custom', attacks={left!r}; or audit() and the attacks of "
            "pursuitify.robust, which take any shape and two classes or more"
        )


def _as_images(x: Tensor) -> Tensor:
    """Return inputs of any shape as the library wants them: with four dimensions."""
    return x.clone() if x.ndim == 4 else x.reshape(len(x), -1, 1, 1).clone()


def _model_for(target: Target) -> nn.Module:
    """Return the model as it is, or one that gives it its inputs' own shape and precision."""
    x = target.ball.x
    if x.ndim == 4 and x.dtype == torch.float32:
        return target.model
    return _Adapted(target.model, x).eval()


class _Adapted(nn.Module):
    """A model behind a change of shape and precision; returns logits in float32."""

    def __init__(self, model: nn.Module, like: Tensor) -> None:
        super().__init__()
        self.model = model
        self.shape, self.dtype = like.shape[1:], like.dtype

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(x.reshape(len(x), *self.shape).to(self.dtype))
        return logits.float()
