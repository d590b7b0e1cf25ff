"""Concats that several rows scale: found where they are, and the sweeps are the same."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from pursuitify import PursuitNetwork, pursuitify
from pursuitify.solvers.inplace import descend
from pursuitify.solvers.inplace.shared_concats import Concats, shared
from tests.support.agreement import assert_fast_path

#: A unit: the values that it joins (-1 is the pooled stem), and how it scales and activates them.
Unit = tuple[tuple[int, ...], str, str]
PRE_ACTIVATIONS = {
    "relu": F.relu,
    "relu6": F.relu6,
    "leaky": lambda z: F.leaky_relu(z, 0.3),
}


class Dense(nn.Module):
    """Units that read activation(scale(concat)), by a convolution; the head reads the last."""

    def __init__(self, units: tuple[Unit, ...], seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.units = units
        self.stem = nn.Conv2d(2, 3, 3, padding=1)
        widths = [3, *(2 + n % 2 for n in range(len(units)))]
        sizes = [sum(widths[value + 1] for value in values) for values, _, _ in units]
        self.norms = nn.ModuleList(nn.BatchNorm2d(size) for size in sizes)
        self.convs = nn.ModuleList(
            nn.Conv2d(size, width, 3, padding=1, bias=n % 2 == 0)
            for n, (size, width) in enumerate(zip(sizes, widths[1:], strict=True))
        )
        self.head = nn.Linear(widths[-1], 3)
        for norm in self.norms:
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.uniform_(norm.bias, -0.5, 0.5)
            nn.init.uniform_(norm.running_var, 0.5, 2.0)

    def forward(self, x: Tensor) -> Tensor:
        values = [F.max_pool2d(F.relu(self.stem(x)), 2)]
        for n, (joined, scale, name) in enumerate(self.units):
            z = torch.cat([values[value + 1] for value in joined], 1)
            if scale == "norm":
                z = self.norms[n](z)
            elif scale == "number":
                z = 0.7 * z
            values.append(self.convs[n](PRE_ACTIVATIONS[name](z)))
        return self.head(F.relu(values[-1]).mean((2, 3)))


def pursued(model: nn.Module) -> PursuitNetwork:
    """Convert with other steps than the whole ones: these leave nothing of a latent with a link."""
    net = pursuitify(model.double().eval(), iterations=4)
    net.step_scale = 0.8
    return net


def converted(units: tuple[Unit, ...], seed: int = 0) -> tuple[PursuitNetwork, Tensor]:
    return pursued(Dense(units, seed)), torch.rand(3, 2, 6, 6, dtype=torch.float64)


@torch.no_grad()
def found(net: PursuitNetwork, x: Tensor) -> Concats:
    latents = net.latents(x)
    return shared(net.dictionary(x), list(latents.values()))


FORWARD: tuple[Unit, ...] = tuple((tuple(range(-1, n)), "norm", "relu") for n in range(4))
BACKWARD: tuple[Unit, ...] = tuple((v[::-1], scale, name) for v, scale, name in FORWARD)


@pytest.mark.parametrize(
    ("units", "slots", "rows"),
    [
        (FORWARD, [4], 4),
        (BACKWARD, [4], 4),
        ((*FORWARD, ((1, 2), "norm", "relu")), [4], 5),  # a run from the middle
        ((*FORWARD, ((2, 1), "norm", "relu")), [4], 4),  # the wrong way round: no run
        ((((-1,), "norm", "relu"), ((-1, -1), "norm", "relu6")), [2], 2),  # one value twice
        ((((-1,), "number", "leaky"), ((-1, 0), "none", "relu")), [2], 2),
        ((((-1,), "norm", "relu"), ((0,), "norm", "relu")), [], 0),  # nothing is shared
    ],
    ids=["forward", "backward", "middle", "reversed", "twice", "numbers", "chain"],
)
def test_what_is_shared(units: tuple[Unit, ...], slots: list[int], rows: int) -> None:
    net, x = converted(units)
    concats = found(net, x)
    assert [len(concat.parts) for concat in concats.concats] == slots
    assert len(concats.runs) == rows
    assert_fast_path(net, x)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_drawn_networks(data: st.DataObject) -> None:
    units = []
    for n in range(data.draw(st.integers(2, 5), "units")):
        values = st.lists(st.integers(-1, n - 1), min_size=1, max_size=4)
        dense = data.draw(st.booleans(), "dense")
        joined = list(range(-1, n)) if dense else data.draw(values, "joined")
        scale = data.draw(st.sampled_from(("norm", "norm", "number", "none")), "scale")
        units.append((tuple(joined), scale, data.draw(st.sampled_from(sorted(PRE_ACTIVATIONS)))))
    assert_fast_path(*converted(tuple(units), seed=data.draw(st.integers(0, 3), "seed")))


def test_it_is_what_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it the rows have residuals: the same values, to rounding, by another way."""
    net, x = converted(FORWARD)
    with torch.no_grad():
        first = net.latents(x)
        monkeypatch.setattr(descend, "shared", lambda *_: Concats((), {}))
        second = net.latents(x)
    torch.testing.assert_close(first, second, rtol=1e-11, atol=1e-12)
    assert any(not torch.equal(first[name], second[name]) for name in first)


