"""certify(): certificates of a network at one input, dense or matrix-free."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pursuitify.analysis.certificates.certifiable import has_own_rules
from pursuitify.analysis.certificates.convex_problem import bounded_below, minimise, problem, prox
from pursuitify.analysis.certificates.input_independence import check_promises
from pursuitify.analysis.certificates.support_recovery import (
    Certificate,
    Verdict,
    certify_problem,
    layered_gain,
    slack_form,
)
from pursuitify.analysis.measures import dense_gram
from pursuitify.analysis.measures.bind_network import bind, check_finite, evaluating
from pursuitify.analysis.measures.spectrum import extreme_eigenvalues
from pursuitify.dictionary.norm_bounds import Norms, lipschitz
from pursuitify.dictionary.structured import StructuredDictionary
from pursuitify.errors import InputError, OptionError
from pursuitify.network.pursuit_network import PursuitNetwork
from pursuitify.utils import option_checks
from pursuitify.utils.autocast import exact_products
from pursuitify.utils.terminal import bar

METHODS = ("auto", "dense", "lanczos")

#: Steps towards the minimiser, and of Lanczos' method, where none are given.
_ITERATIONS, _STEPS = 2000, 200
#: Probability with which a bound by Lanczos may fail, over its starting vector.
FAILURE = 1e-6


@exact_products()
def certify(
    net: PursuitNetwork,
    x: Tensor,
    method: str = "auto",
    *,
    iterations: int | None = None,
    steps: int | None = None,
    progress: bool = False,
) -> Certificate:
    """Certify the minimiser of F at one input.

    Args:
        net: The network; it is taken in evaluation mode.
        x: A batch of one.
        method: ``dense`` materialises B; ``lanczos`` does not: it states the slack form alone, with
            a lower bound of the smallest singular value on the support that holds with probability
            1 - ``FAILURE``, and columns no longer than their latent's norm bound. ``auto`` is
            dense where B is small enough.
        iterations: Most proximal steps towards the minimiser, matrix-free; 2000 by default.
        steps: Lanczos steps, 200 by default; the basis holds as many vectors of the size of the
            support.
        progress: Whether to show a progress bar, matrix-free.

    Raises:
        OptionError: If an option has no such value, or would have no effect beside ``dense``; if
            a map or an activation of the user's own is not what the theorems take it for.
        InputError: If B is too large to be materialised, or the input does not fit.
    """
    option_checks.one_of("method", method, METHODS)
    for name, value in (("iterations", iterations), ("steps", steps)):
        if value is not None:
            option_checks.positive(name, value)
            if method == "dense":
                raise OptionError(
                    f"{name}={value} would have no effect with method='dense': give 'lanczos'"
                )
    with torch.no_grad(), evaluating(net):
        bound = bind(net, None, x)
        if has_own_rules(net):
            check_promises(bound, step=0.5)
        if method == "auto":
            method = "dense" if dense_gram.fits(bound) else "lanczos"
        if method == "dense":
            return certify_problem(problem(net, x))
        return _matrix_free(bound, iterations or _ITERATIONS, steps or _STEPS, progress)


def _matrix_free(
    dictionary: StructuredDictionary, iterations: int, steps: int, progress: bool
) -> Certificate:
    check_finite(dictionary)
    names, shapes = dictionary.names, dictionary.shapes
    sizes = [shape.numel() for shape in shapes]
    held = [(shape, row.activation) for shape, row in zip(shapes, dictionary.rows, strict=True)]
    signal = dictionary.signal
    thresholds = torch.cat([dictionary.thresholds[n].reshape(-1) for n in names])

    def parts(v: Tensor) -> dict[str, Tensor]:
        cut = torch.split(v, sizes)
        return {n: p.reshape(s) for n, p, s in zip(names, cut, shapes, strict=True)}

    def slope(v: Tensor) -> Tensor:
        rows = dictionary.apply(parts(v))
        back = dictionary.adjoint({n: r - signal[n] for n, r in rows.items()})
        return torch.cat([back[n].reshape(-1) for n in names]) + thresholds

    def close(v: Tensor, step: float) -> Tensor:
        return prox(held, v, torch.full_like(v, step))

    everything = {n: torch.ones(s, dtype=torch.bool) for n, s in zip(names, shapes, strict=True)}
    largest = extreme_eigenvalues(dictionary, everything, steps=min(steps, 40)).bounds(FAILURE)[1]
    constants = [float(c.max()) for c in lipschitz(dictionary, Norms())]
    if not math.isfinite(sum(constants)):  # few steps of Lanczos give no bound, which is infinite
        raise InputError("the dictionary's norm is NaN or infinite: there is nothing to certify")
    step = 1 / min(largest, _norm_bound(dictionary, constants))
    with bar(progress, "pursuit to the minimiser", iterations) as advance:
        start = torch.zeros_like(thresholds)
        found = minimise(start, slope, close, step, 1e-9, iterations, advance)
    before = slope(found)
    w = close(found - step * before, step)
    after = slope(w)
    out = bounded_below(held) & (w <= 0)
    inside = ~out
    error = (after - before + (found - w) / step)[inside]  # in F's subdifferential at w
    lengths = torch.cat([after.new_full((n,), c) for n, c in zip(sizes, constants, strict=True)])
    slack = float((after / lengths.sqrt())[out].min()) if bool(out.any()) else math.inf
    sigma = 0.0
    if bool(inside.any()):
        spectrum = extreme_eigenvalues(dictionary, parts(inside), steps=steps)
        sigma = math.sqrt(spectrum.bounds(FAILURE)[0])
    sparsities = tuple(int(part.sum()) for part in torch.split(inside, sizes))
    name, measure = "theorem B (stability)", "eps = ||D^T e||_inf, error in the maximum norm"
    why = "the mutual coherence was not computed; coherence(..., switches='worst') bounds it"
    return Certificate(
        mutual_coherence=math.nan,
        support=int(inside.sum()),
        slack=slack,
        sigma_min=sigma,
        kkt=float(error.abs().max()) if error.numel() else 0.0,
        by_coherence=Verdict(name, False, 0.0, math.inf, measure, why),
        by_slack=slack_form(slack, sigma, float(error.norm())),
        layered_gain=layered_gain([max(s, 1) for s in sparsities]),
        sparsities=sparsities,
        latents=w,
    )


def _norm_bound(dictionary: StructuredDictionary, constants: list[float]) -> float:
    """Return a bound of ||B||^2: at most (latents in a row) times max_j sum_i ||B_ij||^2."""
    held = [1 + sum(p.leaf >= 0 for slot in r.slots for p in slot) for r in dictionary.rows]
    return max(held) * max(constants)
