"""Answers about one sample do not depend on others, and are refused where they are not known."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pursuitify import PursuitNetwork, pursuitify
from pursuitify.errors import InputError, OptionError
from pursuitify.operators import (
    Adjoint,
    Chain,
    Expand,
    Index,
    LinearMap,
    Narrow,
    Permute,
    Place,
    Reshape,
)
from pursuitify.robust import certified_radius
from tests.support.nets import BY_NAME


class Gate(nn.Module):
    """Squeeze and excite: a factor per sample and channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(channels, 4), nn.Linear(4, channels)

    def forward(self, x: Tensor) -> Tensor:
        gate = torch.sigmoid(4 * self.up(F.relu(self.down(x.mean((2, 3))))))
        return x * gate[:, :, None, None]


class Gated(nn.Module):
    """Gates after convolutions, after a BatchNorm and before a shortcut, as SE-ResNet has them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first = nn.Conv2d(2, 6, 3, padding=1), Gate(6)
        self.conv, self.norm, self.second = (
            nn.Conv2d(6, 6, 3, padding=1),
            nn.BatchNorm2d(6),
            Gate(6),
        )
        self.last, self.third, self.head = nn.Conv2d(6, 6, 1), Gate(6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(self.stem(x)))
        x = F.relu(self.second(self.norm(self.conv(x))) + x)
        return self.head(F.relu(self.third(self.last(x))).mean((2, 3)))


class Features(nn.Module):
    """A gate on the features of a dense layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        return self.last(F.relu(h * torch.exp(-h)))