class _Joined(nn.Module):
    """Features in two dimensions; latents that scaled rows, a weighted row and the head read."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.first, self.last = nn.Linear(4, 5), nn.Linear(10, 3)
        self.a, self.b = nn.BatchNorm1d(5), nn.BatchNorm1d(5)
        self.weighted = nn.Linear(5, 3)
        for norm in (self.a, self.b):
            nn.init.uniform_(norm.running_var, 0.5, 2.0)
            nn.init.uniform_(norm.running_mean, -0.5, 0.5)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        a, b = F.relu(self.a(h)), F.relu(self.b(h))
        c, d = F.relu(self.a(a)), F.relu(0.5 * a)  # rows that scale a latent of such a row
        return self.last(torch.cat([b + c, d], 1)) + F.relu(self.weighted(a))


def test_rows_that_others_read_too() -> None:
    net = pursued(_Joined())
    x = torch.rand(3, 4, dtype=torch.float64)
    assert found(net, x).runs
    assert_fast_path(net, x)


class _Tokens(nn.Module):
    """Factors over tokens and features, of as many dimensions as the latent and of fewer."""

    def __init__(self, *shapes: tuple[int, ...]) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.body, self.head = nn.Linear(4, 4), nn.Linear(4, 2)
        self.factors = nn.ParameterList(torch.rand(shape) for shape in shapes)

    def forward(self, x: Tensor) -> Tensor:
        a = F.relu(self.body(x))
        return self.head(sum(F.relu(factor * a) for factor in self.factors))


@pytest.mark.parametrize(
    ("shapes", "rows"),
    [(((1, 4), (1, 4)), 0), (((1, 6, 1), (1, 6, 1)), 2), (((1, 1, 4), (1, 6, 1), ()), 2)],
    ids=["fewer", "tokens", "mixed"],
)
def test_factors_that_vary_elsewhere_are_left_alone(
    shapes: tuple[tuple[int, ...], ...], rows: int
) -> None:
    net = pursued(_Tokens(*shapes))
    x = torch.rand(3, 6, 4, dtype=torch.float64)
    assert len(found(net, x).runs) == rows
    assert_fast_path(net, x)


def test_memory_is_the_callers_own() -> None:
    """What a sweep hands out is not overwritten by the next one."""
    net, x = converted(FORWARD)
    with torch.no_grad():
        trace = net.diagnose(x)
        again = net.diagnose(x)
    assert str(trace) == str(again)
    counts = sweeps_of(net, x)
    for t, latents in enumerate(counts, start=1):
        net.iterations = t
        with torch.no_grad():
            expected = net.latents(x)
        for name, value in expected.items():
            torch.testing.assert_close(latents[name], value, rtol=1e-12, atol=1e-13)


def sweeps_of(net: PursuitNetwork, x: Tensor) -> list[dict[str, Tensor]]:
    """Return the latents after each sweep, all kept to the end."""
    with torch.no_grad():
        dictionary = net.dictionary(x)
        steps = list(net.step_sizes(x).values())
        iterations, net.iterations = net.iterations, 0
        start = list(net.latents(x).values())
        net.iterations = iterations

        def kept() -> Iterator[dict[str, Tensor]]:
            for w in descend.descend(dictionary, start, steps, iterations, observed=True):
                yield dict(zip(dictionary.names, w, strict=True))

        return list(kept())
