"""One audit under way: runs a protocol's steps and keeps what each fooled."""

from __future__ import annotations

import time
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from torch import Tensor, nn

from pursuitify.errors import AuditError, InputError, PursuitifyError
from pursuitify.robust.attacks.input_checks import check_classes, evaluation_mode
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
from pursuitify.robust.auditing.network_guard import NetworkGuard, in_words, process_state_kept
from pursuitify.robust.auditing.protocols import Protocol, Step
from pursuitify.robust.auditing.results_record import (
    AttackResult,
    AuditRecord,
    answers,
    close,
)
from pursuitify.robust.surrogates.certified_steps import adapts_steps
from pursuitify.robust.surrogates.sweep_counts import find_pursuit
from pursuitify.utils import random_state
from pursuitify.utils.fingerprint import of_values
from pursuitify.utils.terminal import bar_console

#: The twin that every pursuit network has.
TWIN = "same weights at T = 0"
_DRIFT = 1e-4  # two passes that differ by more than this share of the largest logit are random
_FEW = 64  # inputs that a cheap look takes


@dataclass(frozen=True)
class _Passes:
    """The changes and answers of passes over the networks before the first attack.

    Attributes:
        changes: What every pass changes (counters, caches), in a guard's words: no attack's doing.
        answers: By network a sketch of its answers; none of a network that does not repeat itself.
    """

    changes: frozenset[str]
    answers: Mapping[str, Any]


