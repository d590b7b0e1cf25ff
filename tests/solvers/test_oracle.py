"""Tests of the oracle itself, against the torch source and against mathematics done elsewhere."""

from __future__ import annotations

import itertools
import math
from functools import cache

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from threadpoolctl import threadpool_limits
from torch import Tensor, fx, nn

from tests.support.nets import CASES, LAYOUTS, Case, random_net
from tests.support.oracle import Oracle, Row, Slot, frozen_max_pool, prox, row

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")

BOTH = [pytest.param(c, layout, id=f"{c.name}-{layout}") for c in CASES for layout in LAYOUTS]


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Matrices here are tiny: threads only get in each other's way."""
    with threadpool_limits(1):
        yield


@pytest.fixture(autouse=True)
def sweeps_path():
    """Nothing here runs the package's sweeps: once is enough."""


@cache
def oracle_of(case: Case, layout: str, seed: int = 0) -> Oracle:
    model, x = case.build(seed), case.input(seed)
    return Oracle(case.rows(model, layout, x), x, "threshold")  # as the paper has it


@cache
def optimum_of(case: Case, layout: str) -> tuple[np.ndarray, float]:
    return oracle_of(case, layout).optimum()


class Recorder(fx.Interpreter):
    """Runs a traced module and keeps every node's value."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__(fx.symbolic_trace(module))
        self.values: dict[str, Tensor] = {}

    def run_node(self, n: fx.Node):
        value = super().run_node(n)
        if isinstance(value, Tensor):
            self.values[n.name] = value.detach().clone()
        return value


@pytest.mark.parametrize(("case", "layout"), BOTH)
@pytest.mark.parametrize("seed", [0, 1])
def test_feedforward_is_the_source(case, layout, seed):
    recorder = Recorder(case.build(seed))
    recorder.run(case.input(seed))
    oracle = oracle_of(case, layout, seed)
    assert oracle.names == case.order
    for name, value in oracle.split(oracle.w0).items():
        expected = recorder.values[name].numpy()
        assert value.shape == expected.shape
        np.testing.assert_allclose(value, expected, rtol=0, atol=1e-12 * abs(expected).max())


@pytest.mark.parametrize(("case", "layout"), BOTH)
def test_block_lower_triangular(case, layout):
    oracle = oracle_of(case, layout)
    for name in oracle.names:
        after = oracle.columns[name].stop
        assert not oracle.B[oracle.lines[name], after:].any()
    assert oracle.B.shape == (oracle.y.size, oracle.lam.size)
    assert (oracle.lam < 0).any()
    assert (oracle.lam > 0).any()
    same = oracle.join(oracle.split(oracle.w0))
    np.testing.assert_array_equal(same, oracle.w0)


def test_layouts_differ_where_they_should():
    for case in CASES:
        auto, encoder = (oracle_of(case, layout) for layout in LAYOUTS)
        for name in case.order[1:]:
            block = encoder.B[encoder.lines[name], encoder.columns[name]]
            leaves = {k for s in rows_of(case, "encoder")[name].slots for k in s.leaves}
            assert "x" in leaves or np.array_equal(block, np.eye(len(block)))
        np.testing.assert_allclose(auto.lam, encoder.lam, rtol=0, atol=1e-12)


def rows_of(case: Case, layout: str) -> dict[str, Row]:
    return {r.name: r for r in oracle_of(case, layout).rows}


def test_a_linear_chain_by_hand():
    """(12), literally: [W1^T 0; -I W2^T]."""
    case = CASES[0]
    model, oracle = case.build(), oracle_of(case, "auto")
    w1, w2, w3 = (getattr(model, f"fc{i}").weight.detach().numpy() for i in (1, 2, 3))
    expected = np.block(
        [
            [w1.T, np.zeros((6, 7)), np.zeros((6, 5))],
            [-np.eye(8), w2.T, np.zeros((8, 5))],
            [np.zeros((7, 8)), -np.eye(7), w3.T],
        ]
    )
    np.testing.assert_allclose(oracle.B, expected, rtol=0, atol=1e-15)
    x = case.input().numpy().ravel()
    np.testing.assert_array_equal(oracle.y, np.concatenate([x, np.zeros(15)]))
    bias = np.concatenate([getattr(model, f"fc{i}").bias.detach().numpy() for i in (1, 2, 3)])
    np.testing.assert_allclose(oracle.lam, -bias, rtol=0, atol=1e-15)
    w = np.random.default_rng(0).random(20)
    a, b, c = w[:8], w[8:15], w[15:]
    parts = (x - w1.T @ a, a - w2.T @ b, b - w3.T @ c)
    value = sum(0.5 * p @ p for p in parts) - bias @ w
    assert oracle.objective(w) == pytest.approx(value, rel=1e-13)


def test_inner_offsets_pass_through_the_diagonal():
    """relu(W (a + c)) has the threshold -W c, in either layout."""
    weight = torch.tensor([[1.0, 2.0], [0.5, -1.0], [3.0, 0.0]], dtype=torch.float64)
    shift = torch.tensor([0.25, -2.0], dtype=torch.float64)
    x = torch.ones(1, 2, dtype=torch.float64)
    inside = Row("r", (Slot(("x",), lambda u: u + shift),), lambda u: u @ weight.T)
    outside = row("r", "x", lambda u: (u + shift) @ weight.T)
    for description in (inside, outside):
        oracle = Oracle([description], x, "threshold")
        np.testing.assert_allclose(oracle.lam, -(weight @ shift).numpy(), atol=1e-15)
        np.testing.assert_allclose(oracle.w0, F.relu((x + shift) @ weight.T).numpy()[0])


@pytest.mark.parametrize(
    ("shape", "arguments"),
    [
        ((2, 7, 8), {"kernel": 2}),
        ((2, 7, 8), {"kernel": 3, "stride": 2, "padding": 1}),
        ((1, 7, 7), {"kernel": (3, 2), "stride": (2, 1), "padding": (1, 0), "dilation": (2, 1)}),
        ((2, 6, 8), {"kernel": 3, "stride": 2, "ceil_mode": True}),
        ((1, 5, 5), {"kernel": 2, "stride": 2, "padding": 1, "ceil_mode": True}),
        ((3, 9), {"kernel": 3, "stride": 2, "padding": 1}),
        ((2, 4, 5, 4), {"kernel": 2, "stride": 1}),
    ],
)
def test_frozen_max_pool(shape, arguments):
    generator = torch.Generator().manual_seed(0)
    x = F.relu(torch.randn(1, *shape, generator=generator, dtype=torch.float64))  # ties at zero
    pool = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[len(shape) - 2]
    settings_ = {("kernel_size" if k == "kernel" else k): v for k, v in arguments.items()}
    expected, index = pool(x, return_indices=True, **settings_)
    select = frozen_max_pool(x, **arguments)
    torch.testing.assert_close(select(x), expected, rtol=0, atol=0)
    other = torch.randn(4, *shape, generator=generator, dtype=torch.float64)
    gathered = other.flatten(2).gather(2, index.flatten(2).expand(4, -1, -1))
    torch.testing.assert_close(select(other), gathered.reshape(4, *expected.shape[1:]))


@pytest.mark.parametrize(
    ("activation", "function"),
    [
        ("relu", F.relu),
        ("identity", lambda v: v),
        (("leaky", 0.1), lambda v: F.leaky_relu(v, 0.1)),
        (("clip", 0.0, 6.0), F.relu6),
        (("clip", -1.0, 2.0), lambda v: F.hardtanh(v, -1.0, 2.0)),
    ],
)
@pytest.mark.parametrize("g", [1.0, 0.3])
def test_prox(activation, function, g):
    """With g = 1 it is the activation; for any g it minimises 1/2 (w - v)^2 + g f(w)."""
    v = np.linspace(-9, 9, 37)
    if g == 1.0:
        np.testing.assert_allclose(
            prox(activation, v), function(torch.tensor(v)).numpy(), rtol=1e-14
        )
    one = torch.zeros(1, 1, dtype=torch.float64)
    penalty = Oracle([row("r", "x", lambda u: 0 * u, None, activation)], one)
    grid = np.linspace(-10, 10, 2001)
    # objective of this row is 1/2 w^2 + f(w); take the square off again
    f = np.array([penalty.objective(np.array([w])) - 0.5 * w * w for w in grid])
    for value, got in zip(v, prox(activation, v, g), strict=True):
        best = grid[np.argmin(0.5 * (grid - value) ** 2 + g * f)]
        assert abs(best - got) <= 0.011


@pytest.mark.parametrize(("case", "layout"), BOTH)
def test_sweeps_descend_and_reach_the_optimum(case, layout):
    oracle = oracle_of(case, layout)
    best, least = optimum_of(case, layout)
    assert oracle.violation(best) < 1e-9
    values = [oracle.objective(w) for w in itertools.islice(oracle.trajectory(), 301)]
    scale = max(abs(least), abs(values[0]))
    assert values[0] > least + 1e-3 * abs(least)  # the feed-forward pass is not the optimum
    assert all(b <= a + 1e-12 * scale for a, b in itertools.pairwise(values))
    w = oracle.sweeps(3000)
    assert -1e-12 * scale <= oracle.objective(w) - least <= 1e-6 * abs(least)


@pytest.mark.parametrize(("case", "layout"), BOTH)
@pytest.mark.parametrize("variant", ["unscaled_threshold", "extrapolation_as_printed"])
def test_the_paper_as_printed_misses(case, layout, variant):
    oracle = oracle_of(case, layout)
    least = optimum_of(case, layout)[1]
    value = oracle.objective(oracle.literal_paper(500, variant))
    assert math.isnan(value) or value > least + 1e-5 * abs(least)


@pytest.mark.parametrize(("case", "layout"), BOTH)
def test_extrapolation_reaches_the_same_point(case, layout):
    oracle = oracle_of(case, layout)
    least = optimum_of(case, layout)[1]
    w = oracle.sweeps(3000, alpha=dict.fromkeys(oracle.names, 0.6))
    assert oracle.objective(w) - least <= 1e-6 * abs(least)


def test_one_sweep_is_proximal_gradient_by_autograd():
    """Each update equals prox of a step along autograd's gradient of the smooth part."""
    oracle = oracle_of(CASES[1], "auto")
    steps = {k: 0.7 / v for k, v in oracle.lipschitz().items()}
    matrix, signal, lam = (torch.tensor(v) for v in (oracle.B, oracle.y, oracle.lam))
    w, previous = torch.tensor(oracle.w0), torch.tensor(oracle.w0)
    for _ in range(3):
        start = w.clone()
        for name in oracle.names:
            column = oracle.columns[name]
            v = w.clone()
            v[column] += 0.4 * (w[column] - previous[column])
            v.requires_grad_()
            (0.5 * (matrix @ v - signal).square().sum() + lam @ v).backward()
            w[column] = F.relu(v.detach() - steps[name] * v.grad)[column]
        previous = start
    np.testing.assert_allclose(oracle.sweeps(3, steps, 0.4), w.numpy(), rtol=0, atol=1e-13)


