"""Calibration: gains and scales of pursuit, chosen on unlabelled batches, that keep the outputs.

A pretrained network was trained for the latents its feed-forward pass gives; sweeps at full step
move them to where the objective is lower, and the classifier may not know what it sees there.
``calibrate`` fits atom gains, so that decoder rows explain what they read, and looks for the scales
that let the objective fall as far as possible while the outputs still agree with the source's. It
says at every T what is kept, and how far the latents move. Labels are not used; nothing is random.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from os import PathLike
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Group
from rich.table import Table
from torch import Tensor

from pursuitify import plots
from pursuitify.dictionary import atom_gains
from pursuitify.dictionary.atom_gains import RowFit, Sample
from pursuitify.dictionary.structured import StructuredDictionary
from pursuitify.errors import InputError, OptionError, RangeError
from pursuitify.network.pursuit_network import PursuitNetwork
from pursuitify.solvers.settings import SIGNAL, STATIONARY
from pursuitify.utils import option_checks
from pursuitify.utils.terminal import Shown, as_text, bar

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Numbers of sweeps at which a calibration says what is kept, up to the network's own.
COUNTS = (1, 2, 5, 10, 20, 50, 100, 200, 500)
STEP_SCALES = (0.0, 1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 3 / 4, 1.0)


@dataclass(frozen=True)
class Trial:
    """The effect of one pair of scales on the batches.

    Attributes:
        step_scale: The factor on the steps.
        threshold_scale: The factor on positive thresholds in the sweeps.
        agreement: Share of predictions that are the source's.
        divergence: KL of the source's class probabilities to these, mean, in nats.
        objective: F of the network as converted (threshold scale 1) at the latents reached, mean
            per sample.
    """

    step_scale: float
    threshold_scale: float
    agreement: float
    divergence: float
    objective: float


@dataclass(frozen=True)
class Kept:
    """One record says what is kept of the source after so many sweeps, at the chosen scales.

    Attributes:
        sweeps: T.
        agreement: Share of predictions that are the source's.
        divergence: KL of the source's class probabilities to these, mean, in nats.
        moved: ||w_j - w_j at T = 0|| / ||w_j at T = 0||, mean over the latents. Outputs are kept
            most easily by latents that hardly move: here it is said if they do not.
    """

    sweeps: int
    agreement: float
    divergence: float
    moved: float


@dataclass(frozen=True)
class Calibration(Shown):
    """Every pair of scales that was tried, the one that was chosen, and what it keeps.

    Attributes:
        iterations: T.
        solver: The solver.
        samples: How many samples were looked at.
        agreement: The least agreement that was asked for.
        divergence: The largest divergence that was allowed, or None.
        chosen: The allowed trial with the lowest objective.
        trials: All trials; a step scale of 0, the source, is always among them.
        applied: Whether the network was set to the chosen scales, and has the gains.
        gains: How well every decoder row explains what it reads, before and after; empty if no
            gains were fitted.
        kept: What is kept at T = 1, 2, 5, 10, 20, 50, ... up to the network's own, ascending.
        offsets: The network's ``offsets``; ``pursuitify(model, calibrate=batches)`` may choose.
    """

    iterations: int
    solver: str
    samples: int
    agreement: float
    divergence: float | None
    chosen: Trial
    trials: tuple[Trial, ...]
    applied: bool
    gains: tuple[RowFit, ...] = ()
    kept: tuple[Kept, ...] = ()
    offsets: str = SIGNAL

    def to_dict(self) -> dict[str, Any]:
        """Return plain lists and numbers."""
        return asdict(self)

    def plot(self, path: str | PathLike[str] | None = None, *, ax: Axes | None = None) -> Figure:
        """Draw against T the share of predictions kept, and how far the latents have moved.

        Args:
            path: File to write; the suffix chooses the format. Nothing is written if None.
            ax: Axes to draw into; None for a figure of its own.
        """
        counts = [0, *(found.sweeps for found in self.kept)]
        with plots.style():
            figure, axes = plots.panel(ax)
            agreements = [1.0, *(found.agreement for found in self.kept)]
            axes.plot(agreements, color=plots.COLOURS[0], label="predictions kept")
            moved = [0.0, *(found.moved for found in self.kept)]
            axes.plot(moved, color=plots.COLOURS[1], marker="s", label="change of the latents")
            plots.ordinal(axes, counts)
            axes.set_ylim(bottom=0)
            axes.set_xlabel("T, the number of sweeps (places evenly spaced)")
            axes.set_ylabel("share; relative change")
            chosen = f"step scale {self.chosen.step_scale:g}"
            axes.set_title(f"{self.solver}, {chosen}, {self.samples} samples")
            plots.legend(axes)
            return plots.finished(figure, path)

    def tables(self) -> list[Table]:
        """Return rich tables: the trials, what is kept at each T, and the rows' gains if any."""
        asked = f"agreement of at least {self.agreement:.1%}"
        if self.divergence is not None:
            asked += f", divergence of at most {self.divergence:g}"
        title = f"{self.solver}, T = {self.iterations}, {self.samples} samples, {asked}"
        trials = [
            (
                f"{trial.step_scale:g}",
                f"{trial.threshold_scale:g}",
                f"{trial.agreement:.1%}",
                f"{trial.divergence:.3g}",
                f"{trial.objective:.6g}",
                "chosen" if trial == self.chosen else "",
            )
            for trial in self.trials
        ]
        headings = ("step", "threshold", "agreement", "divergence", "objective", "")
        found = [_table(title, headings, trials)]
        title = f"kept at step scale {self.chosen.step_scale:g}"
        if self.offsets == STATIONARY:
            title += f", offsets {STATIONARY!r}"
        kept = [
            (f"{k.sweeps}", f"{k.agreement:.1%}", f"{k.divergence:.3g}", f"{k.moved:.2f}")
            for k in self.kept
        ]
        found.append(_table(title, ("T", "agreement", "divergence", "latents moved"), kept))
        if self.gains:
            headings = ("row", "residual before", "after", "explained", "smallest gain", "largest")
            gains = [
                (
                    fit.latent,
                    f"{fit.before:.3g}",
                    f"{fit.after:.3g}",
                    f"{fit.explained:.1%}",
                    f"{fit.smallest:.3g}",
                    f"{fit.largest:.3g}",
                )
                for fit in self.gains
            ]
            found.append(_table("atom gains of decoder rows", headings, gains))
        return found

    def __rich__(self) -> Group:
        return Group(*self.tables())

    def __str__(self) -> str:
        """Return the tables as text."""
        return as_text(self, width=100)


