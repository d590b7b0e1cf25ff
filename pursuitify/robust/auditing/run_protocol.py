"""One audit under way: runs a protocol's steps and keeps what each fooled."""

from __future__ import annotations

import time
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from torch import Tensor, nn

from pursuitify.errors import InputError, InternalError, PursuitifyError
from pursuitify.robust.attacks.input_checks import evaluation_mode
from pursuitify.robust.attacks.threat_model import BALLS
from pursuitify.robust.auditing import red_flags as red
from pursuitify.robust.auditing.attack_registry import ATTACKS, GUIDES, Attack
from pursuitify.robust.auditing.audit_report import AuditReport
from pursuitify.robust.auditing.gradient_statistics import (
    GradientStatistics,
    class_count,
    gradient_statistics,
    predictions,
    spread,
    through_sweeps,
)
from pursuitify.robust.auditing.protocols import Protocol, Step
from pursuitify.robust.auditing.results_record import Record, Result, fingerprint
from pursuitify.robust.surrogates.sweep_counts import find_pursuit

#: The twin that every pursuit network has.
TWIN = "same weights at T = 0"
_DRIFT = 1e-4  # two passes that differ by more than this share of the largest logit are random
_FEW = 64  # inputs that a cheap look takes


@dataclass
class Auditor:
    """What one audit attacks, and where its results go.

    Attributes:
        net: The network.
        subjects: The network as ``network``, then its twins.
        protocol: What to run.
        x: The inputs.
        y: The labels.
        eps: The budget.
        norm: Name of the ball.
        seed: Every attack draws from its own seed, made of this and its name.
        batch_size: How many inputs at a time.
        record: Finished results.
    """

    net: nn.Module
    subjects: Mapping[str, nn.Module]
    protocol: Protocol
    x: Tensor
    y: Tensor
    eps: float
    norm: str
    seed: int
    batch_size: int | None
    record: Record

    def report(
        self, setting: Mapping[str, Any], own: Mapping[str, Attack], *, progress: bool
    ) -> AuditReport:
        """Run everything and judge it."""
        start = slice(0, _FEW)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            drift = spread(self.net, self.x[start], self.y[start])
            classes = class_count(self.net, self.x[:1], self.y[:1])
        likely = [str(w.message) for w in caught if "probabilities" in str(w.message)]
        for message in likely[:1]:
            warnings.warn(message, stacklevel=3)
        steps = self._steps(classes, random=drift > _DRIFT)
        clean: dict[str, float] = {}
        results: list[Result] = []
        with _bar(progress) as bar, warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="the model seems to return probabilities")
            count = sum(len(steps[name]) for name in self.subjects)
            task = bar.add_task("start", total=count + len(own) + len(self._radii()))

            def tell(title: str) -> None:
                bar.update(task, advance=1, description=title)

            for name, subject in self.subjects.items():
                wrong = self._wrong(subject)
                clean[name] = 1 - len(wrong) / len(self.x)
                results += self._attack(name, wrong, steps[name], tell)
                if name == "network":
                    results += self._own(wrong, results, own, tell)
            curve = self._curve(classes, tell)
            gradients = self._gradients()
        raised = [
            *red.of_attacks([r for r in results if r.subject == "network"], len(self.x)),
            *red.of_curve(curve, clean["network"], classes, len(self.x)),
            *red.of_gradients(gradients),
        ]
        if drift > _DRIFT:
            raised.append(red.Flag("answers at random", f"by {drift:.1e} of the largest logit"))
        if likely:
            raised.append(red.Flag("probabilities", "every row sums to 1"))
        return AuditReport(
            setting={**setting, "classes": classes},
            clean=clean,
            results=tuple(results),
            curve=tuple(curve),
            gradients=tuple(gradients),
            flags=tuple(raised),
            seconds=sum(result.seconds for result in self.record.results.values()),
        )

    def _steps(self, classes: int, *, random: bool) -> dict[str, list[Step]]:
        """Return the steps for the network and for each twin."""
        has = {"": True, "random": random, "pursuit": TWIN in self.subjects}
        steps = [_fit(step, classes) for step in self.protocol.steps if has[step.needs]]
        twins = [name for name in self.subjects if name not in ("network", TWIN)]
        budget = max(int(step.options.get("steps", 1)) for step in self.protocol.twin)
        for name in twins:
            options = {"steps": budget}
            title = f"gradients of {name}"
            steps.append(Step(title, "apgd", "other-sweeps", options, f"twin:{name}", True))
        on_twin = [_fit(step, classes) for step in self.protocol.twin]
        return {name: steps if name == "network" else on_twin for name in self.subjects}

    def _attack(
        self, name: str, wrong: set[int], steps: Sequence[Step], tell: Callable[[str], None]
    ) -> list[Result]:
        """Run the steps on one subject; ``wrong`` is fooled from the start."""
        fooled, results = set(wrong), []
        identity = "" if name in ("network", TWIN) else fingerprint(self.subjects[name])
        for step in steps:
            tell(f"{name}: {step.name}")
            key = f"{name} {identity}| {step.name}"
            if step.guide.startswith("twin:"):
                key += fingerprint(self.subjects[step.guide[5:]])
            results.append(self._step(key, name, step, self.eps, wrong, fooled))
            fooled |= set(results[-1].fooled)
        return results

    def _step(
        self, key: str, name: str, step: Step, eps: float, wrong: set[int], fooled: set[int]
    ) -> Result:
        """Run one step, or find it in the record."""

        def attack(x: Tensor, y: Tensor, seed: int) -> Tensor:
            options: dict[str, Any] = {**step.options, "batch_size": self.batch_size}
            if step.guide.startswith("twin:"):
                options["guide"] = self.subjects[step.guide[5:]]
            elif step.guide:
                options["guide"] = GUIDES[step.guide](self.net)
            run, model = ATTACKS[step.attack], self.subjects[name]
            return run(model, x, y, eps=eps, norm=self.norm, seed=seed, **options)

        skip = fooled if step.survivors else set()
        return self._run(key, attack, name, step.name, step.kind, eps, wrong, fooled, skip)

    def _own(
        self,
        wrong: set[int],
        before: Sequence[Result],
        own: Mapping[str, Attack],
        tell: Callable[[str], None],
    ) -> list[Result]:
        """Run the attacks that were handed in."""
        fooled = wrong.union(*(result.fooled for result in before))
        results = []
        for name in own:
            tell(f"network: {name}")

            def attack(x: Tensor, y: Tensor, seed: int, name: str = name) -> Tensor:
                del seed
                with evaluation_mode(self.net):
                    points = own[name](self.net, x.clone(), y, eps=self.eps)
                if not isinstance(points, Tensor) or points.shape != x.shape:
                    raise InputError("it must return perturbed inputs of the shape of x")
                try:
                    return BALLS[self.norm](x, self.eps).admit(points.detach().to(x))
                except InternalError as error:
                    raise InputError(f"it broke the threat model: {error}") from error

            found = self._run(
                f"own | {name}", attack, "network", name, "yours", self.eps, wrong, fooled, set()
            )
            fooled = fooled.union(found.fooled)
            results.append(found)
        return results

    def _run(
        self,
        key: str,
        attack: Callable[[Tensor, Tensor, int], Tensor],
        subject: str,
        name: str,
        kind: str,
        eps: float,
        wrong: set[int],
        fooled: set[int],
        skip: set[int],
    ) -> Result:
        """Run an attack on all inputs but ``skip``, judge its points, and keep the result."""
        if key in self.record.results:
            return self.record.results[key]
        begin = time.perf_counter()
        seed = zlib.crc32(f"{self.seed} {key}".encode())
        torch.manual_seed(seed)
        left = [n for n in range(len(self.x)) if n not in skip]
        error, hit = "", set(wrong)
        if left:
            place = torch.tensor(left, device=self.x.device)
            x, y = self.x[place], self.y[place]
            try:
                points = attack(x, y, seed)
                missed = predictions(self.subjects[subject], points, y, self.batch_size)
                hit |= {left[n] for n in missed.nonzero().flatten().tolist()}
            except InternalError:
                raise
            except PursuitifyError as reason:
                error = str(reason)
        result = Result(
            name=name,
            kind=kind,
            subject=subject,
            eps=eps,
            attacked=len(left),
            fooled=tuple(sorted(hit)),
            new=len(hit - fooled),
            seconds=time.perf_counter() - begin,
            error=error,
        )
        self.record.keep(key, result)
        return result

    def _wrong(self, subject: nn.Module) -> set[int]:
        torch.manual_seed(self.seed)
        missed = predictions(subject, self.x, self.y, self.batch_size)
        return set(missed.nonzero().flatten().tolist())

    def _radii(self) -> list[float]:
        """Return the epsilons of the sweep; the last allows any image."""
        widest = 1.0 if self.norm == "linf" else float(self.x[0].numel()) ** 0.5
        radii = [self.eps * factor for factor in sorted(self.protocol.factors)]
        return [*(radius for radius in radii if radius < widest), widest]

    def _curve(self, classes: int, tell: Callable[[str], None]) -> list[red.Point]:
        wrong, radii, points = self._wrong(self.net), self._radii(), []
        for radius in radii:
            tell(f"epsilon {radius:.3g}")
            fooled = set(wrong)
            for step in self.protocol.curve:
                step = replace(_fit(step, classes), survivors=True)
                key = f"curve {radius!r} | {step.name}"
                fooled |= set(self._step(key, "network", step, radius, wrong, fooled).fooled)
            accuracy = 1 - len(fooled) / len(self.x)
            points.append(red.Point(radius, accuracy, unbounded=radius == radii[-1]))
        return points

    def _gradients(self) -> list[GradientStatistics]:
        """Measure the network's own gradients first, then those after every sweep."""
        pursuit = find_pursuit(self.net) if TWIN in self.subjects else None
        own = {"the network" if pursuit is None else f"T = {pursuit.iterations} (own)": 0}
        x, y, size = self.x, self.y, self.batch_size
        try:
            found = gradient_statistics(self.net, own, lambda p: [self.net(p)], x, y, size)
            if pursuit is not None:
                count = pursuit.iterations
                found += through_sweeps(self.net, count, x[:_FEW], y[:_FEW], size)
        except InputError:  # the attacks met it too, and say so in the flags
            return []
        return found


def _fit(step: Step, classes: int) -> Step:
    """Give a step that needs three classes the margin instead where there are two."""
    if classes < 3 and step.options.get("loss") == "dlr":
        return replace(step, options={**step.options, "loss": "margin"})
    return step


@contextmanager
def _bar(shown: bool) -> Iterator[Progress]:
    label = TextColumn("{task.description:<36}")
    columns = (label, BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, disable=not shown) as bar:
        yield bar