@dataclass
class Auditor:
    """One audit: the networks and inputs that it attacks, and the record of its results.

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
        marks: Hashes of the twins, as they were when first met.
        passes: What one pass over the networks changes in them, and what they answered; None until
            an attack of the user's own is run.
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
    record: AuditRecord
    marks: dict[str, str] = field(default_factory=dict)
    passes: _Passes | None = None

    def report(
        self, setting: Mapping[str, Any], own: Mapping[str, Attack], *, progress: bool
    ) -> AuditReport:
        """Run everything and judge it."""
        start = slice(0, _FEW)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            drift = spread(self.net, self.x[start], self.y[start])
            classes = self._classes()
        likely = [str(w.message) for w in caught if "probabilities" in str(w.message)]
        for message in likely[:1]:
            warnings.warn(message, stacklevel=3)
        steps = self._steps(classes, random=drift > _DRIFT)
        clean: dict[str, float] = {}
        results: list[AttackResult] = []
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
            curve, failed = self._curve(classes, tell)
            gradients, trouble = self._gradients()
        raised = [
            *red.of_attacks([r for r in results if r.subject == "network"], len(self.x)),
            *red.of_failures([r for r in results if r.subject != "network"] + failed),
            *red.of_changes(results),
            *trouble,
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

    def _classes(self) -> int:
        """Return the network's number of classes, after a look at what every twin answers.

        A twin that cannot be attacked is refused here rather than when its turn comes.
        """
        count = class_count(self.net, self.x[:1], self.y[:1])
        check_classes(self.y, len(self.y), count, name="data")
        for name, subject in self.subjects.items():
            if name not in ("network", TWIN):
                try:
                    found = class_count(subject, self.x[:1], self.y[:1])
                    check_classes(self.y, len(self.y), found, name="data")
                except InputError as error:
                    raise InputError(f"twin {name!r}: {error}") from error
        return count

    def _steps(self, classes: int, *, random: bool) -> dict[str, list[Step]]:
        """Return the steps for the network and for each twin."""
        pursues = TWIN in self.subjects
        adapts = pursues and adapts_steps(self.net)
        has = {"": True, "random": random, "pursuit": pursues, "adaptive": adapts}
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
    ) -> list[AttackResult]:
        """Run the steps on one subject; ``wrong`` is fooled from the start."""
        fooled, results = set(wrong), []
        for step in steps:
            tell(f"{name}: {step.name}")
            title = f"{name} | {step.name}"
            results.append(self._step(title, name, step, self.eps, wrong, fooled))
            fooled |= set(results[-1].fooled)
        return results

    def _step(
        self, title: str, name: str, step: Step, eps: float, wrong: set[int], fooled: set[int]
    ) -> AttackResult:
        """Run one step, or find it in the record."""
        involved = {name, step.guide.removeprefix("twin:")} - {"network", TWIN}
        depends = [self._mark(twin) for twin in sorted(involved & self.subjects.keys())]

        def attack(x: Tensor, y: Tensor, seed: int) -> Tensor:
            options: dict[str, Any] = {**step.options, "batch_size": self.batch_size}
            if step.guide.startswith("twin:"):
                options["guide"] = self.subjects[step.guide[5:]]
            elif step.guide:
                options["guide"] = GUIDES[step.guide](self.net)
            run, model = ATTACKS[step.attack], self.subjects[name]
            return run(model, x, y, eps=eps, norm=self.norm, seed=seed, **options)

        skip = fooled if step.survivors else set()
        return self._run(
            title, depends, attack, name, step.name, step.kind, eps, wrong, fooled, skip
        )

    def _own(
        self,
        wrong: set[int],
        before: Sequence[AttackResult],
        own: Mapping[str, Attack],
        tell: Callable[[str], None],
    ) -> list[AttackResult]:
        """Run the attacks that were handed in."""
        fooled = wrong.union(*(result.fooled for result in before))
        results = []
        for name in own:
            tell(f"network: {name}")

            changes: list[str] = []

            def attack(
                x: Tensor, y: Tensor, seed: int, name: str = name, changes: list[str] = changes
            ) -> Tensor:
                del seed
                with self._guarded(name, changes):
                    points = own[name](self.net, x.clone(), y.clone(), eps=self.eps)
                if not isinstance(points, Tensor) or points.shape != x.shape:
                    raise InputError("it must return perturbed inputs of the shape of x")
                return BALLS[self.norm](x, self.eps).admit(points.detach().to(x))

            title, depends = f"own | {name}", [of_values(own[name], attributes=False)]
            found = self._run(
                title,
                depends,
                attack,
                "network",
                name,
                "yours",
                self.eps,
                wrong,
                fooled,
                set(),
                changes,
            )
            fooled = fooled.union(found.fooled)
            results.append(found)
        return results

    @contextmanager
    def _guarded(self, name: str, changes: list[str]) -> Iterator[None]:
        """Run an attack of the user's own so that it leaves every network as it was.

        Args:
            name: The attack's.
            changes: What it changed is added here.

        Raises:
            AuditError: If a network answers otherwise afterwards all the same.
        """
        with evaluation_mode(self.net):
            if self.passes is None:
                self.passes = self._look_at_passes()
            guard = NetworkGuard(self.subjects)
            try:
                try:
                    with process_state_kept(), torch.enable_grad():
                        yield
                finally:
                    changes += guard.restore(self.passes.changes)
            except (Exception, SystemExit):
                self._check_answers(name, self.passes)
                raise
            self._check_answers(name, self.passes)

    def _check_answers(self, name: str, passes: _Passes) -> None:
        for subject, before in passes.answers.items():
            try:
                same = close(before, self._sketch(subject))
            except Exception:  # the user's network may raise anything; before, it did not
                same = False
            if not same:
                raise AuditError(
                    f"attack {name!r} changed {subject!r}: it answers otherwise than before, "
                    "though its weights, buffers, modes and attributes are as they were. Something "
                    "outside of the network was changed, such as a function or a class that it "
                    "calls. Let the attack work on a copy, copy.deepcopy(model), and leave "
                    "everything else alone"
                )

    def _look_at_passes(self) -> _Passes:
        guard, repeating = NetworkGuard(self.subjects), {}
        for name in self.subjects:
            try:
                first, again = (self._sketch(name) for _ in range(2))
            except InputError:  # a twin that cannot be attacked is reported when its turn comes
                continue
            if close(first, again):
                repeating[name] = again
        return _Passes(frozenset(guard.changes()), repeating)

    def _sketch(self, subject: str) -> Any:
        """Return what stands for a network's answers to a few inputs."""
        x, y = self.x[:_FEW], self.y[:_FEW]
        with process_state_kept():
            return answers(self.subjects[subject], x, y, self.batch_size, self.seed)

    def _run(
        self,
        title: str,
        depends: Sequence[str],
        attack: Callable[[Tensor, Tensor, int], Tensor],
        subject: str,
        name: str,
        kind: str,
        eps: float,
        wrong: set[int],
        fooled: set[int],
        skip: set[int],
        changes: Sequence[str] = (),
    ) -> AttackResult:
        """Run an attack on all inputs but ``skip``, judge its points, and keep the result.

        The record's key names everything that the points depend on beside the audit's identity:
        the twins and functions in ``depends``, and which inputs were left. So a result that a
        change before it would have changed is not found, and the attack runs again.

        An attack that raises is a result with an error, which raises a flag, and the audit goes on.
        ``changes`` is filled while it runs.
        """
        more = of_values(*depends, *sorted(skip)) if depends or skip else ""
        key = f"{title} | {more}" if more else title
        held = self.record.find(key, fooled)
        if held is not None:
            return held
        begin = time.perf_counter()
        seed = zlib.crc32(f"{self.seed} {title}".encode())
        random_state.seed_all(seed)
        left = [n for n in range(len(self.x)) if n not in skip]
        error, hit = "", set(wrong)
        if left:
            place = torch.tensor(left, device=self.x.device)
            x, y = self.x[place], self.y[place]
            try:
                points = attack(x, y, seed)
                missed = predictions(self.subjects[subject], points, y, self.batch_size)
                hit |= {left[n] for n in missed.nonzero().flatten().tolist()}
            except AuditError:
                raise
            except (Exception, SystemExit) as reason:  # whatever it is must not cost the others
                error = _cause(reason)
        result = AttackResult(
            name=name,
            kind=kind,
            subject=subject,
            eps=eps,
            attacked=len(left),
            fooled=tuple(sorted(hit)),
            new=len(hit - fooled),
            seconds=time.perf_counter() - begin,
            error=error,
            changed=in_words(changes),
        )
        self.record.keep(key, result)
        return result

    def _wrong(self, subject: nn.Module) -> set[int]:
        random_state.seed_all(self.seed)
        missed = predictions(subject, self.x, self.y, self.batch_size)
        return set(missed.nonzero().flatten().tolist())

    def _radii(self) -> list[float]:
        """Return the epsilons of the sweep; the last allows any image."""
        widest = 1.0 if self.norm == "linf" else float(self.x[0].numel()) ** 0.5
        radii = [self.eps * factor for factor in sorted(self.protocol.factors)]
        return [*(radius for radius in radii if radius < widest), widest]

    def _mark(self, twin: str) -> str:
        """Return a hash of a twin, as it was when the audit first met it."""
        if twin not in self.marks:
            self.marks[twin] = of_values(self.subjects[twin], attributes=False)
        return self.marks[twin]

    def _curve(
        self, classes: int, tell: Callable[[str], None]
    ) -> tuple[list[red.CurvePoint], list[AttackResult]]:
        """Return the epsilon sweep, and those of its attacks that failed."""
        wrong, radii, points = self._wrong(self.net), self._radii(), []
        failed = []
        for radius in radii:
            tell(f"epsilon {radius:.3g}")
            fooled = set(wrong)
            for step in self.protocol.curve:
                step = replace(_fit(step, classes), survivors=True)
                title = f"curve {radius!r} | {step.name}"
                result = self._step(title, "network", step, radius, wrong, fooled)
                fooled |= set(result.fooled)
                if result.error:
                    failed.append(replace(result, name=f"{step.name} at {radius:.3g}"))
            accuracy = 1 - len(fooled) / len(self.x)
            points.append(red.CurvePoint(radius, accuracy, unbounded=radius == radii[-1]))
        return points, failed

    def _gradients(self) -> tuple[list[GradientStatistics], list[red.Flag]]:
        """Measure the network's own gradients first, then those after every sweep.

        Where that fails there are none, and a flag unless the attacks met the same and say so.
        """
        pursuit = find_pursuit(self.net) if TWIN in self.subjects else None
        own = {"the network" if pursuit is None else f"T = {pursuit.iterations} (own)": 0}
        x, y, size = self.x, self.y, self.batch_size
        try:
            found = gradient_statistics(self.net, own, lambda p: [self.net(p)], x, y, size)
            if pursuit is not None:
                count = pursuit.iterations
                found += through_sweeps(self.net, count, x[:_FEW], y[:_FEW], size)
        except InputError:
            return [], []
        except Exception as reason:  # as for attacks: what is measured already is not lost
            detail = f"the gradients could not be measured: {_cause(reason)}"
            return [], [red.Flag("weak attack", detail)]
        return found, []


def _cause(reason: BaseException) -> str:
    """Return why something failed; the kind of error goes without saying for our own."""
    if isinstance(reason, PursuitifyError) and str(reason):
        return str(reason)
    return f"{type(reason).__name__}: {reason}"


def _fit(step: Step, classes: int) -> Step:
    """Give a step that needs three classes the margin instead where there are two."""
    if classes < 3 and step.options.get("loss") == "dlr":
        return replace(step, options={**step.options, "loss": "margin"})
    return step


@contextmanager
def _bar(shown: bool) -> Iterator[Progress]:
    label = TextColumn("{task.description:<36}")
    columns = (label, BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=bar_console(), disable=not shown) as bar:
        yield bar
