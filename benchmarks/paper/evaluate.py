"""This module measures a trained network by the library's own audit."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from benchmarks.paper.configuration import Evaluation, Training
from benchmarks.paper.data import images
from benchmarks.paper.train import source_network
from pursuitify import PursuitNetwork, calibrate, pursuitify
from pursuitify.analysis import coherence
from pursuitify.robust import Protocol, Step, audit, fgsm, pgd
from pursuitify.robust.auditing.gradient_statistics import wilson
from pursuitify.robust.surrogates.sweep_counts import iterations

PGD = {"steps": 40}
#: FGSM and PGD-40 on every image; the rest attacks what is left standing.
MENU = Protocol(
    name="paper menu",
    steps=(
        Step("FGSM", "fgsm", "one-step"),
        Step("PGD-40 CE", "pgd", "white-box", PGD),
        Step("APGD-CE", "apgd", "white-box", {"steps": 30}, survivors=True),
        Step("APGD-DLR", "apgd", "white-box", {"steps": 30, "loss": "dlr"}, survivors=True),
        Step("APGD-T", "apgd", "white-box", {"targets": 3, "steps": 10}, survivors=True),
        Step("Square", "square", "black-box", {"queries": 100}, survivors=True),
        Step("rescaled logits", "apgd", "adaptive", {"steps": 10, "loss": "scaled"}, "", True),
        Step("smoothed backward", "apgd", "adaptive", {"steps": 10}, "smoothed", True),
        *(
            Step(name, "apgd", kind, {"steps": 10}, guide, True, "pursuit")
            for name, kind, guide in (
                ("gradients at T = 0", "other-sweeps", "t=0"),
                ("gradients at 2 T", "other-sweeps", "t=double"),
                ("latents", "adaptive", "latents"),
                ("few sweeps", "adaptive", "sweeps-few"),
            )
        ),
    ),
    twin=(Step("FGSM", "fgsm", "one-step"), Step("PGD-40 CE", "pgd", "white-box", PGD)),
    curve=(Step("PGD-20 CE", "pgd", "white-box", {"steps": 20}),),
    factors=(0.5,),
)

_LONG = {"steps": 50}
#: The same with more steps and queries, and with surrogates of the sweeps' derivatives.
LONG_MENU = Protocol(
    name="paper long menu",
    steps=(
        *MENU.steps[:2],
        Step("APGD-CE", "apgd", "white-box", _LONG, survivors=True),
        Step("APGD-DLR", "apgd", "white-box", _LONG, survivors=True),
        Step("APGD-T", "apgd", "white-box", {"targets": 3, "steps": 20}, survivors=True),
        *(
            Step(name, "apgd", kind, {"steps": 20, **options}, guide, True, needs)
            for name, kind, guide, needs, options in (
                ("rescaled logits", "adaptive", "", "", {"loss": "scaled"}),
                ("smoothed backward", "adaptive", "smoothed", "", {}),
                ("gradients at T = 0", "other-sweeps", "t=0", "pursuit", {}),
                ("gradients at T / 2", "other-sweeps", "t=half", "pursuit", {}),
                ("gradients at 2 T", "other-sweeps", "t=double", "pursuit", {}),
                ("last sweep's derivatives", "adaptive", "last-k", "pursuit", {}),
                ("latents", "adaptive", "latents", "pursuit", {}),
                ("few sweeps", "adaptive", "sweeps-few", "pursuit", {}),
            )
        ),
        Step("Square", "square", "black-box", {"queries": 500}, survivors=True),
    ),
    twin=MENU.twin,
    curve=MENU.curve,
    factors=MENU.factors,
)
MENUS = {"menu": MENU, "long menu": LONG_MENU}
#: Training images, their labels unused, on which atom gains are fitted.
CALIBRATION = 200


def converted(net: PursuitNetwork, c: Training, e: Evaluation) -> PursuitNetwork:
    """Return the trained weights converted again as the evaluation asks, in evaluation mode."""
    source = source_network(c)
    trained = {k: v for k, v in net.state_dict().items() if not k.startswith("pursuit.")}
    source.load_state_dict(trained)
    other = pursuitify(source.eval(), layout=e.layout, offsets=e.offsets, copy=False)
    device = next(net.parameters()).device
    other.to(device)
    if e.gains:
        sample = images(c.data, True)[0][:CALIBRATION].to(device)
        calibrate(other, [sample], step_scales=(), gains=True, apply=True)
        other.step_scale = 1.0
    return other


def evaluate(net: PursuitNetwork, c: Training, e: Evaluation, device: str = "cpu") -> dict:
    """Return the measurements of one cell; the network is left as it was."""
    x, y = images(c.data, False)
    x, y = x[: e.images].to(device), y[: e.images].to(device)
    count = c.iterations if e.iterations < 0 else e.iterations
    if e.layout:
        net = converted(net, c, e)
    solver = net.solver
    if count and solver == "feedforward":
        solver = "global"  # weights trained fed forward, pursued
    # Attacks read exact derivatives, whatever the network is trained with.
    own = {"threshold_scale": e.threshold_scale, "memory": "store", "solver": solver}
    with settings(net, **own), iterations(net.eval(), count):
        found: dict[str, Any] = {"images": len(x), "clean": accuracy(net, x, y)}
        if e.protocol in MENUS:
            found |= _audited(net, x, y, e)
        else:
            points = fgsm(net, x, y, eps=e.eps, batch_size=256)
            found["fgsm"] = accuracy(net, points, y)
            if e.protocol == "pgd":
                points = pgd(net, x, y, eps=e.eps, steps=40, seed=0, batch_size=256)
                found["pgd"] = accuracy(net, points, y)
        found["interval"] = list(wilson(round(_least(found) * len(x)), len(x)))
        if e.diagnose:
            found |= diagnosed(net, x[:128])
    return found


@contextlib.contextmanager
def settings(net: PursuitNetwork, **own: Any) -> Iterator[None]:
    """Give a network other settings for a while: a training may go on after an evaluation."""
    before = {name: getattr(net, name) for name in own}
    try:
        for name, value in own.items():
            setattr(net, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(net, name, value)


def _least(found: dict[str, Any]) -> float:
    return min(found[key] for key in ("clean", "fgsm", "pgd", "worst") if key in found)


def _audited(net: PursuitNetwork, x: torch.Tensor, y: torch.Tensor, e: Evaluation) -> dict:
    report = audit(net, (x, y), eps=e.eps, protocol=MENUS[e.protocol], progress=False)
    found: dict[str, Any] = {
        "fgsm": report.accuracy("FGSM"),
        "pgd": report.accuracy("PGD-40 CE"),
        "worst": report.worst(),
        "verdict": report.verdict,
        "new": {r.name: r.new for r in report.results if r.subject == "network"},
        "failed": {r.name: r.error for r in report.results if r.error},
        "curve": [[p.eps, p.accuracy] for p in report.curve],
    }
    for name, clean in report.clean.items():
        if name != "network":
            found["twin"] = {
                "clean": clean,
                "fgsm": report.accuracy("FGSM", name),
                "pgd": report.accuracy("PGD-40 CE", name),
            }
    return found


@torch.no_grad()
def accuracy(net: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
    parts = zip(x.split(256), y.split(256), strict=True)
    return sum(int((net(a).argmax(1) == b).sum()) for a, b in parts) / len(x)


@torch.no_grad()
def diagnosed(net: PursuitNetwork, x: torch.Tensor) -> dict[str, Any]:
    """Return the relative reconstruction error per sweep and row, and the coherence.

    The error of a row is the sum over the batch of ||r||^2 over that of ||u||^2: a mean of ratios
    would be ruled by the few samples at which a late row reads next to nothing.
    """
    per_sweep = []
    last = net.iterations
    for count in range(last + 1):
        with iterations(net, count):
            _, latents, dictionary = net.infer(x)
        per_row = []
        for row, r in zip(dictionary.rows, dictionary.residual(latents).values(), strict=True):
            signal = row.join(row.decode(latents[row.name])) - r
            per_row.append(float(r.square().sum() / signal.square().sum().clamp_min(1e-6)))
        per_sweep.append(per_row)
    report = coherence(net, tuple(x.shape[1:]))
    return {
        "reconstruction": per_sweep,
        "latents": list(dictionary.names),
        "frame_potential": report.frame_potential,
        "frame_potential_mean_abs": report.frame_potential_mean_abs,
        "mutual_coherence": report.mutual_coherence,
    }
