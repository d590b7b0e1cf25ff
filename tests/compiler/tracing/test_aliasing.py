"""The values that may share memory are never fewer than do, and no in-place write is lost."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision  # its rules, too
from torch import Tensor, fx, nn

from pursuitify import ConversionError, explain, pursuitify
from pursuitify.compiler.tracing import aliasing
from pursuitify.compiler.tracing import nodes as _nodes
from pursuitify.compiler.tracing.functionalise import functionalise
from pursuitify.compiler.tracing.nodes import is_inplace
from pursuitify.compiler.tracing.trace import trace
from pursuitify.rules import Rule, default
from tests.support.architectures import ARCHITECTURES
from tests.support.ops import OPS

assert torchvision.__version__
X, V, SQUARE = torch.randn(1, 4, 1, 1), torch.ones(4), torch.eye(1)
#: Per rule that promises memory of its own, calls that have the least to do.
CALLS: dict[str, Callable[[int], list[tuple[Any, ...]]]] = {
    "conv": lambda d: [(torch.ones(4, 1, *[1] * d), None, 1, 0, 1, 4)],
    "conv_transpose": lambda d: [(torch.ones(4, 1, *[1] * d), None, 1, 0, 0, 4)],
    "linear": lambda _: [(SQUARE,)],
    "matmul": lambda _: [(SQUARE,)],
    "addmm": lambda _: [(SQUARE, SQUARE)],
    "softshrink": lambda _: [(0.0,)],
    **dict.fromkeys(
        ("tanh", "sigmoid", "hardsigmoid", "softsign", "logsigmoid", "softplus", "elu", "celu"),
        lambda _: [()],
    ),
    "group_norm": lambda _: [(2,)],
    "instance_norm": lambda _: [()],
    "layer_norm": lambda d: [((2,) * d,)],
    "rms_norm": lambda d: [((2,) * d,)],
    "local_response_norm": lambda _: [(2,)],
    "roll": lambda _: [(0, 1), (0,)],
    "batch_norm": lambda _: [(0 * V, V)],
    "add": lambda _: [(0,), (0 * X,)],
    "sub": lambda _: [(0,), (0 * X,)],
    "mul": lambda _: [(1,), (X,)],
    "div": lambda _: [(1,), (X,)],
    "neg": lambda _: [()],
    "clone": lambda _: [()],
    "relu": lambda _: [()],
    "relu6": lambda _: [()],
    "threshold": lambda _: [(0.0, 0.0)],
    "hardtanh": lambda _: [(-1.0, 1.0)],
    "clamp": lambda _: [(0,), (-9.0, 9.0)],
    "clamp_min": lambda _: [(0,)],
    "leaky_relu": lambda _: [(1.0,)],
    "prelu": lambda _: [(torch.ones(1),)],
    "mean": lambda _: [(2,), ((2, 3), True)],
    "sum_": lambda _: [(2,), ((2, 3), True)],
    "max_pool": lambda _: [(1,), (1, 1)],
    "adaptive_max_pool": lambda d: [(1,), ((1,) * d,), ((2,) * d,)],
    "average_pool": lambda _: [(1,), (1, 1)],
    "adaptive_average_pool": lambda d: [(1,), ((1,) * d,), ((2,) * d,)],
    "padding": lambda d: [((0,) * 2 * d,)],
    "resample": lambda _: [(None, 1), (1, None)],
    "chosen_values": lambda _: [("max", 2), ("sort", 2)],
    "extreme": lambda _: [(2,), ((2,), True)],
    "maximum": lambda _: [(0 * X - 9,), (0 * X + 9,)],
    "tensordot": lambda _: [(SQUARE, 1)],
    "flip": lambda _: [((2,),), ((),)],
    "flip_left_right": lambda _: [()],
    "rotate": lambda _: [(0, (1, 2)), (1, (1, 2)), (2, (1, 2))],
    "repeat": lambda d: [((1,) * (d + 2),)],
    "repeat_interleave": lambda _: [(1, 2)],
    "index_select": lambda _: [(2, torch.zeros(1, dtype=torch.long))],
    "unfold": lambda _: [(1,)],
    "flip_up_down": lambda _: [()],
    "cumulative_sum": lambda _: [(2,), (1,)],
    "difference": lambda _: [(1, 1), (1, 2)],
    "triangle": lambda _: [(0,), (9,), (-9,)],
    "masked_fill": lambda _: [(torch.zeros(1, dtype=torch.bool), 0.0)],
    "lerp": lambda _: [(0 * X, 0.0), (0 * X, X * 0)],
    "where": lambda _: [(0 * X, torch.ones(1, dtype=torch.bool))],
    "reversed_sub": lambda _: [(0,), (0 * X,)],
    "gather": lambda d: [(1, torch.zeros((1,) * (d + 2), dtype=torch.long))],
    "take_along_dim": lambda d: [(torch.zeros((1,) * (d + 2), dtype=torch.long), 1)],
    "index_add": lambda _: [(0 * X, 1, torch.arange(4))],
    "scatter_add": lambda d: [(0 * X, 1, torch.zeros((1,) * (d + 2), dtype=torch.long))],
    "matrix_vector": lambda _: [(torch.ones(1),)],
    "inner": lambda _: [(SQUARE,), (torch.ones(1, 1),)],
    "kronecker": lambda _: [(torch.ones(1),)],
    "added": lambda _: [(0 * X, X + 1), (X, X + 1)],
    "addmv": lambda _: [(SQUARE, torch.ones(1)), (0 * SQUARE, torch.ones(1))],
    "baddbmm": lambda _: [(torch.zeros(1, 4, 2), torch.ones(1, 2, 1))],
    "positive_part": lambda _: [(torch.float32,)],
}
MODULES: dict[str, Callable[[int], list[tuple[Any, ...]]]] = {
    **CALLS,
    "conv": lambda _: [(4, 4, 1)],
    "conv_transpose_module": lambda _: [(4, 4, 1)],
    "unfold": lambda _: [(1,)],
    "linear": lambda _: [(1, 1)],
    "batch_norm": lambda _: [(4,)],
    "group_norm": lambda _: [(2, 4)],
    "instance_norm_module": lambda _: [(4,)],
    "prelu": lambda _: [()],
    "padding": lambda _: [(0,)],
    "fixed_padding": lambda _: [(0,)],
}
#: What takes matrices.
MATRICES = {"mm", "linear", "Linear", "matmul", "addmm", "mv", "inner", "_sparse_mm", "spmm"}
#: What takes or returns integers, or windows: nothing of it can lie in the memory of ``x``.
APART = {
    "compared",
    "embedding",
    "embedding_bag",
    "one_hot",
    "frozen_indices",
    "max_unpool",
    "fold",
}
FRESH = [(key, rule) for key, rule in default().items() if rule.fresh and rule.name not in APART]
NAMES = [f"{getattr(k, '__name__', k)}" for k, _ in FRESH]


def shares(first: Any, second: Any) -> bool:
    """Whether two tensors lie in one memory."""
    both = isinstance(first, Tensor) and isinstance(second, Tensor)
    return both and first.untyped_storage().data_ptr() == second.untyped_storage().data_ptr()


def results(key: Any, rule: Rule, x: Tensor) -> list[Tensor]:
    """Call what has the rule on ``x``, in each of its spellings."""
    dims = x.dim() - 2
    if isinstance(key, type):
        if key in {nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d}:
            made = [key(0, 0.0)]
        elif rule.name == "resample":
            made = [key(scale_factor=1), key(size=tuple(x.shape[2:]))]
        else:
            made = [key(*args).eval() for args in MODULES[rule.name](dims)]
        return [module(x) for module in made]
    if key is torch.bmm or key == "bmm":
        return [torch.bmm(x.reshape(1, -1, 1), SQUARE[None])]
    if rule.name == "laid":
        return [key([x])]
    if rule.name in {"cat", "stack"}:
        return [key([x]), key([x], 1)]
    if key is torch.batch_norm:
        return [key(x, V, V, 0 * V, V, False, 0.1, 0.0, False)]
    call = (lambda *a: getattr(x, key)(*a[1:])) if isinstance(key, str) else key
    return [call(x, *args) for args in CALLS[rule.name](dims)]


@pytest.mark.parametrize(("key", "rule"), FRESH, ids=NAMES)
def test_a_fresh_result_has_memory_of_its_own(key: Any, rule: Rule) -> None:
    name = str(getattr(key, "__name__", key))
    if name.endswith("_") or name in {"iadd", "isub", "imul", "itruediv"}:
        pytest.skip("writes in place")
    tried = 0
    for dims in (1, 2, 3):
        for x in (torch.rand(1, 4, *[1] * dims), torch.rand(1, 4, *[2] * dims)):
            if name in MATRICES:
                x = x.flatten(1)[:, :1]
            if name in {"outer", "ger", "addmv"}:
                x = x.flatten()[:1]
            if isinstance(key, type) and name[-2:] in {"1d", "2d", "3d"} and name[-2] != str(dims):
                continue
            try:
                made = results(key, rule, x)
            except (RuntimeError, ValueError, IndexError, NotImplementedError):
                continue
            tried += 1
            assert not any(shares(x, y) for y in made)
    assert tried


def test_every_other_rule_may_hand_its_operand_on() -> None:
    """Whatever the rule, present or future: a write through its result is never lost."""
    for key, rule in default().items():
        if rule.fresh:
            continue
        graph = fx.Graph()
        root = nn.Module()
        root.conv, root.node = nn.Conv2d(3, 4, 1), nn.Identity()
        h = graph.call_module("conv", (graph.placeholder("x"),))
        if isinstance(key, type):
            root.node = key.__new__(key)
            nn.Module.__init__(root.node)
            value = graph.call_module("node", (h,))
        else:
            make = graph.call_method if isinstance(key, str) else graph.call_function
            value = make(key, (h, 0, 2))
        z = graph.call_function(F.relu, (value,), {"inplace": True})
        graph.output(graph.call_function(torch.add, (z, h)))
        with pytest.raises(ConversionError, match="may share memory with conv"):
            functionalise(graph, root)


def assert_predicted(model: nn.Module, *inputs: Tensor) -> None:
    """Run a traced model node by node: values that share memory must be known to."""
    traced = trace(model, training=model.training)
    graph = traced.graph
    for constant, value in traced.constants.items():
        if "." not in constant:
            model.register_buffer(constant, value)
    writes: dict[Any, Any] = {n: n.args[0] for n in graph.nodes if n.args and is_inplace(n, model)}
    owners = aliasing.origins(graph, model, default(), writes)
    values: dict[fx.Node, Any] = {}

    class Watch(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            values[n] = super().run_node(n)
            return values[n]

    Watch(fx.GraphModule(model, graph), garbage_collect_values=False).run(*inputs)
    nodes = [n for n in values if n.op != "output" and not _nodes.is_shape(n)]
    for i, first in enumerate(nodes):
        for second in nodes[:i]:
            if shares(values[first], values[second]):
                parts = first.meta.get("split") == second.meta.get("split")
                assert parts or aliasing.overlap(owners[first], owners[second]), (first, second)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", OPS)
def test_sharing_of_operations_is_known(name: str, training: bool) -> None:
    assert_predicted(OPS[name]().train(training), torch.randn(2, 3, 8, 8))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_sharing_of_architectures_is_known(name: str) -> None:
    build, shapes = ARCHITECTURES[name]
    assert_predicted(build().eval(), *(torch.randn(2, *shape) for shape in shapes))


class Written(nn.Module):
    """conv; a write through what ``body`` makes of its value; the value is read afterwards."""

    def __init__(self, body: Any) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        return F.relu(self.b(self.body(h)) + h)


class Through(nn.Module):
    """ReLU written in place through what ``view`` makes of a value."""

    def __init__(self, view: Any) -> None:
        super().__init__()
        self.view = view

    def forward(self, h: Tensor) -> Tensor:
        return F.relu(self.view(h), inplace=True)


def deep(h: Tensor) -> Tensor:
    v = h.flatten(2)
    F.relu_(v.unflatten(2, (8, 8)))
    return v.unflatten(2, (8, 8))


def siblings(h: Tensor) -> Tensor:
    first, second = h.flatten(2), h.view(2, 4, 8, 8)
    first.relu_()
    return second


def pair(first: int, second: int) -> Any:
    def body(h: Tensor) -> Tensor:
        pieces = (2.0 * h).chunk(2, 1)
        a, b = pieces[first], pieces[second]
        return torch.cat([F.relu(a, inplace=True), b], 1)

    return body


REFUSED: dict[str, Any] = {
    "dropout": Through(nn.Dropout(0.1)),
    "dropout1d": Through(lambda h: F.dropout1d(h.flatten(2), 0.1, False).unflatten(2, (8, 8))),
    "dropout2d": Through(nn.Dropout2d(0.1)),
    "alpha": Through(nn.AlphaDropout(0.1)),
    "feature_alpha": Through(nn.FeatureAlphaDropout(0.1)),
    "f_dropout": Through(lambda h: F.dropout(h, 0.1, False)),
    "f_dropout2d": Through(lambda h: F.dropout2d(h, 0.1, False)),
    "torch_dropout": Through(lambda h: torch.dropout(h, 0.1, False)),
    "stochastic_depth": Through(torchvision.ops.StochasticDepth(0.1, "row")),
    "broadcast_to": Through(lambda h: torch.broadcast_to(h, (2, 4, 8, 8))),
    "expand": Through(lambda h: h.expand(2, -1, -1, -1)),
    "to": Through(lambda h: h.to(h.dtype)),
    "attribute": Through(lambda h: h.mT),
    "shuffle": Through(nn.PixelShuffle(1)),
    "channels": Through(nn.ChannelShuffle(1)),
    "slice": Through(lambda h: h[:, :4]),
    "deep": deep,
    "siblings": siblings,
    "same_piece": pair(0, 0),
    "same_piece_from_the_end": pair(0, -2),
}


@pytest.mark.parametrize("name", REFUSED)
def test_writes_through_views_are_refused(name: str) -> None:
    model = Written(REFUSED[name]).eval()
    (problem,) = explain(model).problems
    assert "may share memory" in problem.reason
    with pytest.raises(ConversionError, match="may share memory"):
        pursuitify(model)


TAKEN: dict[str, Any] = {
    "inlined": Through(lambda h: torchvision.ops.stochastic_depth(h, 0.1, "row", False)),
    "clone": Through(lambda h: nn.functional.dropout2d(h, 0.1, False).clone()),
    "sigmoid_gate": lambda h: F.relu(h * torch.sigmoid(h), inplace=True),
    "pool": Through(nn.AvgPool2d(1)),
    "two_pieces": pair(0, 1),
    "two_pieces_the_other_way": pair(1, 0),
}


@pytest.mark.parametrize("name", TAKEN)
def test_writes_into_memory_of_its_own_convert(name: str) -> None:
    model, x = Written(TAKEN[name]).double().eval(), torch.randn(2, 3, 8, 8).double()
    with torch.no_grad():
        net = pursuitify(model, iterations=2, step_scale=1e-12)
        torch.testing.assert_close(net(x), model(x), rtol=0, atol=1e-9)
