"""These tests check what each node is, and which problems are reported."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pursuitify import ConversionError, explain, pursuitify
from pursuitify.compiler.graph.classify import Value, classify
from pursuitify.compiler.graph.refusals import unknown_values
from pursuitify.compiler.tracing.trace import trace
from pursuitify.rules import default
from tests.support.ops import Around, Squeeze


def values_of(model: nn.Module) -> dict[str, Value]:
    graph = trace(model, training=False).graph
    return {n.name: s.value for n, s in classify(graph, model, default()).items()}


def test_every_kind_of_value() -> None:
    def op(x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        return x.view(b, c, h, w) + torch.ones(1)

    values = values_of(Around(op))
    assert values["x"] is Value.INPUT
    assert values["conv1"] is Value.AFFINE
    assert values["relu"] is Value.LATENT
    assert values["getitem"] is Value.SHAPE
    assert values["view"] is Value.AFFINE
    assert values["_tensor_constant0"] is Value.CONSTANT


def test_what_only_a_gate_reads_is_frozen() -> None:
    values = values_of(Around(Squeeze()))
    frozen = {"mean", "op_fc1", "relu_1", "op_fc2"}
    assert {n for n in frozen if values[n] is Value.FROZEN} == frozen
    assert values["mul"] is Value.AFFINE
    assert values["relu"] is Value.LATENT


def test_a_latent_that_a_gate_shares_stays_a_latent() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.a(x))
            y = F.relu(self.b(x))
            return F.relu(self.c(x * torch.sigmoid(y) + y))

    values = values_of(Shared())
    assert values["relu_1"] is Value.LATENT
    assert explain(Shared()).gates == 1


def test_products_of_two_branches_are_refused() -> None:
    class Product(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(self.c(F.relu(self.a(x)) * F.relu(self.b(x))))

    (problem,) = explain(Product()).problems
    assert problem.op == "mul"
    assert "neither is a gate" in problem.reason


class Star(nn.Module):
    """A product of an activation and a linear value of the same latent, as in StarNet."""

    def __init__(self, activation: Any = F.relu6) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.stem, self.activation = nn.Linear(4, 4), activation

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        return F.relu(self.c(self.activation(self.a(x)) * self.b(x)))


def test_of_two_factors_the_one_without_an_activation_is_the_gate() -> None:
    model = Star()
    values = values_of(model)
    assert {n: values[n] for n in ("relu6", "a", "b")} == {
        "relu6": Value.LATENT, "a": Value.AFFINE, "b": Value.FROZEN,
    }  # fmt: skip
    report = explain(model)
    assert (report.latents, report.gates) == (3, 1)
    assert "a diagonal scale by b, fixed at the feed-forward pass" in {
        e.note for e in report.entries
    }
    (problem,) = explain(Star(activation=lambda x: x)).problems
    assert "neither is a gate" in problem.reason


def test_the_head_freezes_no_factor() -> None:
    class Bilinear(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.a(x))
            return F.relu(self.b(x)) * self.c(x)

    assert values_of(Bilinear())["mul"] is Value.OTHER


def test_dividing_by_a_value_is_refused() -> None:
    (problem,) = explain(Around(lambda x: 1.0 / (x + 1))).problems
    assert "divides" in problem.reason


def test_problems_name_the_place() -> None:
    class Block(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.gelu(x)

    model: Any = nn.Sequential(nn.Linear(4, 4), Block(), nn.Linear(4, 4), nn.ReLU())
    graph = trace(model, training=False).graph
    (problem,) = unknown_values(graph, model, classify(graph, model, default()))
    assert (problem.op, problem.module) == ("gelu", "1")
    assert "ReLU" in problem.hint


@pytest.mark.parametrize(
    "call",
    [
        lambda z: F.linear(z, z),
        torch.mm,
        lambda z: z @ z,
        lambda z: F.linear(z, z.new_ones(4, 4), z),
        lambda z: F.prelu(z, z),
    ],
)
def test_an_operand_that_is_its_own_weight_is_refused(call: Any) -> None:
    """The product of a value with itself is no linear map of it."""

    class Squared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            z = self.a(x)
            return F.relu(call(z, z) if call is torch.mm else call(z))

    with pytest.raises(ConversionError, match=r"depends? on the input"):
        pursuitify(Squared())
