"""Integer inputs: taken where the network casts or looks them up, refused elsewhere."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pursuitify import ConversionError, InputError, OptionError, explain, pursuitify
from pursuitify.operators import Identity
from pursuitify.robust import certified_radius
from pursuitify.rules import frozen, linear
from tests.support.against_oracle import assert_matches_oracle
from tests.support.agreement import (
    assert_adjoint,
    assert_descends,
    bound_pass,
    compare,
    error,
    rows_error,
)
from tests.support.oracle import row


class _Table(nn.Module):
    def __init__(self, first: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = first
        self.e, self.a, self.b = nn.Embedding(5, 3), nn.Linear(9, 8), nn.Linear(8, 2)

    def forward(self, one: Tensor, two: Tensor) -> Tensor:
        cat, num = (one, two) if self.first else (two, one)
        return self.b(torch.relu(self.a(torch.cat([self.e(cat), num], 1))))


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_frozen_embedding_takes_its_integers(first: bool, dtype: torch.dtype) -> None:
    model = _Table(first).to(dtype).eval()
    x = (torch.randint(0, 5, (4,)), torch.randn(4, 6, dtype=dtype))
    x = x if first else x[::-1]
    net = pursuitify(model, iterations=0, rules={nn.Embedding: frozen()})
    assert error(net(*x), model(*x)) == 0
    net.iterations = 3
    _, first_pass, bound = bound_pass(net, x)
    assert rows_error(first_pass, bound) < 1e-6
    assert torch.isfinite(net(*x)).all()
    latents = net.latents(*x)
    assert torch.isfinite(net.objective(x, latents)).all()
    net(*x).sum().backward()
    assert net.get_parameter("e.weight").grad is not None
    with pytest.raises(InputError, match="floating point"):
        net(*(v.long() for v in x))


class _Text(nn.Module):
    """TextCNN: an embedding, convolutions of two widths, the maximum over time, a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.e = nn.Embedding(9, 4, padding_idx=0)
        self.convs = nn.ModuleList(nn.Conv1d(4, 3, k) for k in (2, 3))
        self.b, self.c = nn.Linear(6, 5), nn.Linear(5, 2)

    def forward(self, t: Tensor) -> Tensor:
        x = self.e(t).transpose(1, 2)
        read = [F.relu(conv(x)).max(2)[0] for conv in self.convs]
        return self.c(F.relu(self.b(torch.cat(read, 1))))


class _Tabular(nn.Module):
    """Numbers beside an embedding of a column, a bag of words, and a one-hot column."""

    def __init__(self) -> None:
        super().__init__()
        self.e, self.bag = nn.Embedding(4, 2), nn.EmbeddingBag(9, 2, mode="mean")
        self.a, self.n, self.b = nn.Linear(10, 6), nn.BatchNorm1d(6), nn.Linear(6, 2)

    def forward(self, columns: Tensor, words: Tensor, x: Tensor) -> Tensor:
        one = F.one_hot(columns[:, 1].long(), 3).to(x.dtype)
        z = torch.cat([self.e(columns[:, 0].long()), self.bag(words), one, x], 1)
        return self.b(F.relu(self.n(self.a(z))))