def _table(title: str, headings: Sequence[str], lines: Sequence[Sequence[str]]) -> Table:
    table = Table(title=title, min_width=min(len(title), 80))
    for heading in headings:
        if heading == "row":
            table.add_column(heading, overflow="fold")
        else:
            table.add_column(heading, justify="right")
    for line in lines:
        table.add_row(*line)
    return table


@torch.no_grad()
def calibrate(
    net: PursuitNetwork,
    batches: Iterable[Any],
    *,
    agreement: float = 0.99,
    divergence: float | None = None,
    step_scales: Sequence[float] = STEP_SCALES,
    threshold_scales: Sequence[float] = (1.0,),
    gains: bool = False,
    logits: Callable[[Any], Tensor] | None = None,
    apply: bool = False,
    progress: bool = False,
) -> Calibration:
    """Choose step_scale, and threshold_scale and atom gains if asked to, on unlabelled batches.

    Every pair of the given scales is tried at the network's own solver and T. Of the pairs whose
    outputs agree with the source's as asked, the one with the lowest objective is chosen; of equal
    ones the smaller step. A step scale of 0 is always tried, so there always is one.

    Args:
        net: The network, in evaluation mode.
        batches: Inputs, as tensors; of a tuple or list (a loader's images and labels) the first
            entry is taken and the rest not looked at. All are kept in memory, on the network's
            device.
        agreement: Least share of predictions (largest logit) that must be the source's.
        divergence: Largest mean KL divergence of the source's class probabilities to the
            network's, in nats; None for any.
        step_scales: Step scales to try, from 0 to 1.
        threshold_scales: Threshold scales to try, at least 0.
        gains: First fit the atom gains of decoder rows (mathematics.md, section 1; see
            :mod:`pursuitify.dictionary.atom_gains`), in place of those the network has; scales are
            tried with them. That keeps what decoder rows read of all batches in memory.
        logits: Returns the class scores, classes along dimension 1, of what the network returns;
            needed where that is not a tensor.
        apply: Set the network to the chosen scales and the gains; otherwise it is left as it was.
        progress: Whether to show a progress bar.

    Returns:
        All trials, the chosen one, what it keeps at each T, and the rows' gains; ``str()`` is
        tables.

    Raises:
        OptionError: If an option is wrong, or the network is in training mode.
        InputError: If there is no batch, or the output holds no class scores.
    """
    _check(net, agreement, divergence)
    option_checks.switch("gains", gains)
    if not isinstance(batches, Iterable) or isinstance(batches, (str, Tensor)):
        raise OptionError(
            f"batches is a {type(batches).__name__}, not a loader or a list of batches; of a "
            "single batch x, give [x]"
        )
    steps = sorted({0.0, *(option_checks.factor("step_scales", s, 1.0) for s in step_scales)})
    thresholds = sorted({option_checks.factor("threshold_scales", t) for t in threshold_scales})
    if not thresholds:
        raise OptionError("threshold_scales is empty")
    # At a step of 0 no threshold is ever applied: one trial stands for all.
    pairs = [(0.0, thresholds[0]), *itertools.product(steps[1:], thresholds)]
    place = next((p.device for p in net.parameters()), torch.device("cpu"))
    inputs = [batch[0] if isinstance(batch, (tuple, list)) else batch for batch in batches]
    inputs = [x.to(place) if isinstance(x, Tensor) else x for x in inputs]
    if not inputs:
        raise InputError("there is no batch to calibrate on")
    counts = sorted({t for t in (*COUNTS, net.iterations) if 0 < t <= net.iterations})
    held = net.step_scale, net.threshold_scale, net.iterations
    held_gains = net.pursuit.log_gains
    fits: tuple[RowFit, ...] = ()
    done = False
    try:
        with bar(progress, "calibrate", len(inputs) * (len(pairs) + len(counts))) as advance:
            if gains:
                fits = _fit_gains(net, inputs)
            trials = _tried(net, inputs, pairs, logits, advance)
            allowed = [t for t in trials if _is_allowed(t, agreement, divergence)]
            chosen = min(allowed, key=_rank)
            net.step_scale, net.threshold_scale = chosen.step_scale, chosen.threshold_scale
            kept = tuple(_kept(net, inputs, count, logits, advance) for count in counts)
            done = apply
    finally:
        net.iterations = held[2]
        if not done:
            net.step_scale, net.threshold_scale = held[:2]
            if gains:
                net.restore_gains(held_gains)
    samples = sum(len(x) for x in inputs)
    return Calibration(
        net.iterations,
        net.solver,
        samples,
        agreement,
        divergence,
        chosen,
        trials,
        apply,
        fits,
        kept,
        net.offsets,
    )


