"""torch.addmm: a dense layer with its matrix transposed, plus a bias or another value."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pursuitify import ConversionError, coherence, pursuitify
from pursuitify.robust import certified_radius
from tests.support.against_oracle import assert_matches_oracle
from tests.support.agreement import assert_adjoint, assert_descends, compare
from tests.support.oracle import row


class Transposed(nn.Module):
    """What some language models call a one-dimensional convolution."""

    def __init__(self, width: int, out: int, call: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width, out) / width**0.5)
        self.bias = nn.Parameter(0.3 * torch.randn(out))
        self.call = call

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.call(self.bias, x, self.weight)
        return out


CALLS: dict[str, Any] = {
    "function": torch.addmm,
    "method": lambda b, x, w: b.addmm(x, w),
    "factors": lambda b, x, w: torch.addmm(b, x, w, beta=0.5, alpha=-2.0),
    "by name": lambda b, x, w: torch.addmm(input=b, mat1=x, mat2=w),
    "row": lambda b, x, w: torch.addmm(b[None], x, w),
}


def made(call: Any, batch: int) -> tuple[nn.Sequential, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            Transposed(4, 5, call), nn.ReLU(), Transposed(5, 5, call), nn.ReLU(), nn.Linear(5, 3)
        )
        return model.double().eval(), torch.randn(batch, 4, dtype=torch.float64)


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("batch", [1, 3, 5])
def test_it_is_exact_and_descends(name: str, batch: int) -> None:
    model, x = made(CALLS[name], batch)
    for training in (True, False):
        net, _ = compare(pursuitify, model, x, training=training, tolerance=1e-12)
    assert [data["layout"] for n, data in net.graph.nodes.items() if n != "input"] == [
        "decoder"
    ] * 2
    assert_adjoint(net, x)
    assert_descends(net, x, sweeps=4)
    net.iterations = 0
    assert torch.equal(net(x), model(x))


@pytest.mark.parametrize("name", CALLS)
def test_sweeps_against_the_oracle(name: str) -> None:
    model, x = made(CALLS[name], 3)
    net = pursuitify(model)
    one, two = net.latents(x)
    assert_matches_oracle(net, [row(one, "x", diag=model[0]), row(two, one, diag=model[2])], x[:1])


def test_it_is_the_linear_layer_it_stands_for() -> None:
    """The same sweeps, certificate and coherence as with nn.Linear."""
    model, x = made(torch.addmm, 3)
    twin = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 5), nn.ReLU(), model[4]).double()
    with torch.no_grad():
        for i in (0, 2):
            twin[i].weight.copy_(model[i].weight.mT)
            twin[i].bias.copy_(model[i].bias)
    nets = [pursuitify(m.eval(), iterations=6, solver="synchronous") for m in (model, twin)]
    a, b = (certified_radius(net, x).radius for net in nets)
    assert torch.allclose(a, b, rtol=1e-9)
    for net in nets:
        net.solver = "global"
    assert torch.allclose(nets[0](x), nets[1](x), rtol=0, atol=1e-12)
    found = [coherence(net, input_shape=(4,)).mutual_coherence for net in nets]
    assert found[0] == pytest.approx(found[1], rel=1e-9)


class Skip(nn.Module):
    """Both operands are values of the network."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 5)
        self.weight = nn.Parameter(torch.randn(5, 5) / 3)

    def forward(self, x: Tensor) -> Tensor:
        z = F.relu(self.a(x))
        return F.relu(torch.addmm(z, z, self.weight, beta=0.5))


def test_a_sum_with_a_value_of_the_network() -> None:
    torch.manual_seed(0)
    model, x = Skip().double().eval(), torch.randn(3, 4, dtype=torch.float64)
    net, _ = compare(pursuitify, model, x, training=False, tolerance=1e-12)
    assert_adjoint(net, x)
    one, two = net.latents(x)
    rows = [
        row(one, "x", diag=model.a),
        row(two, one, lambda w: 0.5 * w + w @ model.weight),
    ]
    assert_matches_oracle(net, rows, x[:1])


class Product(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        z = F.relu(self.a(x))
        return F.relu(torch.addmm(self.a.bias, z, z))


def test_a_matrix_that_depends_on_the_input_is_refused() -> None:
    with pytest.raises(ConversionError, match="depends on the input"):
        pursuitify(Product())
