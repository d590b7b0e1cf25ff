"""coherence(): measures against the dense Gram matrix, inequalities, what the report says."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import nn

from pursuitify import pursuitify
from pursuitify.analysis import babel, babel_function, coherence, extreme_eigenvalues
from pursuitify.analysis.gram.dictionary_blocks import blocks_of
from pursuitify.analysis.gram.normalised_gram import Gram
from pursuitify.analysis.measures import dense_gram
from pursuitify.analysis.measures.dense_gram import normalised
from pursuitify.errors import InputError, OptionError
from tests.support.examples import examples
from tests.support.nets import BY_NAME, CASES, LAYOUTS, random_net


def dense_measures(net, x):
    """Return mutual coherence, RMS and mean absolute entry from the materialised dictionary."""
    with torch.no_grad():
        unit, _, structural = normalised(net.dictionary(x))
    gram = (unit.T @ unit).abs()
    mask = structural & ~torch.eye(len(gram), dtype=torch.bool)
    values = gram[mask]
    return values.max(), values.square().mean().sqrt(), values.mean(), len(values)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_exact_measures_are_those_of_the_dense_matrix(case, layout):
    net = pursuitify(case.build(), layout=layout)
    x = case.input()
    report = coherence(net, boundary="exact", x=x)
    mu, rms, mean, count = dense_measures(net, x)
    assert report.mutual_coherence == pytest.approx(float(mu), abs=1e-9)
    assert report.frame_potential == pytest.approx(float(rms), abs=1e-9)
    assert report.frame_potential_mean_abs == pytest.approx(float(mean), abs=1e-9)
    assert report.count == count
    norms = net.dictionary(x).materialize()[0].detach().norm(dim=0)
    assert min(n.minimum for n in report.column_norms) == pytest.approx(float(norms.min()))
    assert max(n.maximum for n in report.column_norms) == pytest.approx(float(norms.max()))


@examples(12, 150, drawn=random_net(batch=1))
def test_mutual_coherence_frame_potential_and_welch_bound_are_in_order(drawn):
    model, x = drawn
    for layout in LAYOUTS:
        net = pursuitify(model, layout=layout)
        for boundary in ("exact", "interior"):
            try:
                report = coherence(net, boundary=boundary, x=x)
            except InputError:  # said to be too large, or to have no interior form
                continue
            slack = 1e-9
            assert report.mutual_coherence + slack >= report.frame_potential
            assert report.frame_potential + slack >= report.frame_potential_mean_abs
            assert report.frame_potential + slack >= report.welch_bound
            assert report.mutual_coherence <= 1 + slack
            if boundary == "exact":
                wanted = dense_measures(net, x) if report.count else None
                if wanted is not None and report.count < 4e6:
                    assert report.frame_potential == pytest.approx(float(wanted[1]), abs=1e-7)
                    assert report.mutual_coherence == pytest.approx(float(wanted[0]), abs=1e-7)


def test_the_report_names_its_rules():
    net = pursuitify(BY_NAME["conv_chain"].build())
    text = str(coherence(net, (2, 9, 9)))
    assert text.startswith("Coherence of ConvChain's dictionary")
    for word in ("layout", "scale", "boundary  interior", "entries", "every window selects its"):
        assert word in text
    exact = coherence(net, (2, 9, 9), "exact")
    assert "switches as frozen by the input" in str(exact)
    assert "boundary  exact" in str(exact)
    data = json.loads(json.dumps(exact.to_dict()))
    assert data["mutual_coherence"] == exact.mutual_coherence
    assert data["layout"] == {"decoder": 3, "encoder": 0}


def test_the_pair_that_attains_the_coherence_has_that_inner_product():
    case = BY_NAME["conv_residual"]
    net = pursuitify(case.build())
    x = case.input()
    report = coherence(net, boundary="exact", x=x)
    dictionary = net.dictionary(x)
    pair = report.pair
    columns = []
    for name, channel, position in zip(pair.latents, pair.channels, pair.positions, strict=True):
        latents = {
            n: torch.zeros(s).double()
            for n, s in zip(dictionary.names, dictionary.shapes, strict=True)
        }
        latents[name][0, channel][tuple(position)] = 1
        columns.append(torch.cat([r.reshape(-1) for r in dictionary.apply(latents).values()]))
    a, b = columns
    assert float(a @ b / (a.norm() * b.norm())) == pytest.approx(pair.value, abs=1e-9)
    assert abs(pair.value) == report.mutual_coherence


def test_switches_can_be_assumed_in_exact_mode_too():
    net = pursuitify(BY_NAME["conv_chain"].build())
    report = coherence(net, (2, 9, 9), "exact", switches="centre")
    assert "max pooling: every window selects its centre" in report.assumptions
    assert 0 < report.mutual_coherence < 1


def test_wrong_options_are_refused():
    net = pursuitify(BY_NAME["linear_chain"].build())
    with pytest.raises(OptionError, match="interior"):
        coherence(net, (6,), "inside")
    with pytest.raises(OptionError, match="exact"):
        coherence(net, (6,), switches="batch")
    with pytest.raises(OptionError, match="PursuitNetwork"):
        coherence(nn.Linear(2, 2), (2,))
    with pytest.raises(OptionError, match="disagree"):
        coherence(net, (7,), x=torch.zeros(1, 6).double())


def test_what_is_too_large_for_the_explicit_computation_says_so(monkeypatch):
    monkeypatch.setattr(dense_gram, "LIMIT", 10)
    net = pursuitify(BY_NAME["conv_chain"].build())
    with pytest.raises(InputError, match="at most 10 rows"):
        coherence(net, (2, 9, 9), "exact")


def test_the_network_keeps_its_mode_and_statistics():
    net = pursuitify(BY_NAME["conv_chain"].build()).train()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    coherence(net, (2, 9, 9))
    assert net.training
    assert all(m.training for m in net.modules())
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_an_encoder_identity_skip_can_raise_the_coherence():
    """The identity around two layers puts an entry near 1 / sqrt(2) between its two ends."""

    class Net(nn.Module):
        def __init__(self, skip):
            super().__init__()
            self.a, self.b, self.c = (nn.Linear(64, 64) for _ in range(3))
            self.skip = skip

        def forward(self, x):
            x = torch.relu(self.a(x))
            y = self.c(torch.relu(self.b(x)))
            return torch.relu(y + x if self.skip else y)

    reports = []
    for skip in (False, True):
        torch.manual_seed(0)
        model = Net(skip).double()
        for layer in (model.a, model.b, model.c):
            nn.init.orthogonal_(layer.weight, 0.3)
        reports.append(coherence(pursuitify(model), (64,)))
    assert reports[1].mutual_coherence > reports[0].mutual_coherence
    assert reports[1].mutual_coherence == pytest.approx((2 + 0.3**2) ** -0.5, rel=1e-6)
    assert reports[1].pair.latents == ("relu", "relu_2")


def test_babel_function_in_interior_and_dense():
    net = pursuitify(BY_NAME["linear_residual"].build())
    with torch.no_grad():
        dictionary = net.dictionary(torch.zeros(1, 6).double())
        unit, _, _ = normalised(dictionary)
        dense = babel(unit.T @ unit, 8)
        found = babel_function(Gram(blocks_of(dictionary, border=False)), 8)
    assert found == pytest.approx(dense.tolist(), abs=1e-9)


def test_babel_function_of_a_strided_network_is_that_of_central_atoms():
    case = BY_NAME["leaky_conv"]
    net = pursuitify(case.build())
    with torch.no_grad():
        dictionary = net.dictionary(torch.zeros(1, 2, 64).double())
        found = babel_function(Gram(blocks_of(dictionary, border=False)), 6)
        unit, _, _ = normalised(dictionary)
    gram = unit.T @ unit
    gram = (gram - torch.diag(gram.diagonal())).abs()
    channels, sizes = [s[1] for s in dictionary.shapes], [s[2] for s in dictionary.shapes]
    central = torch.cat(
        [
            (torch.arange(n) - n // 2).abs().lt(6).repeat(c)
            for c, n in zip(channels, sizes, strict=True)
        ]
    )
    wanted = gram[central].topk(6, 1).values.cumsum(1).amax(0)
    assert found == pytest.approx(wanted.tolist(), abs=1e-9)


def test_lanczos_finds_the_extreme_eigenvalues_on_a_support():
    case = BY_NAME["conv_residual"]
    net = pursuitify(case.build())
    x = case.input()
    dictionary = net.dictionary(x)
    generator = torch.Generator().manual_seed(3)
    support = {
        n: torch.rand(s, generator=generator) < 0.2
        for n, s in zip(dictionary.names, dictionary.shapes, strict=True)
    }
    mask = torch.cat([m.reshape(-1) for m in support.values()])
    with torch.no_grad():
        values = torch.linalg.svdvals(dictionary.materialize()[0][:, mask])
    found = extreme_eigenvalues(dictionary, support, steps=200)
    assert found.smallest == pytest.approx(float(values[-1]) ** 2, rel=1e-6)
    assert found.largest == pytest.approx(float(values[0]) ** 2, rel=1e-6)
    assert found.condition == pytest.approx(float(values[0] / values[-1]), rel=1e-6)
    short = extreme_eigenvalues(dictionary, support, steps=10)
    assert short.smallest >= found.smallest - 1e-9
    assert math.isfinite(short.residual)


@pytest.mark.parametrize("steps", [5, 20, 60, 150])
def test_lanczos_bounds_hold_whatever_the_start(steps):
    net = pursuitify(BY_NAME["conv_residual"].build())
    dictionary = net.dictionary(BY_NAME["conv_residual"].input())
    everything = {
        n: torch.ones(s, dtype=torch.bool)
        for n, s in zip(dictionary.names, dictionary.shapes, strict=True)
    }
    with torch.no_grad():
        values = torch.linalg.svdvals(dictionary.materialize()[0]).square()
    for seed in range(5):
        found = extreme_eigenvalues(dictionary, everything, steps=steps, seed=seed)
        low, high = found.bounds()
        assert low <= float(values[-1]) + 1e-12
        assert high >= float(values[0]) - 1e-12
        assert not found.complete
    if steps == 150:
        assert high <= 1.02 * float(values[0])
    with pytest.raises(OptionError, match="failure"):
        found.bounds(0)


def test_data_in_the_place_of_a_shape_are_refused_by_their_shape():
    net = pursuitify(BY_NAME["conv_chain"].build())
    with pytest.raises(OptionError, match=r"tensor of shape \(1, 2, 9, 9\)"):
        coherence(net, torch.rand(1, 2, 9, 9))
