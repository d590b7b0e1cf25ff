"""Generality: one small network per operation, whole architectures, and random networks."""

from __future__ import annotations

from typing import Any

import hypothesis
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pursuitify import ConversionError, TraceError, explain, pursuitify
from tests.support.agreement import assert_adjoint, assert_descends, compare, error, state
from tests.support.architectures import ARCHITECTURES, MORE
from tests.support.ops import OPS
from tests.support.randomnets import general_net

EXACT = 1e-10


def inputs(shapes: tuple[tuple[int, ...], ...], batch: int, grow: int, seed: int) -> list[Tensor]:
    """Seeded float64 inputs; every size after the channels grows by ``grow``."""
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(batch, c, *(n + grow for n in size), generator=generator, dtype=torch.float64)
        for c, *size in shapes
    ]


def check(
    model: nn.Module, shapes: tuple[tuple[int, ...], ...] = ((3, 8, 8),), grow: int = 4
) -> None:
    """Both modes exact, one conversion serving two batch and image sizes, adjoint, descent."""
    first, second = inputs(shapes, 2, 0, 1), inputs(shapes, 3, grow, 2)
    for training in (True, False):
        net, _ = compare(pursuitify, model, *first, training=training, tolerance=EXACT)
        before = state(model)
        with torch.no_grad():
            torch.manual_seed(3)
            mine = net(*second)
            torch.manual_seed(3)
            assert error(mine, model(*second)) <= EXACT
        model.load_state_dict(before)
    net = pursuitify(model)
    assert_adjoint(net, *first)
    assert_descends(net, *first, sweeps=3)


@pytest.mark.parametrize("name", OPS)
def test_operation(name: str) -> None:
    torch.manual_seed(0)
    check(OPS[name]().double())


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n in MORE else n for n in ARCHITECTURES]
)
def test_architecture(name: str) -> None:
    torch.manual_seed(0)
    build, shapes = ARCHITECTURES[name]
    check(build().double(), shapes, grow=8)


@given(general_net())
@settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
def test_random_networks(drawn: tuple[nn.Module, Tensor]) -> None:
    model, x = drawn
    for training in (True, False):
        net, _ = compare(pursuitify, model, x, training=training, tolerance=1e-9)
    assert_adjoint(net, x)
    assert_descends(net, x, sweeps=3)


@pytest.mark.slow
@given(general_net(max_moves=10))
@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
def test_many_random_networks(drawn: tuple[nn.Module, Tensor]) -> None:
    model, x = drawn
    for training in (True, False):
        net, _ = compare(pursuitify, model, x, training=training, tolerance=1e-8)
    assert_adjoint(net, x)
    assert_descends(net, x, sweeps=3)


class Wrap(nn.Module):
    """conv, relu, a layer that cannot be converted, conv, relu."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv2(self.layer(F.relu(self.conv1(x)))))


REFUSED: dict[str, tuple[Any, str]] = {
    "gelu": (nn.GELU(), "GELU"),
    "silu": (nn.SiLU(), "SiLU"),
    "silu_function": (F.silu, "silu"),
    "hardswish": (nn.Hardswish(), "Hardswish"),
    "normalize": (F.normalize, "normalize"),
    "softmax": (nn.Softmax(1), "Softmax"),
    "square": (lambda x: x**2, "pow"),
    "max": (lambda x: x - x.amax(), "amax"),
    "threshold": (nn.Threshold(0.1, 0.0), "Threshold"),
    "leaky_negative": (nn.LeakyReLU(-0.1), "LeakyReLU"),
    "clamp_max": (lambda x: x.clamp(max=1.0), "clamp"),
    "cumprod": (lambda x: torch.cumprod(x, 2), "cumprod"),
    "attention": (lambda x: x @ x.mT, "matmul"),
    "index": (lambda x: x[x.long()].view(-1, 4, 8, 8), "getitem"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_name(name: str) -> None:
    layer, op = REFUSED[name]
    model = Wrap(layer)
    report = explain(model)
    assert not report.ok
    (problem,) = [p for p in report.problems if p.op == op]
    assert problem.reason
    assert problem.hint
    if isinstance(layer, nn.Module):
        assert problem.module == "layer"
    with pytest.raises(ConversionError) as caught:
        pursuitify(model)
    assert {p.op for p in caught.value.problems} == {p.op for p in report.problems}


def test_all_problems_at_once() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.GELU(), nn.Conv2d(4, 4, 1), nn.SiLU(), nn.Conv2d(4, 4, 1),
        nn.Softmax(1), nn.ReLU(),
    )  # fmt: skip
    with pytest.raises(ConversionError) as caught:
        pursuitify(model)
    assert [p.op for p in caught.value.problems] == ["GELU", "SiLU", "Softmax"]
    assert [p.module for p in caught.value.problems] == ["2", "4", "6"]


@pytest.mark.parametrize(
    "head", [nn.GELU(), nn.LayerNorm([8, 8]), nn.Softmax(1), nn.GroupNorm(2, 4), nn.LogSoftmax(1)]
)
def test_what_follows_the_last_latent_is_the_head(head: nn.Module) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 1), head)
    check(model.double(), grow=0)


def test_attention_and_recurrent_layers_are_named() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.fc = nn.LSTM(4, 4, batch_first=True), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(self.fc(self.rnn(F.relu(x))[0]))

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.attention = nn.Linear(4, 4), nn.MultiheadAttention(4, 1, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.fc(x))
            return F.relu(self.fc(self.attention(x, x, x)[0]))

    assert "LSTM" in {p.op for p in explain(Recurrent()).problems}
    assert "MultiheadAttention" in {p.op for p in explain(Attention()).problems}


def test_control_flow_on_values_is_refused() -> None:
    class Branch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.fc(x))
            return x if x.sum() > 0 else -x

    with pytest.raises(TraceError, match="Branch"):
        pursuitify(Branch())
    assert not explain(Branch()).ok


def test_hypothesis_draws_every_move() -> None:
    """The generator is as wide as it says: each move builds something that converts."""
    from tests.support import randomnets

    seen: set[str] = set()

    @given(st.data())
    @settings(max_examples=150, deadline=None, derandomize=True, database=None,
              suppress_health_check=list(HealthCheck))  # fmt: skip
    def draw(data: Any) -> None:
        model, _ = data.draw(general_net())
        seen.update(step.op for step in model.steps)

    draw()
    assert seen >= set(randomnets.MOVES), set(randomnets.MOVES) - seen
    assert hypothesis.__version__
