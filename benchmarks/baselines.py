"""Other ways to run the same equations, beside ours: time, and convolutions applied.

python benchmarks/baselines.py --models resnet18 densenet121 --sweeps 1 3

* ``literal``: equation (18) as it is printed. Every residual is computed afresh from the latents
  for each latent that it feeds back to.
* ``autograd``: the derivative of F in each latent by ``torch.autograd``. F is cut down to the rows
  that hold the latent, which is the cheapest form; all of F per latent would cost far more.
* ``synchronous``: proximal gradient on the whole dictionary at once (ISTA), from zero.

The first two find the same latents as ours, which is checked before they are timed. They are timed
without the head, ours with it. Step sizes are computed once, before.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import common
from pursuitify import PursuitNetwork, pursuitify
from pursuitify.dictionary.structured import StructuredDictionary

MODELS = ("resnet18", "densenet121")
KEY = ("model", "batch", "size", "sweeps", "way")
COLUMNS = (
    "model", "sweeps", "way", "seconds", "sources", "floors", "spread", "convolutions",
    "convolutions_per_floor", "objective",
)  # fmt: skip


def residual(dictionary: StructuredDictionary, i: int, w: Sequence[Tensor]) -> list[Tensor]:
    """Return r_i = B_i w_i - sum_k B_ik^T w_k, in slots, from the latents alone (16)."""
    row = dictionary.rows[i]
    parts = []
    for part, paths in zip(row.decode(w[i]), row.slots, strict=True):
        for path in paths:
            leaf = dictionary.inputs[-1 - path.leaf] if path.leaf < 0 else w[path.leaf]
            part = part - path.apply(leaf)
        parts.append(part)
    return parts


def literal(
    dictionary: StructuredDictionary, start: Sequence[Tensor], steps: Sequence[Tensor], count: int
) -> list[Tensor]:
    """Return the latents after ``count`` sweeps, the slopes computed as (18) reads."""
    w = list(start)
    for _ in range(count):
        for j, row in enumerate(dictionary.rows):
            slope = row.slope(tuple(residual(dictionary, j, w)))
            for i in dict.fromkeys(i for i, _, _ in dictionary.readers[j]):
                theirs = residual(dictionary, i, w)
                for part, paths in zip(theirs, dictionary.rows[i].slots, strict=True):
                    for path in paths:
                        if path.leaf == j:
                            slope = slope - path.adjoint(part)
            w[j] = row.activation.prox(w[j] - steps[j] * slope, steps[j])
    return w


def differentiated(
    dictionary: StructuredDictionary, start: Sequence[Tensor], steps: Sequence[Tensor], count: int
) -> list[Tensor]:
    """Return the latents after ``count`` sweeps, the slopes from ``torch.autograd``."""
    w = list(start)
    for _ in range(count):
        for j, row in enumerate(dictionary.rows):
            rows = dict.fromkeys([j, *(i for i, _, _ in dictionary.readers[j])])
            with torch.enable_grad():
                w[j] = w[j].detach().requires_grad_()
                parts = [part for i in rows for part in residual(dictionary, i, w)]
                total = sum((0.5 * part.square().sum() for part in parts), w[j].new_zeros(()))
                if row.threshold is not None:
                    total = total + (row.threshold * w[j]).sum()
                (slope,) = torch.autograd.grad(total, w[j])
            v = w[j].detach()
            w[j] = row.activation.prox(v - steps[j] * slope, steps[j])
    return w


WAYS = {"literal": literal, "autograd": differentiated}


@torch.no_grad()
def disagreement(net: PursuitNetwork, x: Tensor, way: str) -> float:
    """Return the largest difference of a way's latents from the network's, relative."""
    expected, steps = net.latents(x), list(net.step_sizes(x).values())
    start = list(feedforward(net, x).values())
    found = WAYS[way](net.dictionary(x), start, steps, net.iterations)
    return max(
        float((a - b).abs().max()) / max(1.0, float(b.abs().max()))
        for a, b in zip(found, expected.values(), strict=True)
    )


def feedforward(net: PursuitNetwork, x: Tensor) -> dict[str, Tensor]:
    """Return the latents of the feed-forward pass by name."""
    sweeps, net.iterations = net.iterations, 0
    try:
        return net.latents(x)
    finally:
        net.iterations = sweeps


@torch.no_grad()
def check(name: str, given: argparse.Namespace) -> dict[str, float]:
    """Return the disagreement of each way in float64, on one small image.

    Raises:
        SystemExit: If one of them finds other latents.
    """
    net = pursuitify(common.source(name, given.device).double(), iterations=2, offsets="threshold")
    x = common.images(1, 64, given.device, torch.float64)
    found = {way: disagreement(net, x, way) for way in WAYS}
    wrong = {way: error for way, error in found.items() if not error <= 1e-10}
    if wrong:
        raise SystemExit(f"{name}: these ways find other latents than the network: {wrong}")
    return found


@torch.no_grad()
def measure(name: str, given: argparse.Namespace) -> list[common.Row]:
    agreement = check(name, given)
    source = common.source(name, given.device)
    x = common.images(given.batch, given.size, given.device)
    net = pursuitify(source, offsets="threshold")  # as the ways have it
    ista = pursuitify(source, solver="synchronous")
    first = feedforward(net, x)
    steps, start = list(net.step_sizes(x).values()), list(first.values())
    before = net.objective(x, first).mean()
    with common.Operators() as count:
        source(x)
    once, rows = count.convolutions, []
    for sweeps in given.sweeps:
        net.iterations = ista.iterations = sweeps
        net(x), ista(x)
        calls = {
            "source": lambda: source(x),
            "ours": lambda: net(x),
            "synchronous": lambda: ista(x),
            **{
                way: lambda run=run, t=sweeps: run(net.dictionary(x), start, steps, t)
                for way, run in WAYS.items()
            },
        }
        clock = common.CLOCKS[given.clock]
        times = common.in_turns(calls, given.repeats, given.device, {"source": 3}, clock)
        for way in list(calls)[1:]:
            with common.Operators() as count:
                calls[way]()
            solver = ista if way == "synchronous" else net
            reached = net.objective(x, solver.latents(x)).mean() / before
            rows.append(
                {
                    "model": name,
                    "batch": given.batch,
                    "size": given.size,
                    "sweeps": sweeps,
                    "way": way,
                    "clock": given.clock,
                    **common.per_floor(common.ratio(times, way), sweeps),
                    "convolutions": count.convolutions,
                    "convolutions_per_floor": count.convolutions / once / common.floor(sweeps),
                    "objective": float(reached),
                    "disagreement": agreement.get(way),
                }
            )
    return rows


def main(argv: list[str] | None = None) -> int:
    parser = common.options(__doc__, "baselines", sweeps=(1, 3), batch=4, size=96)
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--clock", choices=list(common.CLOCKS), default="wall")
    given = parser.parse_args(argv)
    return common.per_model("ways to run the same equations", measure, given, KEY, COLUMNS)


if __name__ == "__main__":
    sys.exit(main())
