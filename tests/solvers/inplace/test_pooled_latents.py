"""Latents that are read through pools alone, whose change is never formed."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pursuitify import PursuitNetwork, pursuitify
from pursuitify.solvers.inplace.visits import Visit, visits_of
from tests.support.agreement import assert_fast_path
from tests.support.sweep_cost import sweep_cost

POOLS: dict[str, Callable[[Tensor], Tensor]] = {
    "max": lambda v: F.max_pool2d(v, 2),
    "overlapping": lambda v: F.max_pool2d(v, 3, 2, 1),
    "mean": lambda v: F.avg_pool2d(v, 2),
    "uneven": lambda v: F.avg_pool2d(v, (3, 2)),
    "both": lambda v: F.max_pool2d(v, 2) - 0.5 * F.avg_pool2d(v, 2),
    "global": lambda v: v.mean((2, 3), keepdim=True),
}


class Pools(nn.Module):
    """A stem and, in the middle, a chain and a block with a shortcut, each behind a pool."""

    def __init__(self, first: str, second: str, *, residual: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.residual = POOLS[first], POOLS[second], residual
        self.stem, self.norm = nn.Conv2d(2, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.a, self.b = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.c, self.d = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        v = self.first(torch.relu(self.norm(self.stem(x))))
        a = torch.relu(self.a(v))
        b = torch.relu(self.b(a) + v if self.residual else self.b(a))
        v = self.second(b)
        c = torch.relu(self.c(v))
        d = torch.relu(self.d(c) + v if self.residual else self.d(c))
        return self.head(d.mean((2, 3)))


class Stack(nn.Module):
    """Convolution, ReLU and pool, three times over: rows that read a latent through a pool."""

    def __init__(self, pool: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.convs = nn.ModuleList(nn.Conv2d(n, 4, 3, padding=1) for n in (2, 4, 4))
        self.pool, self.head = POOLS[pool], nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        for conv in self.convs:
            x = self.pool(torch.relu(conv(x)))
        return self.head(x.mean((2, 3)))


class Aside(nn.Module):
    """A latent read by a pool and, as it is, by a sum; and one that two convolutions read."""

    def __init__(self, *, pooled: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.a = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.b, self.c = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.head, self.pooled = nn.Linear(4, 3), pooled

    def forward(self, x: Tensor) -> Tensor:
        stem = torch.relu(self.stem(x))
        v = torch.relu(self.a(stem))
        if self.pooled:
            b, c = torch.relu(self.b(F.max_pool2d(v, 2))), torch.relu(self.c(stem) + v)
        else:
            b, c = torch.relu(self.b(v)), torch.relu(self.c(v))
        return self.head(b.mean((2, 3)) + c.mean((2, 3)))


def pursued(model: nn.Module) -> PursuitNetwork:
    net = pursuitify(model.double().eval(), iterations=4)
    net.step_scale = 0.8
    return net


def images(layout: torch.memory_format = torch.contiguous_format) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(3, 2, 13, 12, dtype=torch.float64).contiguous(memory_format=layout)


@torch.no_grad()
def visits(net: PursuitNetwork, x: Tensor) -> list[Visit]:
    return visits_of(net.dictionary(x), list(net.step_sizes(x).values()))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("residual", [False, True], ids=["chain", "residual"])
@pytest.mark.parametrize("first", POOLS)
@pytest.mark.parametrize("second", ["max", "mean", "both"])
def test_it_agrees_with_the_recorded_path(
    first: str, second: str, residual: bool, layout: torch.memory_format
) -> None:
    net, x = pursued(Pools(first, second, residual=residual)), images(layout)
    if first == "global":
        net, x = pursued(Pools(second, first, residual=residual)), images(layout)
    assert_fast_path(net, x)


@pytest.mark.parametrize("pool", ["max", "overlapping", "mean", "both"])
def test_rows_that_read_through_a_pool_keep_their_residual(pool: str) -> None:
    """The second latent is read through a pool alone, too; but what its row reads changes."""
    net, x = pursued(Stack(pool)), images()
    assert [visit.pooled for visit in visits(net, x)] == [True, False, False]
    assert_fast_path(net, x)


@pytest.mark.parametrize("pooled", [False, True])
def test_a_latent_that_others_read_is_kept(pooled: bool) -> None:
    net, x = pursued(Aside(pooled=pooled)), images()
    found = visits(net, x)
    assert not any(visit.pooled for visit in found)
    assert pooled or len(found[1].links) == 2
    assert_fast_path(net, x)


def test_which_latents() -> None:
    """The stem, and of the others those that are links: a residual of theirs would be stale."""
    x = images()
    found = [v.pooled for v in visits(pursued(Pools("max", "max", residual=False)), x)]
    assert found == [True, False, True, False, False]
    found = [v.pooled for v in visits(pursued(Pools("max", "max", residual=True)), x)]
    assert found == [True, False, False, False, False]


@pytest.mark.parametrize("residual", [False, True], ids=["chain", "residual"])
def test_nothing_is_overwritten_that_the_caller_has(residual: bool) -> None:
    net, x = pursued(Pools("overlapping", "mean", residual=residual)), images()
    before = x.clone()
    with torch.no_grad():
        trace, again = net.diagnose(x), net.diagnose(x)
        assert str(trace) == str(again)
        first, second = net.latents(x), net.latents(x)
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    assert torch.equal(x, before)


def test_nothing_of_its_size_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the stem and the third latent neither a copy nor the change, but that of their pools."""
    model, x = Pools("max", "max", residual=False).double(), images()[:, :, :12]
    sizes = [value.numel() for value in pursued(model).latents(x).values()]
    less = sweep_cost(model, x)[1]
    monkeypatch.setattr("pursuitify.solvers.inplace.visits.pools_alone", lambda _: False)
    assert sweep_cost(model, x)[1] - less == (2 - 1 / 4) * (sizes[0] + sizes[2])