def _read(name: str, batch: int) -> tuple[nn.Module, tuple[Tensor, ...], Tensor]:
    """Return a network, what it is called with, and the signal that its rows read, by NumPy."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        words = torch.randint(0, 9, (batch, 7))
        if name == "text":
            model: nn.Module = _Text().double()
            table = model.get_parameter("e.weight").detach().numpy()
            return model, (words,), torch.from_numpy(table[words.numpy()].swapaxes(1, 2))
        model = _Tabular().double()
        columns, x = torch.randint(0, 3, (batch, 2)), torch.randn(batch, 3, dtype=torch.float64)
        args = columns.to(torch.int32), words, x
        table, bag = (model.get_parameter(f"{n}.weight").detach().numpy() for n in ("e", "bag"))
        one = np.eye(3)[columns[:, 1].numpy()]
        parts = [table[columns[:, 0].numpy()], bag[words.numpy()].mean(1), one, x.numpy()]
        return model, args, torch.from_numpy(np.concatenate(parts, 1))


@pytest.mark.parametrize("name", ["text", "tabular"])
def test_what_is_looked_up_is_a_signal(name: str) -> None:
    model, args, _ = _read(name, 4)
    for training in (True, False):
        net, worst = compare(pursuitify, model, *args, training=training, tolerance=1e-12)
        assert worst == 0
    assert_adjoint(net, *args)
    assert_descends(net, *args, sweeps=3)
    assert net.verify(*args)
    assert {e.role for e in explain(model).entries if e.module in ("e", "bag")} == {"signal"}
    with pytest.raises(OptionError, match="looks numbers up"):
        certified_radius(pursuitify(model, solver="synchronous"), args[0])
    assert net.graph.nodes.keys() & {"t", "columns", "words"} == set()

    model, args, signal = _read(name, 1)
    net = pursuitify(model.eval())
    names = list(net.latents(*args))
    if name == "tabular":
        rows = [row(names[0], "x", diag=lambda u: model.n(model.a(u)))]
    else:
        rows = [row(n, "x", diag=conv) for n, conv in zip(names, model.convs, strict=False)]
        with torch.no_grad():
            first = [F.relu(conv(signal)) for conv in model.convs]
        places = [z[0].max(1)[1] for z in first]
        rows.append(
            row(
                names[2],
                names[:2],
                lambda *w: torch.cat(
                    [v[:, range(3), p] for v, p in zip(w, places, strict=True)], 1
                ),
                diag=model.b,
            )
        )
    assert_matches_oracle(net, rows, signal, args)


@pytest.mark.parametrize("memory", ["recompute", "store"])
def test_a_table_is_trained_through_the_sweeps(memory: str) -> None:
    model, args, _ = _read("text", 4)
    net = pursuitify(model, iterations=3, memory=memory).eval()
    net(*args).square().sum().backward()
    table = net.get_parameter("e.weight")
    assert table.grad is not None
    generator = torch.Generator().manual_seed(1)
    step = 1e-6 * torch.randn(table.shape, generator=generator, dtype=torch.float64)
    step[0] = 0  # padding_idx: its row has no derivative
    values = []
    for sign in (1, -2):
        with torch.no_grad():
            table.add_(step, alpha=sign)
            values.append(float(net(*args).square().sum()))
    slope = (values[0] - values[1]) / 2
    assert slope == pytest.approx(float((table.grad * step).sum()), rel=1e-5)


class _Vector(nn.Module):
    """Looks up what it computes, as vector quantisation does."""

    def __init__(self, max_norm: float | None = None) -> None:
        super().__init__()
        self.a, self.e, self.b = (
            nn.Linear(3, 4),
            nn.Embedding(4, 3, max_norm=max_norm),
            nn.Linear(3, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.e.max_norm is not None:
            return F.relu(self.b(self.e(x)))
        return F.relu(self.b(self.e(F.relu(self.a(x)).argmax(1)) + x))


def test_a_look_up_by_computed_values_is_refused() -> None:
    with pytest.raises(ConversionError, match="from its activations"):
        pursuitify(_Vector())
    with pytest.raises(ConversionError, match="max_norm"):
        pursuitify(_Vector(1.0))


CASTS: dict[str, Any] = {
    "float": lambda x: x.float(),
    "to": lambda x: x.to(torch.float32),
    "to by name": lambda x: x.to(dtype=torch.float32),
    "to device and dtype": lambda x: x.to("cpu", torch.float32),
}


class _Frames(nn.Module):
    def __init__(self, cast: str, divide: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.cast, self.divide = cast, divide
        self.c, self.f = nn.Conv2d(4, 8, 4, 2), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = CASTS[self.cast](x)
        x = x / 255 if self.divide else x
        return self.f(torch.relu(self.c(x)).mean((2, 3)))


@pytest.mark.parametrize("divide", [True, False])
@pytest.mark.parametrize("cast", CASTS)
def test_frames_are_cast_by_the_network_alone(cast: str, divide: bool) -> None:
    model = _Frames(cast, divide).eval()
    net = pursuitify(model, iterations=0)
    for x in (torch.randint(0, 256, (2, 4, 12, 12), dtype=torch.uint8), torch.rand(2, 4, 12, 12)):
        net.iterations = 0
        assert error(net(x), model(x)) == 0
        net.iterations = 3
        _, first, bound = bound_pass(net, (x,))
        assert rows_error(first, bound) < 1e-5
        # The same numbers in floating point are the same network.
        assert error(net(x), net(x.float())) < 1e-6


def test_a_rule_of_the_user_s_own_for_a_cast() -> None:
    rule = linear(Identity(), elementwise=True)
    x = torch.randint(0, 256, (2, 4, 12, 12), dtype=torch.uint8)
    net = pursuitify(_Frames("float", True).eval(), iterations=2, rules={"float": rule})
    assert error(net(x), net(x.float())) < 1e-6


def test_without_a_cast_integers_are_refused_and_the_reason_names_no_second_division() -> None:
    net = pursuitify(nn.Sequential(nn.Conv2d(4, 8, 4), nn.ReLU()), iterations=0)
    x = torch.randint(0, 256, (2, 4, 12, 12), dtype=torch.uint8)
    with pytest.raises(InputError, match="if the model does not divide itself"):
        net(x)


class _Long(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.a(torch.relu(self.a(x)).to(torch.int64).float()))


class _Wider(_Long):
    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(torch.relu(self.a(x)).double() @ self.a.weight.double())


def test_casts_that_are_not_linear_are_refused() -> None:
    problems = explain(_Long()).problems
    assert "rounds or drops values" in str(problems[0])
    with pytest.raises(InputError, match="one floating-point dtype"):
        pursuitify(_Wider(), iterations=1)(torch.randn(2, 3))
