"""These tests add an op, a solver, a derivative mode and an attack as CONTRIBUTING.md says.

Each is added as that page says: one module, written to a temporary folder and imported from there,
and one entry of a registry. It then works end to end, with no other change of the package.
"""

from __future__ import annotations

import importlib.util
import itertools
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pursuitify import ConversionError, load, pursuitify, save
from pursuitify.operators import dottest
from pursuitify.robust import Protocol, Step, audit
from pursuitify.robust.auditing import attack_registry
from pursuitify.rules import reshape
from pursuitify.solvers import registry as solver_registry
from pursuitify.solvers.differentiation import modes

HOME = Path(__file__).resolve().parents[1]
Write = Callable[[str, str], ModuleType]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Write a module to a temporary folder and import it."""

    def written(name: str, text: str) -> ModuleType:
        path = tmp_path / f"{name}.py"
        path.write_text(text)
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
        return module

    return written


class Small(nn.Module):
    """Two dense layers with ReLU, an operation between them, and a head."""

    def __init__(self, between: Callable[[Tensor], Tensor] | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.head = nn.Linear(6, 5), nn.Linear(5, 4), nn.Linear(4, 3)
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        if self.between is not None:
            x = self.between(x)
        return self.head(torch.relu(self.second(x)))


def inputs(count: int = 4) -> Tensor:
    return torch.rand(count, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


OP = """
from dataclasses import dataclass
import torch
from pursuitify.operators import LinearMap
from pursuitify.rules.registry import Affine
from pursuitify.rules.reshape import registry

@dataclass(frozen=True, eq=False)
class Cumsum(LinearMap):
    size: int
    dim: int

    def apply(self, x):
        return x.cumsum(self.dim)

    def adjoint(self, y):
        return y.flip(self.dim).cumsum(self.dim).flip(self.dim)

    def norm_bound(self):
        return (self.size * (self.size + 1) / 2) ** 0.5  # the Frobenius norm

@registry.register(torch.cumsum, "cumsum", kind="linear")
def cumsum(op, input, dim):
    return Affine(op(input), (Cumsum(input.shape[dim], dim),))
"""


def test_an_op_is_a_rule_and_a_map(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = Small(lambda x: 0.3 * x.cumsum(1)).double().eval(), inputs()
    rules = reshape.registry._rules.items()  # a library that does not know the op
    known = {key: r for key, r in rules if key not in {torch.cumsum, "cumsum"}}
    monkeypatch.setattr(reshape.registry, "_rules", known)
    with pytest.raises(ConversionError, match="cumsum"):
        pursuitify(model)
    made = write("toy_op", OP).Cumsum(5, 1)
    assert dottest(made, inputs()[:, :5]) < 1e-12
    net = pursuitify(model, iterations=8)
    net.verify(x)
    net.iterations = 0
    assert torch.equal(net(x), model(x))
    net.iterations = 8
    objectives = [sweep.objective for sweep in net.diagnose(x).sweeps]
    assert all(after <= before for before, after in itertools.pairwise(objectives))
    assert objectives[-1] < objectives[0]
    # The dense dictionary has the op's matrix in it.
    B, _, _ = net.dictionary(x[:1]).materialize()
    lower = 0.3 * torch.ones(5, 5, dtype=torch.float64).tril()
    sides = [B[a : a + 5, :5] for a in range(B.shape[0] - 4)]
    assert any(torch.allclose(side, -lower) for side in sides)


SOLVER = """
from typing import ClassVar
from pursuitify.solvers.proximal_step import proximal_step
from pursuitify.solvers.solver import Solver

class Jacobi(Solver):
    name: ClassVar[str] = "jacobi"
    pursues: ClassVar[bool] = True
    minimises: ClassVar[bool] = True

    def sweeps(self, given, observed=True):
        dictionary, w = given.dictionary, list(given.feedforward)
        signal = dictionary.signal_slots()
        for _ in range(given.count):
            r = dictionary.residual_slots(w, signal)
            slopes = [row.slope(r[j]) for j, row in enumerate(dictionary.rows)]
            for j, branch in enumerate(dictionary.branches):
                for term in branch.terms(lambda at: r[at[0]][at[1]]):
                    slopes[j] = slopes[j] - term
            w = [
                proximal_step(row, v, slope, 0.1 * step, inplace=False)
                for row, v, slope, step in zip(dictionary.rows, w, slopes, given.steps)
            ]
            yield w
