"""Certificates of support recovery and stability of the global pursuit (mathematics.md, section 7).

They hold for the exact minimiser of F, not for a few learned sweeps. On real convolutional
networks the mutual coherence is near one and the conditions that rest on it fail: then they are
vacuous and say so, and the form by slack and smallest singular value, which needs no coherence,
is the one that speaks.

None of them says that an atom in use stays in use: below the radius no atom is *added* to the
support, and atoms may leave it. A perturbation is one of the signal y; the dictionary, with all
that is frozen into it at this input (switches of max pooling, gates, the thresholds of
``offsets="stationary"``), is taken as given.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pursuitify.analysis.certificates.convex_problem import ConvexProblem
from pursuitify.utils import option_checks
from pursuitify.utils.autocast import exact_products
from pursuitify.utils.terminal import Shown


@dataclass(frozen=True)
class Verdict(Shown):
    """The answer of one theorem.

    Attributes:
        name: The theorem.
        holds: Whether its condition holds; if not, it is vacuous.
        radius: Largest perturbation it covers, in the measure that ``measure`` names; 0 if
            vacuous.
        gain: Error of the latents (unit columns) per size of the perturbation.
        bias: Error of the latents without any perturbation; it adds to the other.
        measure: How perturbation and error are measured.
        reason: The condition, in numbers.
    """

    name: str
    holds: bool
    radius: float
    gain: float
    measure: str
    reason: str
    bias: float = 0.0

    def __str__(self) -> str:
        """Return the verdict in one line."""
        if not self.holds:
            return f"{self.name}: vacuous ({self.reason})"
        bias = f"{self.bias:.4g} plus " if self.bias else ""
        return (
            f"{self.name}: perturbations up to {self.radius:.4g} add no atom to the support (atoms "
            f"may leave it), error at most {bias}{self.gain:.4g} times the perturbation; "
            f"{self.measure} ({self.reason})"
        )


def _dominance(mu: float, k: int) -> float:
    return 1 - (k - 1) * mu


def theorem_a(mu: float, k: int, lam_min: float, lam_max: float, noise: float = 0.0) -> Verdict:
    """Say whether the minimiser's support lies in that of the k atoms that made the signal.

    The perturbation is the signal's noise, the support that of the signal, and the error the
    distance of the minimiser from the coefficients that made the signal: at most
    (lam_max + eps) / (1 - (k - 1) mu), of which the part without eps is the ``bias``.

    Args:
        mu: Mutual coherence.
        k: Number of atoms in the signal.
        lam_min: Least threshold (unit columns).
        lam_max: Greatest threshold, at least the least one.
        noise: eps = ||D^T e||_inf of the signal's noise.

    Raises:
        OptionError: If a number is NaN or infinite, or is out of its range.
    """
    option_checks.positive("k", k)
    option_checks.factor("mu", mu)
    option_checks.factor("noise", noise)
    option_checks.number("lam_max", lam_max, least=option_checks.number("lam_min", lam_min))
    name = "theorem A (recovery)"
    measure = (
        "eps = ||D^T e||_inf of the noise, support and error against what made the signal, in the "
        "maximum norm"
    )
    slope = _dominance(mu, k)
    if slope <= 0 or k * mu >= slope:
        limit = math.inf if mu == 0 else (1 + 1 / mu) / 2
        return Verdict(name, False, 0.0, math.inf, measure, f"k = {k} is not below {limit:.3g}")
    q = k * mu / slope
    radius = (lam_min - q * lam_max) / (1 + q)
    reason = f"k = {k}, mu = {mu:.4g}, q = {q:.4g}, thresholds {lam_min:.4g} to {lam_max:.4g}"
    if radius < noise or radius <= 0:
        return Verdict(name, False, 0.0, math.inf, measure, f"noise above {radius:.3g}; {reason}")
    return Verdict(name, True, radius, 1 / slope, measure, reason, bias=lam_max / slope)


def _check(slack: float, kkt: float) -> None:
    """Refuse numbers that are NaN; the slack is infinite where every atom is in use."""
    for name, value, least in (("slack", slack, -math.inf), ("kkt", kkt, 0.0)):
        if value != math.inf:
            option_checks.number(name, value, least=least)


def theorem_b(mu: float, k: int, slack: float, kkt: float = 0.0) -> Verdict:
    """Say which perturbations add no atom to a minimiser's support, from the coherence.

    Args:
        mu: Mutual coherence.
        k: Size of the support.
        slack: m, least distance of the other atoms from entering (unit columns).
        kkt: How far the given point is from a minimiser, on its support; adds to eps.

    Raises:
        OptionError: If a number is NaN, or is out of its range.
    """
    option_checks.positive("k", k)
    option_checks.factor("mu", mu)
    _check(slack, kkt)
    name, measure = "theorem B (stability)", "eps = ||D^T e||_inf, error in the maximum norm"
    slope = _dominance(mu, k)
    reason = f"k = {k}, mu = {mu:.4g}, slack {slack:.4g}"
    if slope <= 0 or slack <= 0:
        limit = math.inf if mu == 0 else 1 + 1 / mu
        why = f"k is not below {limit:.3g}" if slope <= 0 else "no slack"
        return Verdict(name, False, 0.0, math.inf, measure, f"{why}; {reason}")
    q = k * mu / slope
    radius = slack / (1 + q) - kkt
    if radius <= 0:
        why = f"the point is {kkt:.3g} from a minimiser"
        return Verdict(name, False, 0.0, math.inf, measure, f"{why}; {reason}")
    return Verdict(name, True, radius, 1 / slope, measure, reason)


def slack_form(slack: float, sigma: float, kkt: float = 0.0) -> Verdict:
    """Say which perturbations add no atom to the support, from slack and smallest singular value.

    The residual of the minimiser is a nonexpansive function of the signal, so ``|d_j^T r|`` moves
    by at most ``||e||``: below the slack no atom enters. On the support F is sigma^2-strongly
    convex.

    Args:
        slack: m, as above.
        sigma: Smallest singular value of the unit columns of the support.
        kkt: Distance of the given point from the minimiser's conditions (2-norm).

    Raises:
        OptionError: If a number is NaN, or is out of its range.
    """
    option_checks.factor("sigma", sigma)
    _check(slack, kkt)
    name, measure = "slack form", "||e||_2, error in the 2-norm"
    reason = f"slack {slack:.4g}, smallest singular value on the support {sigma:.4g}"
    if sigma <= 0 or slack <= 0:
        return Verdict(name, False, 0.0, math.inf, measure, reason)
    radius = slack - kkt / sigma
    if radius <= 0:
        return Verdict(name, False, 0.0, math.inf, measure, f"KKT error {kkt:.3g}; {reason}")
    return Verdict(name, True, radius, 1 / sigma, measure, reason)


def layered_gain(sparsities: Sequence[int]) -> float:
    """Return the error per input perturbation that layered pursuit's bound allows, 7.5^l prod."""
    return math.prod(7.5 * math.sqrt(k) for k in sparsities)