class Frames(nn.Module):
    """Frames of a clip as a batch of images, each gated, and back."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.gate, self.head = nn.Conv2d(2, 6, 3), Gate(6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.gate(self.conv(x.flatten(0, 1))))
        return self.head(F.relu(y.unflatten(0, (-1, 2)).mean((1, 3, 4))))


class TokensFirst(nn.Module):
    """A gate per token where tokens, not samples, lie along dimension 0."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(5, 4), nn.Linear(4, 4), nn.Linear(4, 3)
        self.scale = nn.Parameter(torch.tensor([4.0, 0.0]).view(2, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        t = F.leaky_relu(self.a(x), 0.5).transpose(0, 1)
        gate = torch.exp(self.scale + 0 * t.mean(2, keepdim=True))
        return self.c(F.leaky_relu(self.b(t * gate) + t, 0.5).mean(0))


class Siamese(nn.Module):
    """Two inputs side by side along dimension 0."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, u: Tensor, v: Tensor) -> Tensor:
        p, q = F.relu(self.b(F.relu(self.a(torch.cat([u, v], 0))))).chunk(2, 0)
        return p - q


def pursued(build: Callable[[], nn.Module], iterations: int = 6) -> PursuitNetwork:
    torch.manual_seed(0)
    return pursuitify(build().double().eval(), iterations=iterations)


def drawn(*shape: int) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(shape, dtype=torch.float64)


@pytest.mark.parametrize(
    ("build", "x"),
    [
        (Gated, drawn(4, 2, 6, 6)),
        (Features, drawn(4, 4)),
        (Frames, drawn(3, 2, 2, 5, 5)),
    ],
    ids=["gated", "features", "frames"],
)
def test_a_sample_alone_is_what_it_is_among_others(
    build: Callable[[], nn.Module], x: Tensor
) -> None:
    net = pursued(build)
    together, steps = net(x), net.step_sizes(x)
    assert net.dictionary(x).samples == len(x)
    for i in range(len(x)):
        one = x[i : i + 1]
        torch.testing.assert_close(net(one), together[i : i + 1], rtol=1e-11, atol=1e-12)
        for name, step in net.step_sizes(one).items():
            among = steps[name].reshape(-1)
            share = among if len(among) == 1 else among.view(len(x), -1)[i]
            torch.testing.assert_close(step.reshape(-1), share, rtol=1e-12, atol=0)
    values = net.objective(x, net.latents(x))
    alone = [net.objective(x[i : i + 1], net.latents(x[i : i + 1])) for i in range(len(x))]
    torch.testing.assert_close(values, torch.cat(alone), rtol=1e-10, atol=1e-12)


def test_steps_hold_where_the_batch_is_moved() -> None:
    """Bounds of tokens were taken for those of samples: F went from 85 to 3e24 in six sweeps."""
    net, x = pursued(TokensFirst), drawn(2, 2, 5)
    assert net.dictionary(x).samples is None
    assert net.dictionary(x[:1]).samples == 1
    found = [sweep.objective for sweep in net.diagnose(x).sweeps]
    assert all(b <= a + 1e-9 for a, b in itertools.pairwise(found)), found


@pytest.mark.parametrize(
    ("build", "inputs"),
    [(TokensFirst, (drawn(3, 2, 5),)), (Siamese, (drawn(3, 4), drawn(3, 4)))],
    ids=["tokens", "siamese"],
)
def test_an_objective_per_sample_is_refused(
    build: Callable[[], nn.Module], inputs: tuple[Tensor, ...]
) -> None:
    net = pursued(build)
    latents, bound = net.latents(*inputs), net.dictionary(*inputs)
    with pytest.raises(InputError, match="dimension 0"):
        net.objective(inputs, latents)
    whole = float(bound.mean_objective(latents).detach())
    residual = sum(0.5 * r.square().sum() for r in bound.residual(latents).values())
    linear = sum((bound.thresholds[k] * w).sum() for k, w in latents.items())
    penalty = sum(row.activation.penalty(latents[row.name]).sum() for row in bound.rows)
    assert whole == pytest.approx((residual + linear + penalty).item() / 3, rel=1e-12)
    one = tuple(x[:1] for x in inputs)
    assert net.objective(one, net.latents(*one)).shape == (1,)


@pytest.mark.parametrize("pads", [(0, 0, 1, 1), (0, 0, 0, -1)])
def test_padding_of_the_batch_is_followed_and_nothing_is_said_per_sample(
    pads: tuple[int, ...],
) -> None:
    class Padded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.c(F.relu(self.b(F.pad(F.relu(self.a(x)), pads))))

    net, x = pursued(Padded), drawn(2, 4)
    assert net(x).shape == (2 + sum(pads), 3)
    assert net.dictionary(x).samples is None
    found = [sweep.objective for sweep in net.diagnose(x).sweeps]
    assert all(b <= a + 1e-9 for a, b in itertools.pairwise(found)), found


def test_no_certificate_where_margins_are_not_known() -> None:
    class Moved(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(5, 4), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(F.relu(self.a(x).transpose(0, 1))).transpose(0, 1).mean(1)

    net, x = pursued(Moved), drawn(3, 2, 5)
    net.solver = "synchronous"
    with pytest.raises(OptionError, match="dimension 0"):
        certified_radius(net, x)


MAPS: list[tuple[LinearMap, bool]] = [
    (Permute((0, 2, 1)), False),
    (Permute((1, 0, 2)), True),
    (Permute((-2, 0, 2)), True),
    (Reshape((4, 3, 2), (12, 2)), False),
    (Reshape((12, 2), (4, 6)), False),
    (Reshape((4, 2), (1, 4, 2)), True),
    (Reshape((4, 3), (2, 6)), True),
    (Place(1, 0, 2, 3), False),
    (Place(0, 0, 4, 8), True),
    (Narrow(0, 0, 4, 8), True),
    (Index((slice(None), 0), (4, 3)), False),
    (Index((..., 0), (4, 3)), False),
    (Index((0,), (4, 3)), True),
    (Index(slice(0, 2), (4, 3)), True),
    (Expand((4, 1), (4, 3)), False),
    (Expand((1, 3), (4, 3)), True),
    (Expand((3,), (4, 3)), True),
]


@pytest.mark.parametrize(("linear", "moves"), MAPS, ids=[repr(m) for m, _ in MAPS])
def test_maps_that_move_the_batch(linear: LinearMap, moves: bool) -> None:
    assert linear.moves_batch(4) == moves
    assert Adjoint(Permute((1, 0))).moves_batch(4)
    assert Chain((Permute((0, 1)), linear)).moves_batch(4) == moves


def test_it_is_printed_as_a_line_per_row() -> None:
    case = BY_NAME["conv_residual"]
    net, x = pursuitify(case.build()), case.input()
    d = net.dictionary(x)
    head, *lines = repr(d).splitlines()
    assert head == f"StructuredDictionary of {len(d.names)} rows, by latent (batch included):"
    for line, name, latent in zip(lines, d.names, net.latents(x).values(), strict=True):
        read = [other for other in net.graph.predecessors(name) if other != name]
        read = [other.replace("input", "input 0") for other in read]
        form = "identity" if net.graph.nodes[name]["layout"] == "encoder" else "operator"
        start = f"  {name} {tuple(latent.shape)}: diagonal {form}, reads "
        assert line.startswith(start)
        assert set(line.removeprefix(start).split(", ")) == set(read)