def keep_outputs(
    net: PursuitNetwork, batches: Iterable[Any], progress: bool = False, stationary: bool = False
) -> Calibration:
    """Give a network the atom gains of some batches, and smaller steps only where it needs them.

    Args:
        net: The network, in evaluation mode; changed.
        batches: As ``calibrate`` takes them.
        progress: Whether to show a progress bar.
        stationary: Where full steps with gains would change outputs, calibrate the steps with
            ``offsets="stationary"`` and no gains as well, and keep what moves the latents farther.

    Returns:
        The calibration that was applied. Raises what ``calibrate`` does.
    """
    if isinstance(batches, Iterable) and not isinstance(batches, (str, Tensor)):
        batches = list(batches)
    found = calibrate(net, batches, gains=True, step_scales=(1.0,), apply=True, progress=progress)
    if found.chosen.step_scale == 1:
        return found
    found = replace(calibrate(net, batches, apply=True, progress=progress), gains=found.gains)
    if not stationary or not found.kept:
        return found
    gains, step, offsets = net.pursuit.log_gains, net.step_scale, net.offsets
    net.atom_gains, net.offsets = {}, STATIONARY
    other = calibrate(net, batches, apply=True, progress=progress)
    if other.kept[-1].moved > found.kept[-1].moved:
        return other
    net.offsets, net.step_scale = offsets, step
    net.restore_gains(gains)
    return found


def _fit_gains(net: PursuitNetwork, inputs: Sequence[Any]) -> tuple[RowFit, ...]:
    """Give the network's decoder rows the gains that explain best what they read."""
    net.atom_gains = {}
    samples: dict[str, list[Sample]] = {}
    for x in inputs:
        bound = net.bind_batch(x)
        for row, w in zip(bound.dictionary.rows, bound.first.latents, strict=True):
            if row.diagonal is not None:
                sample = Sample(row.diagonal, w, row.join(row.u))
                samples.setdefault(row.name, []).append(sample)
    found = {name: atom_gains.fit(name, of_row) for name, of_row in samples.items()}
    net.atom_gains = {name: c for name, (c, _) in found.items() if c is not None}
    return tuple(fit for _, fit in found.values())


def _tried(
    net: PursuitNetwork,
    inputs: Sequence[Any],
    pairs: Sequence[tuple[float, float]],
    logits: Callable[[Any], Tensor] | None,
    advance: Callable[[], None],
) -> tuple[Trial, ...]:
    """Return a trial per pair of scales, in means over all inputs."""
    totals = [Trial(s, t, 0.0, 0.0, 0.0) for s, t in pairs]
    samples = predictions = 0
    for x in inputs:
        net.step_scale, net.threshold_scale = 0.0, 1.0
        source, _, own = net.infer(x)
        wanted = _scores(source, logits)
        if bool(wanted.isnan().any()):
            raise InputError(
                "the source's own output on a batch is NaN: no setting agrees with it. Look at "
                "its weights, or calibrate in float32"
            )
        for i, total in enumerate(totals):
            totals[i] = _add(total, _try(net, x, wanted, own, total, logits))
            advance()
        samples += wanted.shape[0]
        predictions += wanted.numel() // wanted.shape[1]
    return tuple(
        replace(
            t,
            agreement=t.agreement / predictions,
            divergence=t.divergence / predictions,
            objective=t.objective / samples,
        )
        for t in totals
    )


