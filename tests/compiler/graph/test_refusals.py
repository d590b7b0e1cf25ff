"""A forward keeps or refuses arguments beyond the named ones and inputs that are no tensors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pursuitify import ConversionError, InputError, TraceError, explain, pursuitify
from tests.support.agreement import compare


class Net(nn.Module):
    """Two dense layers; derived classes differ in what their forward takes."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(3, 4), nn.Linear(4, 4)

    def run(self, x: Tensor) -> Tensor:
        return F.relu(self.fc2(F.relu(self.fc1(x))))


class Keywords(Net):
    def forward(self, x: Tensor, **options: Any) -> Tensor:
        return self.run(x)


class Positions(Net):
    def forward(self, x: Tensor, scale: float = 2.0, *rest: Any) -> Tensor:
        return scale * self.run(x)


class Passed(Net):
    def forward(self, x: Tensor, *rest: Any, **options: Any) -> Tensor:
        return self.scaled(x, *rest, **options)

    def scaled(self, x: Tensor, scale: float = 2.0) -> Tensor:
        return scale * self.run(x)


class KeywordOnly(Net):
    def forward(self, x: Tensor, *, other: Tensor, **options: Any) -> Tensor:
        return self.run(x) + self.run(other) if options.get("both", True) else self.run(x)


@pytest.mark.parametrize("sweeps", [0, 2])
@pytest.mark.parametrize("build", [Keywords, Positions, Passed])
def test_variadic_arguments_are_taken_to_be_empty(build: Any, sweeps: int) -> None:
    model, x = build().double().eval(), torch.randn(2, 3).double()
    assert explain(model).ok
    net = pursuitify(model, iterations=sweeps, step_scale=1e-12)
    torch.testing.assert_close(net(x), model(x), rtol=0, atol=1e-9)
    assert torch.equal(net.source(x), model(x))
    with pytest.raises(InputError, match=r"unexpected argument 'more'.*compiled in as empty"):
        net(x, more=1)
    with pytest.raises(InputError, match=r"not 3\. What a forward takes.*wrapper"):
        net(x, 2.0, 1)


def test_keyword_only_arguments_before_variadic_ones() -> None:
    model, x = KeywordOnly().double().eval(), torch.randn(2, 3).double()
    for sweeps in (0, 2):
        net = pursuitify(model, iterations=sweeps, step_scale=1e-12)
        torch.testing.assert_close(net(x, other=2 * x), model(x, other=2 * x), rtol=0, atol=1e-9)


def test_both_modes_of_a_default() -> None:
    compare(pursuitify, Positions().double(), torch.randn(2, 3).double(), training=True)


class AllPositions(Net):
    def forward(self, *inputs: Tensor) -> Tensor:
        return self.run(inputs[0])


class Needed(Net):
    def forward(self, x: Tensor, **options: Any) -> Tensor:
        return options["scale"] * self.run(x)


@pytest.mark.parametrize(("build", "name"), [(AllPositions, r"\*inputs"), (Needed, r"\*\*options")])
def test_variadic_arguments_that_are_needed_are_refused(build: Any, name: str) -> None:
    with pytest.raises(TraceError, match=f"traced with {name}.* empty.*wrapper that names"):
        pursuitify(build())
    (problem,) = explain(build()).problems
    assert "wrapper that names" in problem.reason


class Listed(Net):
    def forward(self, images: Any, y: Tensor) -> Tensor:
        return self.run(images[0]) + self.run(images[1]) + y


class Unpacked(Net):
    def forward(self, images: Any) -> Tensor:
        first, second = images
        return self.run(first) + second


class Named(Net):
    def forward(self, images: Any) -> Tensor:
        return self.run(images["image"])


class Got(Net):
    def forward(self, images: Any) -> Tensor:
        return self.run(images.get("image"))


class Held(Net):
    def forward(self, images: Any) -> Tensor:
        return self.run(images.image)


READ = {
    Listed: "images[0]",
    Unpacked: "images[0]",
    Named: "images['image']",
    Got: "images.get()",
    Held: "images.image",
}


@pytest.mark.parametrize("build", READ)
def test_containers_are_refused(build: Any) -> None:
    problem = explain(build()).problems[0]
    assert problem.node == "images"
    assert READ[build] in problem.reason
    assert "wrapper" in problem.hint
    with pytest.raises(ConversionError, match="no tensor of samples"):
        pursuitify(build())


def test_containers_are_listed_with_every_other_problem() -> None:
    class Both(Net):
        def forward(self, images: Any, more: Any) -> Tensor:
            return self.run(F.gelu(images[0][:, :3]) + more["x"])

    problems = explain(Both()).problems
    assert [p.node for p in problems] == ["images", "more", "gelu"]
    assert {e.node for e in explain(Both()).entries if e.role == "refused"} == {
        "images",
        "more",
        "gelu",
    }


def test_the_wrapper_that_the_error_asks_for() -> None:
    class Wrapper(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.listed, self.named = Listed(), Named()

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return self.listed([a, b], self.named({"image": a}))

    x = torch.randn(2, 2, 3).double()
    compare(pursuitify, Wrapper().double(), *x, training=False)


def test_slices_of_an_input_are_a_tensors() -> None:
    class Sliced(Net):
        def forward(self, x: Tensor) -> Tensor:
            return self.run(x[:, :3]) + x[..., 3:].T.T

    compare(pursuitify, Sliced().double(), torch.randn(2, 7).double(), training=False)


def _gelus(first: nn.Module) -> nn.Sequential:
    """Return layers whose last activation of the ReLU family stands before two GELUs."""
    layers = [nn.Linear(4, 4), first, nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.GELU()]
    return nn.Sequential(*layers, nn.Linear(4, 4), nn.GELU(), nn.Linear(4, 2), nn.Tanh())


def test_a_refused_model_lists_all_that_weights_read() -> None:
    """With the first mended alone, the layers from the second on would be left to the head."""
    problems = explain(_gelus(nn.GELU())).problems
    assert [problem.node for problem in problems] == ["_1", "_5", "_7"]
    assert {problem.op for problem in problems} == {"GELU"}
    assert explain(_gelus(nn.ReLU())).ok


def test_what_weights_read_through_gates_alone_is_not_listed() -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.squeeze = nn.Linear(4, 4), nn.Linear(4, 4)
            self.relu, self.last = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = F.silu(self.first(F.relu(self.relu(F.silu(x)))))
            return self.last(x * torch.sigmoid(self.squeeze(F.gelu(x))))

    assert [problem.node for problem in explain(Gated()).problems] == ["silu", "silu_1"]
