"""The Gram algebra against the Gram matrix of materialize(), entry by entry."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import nn

from pursuitify import pursuitify
from pursuitify.analysis.gram.dictionary_blocks import blocks_of
from pursuitify.analysis.gram.entry_classes import kinds_of
from pursuitify.analysis.gram.normalised_gram import Gram
from pursuitify.analysis.gram.symbol import UnsupportedError
from pursuitify.operators import Select
from tests.support.dense_gram import agree
from tests.support.examples import examples
from tests.support.nets import BY_NAME, CASES, LAYOUTS, random_net, randomise

WITHOUT_SWITCHES = [case for case in CASES if case.name != "conv_chain"]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", WITHOUT_SWITCHES, ids=str)
def test_every_entry_with_borders_agrees_with_materialize(case, layout):
    net = pursuitify(case.build(), layout=layout)
    with torch.no_grad():
        agree(net.dictionary(case.input()))


class Assorted(nn.Module):
    """Grouped, dilated, transposed, shuffled, sliced, padded, average pooled, resized."""

    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(2, 4, 3, padding=1, stride=2)
        self.b = nn.Conv2d(4, 6, 3, padding=2, dilation=2, groups=2)
        self.c = nn.ConvTranspose2d(6, 4, 3, stride=2, padding=1, output_padding=1)
        self.d = nn.Conv2d(4, 4, (2, 3), padding="same", groups=4)
        self.e = nn.Conv2d(4, 3, 3, padding=1, padding_mode="reflect")
        self.f = nn.Linear(3 * 4, 5)
        self.g = nn.Linear(5, 2)

    def forward(self, x):
        x = torch.relu(self.a(x))
        x = torch.relu(self.b(x))
        x = torch.relu(self.c(x))
        n, c, h, w = x.shape
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        y = torch.relu(self.d(x[:, :, :, :]))
        x = torch.relu(self.e(nn.functional.avg_pool2d(x, 3, 2, 1)))
        z = nn.functional.interpolate(x, scale_factor=2.0, mode="nearest")
        y = torch.relu(nn.functional.pad(z, (0, 0, 0, 0, 0, 1)) + y)
        x = nn.functional.adaptive_avg_pool2d(y[:, :3], 2)
        return self.g(torch.relu(self.f(torch.flatten(x, 1))))


def test_assorted_maps_agree_with_materialize():
    torch.manual_seed(0)
    model = randomise(Assorted()).double().eval()
    with torch.no_grad():
        agree(pursuitify(model).dictionary(torch.randn(1, 2, 8, 8).double()))


class Volume(nn.Module):
    """Three spatial dims, strided and shortcut."""

    def __init__(self):
        super().__init__()
        self.a = nn.Conv3d(1, 2, 3, padding=1)
        self.b = nn.Conv3d(2, 3, 3, stride=2, padding=1)
        self.c, self.s = nn.Conv3d(3, 3, (1, 3, 1), padding=(0, 1, 0)), nn.Conv3d(2, 3, 1, 2)

    def forward(self, x):
        x = torch.relu(self.a(x))
        x = torch.relu(self.c(torch.relu(self.b(x))) + self.s(x))
        return x.mean((2, 3, 4))


def test_three_dimensions_agree_with_materialize():
    torch.manual_seed(1)
    model = randomise(Volume()).double().eval()
    with torch.no_grad():
        agree(pursuitify(model).dictionary(torch.randn(1, 1, 4, 5, 3).double()))


def pooled(dictionary):
    return any(
        isinstance(m, Select)
        for row in dictionary.rows
        for slot in row.slots
        for path in slot
        for m in path.maps
    )


@examples(12, 150, drawn=random_net(batch=1))
def test_random_networks_agree_with_materialize(drawn):
    model, x = drawn
    with torch.no_grad():
        dictionary = pursuitify(model).dictionary(x)
        if pooled(dictionary) or sum(s.numel() for s in dictionary.shapes) > 1500:
            return
        try:
            gram = Gram(blocks_of(dictionary, border=True))
        except UnsupportedError:
            return  # the report falls back on the explicit computation and says so
        agree(dictionary)
    for j in range(len(dictionary.rows)):
        total = sum(count for _, count in kinds_of(gram.positions, j))
        assert total == pytest.approx(math.prod(dictionary.shapes[j][2:]))


def column(dictionary, latent, channel, position):
    latents = {
        n: torch.zeros(s).double() for n, s in zip(dictionary.names, dictionary.shapes, strict=True)
    }
    own = latents[dictionary.names[latent]]
    own[0, channel][tuple(position[: own.dim() - 2])] = 1
    rows = dictionary.apply(latents)
    return torch.cat([row.reshape(-1) for row in rows.values()])


INTERIOR = ["conv_residual", "conv_dense", "preact_residual", "separable", "tied", "leaky_conv"]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", INTERIOR)
def test_interior_classes_are_the_entries_of_central_atoms(name, layout):
    case = BY_NAME[name]
    size = 32
    model = case.build()
    shape = (case.shape[0], *[size] * (len(case.shape) - 1))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        dictionary = pursuitify(model, layout=layout).dictionary(torch.zeros(1, *shape).double())
        gram = Gram(blocks_of(dictionary, border=False))
        for j, k in gram.positions.related():
            along = range(gram.positions.dims)
            periods = [p for d in along if (p := gram.positions.period(j, k, d)) is not None]
            if len(periods) < len(along):
                continue
            for entries in itertools.islice(gram.entries(j, k), 0, None, 7):
                one, two = [], []
                for group, (first, second), n in zip(
                    entries.raw.groups, periods, gram.blocks.sites[j].sizes, strict=True
                ):
                    shift = n // 2 // first
                    one.append(group.example[0] + shift * first)
                    two.append(group.example[1] + shift * second)
                index = int(torch.randint(entries.values.numel(), (), generator=generator))
                a, b = entries.pair(index)
                left, right = column(dictionary, j, a, one), column(dictionary, k, b, two)
                wanted = left @ right / (left.norm() * right.norm())
                assert entries.values.reshape(-1)[index] == pytest.approx(float(wanted), abs=1e-6)


def test_interior_does_not_depend_on_the_size_of_the_image():
    from pursuitify.analysis import coherence

    net = pursuitify(BY_NAME["conv_residual"].build())
    small, large = (coherence(net, (2, n, n)) for n in (9, 40))
    assert small.mutual_coherence == pytest.approx(large.mutual_coherence, rel=1e-12)
    assert small.frame_potential == pytest.approx(large.frame_potential, rel=1e-12)
    assert small.welch_bound == pytest.approx(large.welch_bound, rel=1e-12)
