"""Calibration: scales of pursuit, chosen on unlabelled batches, at which outputs hardly change.

A pretrained network was trained for the latents its feed-forward pass gives; sweeps at full step
move them to where the objective is lower, and the classifier may not know what it sees there.
``calibrate`` looks for the scales that let the objective fall as far as possible while the outputs
still agree with the source's. Labels are not used; nothing is random.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from pursuitify.dictionary.structured import StructuredDictionary
from pursuitify.errors import InputError, OptionError, RangeError
from pursuitify.network.pursuit_network import PursuitNetwork
from pursuitify.utils import option_checks
from pursuitify.utils.terminal import Shown, as_text

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
class Calibration(Shown):
    """Every pair of scales that was tried, and the one that was chosen.

    Attributes:
        iterations: T.
        solver: The solver.
        samples: How many samples were looked at.
        agreement: The least agreement that was asked for.
        divergence: The largest divergence that was allowed, or None.
        chosen: The allowed trial with the lowest objective.
        trials: All trials; a step scale of 0, the source, is always among them.
        applied: Whether the network was set to the chosen scales.
    """

    iterations: int
    solver: str
    samples: int
    agreement: float
    divergence: float | None
    chosen: Trial
    trials: tuple[Trial, ...]
    applied: bool

    def to_dict(self) -> dict[str, Any]:
        """Return plain lists and numbers."""
        return asdict(self)

    def table(self) -> Table:
        """Return a rich table, one line per trial; the chosen one is marked."""
        asked = f"agreement of at least {self.agreement:.1%}"
        if self.divergence is not None:
            asked += f", divergence of at most {self.divergence:g}"
        title = f"{self.solver}, T = {self.iterations}, {self.samples} samples, {asked}"
        table = Table(title=title)
        for heading in ("step", "threshold", "agreement", "divergence", "objective", ""):
            table.add_column(heading, justify="right")
        for trial in self.trials:
            table.add_row(
                f"{trial.step_scale:g}",
                f"{trial.threshold_scale:g}",
                f"{trial.agreement:.1%}",
                f"{trial.divergence:.3g}",
                f"{trial.objective:.6g}",
                "chosen" if trial == self.chosen else "",
            )
        return table

    def __rich__(self) -> Table:
        return self.table()

    def __str__(self) -> str:
        """Return the table as text."""
        return as_text(self, width=100)


@torch.no_grad()
def calibrate(
    net: PursuitNetwork,
    batches: Iterable[Any],
    *,
    agreement: float = 0.99,
    divergence: float | None = None,
    step_scales: Sequence[float] = STEP_SCALES,
    threshold_scales: Sequence[float] = (1.0,),
    logits: Callable[[Any], Tensor] | None = None,
    apply: bool = False,
) -> Calibration:
    """Choose step_scale, and threshold_scale if asked to, on a few unlabelled batches.

    Every pair of the given scales is tried at the network's own solver and T. Of the pairs whose
    outputs agree with the source's as asked, the one with the lowest objective is chosen; of equal
    ones the smaller step. A step scale of 0 is always tried, so there always is one.

    Args:
        net: The network, in evaluation mode.
        batches: Inputs, as tensors; of a tuple or list (a loader's images and labels) the first
            entry is taken and the rest not looked at.
        agreement: Least share of predictions (largest logit) that must be the source's.
        divergence: Largest mean KL divergence of the source's class probabilities to the
            network's, in nats; None for any.
        step_scales: Step scales to try, from 0 to 1.
        threshold_scales: Threshold scales to try, at least 0.
        logits: Returns the class scores, classes along dimension 1, of what the network returns;
            needed where that is not a tensor.
        apply: Set the network to the chosen scales; otherwise it is left as it was.

    Returns:
        All trials and the chosen one; ``str()`` is a table.

    Raises:
        OptionError: If an option is wrong, or the network is in training mode.
        InputError: If there is no batch, or the output holds no class scores.
    """
    _check(net, agreement, divergence)
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
    held = net.step_scale, net.threshold_scale
    totals = [Trial(s, t, 0.0, 0.0, 0.0) for s, t in pairs]
    samples = predictions = 0
    try:
        for batch in batches:
            x = batch[0] if isinstance(batch, (tuple, list)) else batch
            net.step_scale, net.threshold_scale = 0.0, 1.0
            source, _, own = net.infer(x)
            wanted = _scores(source, logits)
            if bool(wanted.isnan().any()):
                raise InputError(
                    "the source's own output on a batch is NaN: no setting agrees with it. Look at "
                    "its weights, or calibrate in float32"
                )
            totals = [_add(t, _try(net, x, wanted, own, t, logits)) for t in totals]
            samples += wanted.shape[0]
            predictions += wanted.numel() // wanted.shape[1]
    finally:
        net.step_scale, net.threshold_scale = held
    if not samples:
        raise InputError("there is no batch to calibrate on")
    trials = tuple(
        replace(
            t,
            agreement=t.agreement / predictions,
            divergence=t.divergence / predictions,
            objective=t.objective / samples,
        )
        for t in totals
    )
    allowed = [
        t
        for t in trials
        if t.step_scale == 0
        or (
            math.isfinite(t.objective)
            and t.agreement >= agreement
            and (divergence is None or t.divergence <= divergence)
        )
    ]
    chosen = min(allowed, key=_rank)
    if apply:
        net.step_scale, net.threshold_scale = chosen.step_scale, chosen.threshold_scale
    return Calibration(
        net.iterations, net.solver, samples, agreement, divergence, chosen, trials, apply
    )


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
    scores = _scores(output, logits)
    log, reference = scores.log_softmax(1), wanted.log_softmax(1)
    return replace(
        trial,
        # argmax takes NaN for the largest: what is NaN agrees with nothing.
        agreement=float(((scores.argmax(1) == wanted.argmax(1)) & ~scores.isnan().any(1)).sum()),
        divergence=float((reference.exp() * (reference - log)).sum()),
        objective=float(own.mean_objective(latents)) * own.inputs[0].shape[0],
    )


def _add(total: Trial, one: Trial) -> Trial:
    return replace(
        total,
        agreement=total.agreement + one.agreement,
        divergence=total.divergence + one.divergence,
        objective=total.objective + one.objective,
    )
