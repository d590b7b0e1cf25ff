"""Worst case over max-pool switches, against every pattern of switches of tiny networks."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pursuitify import pursuitify
from pursuitify.analysis import coherence
from pursuitify.analysis.gram.dictionary_blocks import blocks_of
from pursuitify.analysis.gram.worst_case_gram import WorstGram
from pursuitify.dictionary.bound_rows import BoundPath
from pursuitify.errors import InputError
from pursuitify.operators import Select
from tests.support.dense_gram import dense_gram
from tests.support.nets import LAYOUTS, randomise


class Pooled(nn.Module):
    """A convolution, a pooling, a convolution that reads it, in one of several ways."""

    def __init__(self, how="chain", pool=(2, 2, 0, 1), channels=2):
        super().__init__()
        self.a = nn.Conv1d(1, channels, 3, padding=1)
        self.b = nn.Conv1d(channels, channels, 3, padding=1)
        self.c = nn.Conv1d(2 * channels if how == "concat" else channels, 2, 1)
        self.how, self.pool = how, pool

    def forward(self, x):
        k, s, p, d = self.pool
        x = torch.relu(self.a(x))
        y = F.max_pool1d(x, k, s, p, d)
        if self.how == "residual":
            y = torch.relu(self.b(y) + y)
        elif self.how == "mixed":
            y = torch.relu(self.b(x + y))
        elif self.how == "twice":
            y = torch.relu(self.b(F.max_pool1d(y, 2, 1)))
        elif self.how == "scaled":
            y = torch.relu(self.b(F.max_pool1d(-0.5 * x, k, s, p, d)) + 2 * y)
        elif self.how == "concat":
            y = torch.cat([torch.relu(self.b(y)), y], 1)
        else:
            y = torch.relu(self.b(y))
        return torch.relu(self.c(y)).mean(2)


def patterns(dictionary):
    """Yield the dictionary with every admissible choice of its max poolings."""
    selects = {}
    for row in dictionary.rows:
        for path in (p for slot in row.slots for p in slot if p.leaf >= 0):
            for m in path.maps:
                if isinstance(m, Select):
                    selects[m.indices.data_ptr()] = m
    places, options = [], []
    for key, m in selects.items():
        (k,), (s,), (p,), (d,) = vars(m.windows).values()
        for c, q in itertools.product(*map(range, m.indices.shape[1:])):
            places.append((key, c, q))
            inside = [q * s - p + t * d for t in range(k)]
            options.append([e for e in inside if 0 <= e < m.size[0]])
    for choice in itertools.product(*options):
        indices = {key: m.indices.clone() for key, m in selects.items()}
        for (key, c, q), element in zip(places, choice, strict=True):
            indices[key][0, c, q] = element

        def swap(m, indices=indices):
            if not isinstance(m, Select):
                return m
            return dataclasses.replace(m, indices=indices[m.indices.data_ptr()])

        rows = tuple(
            dataclasses.replace(
                row,
                slots=tuple(
                    tuple(BoundPath(p.leaf, tuple(map(swap, p.maps))) for p in slot)
                    for slot in row.slots
                ),
            )
            for row in dictionary.rows
        )
        yield dictionary.with_rows(rows)


def entries(dictionary):
    """Return the off-diagonal |entries| of the normalised Gram matrix."""
    matrix = dictionary.materialize()[0]
    unit = matrix / matrix.norm(dim=0).clamp_min(1e-300)
    return (unit.T @ unit).abs().fill_diagonal_(0)


def brute(dictionary):
    """Return the largest |entry| of the normalised Gram matrix over all patterns."""
    best, number = None, 0
    for chosen in patterns(dictionary):
        found = entries(chosen)
        best = found if best is None else torch.maximum(best, found)
        number += 1
    assert number > 1
    return best


torch.manual_seed(0)  # the weights below are the same in every run
CASES = {
    "blocks": (Pooled("chain"), 6),
    "overlapping": (Pooled("chain", (3, 2, 1, 1)), 5),
    "dilated": (Pooled("chain", (2, 1, 0, 2)), 5),
    "gaps": (Pooled("chain", (2, 3, 0, 1)), 8),
    "padded": (Pooled("chain", (2, 2, 1, 1)), 5),
    "residual": (Pooled("residual"), 6),
    "overlapping residual": (Pooled("residual", (3, 2, 1, 1)), 5),
    "mixed": (Pooled("mixed", (3, 1, 1, 1), channels=1), 5),
    "twice": (Pooled("twice", channels=1), 6),
    "scaled": (Pooled("scaled", channels=1), 6),
    "concat": (Pooled("concat"), 6),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", CASES)
def test_no_pattern_of_switches_exceeds_the_worst_case(name, layout):
    model, length = CASES[name]
    model = randomise(model).double().eval()
    x = torch.randn(1, 1, length, generator=torch.Generator().manual_seed(0)).double()
    net = pursuitify(model, layout=layout)
    with torch.no_grad():
        dictionary = net.dictionary(x)
        bound, structural = dense_gram(WorstGram(blocks_of(dictionary, True, worst=True)))
        wanted = brute(dictionary)
    bound = bound.abs().fill_diagonal_(0)
    assert (wanted <= bound + 1e-9).all()
    assert not wanted[~structural].any()
    if name not in ("mixed", "twice", "scaled"):  # there a choice is counted as if it were free
        assert (wanted[structural] > 0).float().mean() > 0.9
    report = coherence(net, x=x, boundary="exact", switches="worst")
    assert report.mutual_coherence == pytest.approx(float(bound.max()))
    assert 1 + 1e-12 >= report.mutual_coherence >= float(wanted.max()) - 1e-9
    mean_square = float(bound[structural].square().sum() / report.count)
    assert report.frame_potential**2 == pytest.approx(mean_square)
    assert "worst case over switches" in str(report)


@pytest.mark.parametrize("name", ["blocks", "overlapping", "dilated", "gaps", "padded"])
def test_the_worst_case_is_attained_in_decoder_rows(name):
    model, length = CASES[name]
    model = randomise(model, seed=3).double().eval()
    with torch.no_grad():
        dictionary = pursuitify(model).dictionary(torch.zeros(1, 1, length).double())
        bound, _ = dense_gram(WorstGram(blocks_of(dictionary, True, worst=True)))
        wanted = brute(dictionary)
    pooled = dictionary.shapes[0].numel()
    difference = (bound.abs().fill_diagonal_(0) - wanted)[:, pooled:]
    assert difference.abs().max() <= 1e-9


@settings(deadline=None, max_examples=60)
@given(
    how=st.sampled_from(["chain", "residual", "concat"]),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 3),
    padding=st.integers(0, 1),
    dilation=st.integers(1, 2),
    seed=st.integers(0, 99),
    layout=st.sampled_from(LAYOUTS),
)
def test_worst_case_of_any_window(how, kernel, stride, padding, dilation, seed, layout):
    if 2 * padding > kernel:
        padding = 0
    model = randomise(Pooled(how, (kernel, stride, padding, dilation), 1), seed).double().eval()
    with torch.no_grad():
        dictionary = pursuitify(model, layout=layout).dictionary(torch.zeros(1, 1, 6).double())
        bound, _ = dense_gram(WorstGram(blocks_of(dictionary, True, worst=True)))
        bound = bound.abs().fill_diagonal_(0)
        for chosen in itertools.islice(patterns(dictionary), 200):
            assert (entries(chosen) <= bound + 1e-9).all()


class Plane(nn.Module):
    """Two dims, an overlapping padded pooling read by a convolution and by a skip."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(2, 2, 3, padding=1)

    def forward(self, x):
        x = F.max_pool2d(torch.relu(self.a(x)), (3, 2), (2, 1), (1, 0), (1, 2))
        return torch.relu(self.b(x) + x).mean((2, 3))


