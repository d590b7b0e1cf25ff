"""Rules of the user's own: linear maps, activations, frozen leaves; the documented example."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pursuitify import ConversionError, OptionError, explain, pursuitify
from pursuitify.operators import Dense, Scale
from pursuitify.operators.activations import ReLU
from pursuitify.rules import activation, default, frozen, linear
from pursuitify.testing import Case, MapTests, matrix_of
from tests.support.agreement import assert_adjoint, assert_descends, compare

ROOT = Path(__file__).resolve().parents[2]


def load_example() -> Any:
    spec = importlib.util.spec_from_file_location("custom_op", ROOT / "examples" / "custom_op.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["custom_op"] = module
    spec.loader.exec_module(module)
    return module


example = load_example()


class TestLowPass(MapTests):
    """The example's map passes the shared map tests."""

    cases: ClassVar = {
        f"{width} keep {keep}": Case(
            build=lambda _, keep=keep: example.LowPass(keep),  # type: ignore[misc]
            shape=(2, 2, 3, width),
            native=lambda _, x, keep=keep: example.lowpass(x, keep),  # type: ignore[misc]
            tight=0.01,
        )
        for width in (6, 7)
        for keep in (1, 3)
    }


def converts(model: nn.Module, rules: Any, x: Tensor, **options: Any) -> Any:
    def convert(m: nn.Module) -> Any:
        return pursuitify(m, rules=rules, **options)

    for training in (True, False):
        net, _ = compare(convert, model.double(), x.double(), training=training, tolerance=1e-10)
    assert_adjoint(net, x.double())
    assert_descends(net, x.double(), sweeps=4)
    return net


def test_example_converts_exactly() -> None:
    torch.manual_seed(0)
    assert not explain(example.Net()).ok
    assert explain(example.Net(), rules=example.RULES).ok
    converts(example.Net(), example.RULES, torch.randn(2, 3, 8, 8))


def test_example_activation_is_proximal() -> None:
    """prox is the minimiser of f(w) + (w - v)^2 / (2 step), against a grid."""
    act, grid = example.SoftThreshold(0.3), torch.linspace(-3, 3, 60001, dtype=torch.float64)
    for v in (-2.0, -0.2, 0.0, 0.4, 1.5):
        for step in (0.3, 1.0):
            cost = act.penalty(grid) + (grid - v) ** 2 / (2 * step)
            best = float(grid[cost.argmin()])
            assert abs(float(act.prox(torch.tensor(v), step)) - best) < 2e-4


