"""Red flags: signs that an evaluation is wrong, most often that gradients are masked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from pursuitify.robust.auditing.gradient_statistics import GradientStatistics, wilson
from pursuitify.robust.auditing.results_record import AttackResult

#: Every flag there is, and what it looks for.
FLAGS = {
    "one step beats iterative": "FGSM fools what no iterated gradient attack fools",
    "weak attack": "an attack fools fewer than a weaker kind does, or could not run",
    "black-box beats white-box": "Square or hard label fool what no gradient attack fools",
    "noise beats gradients": "random noise fools what no gradient attack fools",
    "other sweeps do better": "gradients of another T, or of a twin, find more than the own",
    "adaptive attacks do better": "gradients past what may mask them find more than the own",
    "larger epsilon does not help": "accuracy stalls or rises along the epsilon sweep",
    "unbounded attack fails": "accuracy is above chance though any image is allowed",
    "zero gradients": "the loss's gradient is exactly zero at correctly classified inputs",
    "vanishing gradients": "to first order no image whatever would change the decision",
    "changes the network": "an attack of yours changed a network, which was then restored",
    "answers at random": "two passes over the same inputs differ",
    "probabilities": "the network returns probabilities rather than logits",
}


@dataclass(frozen=True)
class Flag:
    """One red flag.

    Attributes:
        name: A key of ``FLAGS``.
        detail: The numbers that raised it.
    """

    name: str
    detail: str

    def __str__(self) -> str:
        """Return both in one line."""
        return f"{self.name}: {self.detail}"


@dataclass(frozen=True)
class CurvePoint:
    """Accuracy at one epsilon of the sweep."""

    eps: float
    accuracy: float
    unbounded: bool = False


def of_attacks(results: Sequence[AttackResult], images: int) -> list[Flag]:
    """Compare who was fooled by what; ``results`` are those on the network itself."""
    done = {result.name: set(result.fooled) for result in results if not result.error}
    kinds = {result.name: result.kind for result in results}
    own = _joined(done, kinds, {"white-box", "yours"})
    few = tolerance(images, 0.01)
    some = tolerance(images, 0.02)
    flags = []
    checks = (
        ("one step beats iterative", "one-step", few),
        ("noise beats gradients", "noise", few),
        ("black-box beats white-box", "black-box", some),
        ("other sweeps do better", "other-sweeps", some),
        ("adaptive attacks do better", "adaptive", some),
    )
    for name, kind, slack in checks:
        gradients = own if kind == "one-step" else own | _joined(done, kinds, {"one-step"})
        extra = len(_joined(done, kinds, {kind}) - gradients)
        if extra > slack:
            best = _best(done, kinds, kind, gradients)
            flags.append(Flag(name, f"{extra} of {images} inputs, most of them by {best}"))
    return [*flags, *_weak(results, images)]


def _weak(results: Sequence[AttackResult], images: int) -> list[Flag]:
    """Find iterated attacks that lose to one step, and attacks handed in that lose to PGD too."""
    flags = []
    flags += of_failures(results)
    whole = [r for r in results if r.attacked == images and not r.error]
    one_step = next((r for r in whole if r.kind == "one-step"), None)
    iterated = next((r for r in whole if r.kind == "white-box"), None)
    for result in whole:
        rivals = []
        if result.kind in ("white-box", "yours"):
            rivals.append((one_step, 0.01))
        if result.kind == "yours":
            rivals.append((iterated, 0.02))
        for rival, share in rivals:
            behind = 0 if rival is None else len(rival.fooled) - len(result.fooled)
            if rival is not None and behind > tolerance(images, share):
                detail = f"{result.name} fools {behind} of {images} fewer than {rival.name}"
                flags.append(Flag("weak attack", detail))
                break
    return flags


def of_failures(results: Iterable[AttackResult]) -> list[Flag]:
    """Name the attacks that could not run."""
    return [
        Flag("weak attack", f"{result.name} could not run: {result.error}")
        for result in results
        if result.error
    ]


def of_changes(results: Iterable[AttackResult]) -> list[Flag]:
    """Name the attacks that changed a network: what they attacked is not what was judged."""
    return [
        Flag("changes the network", f"{result.name} changed {result.changed}")
        for result in results
        if result.changed
    ]


def of_curve(points: Sequence[CurvePoint], clean: float, classes: int, images: int) -> list[Flag]:
    """Judge accuracy against epsilon."""
    flags = []
    chance = 1 / classes
    slack = tolerance(images, 0.01) / images
    for before, after in pairwise(points):
        rises = after.accuracy > before.accuracy + slack
        room = before.accuracy < clean - 0.1 and before.accuracy > chance + 0.1
        stalls = after.eps >= 1.5 * before.eps and after.accuracy >= before.accuracy
        if rises or (room and stalls):
            values = (f"{point.accuracy:.1%} at {point.eps:.3g}" for point in (before, after))
            flags.append(Flag("larger epsilon does not help", ", ".join(values)))
            break
    for point in points:
        low = wilson(round(point.accuracy * images), images)[0]
        if point.unbounded and low > chance:
            detail = f"{point.accuracy:.1%} at {point.eps:.3g}, chance is {chance:.1%}"
            flags.append(Flag("unbounded attack fails", detail))
    return flags


def of_gradients(statistics: Iterable[GradientStatistics]) -> list[Flag]:
    """Judge the first, the network's own."""
    for found in statistics:
        flags = []
        for loss, share in (("cross entropy", found.zero_ce), ("margin", found.zero_margin)):
            if share > 0.05:
                detail = f"{share:.0%} of inputs, {loss}, {found.view}"
                flags.append(Flag("zero gradients", detail))
        if found.faint > 0.25:
            detail = f"{found.faint:.0%} of inputs, {found.view}"
            flags.append(Flag("vanishing gradients", detail))
        return flags
    return []


def tolerance(images: int, share: float) -> int:
    """Return how many inputs more are no news: two, or this share."""
    return max(2, round(share * images))


def _joined(done: Mapping[str, set[int]], kinds: Mapping[str, str], which: set[str]) -> set[int]:
    return set().union(*(fooled for name, fooled in done.items() if kinds[name] in which))


def _best(
    done: Mapping[str, set[int]], kinds: Mapping[str, str], kind: str, others: set[int]
) -> str:
    names = [name for name in done if kinds[name] == kind]
    return max(names, key=lambda name: len(done[name] - others))
