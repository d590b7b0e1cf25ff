"""The names in the steps of a protocol: attacks, and the networks that they differentiate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from pursuitify.robust.attacks.apgd import apgd
from pursuitify.robust.attacks.fgsm_pgd import fgsm, pgd
from pursuitify.robust.attacks.gradient_free import random_noise, square
from pursuitify.robust.attacks.hard_label import hard_label
from pursuitify.robust.attacks.objective import Guide
from pursuitify.robust.surrogates.approximate_derivatives import Implicit
from pursuitify.robust.surrogates.certified_steps import CertifiedSteps
from pursuitify.robust.surrogates.pursuit_losses import Averaged, LatentChange, Sweeps
from pursuitify.robust.surrogates.smoothed_backward import SmoothedBackward
from pursuitify.robust.surrogates.sweep_counts import AtIterations, pursuit_of

Attack = Callable[..., Tensor]


def _one_step(
    model: nn.Module, x: Tensor, y: Tensor, *, eps: float, norm: str, seed: int, **options: Any
) -> Tensor:
    """FGSM, or in l2 one step of full length along the gradient."""
    if norm == "linf":
        return fgsm(model, x, y, eps=eps, **options)
    options |= {"steps": 1, "step_size": eps, "random_start": False}
    return pgd(model, x, y, eps=eps, norm=norm, seed=seed, **options)


ATTACKS: dict[str, Attack] = {
    "fgsm": _one_step,
    "pgd": pgd,
    "apgd": apgd,
    "noise": random_noise,
    "square": square,
    "hard_label": hard_label,
}
GUIDES: dict[str, Callable[[Any], Guide | nn.Module]] = {
    "smoothed": SmoothedBackward,
    "averaged": Averaged,
    "latents": LatentChange,
    "t=0": lambda net: AtIterations(net, 0),
    "t=half": lambda net: AtIterations(net, pursuit_of(net).iterations // 2),
    "t=double": lambda net: AtIterations(net, 2 * pursuit_of(net).iterations),
    "sweeps-mean": Sweeps,
    "sweeps-worst": lambda net: Sweeps(net, how="worst"),
    "implicit": Implicit,
    "last-k": lambda net: Implicit(net, last=1),
    "certified-steps": CertifiedSteps,
    "certified-steps, more sweeps": lambda net: CertifiedSteps(net, 3),
    "sweeps-few": lambda net: Sweeps(net, _few(pursuit_of(net).iterations)),
}


def _few(own: int) -> list[int]:
    return sorted({0, own // 2, own})
