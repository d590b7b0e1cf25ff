"""The stochastic penalty: unbiased in value and derivative."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import strategies as st
from scipy.linalg import hadamard

from pursuitify import pursuitify
from pursuitify.analysis import FramePotentialPenalty, coherence, frame_potential_penalty
from pursuitify.analysis.gram.normalised_gram import Gram
from pursuitify.errors import OptionError
from tests.support.drawn_dictionaries import KINDS, bound, drawn
from tests.support.examples import examples
from tests.support.nets import BY_NAME, LAYOUTS

NAMES = ["linear_residual", "conv_residual", "conv_chain", "conv_dense", "separable"]


#: The quick ones have every kind of row, with all blocks or with some drawn.
QUICK = [
    ("linear_residual", None), ("linear_residual", 6), ("conv_dense", None), ("conv_residual", 6),
    ("separable", 6),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "blocks"),
    [
        pytest.param(*way, marks=[] if way in QUICK else [pytest.mark.slow])
        for way in itertools.product(NAMES, (None, 6))
    ],
)
def test_value_and_derivative_are_exact_in_expectation(name, blocks):
    case = BY_NAME[name]
    net = pursuitify(case.build())
    penalty = FramePotentialPenalty(net, case.shape, blocks=blocks)
    exact = penalty.exact()
    assert float(exact.sqrt()) == pytest.approx(coherence(net, case.shape).frame_potential)
    weights = [p for n, p in net.named_parameters() if p.dim() > 1 and "head" not in n]
    wanted = torch.autograd.grad(exact, weights)
    generator = torch.Generator().manual_seed(0)
    directions = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in weights]
    slope = float(sum((g * d).sum() for g, d in zip(wanted, directions, strict=True)))
    values, slopes = [], []
    for _ in range(150):
        value = penalty()
        found = torch.autograd.grad(value, weights, allow_unused=True)
        values.append(float(value.detach()))
        slopes.append(
            sum(
                float((g * d).sum())
                for g, d in zip(found, directions, strict=True)
                if g is not None
            )
        )
    for found, truth in ((values, float(exact.detach())), (slopes, slope)):
        sample = torch.tensor(found, dtype=torch.float64)
        error = float(sample.std()) / len(found) ** 0.5
        assert abs(float(sample.mean()) - truth) <= 4.5 * error + 1e-12


def test_descending_the_penalty_lowers_the_frame_potential():
    case = BY_NAME["conv_residual"]
    net = pursuitify(case.build())
    before = coherence(net, case.shape).frame_potential
    optimiser = torch.optim.SGD(net.parameters(), lr=3.0)
    for _ in range(30):
        optimiser.zero_grad()
        frame_potential_penalty(net, case.shape).backward()
        optimiser.step()
    assert coherence(net, case.shape).frame_potential < before


def test_training_mode_and_statistics_are_left_alone():
    case = BY_NAME["conv_residual"]
    net = pursuitify(case.build()).train()
    held = {k: v.clone() for k, v in net.named_buffers()}
    frame_potential_penalty(net, case.shape).backward()
    assert net.training
    assert all(torch.equal(v, held[k]) for k, v in net.named_buffers())
    with pytest.raises(OptionError, match="blocks"):
        FramePotentialPenalty(net, case.shape, blocks=0)


@pytest.mark.parametrize("kind", KINDS)
@examples(2, 20, data=st.data(), layout=st.sampled_from(LAYOUTS))
def test_over_orthogonal_signs_the_estimate_is_exact_on_every_kind(kind, data, layout):
    """The estimate is quadratic in the signs: over a Hadamard matrix's rows its mean is exact."""
    model, _ = data.draw(drawn(kind))
    net, _, shape = bound(model, layout)
    penalty = FramePotentialPenalty(net, shape, blocks=None)
    with torch.no_grad():
        gram = Gram(penalty._blocks(), penalty._positions)
        total = 0.0
        for part in penalty._parts:
            channels = gram.blocks.sites[part.pair[1]].channels
            signs = torch.tensor(hadamard(1 << max(channels - 1, 0).bit_length()))[:, :channels]
            for row in signs:
                with pytest.MonkeyPatch.context() as patch:
                    patch.setattr(torch, "randint", lambda *_, row=row, **__: (row + 1) // 2)
                    total += float(penalty._estimate(gram, part)) / len(signs)
        exact = float(penalty.exact())
    assert total == pytest.approx(exact, rel=1e-9, abs=1e-12)
    report = coherence(net, shape)
    assert exact**0.5 == pytest.approx(report.frame_potential, abs=1e-9)
    assert penalty.count == pytest.approx(report.count, rel=1e-12)