@dataclass(frozen=True)
class Certificate(Shown):
    """The certificate of the latents at one input.

    Attributes:
        mutual_coherence: mu of the dictionary as bound; nan where it was not computed.
        support: Number of atoms in use.
        slack: Least distance of the others from entering.
        sigma_min: Smallest singular value of the atoms in use.
        kkt: Largest element, on the support, of a subgradient of F at the latents.
        by_coherence: Theorem B.
        by_slack: The slack form.
        layered_gain: Error per perturbation of layered pursuit's bound, for comparison.
        sparsities: Atoms in use per latent.
        latents: The minimiser, in unit columns (matrix-free: in the network's own).
    """

    mutual_coherence: float
    support: int
    slack: float
    sigma_min: float
    kkt: float
    by_coherence: Verdict
    by_slack: Verdict
    layered_gain: float
    sparsities: tuple[int, ...]
    latents: Tensor

    def __str__(self) -> str:
        """Return the certificate, line by line."""
        mu = f"{self.mutual_coherence:.4f}"
        return "\n".join(
            [
                f"{self.support} atoms in use, mutual coherence "
                f"{'not computed' if math.isnan(self.mutual_coherence) else mu}, "
                f"KKT error {self.kkt:.2g}",
                f"  {self.by_coherence}",
                f"  {self.by_slack}",
                f"  layered bound, for comparison: error up to {self.layered_gain:.4g} times the "
                f"perturbation (7.5^l times the root of the sparsities {self.sparsities})",
                "  for the exact minimiser of F, not for a few sweeps; for perturbations of the "
                "signal, with what is frozen from this input (switches, gates) as it is",
            ]
        )


@exact_products()
def certify_problem(given: ConvexProblem, latents: Tensor | None = None) -> Certificate:
    """Certify a minimiser of a problem with unit columns.

    Args:
        given: The problem.
        latents: Its minimiser, or close to it; solved for if not given.
    """
    found = given.solve() if latents is None else latents
    before = given.slope(found)
    w = given.prox(found - before, 1.0)
    slope = given.slope(w)
    out = given.bounded_below() & (w <= 0)
    inside = ~out
    slack = float(slope[out].min()) if bool(out.any()) else math.inf
    error = (slope - before + found - w)[inside]  # in F's subdifferential at w
    kkt = float(error.abs().max()) if error.numel() else 0.0
    atoms = given.matrix[:, inside]
    sigma = 0.0
    if 0 < atoms.shape[1] <= atoms.shape[0]:
        values = torch.linalg.svdvals(atoms)
        rounding = len(atoms) * torch.finfo(atoms.dtype).eps * float(values[0])
        sigma = max(0.0, float(values[-1]) - rounding)
    gram = given.matrix.T @ given.matrix
    mu = float((gram - torch.diag(gram.diagonal())).abs().max())
    k = int(inside.sum())
    sizes = [shape.numel() for shape, _ in given.parts]
    sparsities = tuple(int(part.sum()) for part in torch.split(inside, sizes))
    return Certificate(
        mutual_coherence=mu,
        support=k,
        slack=slack,
        sigma_min=sigma,
        kkt=kkt,
        by_coherence=theorem_b(mu, max(k, 1), slack, kkt),
        by_slack=slack_form(slack, sigma, float(error.norm())),
        layered_gain=layered_gain([max(s, 1) for s in sparsities]),
        sparsities=sparsities,
        latents=w,
    )


def margin_radius(verdict: Verdict, classifier: nn.Linear, support: Tensor, margin: float) -> float:
    """Return the perturbation within which a linear head on the latents keeps its decision.

    Args:
        verdict: Of a theorem; the classifier reads latents in unit columns.
        classifier: The head.
        support: Which latents are in use.
        margin: Least lead of the winning logit, at the latents that the theorem starts from.
    """
    if not verdict.holds:
        return 0.0
    option_checks.number("margin", margin)
    weight = classifier.weight.detach()[:, support]
    spread = float((weight[:, None] - weight[None]).abs().sum(-1).max())
    left = max(0.0, margin - verdict.bias * spread)
    return min(verdict.radius, left / (verdict.gain * spread) if spread else math.inf)