def _is_allowed(trial: Trial, agreement: float, divergence: float | None) -> bool:
    return trial.step_scale == 0 or (
        math.isfinite(trial.objective)
        and trial.agreement >= agreement
        and (divergence is None or trial.divergence <= divergence)
    )


def _kept(
    net: PursuitNetwork,
    inputs: Sequence[Any],
    count: int,
    logits: Callable[[Any], Tensor] | None,
    advance: Callable[[], None],
) -> Kept:
    """Return what is kept after ``count`` sweeps at the network's scales."""
    agreement, divergence, predictions = 0.0, 0.0, 0
    changes: dict[str, float] = {}
    sizes: dict[str, float] = {}
    for x in inputs:
        net.iterations = 0
        source, start, _ = net.infer(x)
        wanted = _scores(source, logits)
        predictions += wanted.numel() // wanted.shape[1]
        net.iterations = count
        try:
            output, reached, _ = net.infer(x)
        except RangeError:
            output, reached = (
                None,
                {name: torch.full_like(w, math.inf) for name, w in start.items()},
            )
        same, apart = (0.0, math.inf) if output is None else _compared(wanted, output, logits)
        agreement, divergence = agreement + same, divergence + apart
        for name, w in start.items():
            change, size = (reached[name] - w).double(), w.double()
            changes[name] = changes.get(name, 0.0) + float(change.square().sum())
            sizes[name] = sizes.get(name, 0.0) + float(size.square().sum())
        advance()
    moved = [math.sqrt(changes[name] / size) for name, size in sizes.items() if size > 0]
    mean = sum(moved) / len(moved) if moved else 0.0
    return Kept(count, agreement / predictions, divergence / predictions, mean)


def _compared(
    wanted: Tensor, output: Any, logits: Callable[[Any], Tensor] | None
) -> tuple[float, float]:
    """Return how many predictions agree with ``wanted``, and the divergence, summed."""
    scores = _scores(output, logits)
    log, reference = scores.log_softmax(1), wanted.log_softmax(1)
    # argmax takes NaN for the largest: what is NaN agrees with nothing.
    same = (scores.argmax(1) == wanted.argmax(1)) & ~scores.isnan().any(1)
    return float(same.sum()), float((reference.exp() * (reference - log)).sum())


def _rank(trial: Trial) -> tuple[bool, float, float]:
    """Return what trials are ordered by; NaN compares with nothing, so it comes last by itself."""
    wrong = math.isnan(trial.objective)
    return wrong, 0.0 if wrong else trial.objective, trial.step_scale


def _check(net: PursuitNetwork, agreement: float, divergence: float | None) -> None:
    if not isinstance(net, PursuitNetwork):
        raise OptionError(f"calibrate takes a PursuitNetwork, not a {type(net).__name__}")
    if net.training:
        raise OptionError("calibrate compares outputs: put the network in evaluation mode first")
    option_checks.factor("agreement", agreement, 1.0)
    if divergence is not None:
        option_checks.factor("divergence", divergence)


def _scores(output: Any, logits: Callable[[Any], Tensor] | None) -> Tensor:
    scores = output if logits is None else logits(output)
    if not isinstance(scores, Tensor) or scores.dim() < 2:
        kind = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise InputError(
            f"the output ({kind}) is no tensor of class scores (batch, classes, ...): pass "
            "logits=, a function that returns them"
        )
    return scores.double()


def _try(
    net: PursuitNetwork,
    x: Tensor,
    wanted: Tensor,
    own: StructuredDictionary,
    trial: Trial,
    logits: Callable[[Any], Tensor] | None,
) -> Trial:
    """Return the trial with sums over one batch; ``own`` is the dictionary at threshold scale 1."""
    net.step_scale, net.threshold_scale = trial.step_scale, trial.threshold_scale
    try:
        output, latents, _ = net.infer(x)
    except RangeError:  # steps that go so far are a trial that agrees with nothing
        return replace(trial, agreement=0.0, divergence=math.inf, objective=math.inf)
    agreement, divergence = _compared(wanted, output, logits)
    objective = float(own.mean_objective(latents)) * own.inputs[0].shape[0]
    return replace(trial, agreement=agreement, divergence=divergence, objective=objective)


def _add(total: Trial, one: Trial) -> Trial:
    return replace(
        total,
        agreement=total.agreement + one.agreement,
        divergence=total.divergence + one.divergence,
        objective=total.objective + one.objective,
    )