@pytest.mark.parametrize(("case", "layout"), BOTH)
def test_layered_pursuit_solves_its_rows(case, layout):
    oracle = oracle_of(case, layout)
    np.testing.assert_array_equal(oracle.layered(0), oracle.w0)
    if (
        layout == "encoder"
        and "x"
        not in {  # encoder rows are the feed-forward layers
            k for r in oracle.rows[1:] for s in r.slots for k in s.leaves
        }
    ):
        w = oracle.layered(7)
        for name in oracle.names[1:]:
            column, line = oracle.columns[name], oracle.lines[name]
            pre = oracle._signal(name, w) - oracle.lam[column]
            activation = rows_of(case, layout)[name].activation
            np.testing.assert_allclose(w[column], prox(activation, pre), rtol=0, atol=1e-12)
    first, line = oracle.columns[oracle.names[0]], oracle.lines[oracle.names[0]]
    alone = [
        0.5 * np.sum((oracle.B[line, first] @ w[first] - oracle.y[line]) ** 2)
        + oracle.lam[first] @ w[first]
        + 0.5 * oracle.curvature[first] @ np.minimum(w[first], 0) ** 2
        for w in (oracle.layered(t) for t in range(6))
    ]
    assert all(b <= a + 1e-12 * abs(alone[0]) for a, b in itertools.pairwise(alone))


