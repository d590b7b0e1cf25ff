"""Certificates: conditions, radii, and perturbations that never break them."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import strategies as st
from torch import nn

from pursuitify import pursuitify
from pursuitify.analysis import (
    certify,
    layered_gain,
    margin_radius,
    slack_form,
    theorem_a,
    theorem_b,
)
from pursuitify.analysis.certificates.convex_problem import ConvexProblem, problem
from pursuitify.analysis.certificates.support_recovery import certify_problem
from pursuitify.analysis.measures import dense_gram
from pursuitify.errors import InputError, OptionError
from pursuitify.operators.activations import ReLU
from pursuitify.rules import activation
from tests.support.examples import examples
from tests.support.nets import BY_NAME


def incoherent(seed, rows=60, columns=80, k=3):
    """Return a sparse problem with unit columns of low coherence."""
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    for _ in range(200):  # descend a power of the entries towards equal angles
        matrix = matrix / matrix.norm(dim=0)
        gram = matrix.T @ matrix
        gram.fill_diagonal_(0)
        matrix = matrix - 2.0 * matrix @ gram.pow(3)
    matrix = matrix / matrix.norm(dim=0)
    made = torch.zeros(columns, dtype=torch.float64)
    chosen = torch.randperm(columns, generator=generator)[:k]
    made[chosen] = 2 + torch.rand(k, generator=generator, dtype=torch.float64)
    lam = torch.full((columns,), 0.4, dtype=torch.float64)
    ones = torch.ones(columns, dtype=torch.float64)
    return ConvexProblem(matrix, matrix @ made, lam, ones, ((torch.Size([columns]), ReLU()),)), made


@pytest.mark.parametrize("seed", range(4))
def test_theorem_b_is_never_broken_by_perturbations_inside_its_radius(seed):
    given, _ = incoherent(seed)
    found = certify_problem(given)
    assert found.by_coherence.holds
    assert found.by_slack.holds
    inside = found.latents > 0
    generator = torch.Generator().manual_seed(seed)
    for _ in range(25):
        e = torch.randn(len(given.signal), generator=generator, dtype=torch.float64)
        share = float(torch.rand((), generator=generator)) * 0.999
        for verdict, size, order in (
            (found.by_coherence, (given.matrix.T @ e).abs().max(), float("inf")),
            (found.by_slack, e.norm(), 2),
        ):
            noise = e * (share * verdict.radius / size)
            other = ConvexProblem(given.matrix, given.signal + noise, *vars_of(given)).solve()
            assert not (other[~inside] > 1e-9).any()
            moved = torch.linalg.vector_norm(other - found.latents, order)
            assert float(moved) <= verdict.gain * share * verdict.radius + 1e-8


def vars_of(given):
    return given.thresholds, given.norms, given.parts


@pytest.mark.parametrize("seed", range(4))
def test_theorem_a_recovers_the_support_that_made_the_signal(seed):
    given, made = incoherent(seed, k=2)
    gram = given.matrix.T @ given.matrix
    gram.fill_diagonal_(0)
    mu = float(gram.abs().max())
    generator = torch.Generator().manual_seed(seed)
    e = torch.randn(len(given.signal), generator=generator, dtype=torch.float64)
    eps = 0.02
    e = e * (eps / (given.matrix.T @ e).abs().max())
    verdict = theorem_a(mu, 2, 0.4, 0.4, eps)
    assert verdict.holds
    w = ConvexProblem(given.matrix, given.signal + e, *vars_of(given)).solve()
    assert not (w[made == 0] > 1e-9).any()
    assert float((w - made).abs().max()) <= verdict.bias + verdict.gain * eps + 1e-8


def test_a_failed_condition_is_called_vacuous():
    verdict = theorem_b(0.7, 40, 0.1)
    assert not verdict.holds
    assert verdict.radius == 0
    assert "vacuous" in str(verdict)
    assert "vacuous" in str(theorem_a(0.7, 40, 1.0, 1.0))
    assert "vacuous" in str(theorem_a(0.01, 2, 1.0, 1.0, noise=5.0))
    assert theorem_b(0.01, 2, 0.5).holds
    assert not theorem_b(0.01, 2, 0.5, kkt=1.0).holds


@pytest.mark.parametrize("name", ["linear_residual", "linear_dense", "conv_chain"])
def test_on_a_network_the_slack_form_holds_where_coherence_is_vacuous(name):
    case = BY_NAME[name]
    net = pursuitify(case.build())
    x = case.input()
    found = certify(net, x)
    given = problem(net, x)
    text = str(found)
    assert "layered bound" in text
    assert "vacuous" in str(found.by_coherence)
    assert found.kkt < 1e-8
    if not found.by_slack.holds:
        assert "vacuous" in str(found.by_slack)
        return
    outside = given.bounded_below() & (found.latents <= 0)
    generator = torch.Generator().manual_seed(0)
    for _ in range(10):
        e = torch.randn(len(given.signal), generator=generator, dtype=torch.float64)
        e = e * (0.999 * found.by_slack.radius / e.norm())
        w = ConvexProblem(given.matrix, given.signal + e, *vars_of(given)).solve()
        assert not (w[outside] > 1e-7).any()
        moved = float((w - found.latents).norm())
        assert moved <= found.by_slack.gain * float(e.norm()) + 1e-6


def test_the_solver_minimises_the_networks_own_objective():
    case = BY_NAME["linear_residual"]
    net = pursuitify(case.build(), iterations=400)
    x = case.input()
    given = problem(net, x)
    w = given.solve() / given.norms
    latents = torch.cat([v.reshape(-1) for v in net.latents(x).values()])
    assert (w - latents).abs().max() < 1e-4


def test_layered_gain_and_margins():
    assert layered_gain([4, 9]) == pytest.approx(7.5**2 * 6)
    verdict = theorem_b(0.01, 2, 0.5)
    head = nn.Linear(4, 3)
    support = torch.tensor([True, True, False, False])
    assert 0 < margin_radius(verdict, head, support, 0.1) <= verdict.radius
    assert margin_radius(theorem_b(0.9, 9, 0.1), head, support, 0.1) == 0


@pytest.mark.parametrize("seed", range(3))
def test_the_slack_radius_is_what_the_worst_perturbation_needs(seed):
    """Along (I - P) d_j the atom j enters at m / ||(I - P) d_j||: hardly above the radius m."""
    given, _ = incoherent(seed)
    found = certify_problem(given)
    inside = found.latents > 0
    slope = torch.where(inside, float("inf"), given.slope(found.latents))
    j = int(slope.argmin())
    atoms = given.matrix[:, inside]
    apart = given.matrix[:, j] - atoms @ torch.linalg.lstsq(atoms, given.matrix[:, j]).solution
    direction = apart / apart.norm()
    for size, enters in ((0.999 * found.by_slack.radius, False), (1.0, True)):
        e = direction * (size if not enters else 1.01 * found.slack / float(apart.norm()))
        w = ConvexProblem(given.matrix, given.signal + e, *vars_of(given)).solve()
        assert bool(w[j] > 1e-9) == enters
    assert found.by_slack.radius == pytest.approx(found.slack, rel=1e-6)
    assert found.slack / float(apart.norm()) < 1.2 * found.by_slack.radius


@pytest.mark.parametrize("seed", range(3))
def test_the_radius_of_theorem_b_is_what_the_worst_perturbation_needs(seed):
    """One atom s in use: e with d_s^T e = -eps and d_j^T e = +eps, signs by G_js, makes j enter."""
    generator = torch.Generator().manual_seed(seed)
    angle = 0.6 + 0.3 * seed
    first = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
    second = torch.tensor([math.cos(angle), math.sin(angle), 0.0], dtype=torch.float64)
    matrix = torch.stack([first, second, torch.eye(3, dtype=torch.float64)[2]], 1)
    signal = 3 * first + 0.1 * torch.rand(3, generator=generator, dtype=torch.float64)
    lam = torch.tensor([0.5, 1.5, 3.0], dtype=torch.float64)
    given = ConvexProblem(matrix, signal, lam, torch.ones(3).double(), ((torch.Size([3]), ReLU()),))
    found = certify_problem(given)
    assert found.support == 1
    assert found.by_coherence.holds
    eps = found.by_coherence.radius
    pair = matrix[:, :2]
    wanted = torch.tensor([-1.0, 1.0], dtype=torch.float64)
    e = pair @ torch.linalg.solve(pair.T @ pair, wanted)
    assert float((matrix.T @ e).abs().max()) == pytest.approx(1)
    for size, enters in ((0.999, False), (1.001, True)):
        w = ConvexProblem(matrix, signal + size * eps * e, *vars_of(given)).solve()
        assert bool(w[1] > 1e-12) == enters
        moved = float((w - found.latents).abs().max())
        if not enters:
            assert moved <= found.by_coherence.gain * size * eps + 1e-9
            assert moved >= 0.99 * found.by_coherence.gain * size * eps


def test_a_point_away_from_the_minimiser_has_its_distance_counted():
    given, _ = incoherent(0)
    exact = certify_problem(given)
    rough = certify_problem(given, exact.latents + 1e-3 * (exact.latents > 0))
    assert exact.kkt < 1e-8
    assert rough.kkt > 1e-5
    assert rough.by_slack.radius < exact.by_slack.radius
    assert rough.by_slack.radius <= rough.slack - rough.kkt / rough.sigma_min


@pytest.mark.parametrize("name", ["linear_residual", "conv_chain", "leaky_conv"])
def test_without_a_matrix_the_certificate_is_more_careful_and_holds(name):
    case = BY_NAME[name]
    net = pursuitify(case.build())
    x = case.input()
    found = certify(net, x, "lanczos", iterations=3000)
    given = problem(net, x)
    own = given.matrix * given.norms
    inside = ~(given.bounded_below() & (found.latents <= 0))
    dense = certify(net, x, "dense")
    assert (found.latents - dense.latents / given.norms).abs().max() < 1e-6
    assert found.support == dense.support == int(inside.sum())
    sigma = float(torch.linalg.svdvals(own[:, inside])[-1])
    square = inside.sum() <= len(own)
    assert found.sigma_min <= (sigma if square else 0.0) + 1e-9
    assert found.slack <= dense.slack + 1e-9
    assert "not computed" in str(found)
    if not found.by_slack.holds:
        return
    assert found.sigma_min >= 0.99 * sigma  # so small that Lanczos ends
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        e = torch.randn(len(given.signal), generator=generator, dtype=torch.float64)
        e = e * (0.999 * min(found.by_slack.radius, 1.0) / e.norm())
        w = ConvexProblem(given.matrix, given.signal + e, *vars_of(given)).solve() / given.norms
        assert not (w[~inside] > 1e-7).any()
        moved = float((w - found.latents).norm())
        assert moved <= found.by_slack.gain * float(e.norm()) + 1e-6


def test_larger_networks_are_certified_without_a_matrix(monkeypatch):
    case = BY_NAME["linear_residual"]
    net = pursuitify(case.build())
    assert not math.isnan(certify(net, case.input()).mutual_coherence)
    monkeypatch.setattr(dense_gram, "LIMIT", 10)
    assert math.isnan(certify(net, case.input()).mutual_coherence)
    with pytest.raises(InputError, match="at most 10"):
        certify(net, case.input(), "dense")
    with pytest.raises(OptionError, match="method"):
        certify(net, case.input(), "svd")


class Reaching(ReLU):
    """By class a ReLU; its prox is the identity, so that a zero may be left in both directions."""

    def prox(self, v, step):
        return v


def test_an_atom_may_leave_the_support_and_the_words_say_so():
    layer = nn.Linear(2, 2).double()
    with torch.no_grad():
        layer.weight.copy_(torch.eye(2))
        layer.bias.copy_(torch.tensor([0.0, -2.5]))
    net = pursuitify(nn.Sequential(layer, nn.ReLU(), nn.Linear(2, 2).double()).eval())
    x = torch.tensor([[0.1, 0.5]], dtype=torch.float64)
    found = certify(net, x)
    moved = certify(net, x - torch.tensor([[0.5, 0.0]]))
    assert found.by_slack.radius > 0.5
    assert found.by_coherence.radius > 0.5
    before, after = found.latents > 0, moved.latents > 0
    assert bool(before[0])
    assert not bool(after.any()), "the atom in use left, within the radius"
    for verdict in (found.by_slack, found.by_coherence):
        assert "add no atom to the support (atoms may leave it)" in str(verdict)
        assert "keep" not in str(verdict)
    assert "for perturbations of the signal" in str(found)


def test_a_subclass_with_its_own_prox_is_not_taken_to_be_bounded_below():
    given, _ = incoherent(0)
    size = torch.Size([80])
    for bounded_or_not, bounded in ((ReLU(), True), (Reaching(), False)):
        problem_of = ConvexProblem(
            given.matrix, given.signal, given.thresholds, given.norms, ((size, bounded_or_not),)
        )
        assert bool(problem_of.bounded_below().all()) == bounded


NUMBERS = {
    theorem_a: {"mu": 0.1, "k": 2, "lam_min": 1.0, "lam_max": 1.0, "noise": 0.1},
    theorem_b: {"mu": 0.1, "k": 2, "slack": 1.0, "kkt": 0.0},
    slack_form: {"slack": 1.0, "sigma": 1.0, "kkt": 0.0},
}


@pytest.mark.parametrize("theorem", NUMBERS)
def test_nothing_is_proven_of_nan(theorem):
    given = NUMBERS[theorem]
    assert theorem(**given).holds
    for name in given:
        with pytest.raises(OptionError, match=name):
            theorem(**{**given, name: math.nan})


@pytest.mark.parametrize("seed", range(2))
def test_theorem_a_says_what_holds_at_every_noise_up_to_its_radius(seed):
    """Thresholds shrink the coefficients without any noise: the error is no multiple of it."""
    given, made = incoherent(seed, k=2)
    gram = given.matrix.T @ given.matrix
    gram.fill_diagonal_(0)
    verdict = theorem_a(float(gram.abs().max()), 2, 0.4, 0.4, 0.02)
    generator = torch.Generator().manual_seed(seed)
    e = torch.randn(len(given.signal), generator=generator, dtype=torch.float64)
    for share in (0.0, 0.01, 0.999):
        eps = share * verdict.radius
        noise = e * (eps / (given.matrix.T @ e).abs().max())
        w = ConvexProblem(given.matrix, given.signal + noise, *vars_of(given)).solve()
        assert not (w[made == 0] > 1e-9).any()
        assert float((w - made).abs().max()) <= verdict.bias + verdict.gain * eps + 1e-8
    assert f"{verdict.bias:.4g} plus" in str(verdict)
    classes = nn.Linear(len(made), 2).requires_grad_(False)
    spread = float((classes.weight[0] - classes.weight[1])[made > 0].abs().sum())
    assert margin_radius(verdict, classes, made > 0, verdict.bias * spread) == 0


class Steep(ReLU):
    """A ReLU that stretches: the proximal operator of nothing convex."""

    def prox(self, v, step):
        return 4 * torch.relu(v)


@pytest.mark.parametrize("method", ["dense", "lanczos"])
def test_own_activations_are_tried(method):
    class Mine(nn.ReLU):
        def forward(self, input):
            return 4 * torch.relu(input)

    model = nn.Sequential(nn.Linear(3, 4), Mine(), nn.Linear(4, 2)).double().eval()
    net = pursuitify(model, rules={Mine: activation(Steep())}).eval()
    with pytest.raises(OptionError, match="proximal operator"):
        certify(net, torch.rand(1, 3, dtype=torch.float64), method)


ACTIVATIONS = {
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "leaky": lambda: nn.LeakyReLU(0.2),
    "prelu": lambda: nn.PReLU(3, init=0.7),
    "softplus": nn.Softplus,
}


@examples(6, 60, data=st.data())
def test_no_perturbation_inside_a_verdict_breaks_it(data):
    """Over activations (slopes of channels too), layouts, offsets, gains, skips and methods."""
    draw = data.draw
    seed = draw(st.integers(0, 999))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        kinds = [ACTIVATIONS[draw(st.sampled_from(sorted(ACTIVATIONS)))] for _ in range(2)]
        layers = [nn.Conv2d(1, 3, 3), kinds[0](), nn.Conv2d(3, 3, 1), kinds[1](), nn.Flatten()]
        model = nn.Sequential(*layers, nn.Linear(12, 2)).double().eval()
        x = torch.randn(1, 1, 4, 4, dtype=torch.float64)
        layout = draw(st.sampled_from(["auto", "encoder"]))
        offsets = draw(st.sampled_from(["signal", "threshold"]))
        net = pursuitify(model, layout=layout, offsets=offsets).eval()
        if draw(st.booleans()):
            rows = [row.name for row in net.dictionary(x).rows if row.diagonal is not None]
            net.atom_gains = {n: 0.2 + torch.rand(3, 1, 1, dtype=torch.float64) for n in rows}
        found = certify(net, x, draw(st.sampled_from(["dense", "lanczos"])))
        if found.sigma_min < 0.2:  # the minimiser is too flat to be found here
            return
        given = problem(net, x)
        solution = given.solve()
        own = given.norms if math.isnan(found.mutual_coherence) else 1.0  # columns as they are
        assert torch.allclose(solution / own, found.latents, atol=1e-5)
        inside = ~(given.bounded_below() & (found.latents <= 0))
        assert int(inside.sum()) == found.support
        for verdict, order in ((found.by_coherence, math.inf), (found.by_slack, 2)):
            for _ in range(2 if verdict.holds else 0):
                e = torch.randn(len(given.signal), dtype=torch.float64)
                size = (given.matrix.T @ e).abs().max() if order == math.inf else e.norm()
                reach = 0.999 * min(verdict.radius, 10.0)
                signal = given.signal + e * (reach / size)
                other = ConvexProblem(given.matrix, signal, *vars_of(given)).solve()
                assert not (other[~inside] > 1e-7).any()
                moved = torch.linalg.vector_norm((other - solution) / own, order)
                assert float(moved) <= verdict.gain * reach * (1 + 1e-6) + 1e-6


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_both_methods_find_the_minimiser_of_one_problem(name):
    """In unit columns and in the network's own: penalties scale, with slopes and gains."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        layers = [nn.Conv2d(1, 3, 2), ACTIVATIONS[name](), nn.Conv2d(3, 3, 1), ACTIVATIONS[name]()]
        model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(12, 2)).double().eval()
        net = pursuitify(model, layout="encoder").eval()
        x = torch.randn(1, 1, 3, 3, dtype=torch.float64)
        (row,) = (row for row in net.dictionary(x).rows if row.diagonal is not None)
        net.atom_gains = {row.name: 0.5 + torch.rand(3, 1, 1, dtype=torch.float64)}
    dense, free = certify(net, x, "dense"), certify(net, x, "lanczos")
    assert torch.allclose(dense.latents / problem(net, x).norms, free.latents, atol=1e-5)
