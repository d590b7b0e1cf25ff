"""fit(): the least-squares gains of a decoder row are those of a dense NumPy solution."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.optimize
import torch
from torch import Tensor, nn

from pursuitify import PursuitNetwork, pursuitify
from pursuitify.conversion.calibration import calibrate
from pursuitify.dictionary.atom_gains import LEAST, RIDGE
from pursuitify.models import DenselyConnectedNet
from tests.support.nets import randomise


class Tokens(nn.Module):
    """A dense layer on the last of three dimensions, one kernel used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.shared = nn.Linear(4, 5), nn.Linear(5, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        return torch.relu(self.shared(torch.relu(self.shared(x)))).mean(1)


def chain(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(*layers, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())


#: Kind of row -> network, shape of an input, dimension of the channels in the decoder's latents.
KINDS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {
    "strides, groups and BatchNorm": (
        lambda: chain(
            nn.Conv2d(2, 6, 3, 2, 1), nn.BatchNorm2d(6), nn.ReLU(),
            nn.Conv2d(6, 6, 3, padding=1, groups=3, bias=False), nn.BatchNorm2d(6),
        ),
        (2, 7, 7),
        1,
    ),
    "a transposed convolution and LeakyReLU": (
        lambda: chain(nn.Conv2d(1, 4, 3), nn.LeakyReLU(0.2), nn.ConvTranspose2d(4, 3, 2, 2)),
        (1, 6, 6),
        1,
    ),
    "slots of a concat": (lambda: DenselyConnectedNet(1, 3, width=4), (1, 8, 8), 1),
    "tokens and a shared kernel": (Tokens, (3, 4), 2),
    "one dimension": (
        lambda: nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 6), nn.ReLU()),
        (5,),
        1,
    ),
}  # fmt: skip
kinds = pytest.mark.parametrize("kind", list(KINDS))


def network(kind: str) -> tuple[PursuitNetwork, list[Tensor]]:
    make, shape, _ = KINDS[kind]
    torch.manual_seed(2)
    generator = torch.Generator().manual_seed(1)
    batches = [
        torch.randn(n, *shape, generator=generator, dtype=torch.float64).abs() for n in (5, 2)
    ]
    net = pursuitify(randomise(make(), 3).double().eval(), iterations=2)
    return net, batches


def one_channel_each(row: Any, w: Tensor, axis: int) -> Any:
    """Return the columns W^T (e_c w) of every channel c, shape (entries of u, channels)."""
    parts = []
    for channel in range(w.shape[axis]):
        alone = torch.zeros_like(w)
        alone.select(axis, channel).copy_(w.select(axis, channel))
        parts.append(row.product(alone).flatten().numpy())
    return np.stack(parts, 1)


@torch.no_grad()
def dense(net: PursuitNetwork, batches: list[Tensor], name: str, axis: int) -> tuple[Any, Any]:
    """Return A and u of ||A c - u||^2 over all batches, c the gains of a row."""
    net.iterations = 0
    columns, read = [], []
    for x in batches:
        row = next(row for row in net.dictionary(x).rows if row.name == name)
        columns.append(one_channel_each(row, net.latents(x)[name], axis))
        read.append(row.join(row.u).flatten().numpy())
    return np.concatenate(columns), np.concatenate(read)


def by_hand(matrix: Any, u: Any) -> Any:
    """Return argmin ||A c - u||^2 + ridge ||c - s||^2 with c >= LEAST s, by SciPy.

    s is the best gain that all channels share; None where it is not positive.
    """
    flat = matrix.sum(1)
    if not flat @ u > 0:
        return None
    common = flat @ u / (flat @ flat)
    ridge = RIDGE * (flat @ flat) / matrix.shape[1]
    n = matrix.shape[1]
    stacked = np.concatenate([matrix, np.sqrt(ridge) * np.eye(n)])
    right = np.concatenate([u, np.full(n, np.sqrt(ridge) * common)])
    bounds = LEAST * common, np.inf
    return scipy.optimize.lsq_linear(stacked, right, bounds, method="bvls", tol=1e-14).x


@kinds
def test_gains_are_those_of_a_dense_solution(kind: str) -> None:
    net, batches = network(kind)
    axis = KINDS[kind][2]
    rows = [row.name for row in net.compiled_program.rows if not row.encoder]
    problems = {name: dense(net, batches, name, axis) for name in rows}
    report = calibrate(net, batches, gains=True, apply=True)
    assert [fit.latent for fit in report.gains] == rows
    assert net.atom_gains
    for fit in report.gains:
        matrix, u = problems[fit.latent]
        wanted, found = by_hand(matrix, u), net.atom_gains.get(fit.latent)
        if wanted is None:
            assert found is None
            assert (fit.after, fit.smallest, fit.largest) == (fit.before, 1, 1)
            continue
        assert found is not None
        assert found.numel() == found.shape[axis - 1] == len(wanted)
        assert np.max(np.abs(found.flatten().numpy() - wanted)) <= 1e-5 * np.max(wanted)
        size = np.linalg.norm(u)
        assert fit.before == pytest.approx(np.linalg.norm(matrix.sum(1) - u) / size, rel=1e-9)
        assert fit.after == pytest.approx(np.linalg.norm(matrix @ wanted - u) / size, rel=1e-6)
        assert fit.after < fit.before
        assert fit.explained == pytest.approx(1 - fit.after**2)
        assert fit.smallest == pytest.approx(float(found.min()), rel=1e-12)
        assert fit.largest == pytest.approx(float(found.max()), rel=1e-12)


@kinds
def test_the_network_with_its_gains_is_its_source_at_zero_sweeps(kind: str) -> None:
    net, batches = network(kind)
    x = batches[0]
    net.iterations = 0
    before = net(x)
    net.iterations = 2
    calibrate(net, batches, gains=True, apply=True)
    net.verify(x)
    net.iterations = 0
    assert torch.equal(net(x), before)


def test_channels_that_would_get_a_negative_gain_get_a_small_one() -> None:
    """Atom 1 points away from what is left when atom 0 has explained its part."""
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU()).double().eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 0.0], [1.0, 0.1]]))
        model[0].bias.zero_()
    net = pursuitify(model)
    report = calibrate(net, [torch.tensor([[1.0, -1.0]], dtype=torch.float64)], gains=True)
    (fit,) = report.gains
    assert 0 < fit.smallest < 0.05 * fit.largest


def test_rows_that_explain_nothing_stay_as_they_are() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Conv2d(2, 2, 3), nn.ReLU())
    model = nn.Sequential(*model, nn.AdaptiveAvgPool2d(1), nn.Flatten()).double().eval()
    with torch.no_grad():
        model[2].bias.fill_(-100.0)  # dead units
    net = pursuitify(model)
    x = torch.rand(3, 1, 8, 8, dtype=torch.float64)
    report = calibrate(net, [x], gains=True, apply=True)
    first, dead = report.gains
    assert list(net.atom_gains) == [first.latent]
    assert (dead.before, dead.after, dead.smallest, dead.largest) == (1, 1, 1, 1)