@pytest.mark.parametrize(("case", "layout"), BOTH)
def test_lipschitz_is_the_definition(case, layout):
    oracle = oracle_of(case, layout)
    for name, value in oracle.lipschitz().items():
        column, line = oracle.columns[name], oracle.lines[name]
        own = oracle.B[line, column]
        gram = own.T @ own
        for later in oracle.names[oracle.names.index(name) + 1 :]:
            block = oracle.B[oracle.lines[later], column]
            gram = gram + block.T @ block
        assert value == pytest.approx(np.linalg.eigvalsh(gram).max(), rel=1e-12)
    only = oracle.names[0]
    assert oracle.lipschitz(only) == {only: oracle.lipschitz()[only]}


def test_unbounded_problems_are_reported():
    """Overcomplete, negative thresholds: no optimum, and the oracle says so."""
    x = torch.zeros(1, 1, dtype=torch.float64)
    layer = nn.Linear(1, 2).double()
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0], [-1.0]]))
        layer.bias.copy_(torch.tensor([1.0, 1.0]))
    oracle = Oracle([row("r", "x", None, layer)], x)
    with pytest.raises(RuntimeError, match="no optimum"):
        oracle.optimum()


@settings(max_examples=40, deadline=None)
@given(random_net())
def test_random_nets_run_and_trace(drawn):
    model, x = drawn
    y = model(x.clone())
    assert y.shape == (2, 3)
    assert torch.isfinite(y).all()
    traced = fx.symbolic_trace(model)
    assert torch.equal(traced(x.clone()), y)
    assert any(step.op == "relu" for step in model.steps)
    model.train()
    leaf = x.clone().requires_grad_()
    model(leaf).sum().backward()
    assert leaf.grad is not None
    assert all(p.grad is not None for p in model.parameters())


@settings(max_examples=40, deadline=None)
@given(random_net())
def test_random_nets_overwrite_only_what_nothing_else_reads(drawn):
    model, x = drawn
    kept = x.clone()
    respelled = {"inplace": "torch", "functional_": "torch", "method_": "torch", "iadd": "plus"}
    expected = model(x)
    assert torch.equal(x, kept)
    model.steps = tuple(
        type(s)(s.op, s.reads, respelled.get(s.how, s.how), s.key, s.settings) for s in model.steps
    )
    assert torch.equal(model(x), expected)
