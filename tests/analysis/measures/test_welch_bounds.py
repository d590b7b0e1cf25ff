"""Bounds and minima: published figures, attained frames, the optimiser against the closed form."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pursuitify import pursuitify
from pursuitify.analysis import (
    chain_frame_potential,
    coherence,
    convolutional_welch,
    minimum_frame_potential,
    welch,
)
from pursuitify.analysis.measures.welch_bounds import frame_excess
from pursuitify.errors import OptionError
from pursuitify.models import ChainNet, ResidualNet
from tests.support.nets import dense_chain

PUBLISHED = [([8, 16, 32, 64], 0.102), ([64, 32, 64], 0.061), ([400, 800, 1600, 3200], 0.014)]


@pytest.mark.parametrize(("widths", "published"), PUBLISHED)
def test_published_minima(widths, published):
    assert chain_frame_potential(3072, widths) == pytest.approx(published, abs=5e-4)
    found = minimum_frame_potential(dense_chain(3072, widths), (3072,))
    assert float(found) == pytest.approx(chain_frame_potential(3072, widths), rel=1e-9)
    assert found.closed_form == pytest.approx(found.value)
    assert not found.seeds


@pytest.mark.parametrize(("widths", "published"), PUBLISHED[:2])
def test_the_optimiser_approaches_the_closed_form_from_above(widths, published):
    found = minimum_frame_potential(
        dense_chain(3072, widths), (3072,), method="optimise", seeds=1, steps=30
    )
    assert found.closed_form * (1 - 1e-4) <= found.value <= 1.02 * found.closed_form
    assert "seeds" in str(found)


@pytest.mark.slow
def test_the_optimiser_on_the_widest_published_chain():
    widths = PUBLISHED[2][0]
    found = minimum_frame_potential(
        dense_chain(3072, widths), (3072,), method="optimise", seeds=1, steps=12
    )
    assert found.closed_form * (1 - 1e-4) <= found.value <= 1.02 * found.closed_form


def tight_frame(atoms, rows):
    """Return unit vectors whose frame is tight: alternate between the two."""
    generator = torch.Generator().manual_seed(0)
    frame = torch.randn(atoms, rows, dtype=torch.float64, generator=generator)
    for _ in range(2000):
        u, _, v = torch.linalg.svd(frame, full_matrices=False)
        frame = u @ v
        frame = frame / frame.norm(dim=1, keepdim=True)
    return frame


def test_a_wide_latent_read_by_a_narrow_one_goes_below_the_closed_form():
    """A network with atoms out of use beats the bound in which all are in use."""
    d, k, n, used = 10, 15, 12, 11
    model = dense_chain(d, [k, n]).double()
    found = minimum_frame_potential(model, (d,))
    assert found.value < 0.6 * found.closed_form
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
        model[0].weight[:used] = 1e3 * tight_frame(used, d)
        model[2].weight[:, :used] = 1e3 * tight_frame(n, used)
    report = coherence(pursuitify(model), (d,))
    assert report.frame_potential < 0.6 * found.closed_form
    assert report.frame_potential == pytest.approx(found.value, rel=0.02)


@settings(deadline=None, max_examples=25)
@given(
    inputs=st.integers(1, 8),
    widths=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    seed=st.integers(0, 999),
    gain=st.sampled_from([0.1, 1.0, 30.0]),
)
def test_no_chain_is_below_its_minimum(inputs, widths, seed, gain):
    torch.manual_seed(seed)
    model = dense_chain(inputs, widths).double()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(gain)
    net = pursuitify(model)
    report = coherence(net, (inputs,))
    found = report.minimum_frame_potential()
    assert report.frame_potential >= found.value - 1e-9
    assert found.value <= found.closed_form + 1e-12


def test_convolutional_chain_has_a_closed_form_and_skips_have_not():
    net = ChainNet(width=4, depth=1)
    found = minimum_frame_potential(net, (3, 16, 16))
    assert found.closed_form is not None
    report = coherence(pursuitify(net), (3, 16, 16))
    assert report.frame_potential >= found.value
    skips = minimum_frame_potential(ResidualNet(width=2), (3, 8, 8), seeds=1, steps=5)
    assert skips.closed_form is None
    assert len(skips.seeds) == 1
    assert skips.value <= coherence(pursuitify(ResidualNet(width=2)), (3, 8, 8)).frame_potential
    with pytest.raises(OptionError, match=r"chains.*Use method='optimise'"):
        minimum_frame_potential(ResidualNet(width=2), (3, 8, 8), method="closed")


def test_weights_are_not_read():
    one, two = dense_chain(4, [6, 5]), dense_chain(4, [6, 5])
    assert minimum_frame_potential(one, (4,)).value == minimum_frame_potential(two, (4,)).value
    a = minimum_frame_potential(one, (4,), method="optimise", seeds=1, steps=20)
    b = minimum_frame_potential(two, (4,), method="optimise", seeds=1, steps=20)
    assert a.seeds == b.seeds


class Scaled(nn.Module):
    """A residual layer with a scale per channel."""

    def __init__(self, scale):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(3, 5), nn.Linear(5, 5), nn.Linear(5, 4)
        self.scale = nn.Parameter(torch.full((5,), scale))

    def forward(self, x):
        x = torch.relu(self.a(x))
        return torch.relu(self.c(torch.relu(self.scale * self.b(x) + x)))


def test_scales_per_channel_are_not_read():
    found = [minimum_frame_potential(Scaled(s), (3,), seeds=1, steps=10).value for s in (0.01, 3.0)]
    assert found[0] == found[1]


def test_the_best_split_into_frames():
    """Rows that two latents share count once; the best split of neighbours counts."""
    assert frame_excess([4, 3], [{0, 1}, {1}], {0: 2, 1: 2}) == pytest.approx(7 * (7 / 4 - 1))
    assert frame_excess([4, 1], [{0}, {1}], {0: 2, 1: 9}) == pytest.approx(4 * (4 / 2 - 1))
    assert frame_excess([4, 1, 6], [{0}, {1}, {2}], {0: 2, 1: 9, 2: 3}) == pytest.approx(4 + 6)
    assert frame_excess([2, 3], [{0, 1}, {1}], {0: 4, 1: 5}) == 0


def test_welch_bounds():
    assert welch(3, 3) == 0
    assert welch(2, 3) == pytest.approx(0.5)  # the three-star in the plane attains it
    assert welch(7, 1) == 0
    assert convolutional_welch(3, 64, 3) == pytest.approx(math.sqrt((64 / 3 - 1) / (64 * 25 - 1)))
    assert convolutional_welch(64, 64, 3) == 0
    assert convolutional_welch(5, 10, 1, 1) == pytest.approx(welch(5, 10))
    strided = math.sqrt((24 / (2 * 3 * 2) - 1) / (24 * 3 * 3 - 1))  # 5 by 4 taps, stride 3 by 2
    assert convolutional_welch(2, 24, (5, 4), (3, 2)) == pytest.approx(strided)
    with pytest.raises(OptionError):
        welch(0, 3)


@settings(deadline=None, max_examples=20)
@given(
    channels=st.integers(1, 3),
    filters=st.integers(1, 12),
    size=st.integers(1, 3),
    stride=st.integers(1, 2),
    seed=st.integers(0, 99),
)
def test_one_convolution_is_at_least_as_coherent_as_its_welch_bound(
    channels, filters, size, stride, seed
):
    torch.manual_seed(seed)
    conv = nn.Conv2d(channels, filters, size, stride, padding=size // 2)
    net = pursuitify(nn.Sequential(conv, nn.ReLU(), nn.Flatten()).double())
    report = coherence(net, (channels, 12, 12))
    bound = convolutional_welch(channels, filters, size, stride)
    assert report.mutual_coherence >= bound - 1e-9
    assert report.frame_potential >= bound - 1e-9
    assert float(report.minimum_frame_potential()) >= bound - 1e-9
