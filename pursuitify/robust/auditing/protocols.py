"""The audit's named protocols, as plain data: which attacks run, in which order, how long."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

#: What an attack's success means for the flags.
KINDS = {
    "one-step": "one gradient",
    "white-box": "its own gradients",
    "noise": "chance",
    "black-box": "answers only",
    "other-sweeps": "another T's, step rule's or a twin's gradients",
    "adaptive": "gradients past masks",
    "yours": "handed to audit",
}


@dataclass(frozen=True)
class Step:
    """One attack of a protocol.

    Attributes:
        name: How the report calls it.
        attack: A key of ``attack_registry.ATTACKS``.
        kind: A key of ``KINDS``.
        options: Keyword arguments of the attack.
        guide: A key of ``attack_registry.GUIDES``, or empty for the network's own gradients.
        survivors: Attack only what nothing before has fooled. Without it the attack has an
            accuracy of its own.
        needs: ``"pursuit"``, ``"adaptive"`` or ``"random"``: only for pursuit networks, those whose
            steps adapt, or networks that answer the same input differently.
    """

    name: str
    attack: str
    kind: str
    options: Mapping[str, int | float | str] = field(default_factory=dict)
    guide: str = ""
    survivors: bool = False
    needs: str = ""


@dataclass(frozen=True)
class Protocol:
    """The steps of an audit.

    Attributes:
        name: Its name.
        steps: The attacks at the budget asked for, in order.
        twin: The attacks on each twin.
        curve: The attacks of the epsilon sweep; each takes what the one before left standing.
        factors: The epsilons of the sweep, as multiples of the budget; the whole image range is
            always the last.
    """

    name: str
    steps: tuple[Step, ...]
    twin: tuple[Step, ...]
    curve: tuple[Step, ...]
    factors: tuple[float, ...]


#: By guide what it needs, where that is not a pursuit network.
_NEEDS = {
    "": "",
    "smoothed": "",
    "averaged": "random",
    "certified-steps": "adaptive",
    "certified-steps, more sweeps": "adaptive",
}


def _core(pgd: int, apgd: int, restarts: int, *, survivors: bool = False) -> tuple[Step, ...]:
    more: dict[str, int | float | str] = {"restarts": restarts}
    return (
        Step("FGSM", "fgsm", "one-step"),
        Step(f"PGD-{pgd} CE", "pgd", "white-box", {"steps": pgd, **more}),
        Step("APGD-CE", "apgd", "white-box", {"steps": apgd, **more}),
        Step(
            "APGD-DLR", "apgd", "white-box", {"steps": apgd, "loss": "dlr", **more}, "", survivors
        ),
    )


def _targeted(targets: int, steps: int) -> Step:
    options: dict[str, int | float | str] = {"targets": targets, "steps": steps}
    return Step("APGD-T", "apgd", "white-box", options, survivors=True)


def _blind(draws: int, queries: int, rays: int, *, survivors: bool = False) -> tuple[Step, ...]:
    return (
        Step("random noise", "noise", "noise", {"draws": draws}),
        Step("Square", "square", "black-box", {"queries": queries}, survivors=survivors),
        Step("hard label", "hard_label", "black-box", {"queries": rays}, survivors=survivors),
    )


def _adaptive(steps: int, guides: Mapping[str, tuple[str, str]]) -> tuple[Step, ...]:
    """Return APGD through each guide: name to (kind, guide)."""
    found = []
    for name, (kind, guide) in guides.items():
        options: dict[str, int | float | str] = {"steps": steps}
        if guide == "":
            options["loss"] = "scaled"
        needs = _NEEDS.get(guide, "pursuit")
        found.append(Step(name, "apgd", kind, options, guide, survivors=True, needs=needs))
    return tuple(found)


_GUIDES = {
    "rescaled logits": ("adaptive", ""),
    "smoothed backward": ("adaptive", "smoothed"),
    "averaged passes": ("adaptive", "averaged"),
    "gradients at T = 0": ("other-sweeps", "t=0"),
    "gradients at T / 2": ("other-sweeps", "t=half"),
    "gradients at 2 T": ("other-sweeps", "t=double"),
    "gradients of certified steps": ("other-sweeps", "certified-steps"),
    "certified steps at 3 T": ("other-sweeps", "certified-steps, more sweeps"),
    "latents": ("adaptive", "latents"),
}
_APPROXIMATE = {
    "implicit derivatives": ("adaptive", "implicit"),
    "last sweep's derivatives": ("adaptive", "last-k"),
}
_SWEEPS = {
    "mean over sweeps": ("adaptive", "sweeps-mean"),
    "worst sweep": ("adaptive", "sweeps-worst"),
}


def _curve(steps: int) -> tuple[Step, ...]:
    return (
        Step("PGD CE", "pgd", "white-box", {"steps": steps}),
        Step("APGD margin", "apgd", "white-box", {"steps": steps, "loss": "margin"}),
    )


QUICK = Protocol(
    name="quick",
    steps=(
        *_core(20, 20, 1, survivors=True),
        _targeted(3, 10),
        *_blind(10, 100, 100, survivors=True),
        *_adaptive(10, {**_GUIDES, "few sweeps, mean": ("adaptive", "sweeps-few")}),
    ),
    twin=_core(10, 20, 1),
    curve=_curve(10),
    factors=(0.25, 0.5, 1.0, 2.0, 4.0),
)
STANDARD = Protocol(
    name="standard",
    steps=(
        *_core(40, 100, 1),
        _targeted(9, 100),
        *_blind(100, 1000, 400),
        *_adaptive(40, {**_GUIDES, **_SWEEPS, **_APPROXIMATE}),
    ),
    twin=(*_core(20, 50, 1), _targeted(3, 50)),
    curve=_curve(30),
    factors=(0.125, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0, 8.0),
)
FULL = Protocol(
    name="full",
    steps=(
        *_core(100, 100, 5),
        _targeted(9, 100),
        *_blind(1000, 5000, 4000),
        *_adaptive(100, {**_GUIDES, **_SWEEPS, **_APPROXIMATE}),
    ),
    twin=(*_core(40, 100, 1), _targeted(9, 100)),
    curve=_curve(100),
    factors=(0.125, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 16.0),
)
PROTOCOLS = {protocol.name: protocol for protocol in (QUICK, STANDARD, FULL)}