"""


def test_a_solver_is_a_class_and_an_entry(
    write: Write, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    model, x = Small().double().eval(), inputs(1)
    solver = write("toy_solver", SOLVER).Jacobi()
    monkeypatch.setitem(solver_registry.SOLVERS, solver.name, solver)
    net = pursuitify(model, iterations=5, solver="jacobi")
    # The same by the dense dictionary.
    B, y, lam = (part.detach() for part in net.dictionary(x).materialize())
    first, second = (step.detach().flatten() for step in net.step_sizes(x).values())
    step = torch.cat([first.expand(5), second.expand(4)])
    net.iterations = 0
    w = torch.cat([v.detach().flatten() for v in net.latents(x).values()])
    for _ in range(5):
        w = torch.relu(w - 0.1 * step * (B.T @ (B @ w - y) + lam))
    net.iterations = 5
    mine = torch.cat([v.detach().flatten() for v in net.latents(x).values()])
    torch.testing.assert_close(mine, w, rtol=1e-10, atol=1e-12)
    assert len(net.diagnose(x).sweeps) == 6
    save(net, tmp_path / "net.safetensors")
    again = load(tmp_path / "net.safetensors", model)
    assert again.solver == "jacobi"
    assert torch.equal(again(x), net(x))
    net.memory = "recompute"
    with pytest.raises(ValueError, match="not known to solver='jacobi'"):
        net(x)


MODE = """
from dataclasses import dataclass
from typing import ClassVar

@dataclass(frozen=True)
class Forget:
    name: ClassVar[str] = "forget"
    exact: ClassVar[bool] = False
    records_sweeps: ClassVar[bool] = False

    def solve(self, solver, given, report):
        return [w.detach() for w in solver.last(given)]
"""


def test_a_derivative_mode_is_a_class_and_an_entry(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    mode: Any = write("toy_mode", MODE).Forget
    monkeypatch.setitem(modes.MODES, mode.name, mode)
    net, x = pursuitify(Small().double().eval(), iterations=3), inputs()
    outputs, slopes = {}, {}
    for memory in ("store", "forget"):
        net.memory = memory
        net.zero_grad()
        outputs[memory] = net(x)
        outputs[memory].square().sum().backward()
        slopes[memory] = {name: p.grad for name, p in net.named_parameters()}
    torch.testing.assert_close(outputs["store"], outputs["forget"], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(slopes["store"]["head.weight"], slopes["forget"]["head.weight"])
    assert slopes["store"]["first.weight"].abs().max() > 0
    assert slopes["forget"]["first.weight"] is None


ATTACK = """
def darken(model, x, y, *, eps, norm="linf", seed=None, batch_size=None):
    assert norm == "linf"
    return (x - eps).clamp(0, 1)
"""


def test_an_attack_is_a_function_and_an_entry(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(attack_registry.ATTACKS, "darken", write("toy_attack", ATTACK).darken)
    step = Step("darken", "darken", "black-box")
    protocol = Protocol("toy", steps=(step,), twin=(step,), curve=(step,), factors=(1.0,))
    net, x = pursuitify(Small().double().eval(), iterations=2), inputs(16)
    y = net(x).argmax(1)
    report = audit(net, (x, y), eps=0.3, protocol=protocol, twins={}, progress=False)
    fooled = int((net((x - 0.3).clamp(0, 1)).argmax(1) != y).sum())
    assert report.worst() == pytest.approx(1 - fooled / 16)
    assert "darken" in str(report)


def test_every_path_that_contributing_names_is_there() -> None:
    text = (HOME / "CONTRIBUTING.md").read_text()
    named = set(re.findall(r"`((?:pursuitify|tests|docs|solvers|robust|rules)/[\w./]*\w)`", text))
    assert len(named) > 15
    for path in named:
        assert any((root / path).exists() for root in (HOME, HOME / "pursuitify")), path