@pytest.mark.slow
def test_example_runs() -> None:
    run = subprocess.run(
        [sys.executable, "examples/custom_op.py"], cwd=ROOT, env={"PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "T = 0 differs" in run.stdout


class Mixer(nn.Module):
    """A user's linear layer that fx could trace but no rule knows: a product, with a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(0.5 * torch.randn(4, 4))
        self.bias = nn.Parameter(torch.randn(4))

    def forward(self, x: Tensor, factor: float = 1.0) -> Tensor:
        return factor * torch.linalg.multi_dot([x, self.weight.mT]) + self.bias


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.mix, self.fc2 = nn.Linear(3, 4), Mixer(), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.fc2(F.relu(self.mix(F.relu(self.fc1(x)), 0.5))))


def test_a_weighted_module_with_an_offset_and_an_argument() -> None:
    torch.manual_seed(0)
    with pytest.raises(ConversionError, match="multi_dot"):
        pursuitify(Mixed())
    rule = linear(
        lambda m, x, factor=1.0: Dense(factor * m.weight, x.dim()),
        weighted=True,
        offset=lambda m, _x, _factor=1.0: m.bias,
    )
    net = converts(Mixed(), {Mixer: rule}, torch.randn(2, 3))
    assert [row.layout for row in net._program.rows] == ["decoder"] * 3
    matrix, _, _ = net.dictionary(torch.randn(1, 3).double()).materialize()
    assert matrix.shape == (3 + 4 + 4, 4 + 4 + 3)


def test_maps_and_activations_that_are_always_the_same() -> None:
    class Third(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.special.expit(x) * 0 + x / 3

    class MyReLU(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.where(x > 0, x, torch.zeros_like(x))

    model = nn.Sequential(nn.Linear(3, 4), MyReLU(), Third(), nn.Linear(4, 3), MyReLU())
    rules = {Third: linear(Scale(1 / 3), elementwise=True), MyReLU: activation(ReLU())}
    converts(model, rules, torch.randn(2, 3))


def test_frozen_leaves() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return F.softmax(self.q(x) @ x.transpose(1, 2), -1) @ x

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.fc2, self.attention = nn.Linear(3, 4), nn.Linear(4, 4), Attention()

        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.fc1(x))
            return F.relu(self.fc2(x) + self.attention(x))

    torch.manual_seed(0)
    report = explain(Net(), rules={Attention: frozen()})
    assert report.ok
    assert {e.role for e in report.entries if e.op == "Attention"} == {"frozen"}
    converts(Net(), {Attention: frozen()}, torch.randn(2, 5, 3))


def same_conv() -> nn.Module:
    return nn.Conv2d(4, 4, 3, padding=1)


@pytest.mark.parametrize(
    ("layers", "frozen_type", "lost"),
    [
        ((same_conv(), nn.ReLU(), same_conv(), nn.SiLU(), same_conv(), nn.ReLU()), nn.SiLU,
         "_1 before it lead to nothing else and _5 after it depend on nothing else"),
        ((nn.GroupNorm(2, 4), same_conv(), nn.ReLU(), same_conv(), nn.ReLU()), nn.GroupNorm,
         "_2, _4 after it depend on nothing else"),
    ],
    ids=["between", "first"],
)  # fmt: skip
def test_a_frozen_value_that_cuts_the_way_says_so(layers: Any, frozen_type: Any, lost: str) -> None:
    model = nn.Sequential(*layers)
    rules = {frozen_type: frozen()}
    with pytest.raises(ConversionError, match="frozen values cut the way") as caught:
        pursuitify(model, rules=rules)
    (problem,) = caught.value.problems
    assert problem.op == frozen_type.__name__
    assert lost in problem.reason
    assert "side branches" in problem.hint
    assert explain(model, rules=rules).problems == caught.value.problems


@pytest.mark.parametrize("sweeps", [0, 3])
def test_a_frozen_value_in_the_head_runs_on_pursued_latents(sweeps: int) -> None:
    model = nn.Sequential(
        same_conv(), nn.ReLU(), same_conv(), nn.ReLU(), nn.SiLU(), same_conv(), nn.GELU()
    )
    x = torch.randn(2, 4, 5, 5)
    net = pursuitify(model, iterations=sweeps, rules={nn.SiLU: frozen()})
    assert torch.equal(net(x), pursuitify(model, iterations=sweeps)(x))
    assert len(net.graph) == 3


def test_wrong_makers_are_refused() -> None:
    with pytest.raises(OptionError):
        linear(3)  # type: ignore[arg-type]
    with pytest.raises(OptionError):
        activation(ReLU)
    net = pursuitify(
        nn.Sequential(nn.Linear(2, 2), nn.ReLU()), rules={nn.ReLU: activation(lambda *_: 3)}
    )
    with pytest.raises(OptionError, match="int"):
        net(torch.randn(1, 2))


def test_a_subclass_without_its_own_forward_has_its_parents_rule() -> None:
    class MyLinear(nn.Linear):
        pass

    class Twice(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    model = nn.Sequential(MyLinear(3, 4), nn.ReLU(), Twice(4, 3), nn.ReLU())
    converts(model, None, torch.randn(2, 3), leaf_modules=[MyLinear])
    assert "Twice" in {p.op for p in explain(model, leaf_modules=[Twice]).problems}


def test_builtin_rules_have_names_and_kinds() -> None:
    rules = default()
    assert len(rules) > 150
    assert all(rule.name and rule.bind for rule in set(rules.values()))
    assert matrix_of(Scale(2.0).apply, (2,)).shape == (2, 2)


class ShiftedReLU(ReLU):
    """A subclass of the library's activation with a prox of its own."""

    def __call__(self, z: Tensor) -> Tensor:
        return F.relu(z + 0.5)

    def prox(self, v: Tensor, step: Tensor | float) -> Tensor:
        return F.relu(v + 0.5 * step)

    def prox_(self, v: Tensor, step: Tensor | float) -> Tensor:
        return self.prox(v, step)


class _Shift(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + 0.5)


@pytest.mark.parametrize("layout", ["auto", "encoder"])
def test_a_subclass_of_an_activation_is_not_taken_for_it(layout: Any) -> None:
    """Sweeps in place, which know ReLU, give what sweeps that record derivatives give."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 8, 3, padding=1), _Shift(), nn.Conv2d(8, 8, 3, padding=1), _Shift()
    ).eval()
    net = pursuitify(model, iterations=4, layout=layout, rules={_Shift: activation(ShiftedReLU())})
    x = torch.randn(2, 2, 8, 8)
    recorded = net(x).detach()
    with torch.no_grad():
        torch.testing.assert_close(net(x), recorded, rtol=1e-4, atol=1e-5)
    assert not ShiftedReLU().nonnegative
    assert ReLU().nonnegative
