"""Atom gains of decoder rows (mathematics.md, section 1), wherever they are read."""

from __future__ import annotations

import copy
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pursuitify import PursuitNetwork, backends, coherence, load, pursuitify, save
from pursuitify.errors import InputError, OptionError
from pursuitify.models import ResidualNet
from tests.support.against_oracle import assert_close, extrapolate, joined
from tests.support.compare_modes import assert_same, assert_same_outputs, differentiate
from tests.support.nets import CASES, Case, randomise
from tests.support.oracle import Oracle
from tests.support.randomnets import general_net


def gain(net: PursuitNetwork, x: Tensor, seed: int = 0, low: float = 0.2) -> dict[str, Tensor]:
    """Give every decoder row random gains, one per entry of dimension 1, and return them."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        latents = net.latents(x)
    gains = {
        row.name: (low + 1.5 * torch.rand(n.shape[1], generator=generator, dtype=n.dtype)).reshape(
            -1, *(1,) * (n.dim() - 2)
        )
        for row in net.compiled_program.rows
        if not row.encoder
        for n in (latents[row.name],)
    }
    net.atom_gains = gains
    return gains


def has_decoder_rows(case: Case, layout: str) -> bool:
    return any(row.diag is not None for row in case.rows(case.build(), layout, case.input()))


#: Every case in both layouts, each with the other of the two offsets.
SETUPS = [
    (case, layout, ("threshold", "signal")[(i + j) % 2])
    for i, case in enumerate(CASES)
    for j, layout in enumerate(("auto", "encoder"))
    if has_decoder_rows(case, layout)
]


@pytest.mark.parametrize(
    ("case", "layout", "offsets"), SETUPS, ids=["-".join(map(str, s)) for s in SETUPS]
)
def test_everything_is_that_of_the_oracle(case: Case, layout: Any, offsets: str) -> None:
    model, x = case.build(), case.input()
    net = pursuitify(model, layout=layout, offsets=offsets)
    before = pursuitify(model, 0, layout=layout)(x)
    gains = gain(net, x)
    oracle = Oracle(case.rows(model, layout, x), x, net.offsets, gains)
    matrix, signal, thresholds = (t.detach().numpy() for t in net.dictionary(x).materialize())
    assert_close(thresholds, oracle.lam)
    assert_close(matrix.T @ matrix, oracle.B.T @ oracle.B)
    assert_close(matrix.T @ signal, oracle.B.T @ oracle.y)
    net.iterations = 0
    assert_close(joined(net.latents(x)), oracle.w0)
    assert torch.equal(net(x), before)
    net.verify(x)
    exact = oracle.lipschitz()
    steps = {k: v.item() for k, v in net.step_sizes(x).items()}
    for name, step in steps.items():
        assert step * exact[name] <= 1 + 1e-9, "the norm is bounded from above"
    for alpha, count in itertools.product((0.0, 0.3), (1, 4)):
        with torch.no_grad():
            net.pursuit.alpha.fill_(alpha)
        net.iterations = count
        latents = net.latents(x)
        expected = oracle.sweeps(count, steps, alpha)
        assert_close(joined(latents), expected)
        assert_close(net.objective(x, latents).item(), oracle.objective(expected, 1e-12))
    with torch.no_grad():
        net.pursuit.alpha.zero_()
    net.steps = "adaptive"
    estimates = {k: v.item() for k, v in net.step_sizes(x).items()}
    assert_close(joined(net.latents(x)), oracle.adaptive(4, estimates))
    net.steps = "certified"
    net.solver = "layered"
    steps = {k: v.item() for k, v in net.step_sizes(x).items()}
    assert_close(joined(net.latents(x)), oracle.layered(4, steps))


def test_the_cases_cover_both_layouts_and_offsets() -> None:
    assert {(layout, offsets) for _, layout, offsets in SETUPS} == {
        *itertools.product(("auto", "encoder"), ("threshold", "signal"))
    }


signs = settings(deadline=None, max_examples=25, suppress_health_check=list(HealthCheck))
layouts = st.sampled_from(["auto", "encoder"])


@signs
@given(
    general_net(), layouts, st.integers(1, 4), st.sampled_from([0.0, 0.4]), st.integers(0, 2**16)
)
def test_random_networks_descend_and_all_ways_to_compute_agree(
    drawn: tuple[nn.Module, Tensor], layout: Any, count: int, alpha: float, seed: int
) -> None:
    model, x = drawn
    model = randomise(model, seed).double().eval()
    net = pursuitify(model, iterations=6, layout=layout, offsets="signal")
    gain(net, x, seed)
    net.verify(x)
    for steps in ("certified", "adaptive"):
        net.steps = steps
        values = [sweep.objective for sweep in net.diagnose(x).sweeps]
        assert all(b <= a + 1e-9 * max(1.0, abs(a)) for a, b in itertools.pairwise(values))
        with torch.no_grad():
            found = joined(net.latents(x))
            with backends.inplace(False):
                assert_close(found, joined(net.latents(x)))
    net.steps, net.iterations = "certified", count
    net = extrapolate(net, alpha)
    for parameter in net.pursuit.parameters():
        parameter.requires_grad_()
    expected, theirs = differentiate(net, x, memory="store")
    outputs, mine = differentiate(net, x, memory="recompute")
    assert any(name.startswith("pursuit.log_gains") for name in theirs)
    assert_same_outputs(outputs, expected, 1e-11)
    assert_same(mine, theirs, 1e-11)
    with torch.no_grad():
        found = joined(net.latents(x))
        with backends.inplace(False):
            assert_close(found, joined(net.latents(x)))


def test_derivatives_of_gains_are_those_of_differences() -> None:
    torch.manual_seed(0)
    model = randomise(ResidualNet(1, 3, width=2, batch_norm=False)).double().eval()
    net = pursuitify(model, iterations=3, offsets="signal")
    x = torch.randn(2, 1, 6, 6, dtype=torch.float64)
    gain(net, x)
    names = [n for n, _ in net.named_parameters() if "log_gains" in n]
    values = tuple(net.get_parameter(n).detach().clone().requires_grad_() for n in names)

    def answer(*gains: Tensor) -> Any:
        named = dict(zip(names, gains, strict=True))
        return torch.func.functional_call(net, named, (x,))

    assert names
    assert torch.autograd.gradcheck(answer, values, eps=1e-7, atol=1e-5)


@pytest.mark.parametrize("solver", ["global", "synchronous"])
@pytest.mark.parametrize("name", ["linear_chain", "linear_residual", "linear_dense"])
def test_many_sweeps_reach_the_optimum(name: str, solver: str) -> None:
    case = next(c for c in CASES if c.name == name)
    model, x = case.build(), case.input()
    net = pursuitify(model, 2000, solver, "encoder", offsets="signal")
    gains = gain(net, x, low=0.5)
    oracle = Oracle(case.rows(model, "encoder", x), x, "signal", gains)
    with torch.no_grad():
        w = oracle.join(net.latents(x))
    _, best = oracle.optimum()
    assert oracle.objective(w) - best <= 1e-6 * max(1.0, abs(best))


def test_implicit_derivatives_at_the_minimiser_are_those_of_many_sweeps() -> None:
    torch.manual_seed(0)
    model = randomise(nn.Sequential(
        nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 4), nn.LeakyReLU(0.3), nn.Linear(4, 3), nn.ReLU(),
    )).double().eval()  # fmt: skip
    net = pursuitify(model, iterations=1000, layout="encoder", offsets="signal")
    net.implicit_tolerance = 1e-9
    x, found = torch.randn(2, 5, dtype=torch.float64), []
    gain(net, x, low=0.5)
    net.pursuit.requires_grad_()
    for memory in ("recompute", "implicit"):
        net.memory = memory
        net.zero_grad()
        net(x).square().sum().backward()
        found.append({n: p.grad for n, p in net.named_parameters() if p.grad is not None})
    assert any("log_gains" in name for name in found[0])
    for name, grad in found[0].items():
        if name not in ("pursuit.beta", "pursuit.alpha"):
            assert_close(found[1][name].numpy(), grad.numpy(), 1e-6)


def test_coherence_knows_gains() -> None:
    torch.manual_seed(0)
    model = randomise(ResidualNet(1, 3, width=2)).double().eval()
    net, plain = pursuitify(model), pursuitify(model)
    x = torch.rand(1, 1, 8, 8, dtype=torch.float64)
    gain(net, x)
    matrix = net.dictionary(x).materialize()[0].detach()
    columns = matrix / matrix.norm(dim=0)
    gram = columns.T @ columns
    gram.fill_diagonal_(0)
    report = coherence(net, x=x, boundary="exact")
    assert report.mutual_coherence == pytest.approx(float(gram.abs().max()), rel=1e-9)
    assert report.frame_potential != coherence(plain, x=x, boundary="exact").frame_potential
    assert coherence(net, (1, 8, 8)).frame_potential != coherence(plain, (1, 8, 8)).frame_potential


def test_networks_with_gains_are_files_copies_and_exports(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = randomise(ResidualNet(1, 3, width=2)).eval()
    x = torch.rand(2, 1, 8, 8)
    plain = pursuitify(model, iterations=3, offsets="signal")
    net = copy.deepcopy(plain)
    assert not net.atom_gains
    gains = gain(net, x)
    assert not torch.allclose(net(x), plain(x))
    for name, c in net.atom_gains.items():
        assert torch.allclose(c, gains[name])
    save(net, tmp_path / "net")
    save(plain, tmp_path / "plain")
    again = load(tmp_path / "net", model)
    assert torch.equal(again(x), net(x))
    assert torch.equal(copy.deepcopy(net)(x), net(x))
    assert torch.equal(load(tmp_path / "plain", model)(x), plain(x))
    exported = torch.export.export(net, (x,)).module()
    assert torch.allclose(exported(x), net(x), atol=1e-6)
    # A state_dict says whether there are gains; a strict load follows it, in either direction.
    fresh = pursuitify(model, iterations=3, offsets="signal")
    fresh.load_state_dict(net.state_dict())
    assert torch.equal(fresh(x), net(x))
    fresh.load_state_dict(plain.state_dict())
    assert torch.equal(fresh(x), plain(x))
    net.atom_gains = {}
    assert torch.equal(net(x), plain(x))
    assert net.state_dict().keys() == plain.state_dict().keys()


def test_training_moves_gains_if_asked() -> None:
    torch.manual_seed(0)
    model = randomise(ResidualNet(1, 3, width=2))
    net = pursuitify(model, iterations=2, layout="encoder", offsets="signal")
    x = torch.rand(4, 1, 8, 8)
    gain(net.eval(), x)
    net.train()
    named = {n: p for n, p in net.named_parameters() if "log_gains" in n}
    assert named
    assert not any(p.requires_grad for p in named.values())
    for parameter in named.values():
        parameter.requires_grad_()
    before = net.atom_gains
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    net(x).square().mean().backward()
    optimizer.step()
    assert all(not torch.equal(before[n], c) for n, c in net.atom_gains.items())
    net.eval()
    net.verify(x)
    fresh = pursuitify(randomise(ResidualNet(1, 3, width=2)).eval(), 2, layout="encoder")
    fresh.offsets = "signal"
    fresh.load_state_dict(net.state_dict())
    assert torch.equal(fresh(x), net(x)), "nothing is held of the gains before"


def test_what_is_no_gain_is_refused() -> None:
    torch.manual_seed(0)
    model = randomise(ResidualNet(1, 3, width=2)).eval()
    x = torch.rand(2, 1, 8, 8)
    net = pursuitify(model, iterations=2, layout="encoder")
    gains = gain(net, x)
    encoder = next(row.name for row in net.compiled_program.rows if row.encoder)
    (name, value), *_ = gains.items()
    for wrong in ({encoder: value}, {"nothing": value}):
        with pytest.raises(OptionError, match=f"only decoder rows have gains.*{name}"):
            net.atom_gains = wrong
    for bad in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(OptionError, match="not all positive and finite"):
            net.atom_gains = {name: value * bad}
    for odd in ({name: 2.0}, [value]):
        with pytest.raises(InputError, match="atom_gains"):
            net.atom_gains = odd  # type: ignore[assignment]
    assert all(torch.equal(c, net.atom_gains[n]) for n, c in net.atom_gains.items())
    net.atom_gains = {name: torch.ones(7, 1, 1)}
    with pytest.raises(InputError, match=r"shape \(7, 1, 1\), which does not broadcast against"):
        net(x)
