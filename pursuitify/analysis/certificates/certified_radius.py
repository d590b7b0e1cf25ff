"""Certified l2 radii of a network with ``solver="synchronous"``: no attack can be stronger.

From zero, T synchronous sweeps are Lipschitz in the input whatever the depth (the two bounds are
derived in :mod:`pursuitify.solvers.synchronous`). If the latents that the head reads move by d, a
lead of class a over class b moves by <h_a - h_b, d>, h_a being the exact slope of logit a, so no
input closer than lead / (K ||h_a - h_b||) changes the decision.

*Local tightening.* A latent entry that is zero in all sweeps at x stays zero as long as what its
ReLU is given stays below zero. By induction over the sweeps its own change is nought until then,
and what the ReLU is given moves by at most g |b_i| (|B d^t| + |P e|) <= g |b_i| (K_t / sqrt(g) +
||P||) |e|, b_i its column of B. An entry that is zero after the last sweep stays so, whatever came
before, while K_{T-1} + g |b_i| ||P|| times |e| is below its distance from zero. Within a radius,
entries that are certainly zero drop out of h_a - h_b.

A radius is one input's own: the network must give an input the same logits in every batch. Rules
that do not promise to be independent of the input, heads that mix samples or read the size of the
batch, and promises that do not hold where they are tried (``input_independence``) are refused.

Everything holds in exact arithmetic. The radii are computed in the network's own precision: use
float64 where the last digits matter.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pursuitify.analysis.certificates.certifiable import check_certifiable, has_own_rules, refusal
from pursuitify.analysis.certificates.head_slopes import slopes
from pursuitify.analysis.certificates.input_independence import (
    check_dictionary,
    check_head,
    check_promises,
    check_sizes,
)
from pursuitify.dictionary.norm_bounds import Norms, block_norms, chain_norm
from pursuitify.dictionary.structured import StructuredDictionary
from pursuitify.errors import InputError
from pursuitify.network.pursuit_network import PursuitNetwork
from pursuitify.operators import Scale, compose
from pursuitify.solvers.step_sizes import synchronous_step_sizes
from pursuitify.solvers.synchronous import moves
from pursuitify.utils import option_checks
from pursuitify.utils.autocast import exact_products


def lipschitz_in_x(step: float, reach: float, direct: float, count: int) -> float:
    """Return a Lipschitz constant of x -> w^T: min over s of sqrt((s a)^2 + (T - s) c).

    a = g ||B^T P|| bounds each of the first s sweeps, c = g ||P||^2 each of the others.

    Args:
        step: g, at most 1 / ||B||^2.
        reach: A bound of ||B^T P||.
        direct: A bound of ||P||.
        count: T.
    """
    a, c = step * reach, step * direct**2
    return math.sqrt(min((s * a) ** 2 + (count - s) * c for s in range(count + 1)))


@dataclass(frozen=True, eq=False)
class RadiusCertificate:
    """The certified radii of the decisions on a batch.

    Attributes:
        predictions: The classes decided for, (batch,). Of classes that tie, the first.
        radius: l2 distance, in the input's units, below which none changes, (batch,).
        feedforward_predictions: Those of the same network at T = 0.
        feedforward_radius: Theirs, by the product of the layers' norms.
        lipschitz: Of the latents in the input, after all sweeps.
        feedforward_lipschitz: By latent that the head reads, at T = 0.
    """

    predictions: Tensor
    radius: Tensor
    feedforward_predictions: Tensor
    feedforward_radius: Tensor
    lipschitz: float
    feedforward_lipschitz: dict[str, float]

    def accuracy(self, y: Tensor, eps: float) -> float:
        """Return the share of inputs that are right and stay so within ``eps``.

        Args:
            y: The right classes, one number per input, (batch,).
            eps: l2 distance, at least 0.

        Raises:
            InputError: If ``y`` is not one class per input.
            OptionError: If ``eps`` is no such number.
        """
        return _share(self.predictions, self.radius, y, eps)

    def feedforward_accuracy(self, y: Tensor, eps: float) -> float:
        """Return the same for the network at T = 0."""
        return _share(self.feedforward_predictions, self.feedforward_radius, y, eps)


def _share(predictions: Tensor, radius: Tensor, y: Tensor, eps: float) -> float:
    if not isinstance(y, Tensor) or y.shape != predictions.shape or y.dtype is torch.bool:
        given = tuple(y.shape) if isinstance(y, Tensor) else type(y).__name__
        raise InputError(
            f"accuracy needs one class per input, of shape {tuple(predictions.shape)}, not {given}"
        )
    option_checks.factor("eps", eps)
    right = predictions == y.to(predictions.device)
    return float((right & (radius > eps)).double().mean())


@exact_products()
@torch.no_grad()
def certified_radius(net: PursuitNetwork, x: Tensor, *, local: bool = True) -> RadiusCertificate:
    """Certify how far each input may move in l2 without a change of the decision.

    Args:
        net: A pursuit network with ``solver="synchronous"`` in evaluation mode whose head is
            affine and treats each sample alone. BatchNorm on running statistics is fine; max
            pooling, gates and whatever else is frozen from data is not: the certificate would not
            hold. Rules of your own have to say ``input_dependent=False``.
        x: A batch of inputs.
        local: Use which entries are certainly zero near each input.

    Raises:
        OptionError: If the network cannot be certified; lists the reasons.
        InputError: If the network returns anything but logits (batch, classes).
        VerificationError: If the maps of a rule of your own are not what its operation computes.
    """
    check_certifiable(net)
    logits, _, dictionary = net.infer(x)
    if isinstance(logits, Tensor) and not bool(logits.isfinite().all()):
        raise InputError("the network's logits are not finite: no decision can be certified")
    head = slopes(net, x)
    check_dictionary(net, x)
    if has_own_rules(net):
        net.verify(x)
    check_head(net, x, logits, head)
    check_sizes(net, x)
    norms = Norms()
    blocks, direct = block_norms(dictionary, norms)
    steps = synchronous_step_sizes(dictionary, norms)
    if net.step_scale != 1:
        steps = [step * net.step_scale for step in steps]
    if direct.dim() > 1:
        raise refusal(["its norm bounds differ between samples: it scales them differently"])
    g, p = float(steps[0]), float(direct.norm())
    if has_own_rules(net):
        check_promises(dictionary, g)
    reach = float((blocks.mT @ direct).norm())
    bounds = [lipschitz_in_x(g, reach, p, t) for t in range(net.iterations + 1)]
    certain = None
    if local:
        columns = torch.linalg.vector_norm(blocks, dim=0).tolist()
        given = list(moves(dictionary, steps, net.iterations))
        certain = {
            name: _zero_radius([v[j].reshape(len(x), -1) for v in given], columns[j], g, p, bounds)
            for j, (name, row) in enumerate(zip(dictionary.names, dictionary.rows, strict=True))
            if name in head and row.activation.nonnegative
        }
    radius = _radius(logits, head, bounds[-1], certain)
    own = _encoder_norms(dictionary, blocks, norms)
    plain, forward, lengths = _feedforward(net, x, blocks, own, direct, head, dictionary.names)
    return RadiusCertificate(
        predictions=logits.argmax(1),
        radius=radius,
        feedforward_predictions=plain.argmax(1),
        feedforward_radius=forward,
        lipschitz=bounds[-1],
        feedforward_lipschitz=lengths,
    )


def _zero_radius(
    given: list[Tensor], column: float, g: float, p: float, bounds: list[float]
) -> Tensor:
    """Return per entry the radius within which it is certainly zero after the last sweep."""
    always = torch.full_like(given[0], torch.inf)
    column = max(column, 1e-30)
    for t, v in enumerate(given):
        always = torch.minimum(always, -v / (g * column * (bounds[t] / g**0.5 + p)))
    last = -given[-1] / (bounds[-2] + g * column * p)
    return torch.maximum(always, last).clamp_min(0).flatten(1)


def _radius(
    logits: Tensor, head: dict[str, Tensor], bound: float, certain: dict[str, Tensor] | None
) -> Tensor:
    """Return per input the largest radius at which every other class stays behind."""
    batch, classes = logits.shape
    own = logits.argmax(1)
    lead = logits.gather(1, own[:, None]) - logits
    flat = torch.cat(list(head.values()), 1)
    free = None
    if certain:
        free = torch.cat(
            [
                certain[name] if name in certain else h.new_zeros(batch, h.shape[1])
                for name, h in head.items()
            ],
            1,
        )
    found = logits.new_full((batch,), torch.inf)
    for other in range(classes):
        squares = (flat[own] - flat[other]).square()
        distance = _solve(lead[:, other], squares, bound, free)
        found = torch.minimum(found, torch.where(own == other, torch.inf, distance))
    return found


def _solve(lead: Tensor, squares: Tensor, bound: float, free: Tensor | None) -> Tensor:
    """Return the largest r with bound r ||h on the entries that may move within r|| <= lead."""

    def slope(r: Tensor) -> Tensor:
        moving = squares if free is None else squares * (free <= r[:, None])
        return bound * moving.sum(1).sqrt()

    tiny = torch.finfo(lead.dtype).tiny
    low = lead / (bound * squares.sum(1).sqrt()).clamp_min(tiny)
    if free is None:
        return low
    high = 64 * low
    for _ in range(50):
        middle = (low + high) / 2
        fits = slope(middle) * middle <= lead
        low, high = torch.where(fits, middle, low), torch.where(fits, high, middle)
    return low


def _encoder_norms(dictionary: StructuredDictionary, blocks: Tensor, norms: Norms) -> list[float]:
    """Return per latent how much its feed-forward layer enlarges what the row reads at most.

    That is ||B_j||, and with atom gains c ||B_j C^-1||: the layer does not depend on the gains.
    """
    norm_of = norms.recall(dictionary)
    found = []
    for row, own in zip(dictionary.rows, blocks.diagonal().tolist(), strict=True):
        if row.gains is not None and row.diagonal is not None:
            maps = compose([*row.diagonal.maps, Scale(1 / row.gains)])
            own = float(chain_norm(norm_of, f"{row.name}.feedforward", maps, None))
        found.append(own)
    return found


def _feedforward(
    net: PursuitNetwork,
    x: Tensor,
    blocks: Tensor,
    own_norms: list[float],
    direct: Tensor,
    head: dict[str, Tensor],
    names: tuple[str, ...],
) -> tuple[Tensor, Tensor, dict[str, float]]:
    """Return logits at T = 0, their radii by the product of norms, and the latents' constants.

    w_j = act(W_j u_j + b_j), so its constant is ||W_j|| times the sum of its leaves'; W_j is
    B_j^T without atom gains.
    """
    before = net.iterations
    net.iterations = 0
    try:
        logits: Any = net(x)
    finally:
        net.iterations = before
    lengths: list[float] = []
    for j in range(len(names)):
        leaves = sum(float(blocks[j, k]) * lengths[k] for k in range(j))
        lengths.append(own_norms[j] * (float(direct[j]) + leaves))
    length = {name: lengths[names.index(name)] for name in head}
    own = logits.argmax(1)
    lead = logits.gather(1, own[:, None]) - logits
    found = logits.new_full((len(logits),), torch.inf)
    for other in range(logits.shape[1]):
        total = sum(length[name] * (h[own] - h[other]).norm(dim=1) for name, h in head.items())
        distance = lead[:, other] / torch.as_tensor(total).clamp_min(torch.finfo(lead.dtype).tiny)
        found = torch.minimum(found, torch.where(own == other, torch.inf, distance))
    return logits, found, length