def test_two_dimensions_by_sampled_inputs():
    net = pursuitify(randomise(Plane()).double().eval())
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        dictionary = net.dictionary(torch.zeros(1, 1, 5, 5).double())
        bound, _ = dense_gram(WorstGram(blocks_of(dictionary, True, worst=True)))
        best = torch.zeros_like(bound)
        for _ in range(300):
            x = torch.randn(1, 1, 5, 5, generator=generator, dtype=torch.float64)
            best = torch.maximum(best, entries(net.dictionary(3 * x)))
    bound = bound.abs().fill_diagonal_(0)
    assert (best <= bound + 1e-9).all()
    assert float(best.max()) > 0.8 * float(bound.max())


@pytest.mark.parametrize("pool", [(3, 2, 1, 1), (2, 2, 1, 1), (3, 1, 0, 2), (2, 3, 0, 1)])
def test_the_centre_is_one_of_the_choices(pool):
    """Of the dictionaries of all patterns one has every window at its centre."""
    model = randomise(Pooled("chain", pool)).double().eval()
    net = pursuitify(model)
    x = torch.zeros(1, 1, 6).double()
    report = coherence(net, x=x, boundary="exact", switches="centre")
    found = []
    with torch.no_grad():
        for chosen in patterns(net.dictionary(x)):
            found.append(abs(float(entries(chosen).square().sum()) - report._squares))
    assert min(found) < 1e-9


def test_in_the_interior_the_worst_case_is_above_the_centre():
    net = pursuitify(randomise(Pooled("residual", (3, 2, 1, 1))).double().eval())
    worst, centre = (coherence(net, (1, 32), switches=s) for s in ("worst", "centre"))
    for b in centre.blocks:
        (other,) = (o for o in worst.blocks if o.latents == b.latents)
        assert other.maximum >= b.maximum - 1e-9
        assert other.squares >= b.squares - 1e-9
    longer = coherence(net, (1, 64), switches="worst")
    assert longer.frame_potential == pytest.approx(worst.frame_potential, rel=1e-12)


class After(nn.Module):
    """A max pooling after a weighted operator, and one with unequal windows."""

    def __init__(self, adaptive):
        super().__init__()
        self.a, self.b = nn.Conv1d(1, 2, 3, padding=1), nn.Conv1d(2, 2, 3, padding=1)
        self.adaptive = adaptive

    def forward(self, x):
        x = torch.relu(self.a(x))
        if self.adaptive:
            return torch.relu(self.b(F.adaptive_max_pool1d(x, 4))).mean(2)
        return torch.relu(F.max_pool1d(self.b(x), 2)).mean(2)


def test_what_cannot_be_assumed_is_refused_by_name():
    for adaptive, reason in ((False, "after a weighted operator"), (True, "differ in size")):
        net = pursuitify(After(adaptive).double().eval())
        for boundary in ("interior", "exact"):
            with pytest.raises(InputError, match=reason):
                coherence(net, (1, 10), boundary, switches="worst")
        assert coherence(net, (1, 10), "exact").mutual_coherence > 0
    with pytest.raises(InputError, match="cannot be assumed"):
        coherence(net, (1, 10), "exact", switches="centre")
