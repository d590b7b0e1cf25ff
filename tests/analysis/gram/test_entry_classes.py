"""Every kind of network that is drawn: exact entries, interior sums, order of the bounds."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import strategies as st
from torch import nn

from pursuitify import pursuitify
from pursuitify.analysis import babel_function, coherence, minimum_frame_potential
from pursuitify.analysis.gram.dictionary_blocks import blocks_of
from pursuitify.analysis.gram.normalised_gram import Gram
from pursuitify.analysis.measures.dense_gram import normalised
from tests.support.dense_gram import dense_gram
from tests.support.drawn_dictionaries import KINDS, bound, drawn
from tests.support.examples import examples
from tests.support.nets import LAYOUTS


@pytest.mark.parametrize("kind", KINDS)
@examples(3, 30, data=st.data(), layout=st.sampled_from(LAYOUTS))
def test_every_entry_is_that_of_the_dense_matrix(kind, data, layout):
    """None is refused: exact mode agrees entry by entry, and so do its measures."""
    model, _ = data.draw(drawn(kind))
    with torch.no_grad():
        net, dictionary, shape = bound(model, layout)
        values, structural = dense_gram(Gram(blocks_of(dictionary, border=True)))
        unit, norms, pattern = normalised(dictionary)
        wanted = unit.T @ unit
        alive = norms > 1e-8
        both = alive[:, None] & alive
        assert (values - wanted)[both].abs().max() <= 1e-6
        assert not (wanted.abs() > 1e-12)[~structural & both].any()
        own = ~torch.eye(len(wanted), dtype=torch.bool)
        assert torch.equal(structural & own, pattern & own)
        report = coherence(net, shape, "exact", switches="centre")
    held = values[structural & own].abs()
    assert report.count == len(held)
    assert not any("entry by entry" in a for a in report.assumptions)
    if len(held):
        assert report.mutual_coherence == pytest.approx(float(held.max()), abs=1e-9)
        assert report.frame_potential == pytest.approx(float(held.square().mean().sqrt()), abs=1e-9)
        assert report.frame_potential_mean_abs == pytest.approx(float(held.mean()), abs=1e-9)
    zero = sum(n.zero for n in report.column_norms)
    assert zero == int((norms == 0).sum())
    for part, stats in zip(
        norms.split([s.numel() for s in dictionary.shapes]), report.column_norms, strict=True
    ):
        found = (stats.minimum, stats.mean, stats.maximum)
        wanted_norms = (float(part.min()), float(part.mean()), float(part.max()))
        assert found == pytest.approx(wanted_norms, abs=1e-9)


CONVOLUTIONAL = [k for k in KINDS if k not in ("identity",)]


@pytest.mark.parametrize("kind", CONVOLUTIONAL)
@examples(3, 30, data=st.data(), layout=st.sampled_from(LAYOUTS))
def test_interior_sums_are_what_a_longer_image_adds(kind, data, layout):
    """Between two lengths border effects cancel: exact sums grow by what the interior says."""
    model, _ = data.draw(drawn(kind, (1,)))
    period = 36  # a multiple of every stride that is drawn
    sums = []
    for boundary in ("exact", "interior"):
        found = []
        for n in (3 * period, 4 * period):
            net, _, shape = bound(model, layout, (n,))
            found.append(coherence(net, shape, boundary, switches="centre"))
        short, long = found
        grown = {b.latents: b for b in short.blocks}
        sums.append(
            {
                b.latents: (
                    b.count - grown[b.latents].count,
                    b.squares - grown[b.latents].squares,
                    b.total_abs - grown[b.latents].total_abs,
                )
                for b in long.blocks
            }
        )
        sums[-1]["norms"] = tuple(
            b.mean * m - a.mean * n
            for a, b, (n, m) in zip(
                short.column_norms, long.column_norms, lengths(net, model, period), strict=True
            )
        )
    exact, interior = sums
    assert exact.keys() == interior.keys()
    for key, value in interior.items():
        assert value == pytest.approx(exact[key], rel=1e-7, abs=1e-7), key


def lengths(net, model, period):
    """Return per latent its number of positions at both lengths."""
    found = []
    for n in (3 * period, 4 * period):
        x = torch.zeros(1, 2, n, dtype=torch.float64)
        found.append([s[2] for s in net.dictionary(x).shapes])
    return list(zip(*found, strict=True))


@pytest.mark.parametrize("kind", KINDS)
@examples(3, 30, data=st.data(), layout=st.sampled_from(LAYOUTS))
def test_coherence_frame_potential_and_bounds_are_in_order(kind, data, layout):
    model, _ = data.draw(drawn(kind))
    net, _, shape = bound(model, layout)
    rules = [("interior", "centre"), ("exact", "centre")]
    if kind == "pooled" and model.dims == 1:
        rules.append(("exact", "worst"))
    for boundary, switches in rules:
        report = coherence(net, shape, boundary, switches=switches)
        assert 1 + 1e-9 >= report.mutual_coherence >= report.frame_potential - 1e-12
        assert report.frame_potential >= report.frame_potential_mean_abs - 1e-12
        assert report.frame_potential >= report.welch_bound - 1e-12
        assert math.isfinite(report.frame_potential)
        chain = kind in ("chain", "strided", "pooled") and not model.pads
        if chain and layout == "auto" and boundary == "interior":
            least = minimum_frame_potential(net, shape, method="closed")
            assert report.frame_potential >= least.value - 1e-9


@pytest.mark.parametrize("kind", KINDS)
@examples(2, 15, data=st.data(), layout=st.sampled_from(LAYOUTS))
def test_the_babel_function_is_that_of_central_atoms(kind, data, layout):
    model, _ = data.draw(drawn(kind, (1,)))
    with torch.no_grad():
        _, dictionary, _ = bound(model, layout, (72,))
        found = babel_function(Gram(blocks_of(dictionary, border=False)), 5)
        unit, _, _ = normalised(dictionary)
        gram = unit.T @ unit
    gram = (gram - torch.diag(gram.diagonal())).abs()
    central = [
        ((torch.arange(s[2]) + 0.5) / s[2] - 0.5).abs().lt(0.2).repeat(s[1])
        for s in dictionary.shapes
    ]
    wanted = gram[torch.cat(central)].topk(5, 1).values.cumsum(1).amax(0)
    assert found == pytest.approx(wanted.tolist(), abs=1e-9)


class Counted(nn.Module):
    """Convolutions whose pooling or flattening leaves the lattice of the layers before it.

    Attributes:
        middle: What stands between the first convolution and the last layer.
    """

    def __init__(self, middle: nn.Module, width: int, flat: int) -> None:
        super().__init__()
        self.first, self.middle = nn.Conv2d(1, width, 3, padding=1), middle
        self.last = nn.Linear(flat, 3) if flat else nn.Conv2d(width, 3, 1)
        self.more = nn.Linear(3, 2) if flat else nn.Conv2d(3, 2, 1)

    def forward(self, x):
        x = self.middle(torch.relu(self.first(x)))
        return torch.relu(self.more(torch.relu(self.last(x))))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("width", [1, 4])
@pytest.mark.parametrize("size", [(2, 2), (3, 4), (5, 5)])
@pytest.mark.parametrize(
    "middle",
    [
        lambda: nn.AvgPool2d(1, 2),
        lambda: nn.AvgPool2d(2),
        lambda: nn.AvgPool2d(2, 1),
        lambda: nn.AdaptiveAvgPool2d(1),
        lambda: nn.AdaptiveAvgPool2d((1, 2)),
        nn.Flatten,
        lambda: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    ],
)
def test_the_welch_bound_holds_where_some_latents_are_counted_on_the_lattice(
    middle, size, width, seed
):
    """Entries of one layer are counted over the image, of the next on the infinite lattice."""
    torch.manual_seed(seed)
    flat = nn.Sequential(nn.Conv2d(1, width, 1), middle())(torch.zeros(1, 1, *size))
    model = Counted(middle(), width, flat.shape[1] if flat.dim() == 2 else 0).double().eval()
    for boundary in ("interior", "exact"):
        report = coherence(pursuitify(model), (1, *size), boundary)
        assert report.frame_potential >= report.welch_bound - 1e-12, boundary
