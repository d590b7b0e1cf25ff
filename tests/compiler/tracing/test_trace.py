"""Tracing: branches on sizes are guarded, modes and state watched, the model stays as it was."""

from __future__ import annotations

import copy
import functools
import random
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pursuitify import InputError, TraceError, explain, pursuitify
from pursuitify.compiler.tracing import trace as tracing
from pursuitify.compiler.tracing.trace import trace, trace_modes
from pursuitify.network.pursuit_network import slots
from tests.support.agreement import assert_same_state, compare, error, state
from tests.support.ops import NormAct, NormActInline


class Net(nn.Module):
    """fc, relu, what ``body`` does with the module and the value, fc, relu."""

    def __init__(self, body: Any) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(4, 4), nn.Linear(4, 4)
        self.body, self.training_seen, self.calls = body, None, 0
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.fc2(self.body(self, F.relu(self.fc1(x)))))


def raising(_self: Any, x: Tensor) -> Tensor:
    if x.shape[1] != 4:
        raise ValueError("four features")
    return x


def asserting(_self: Any, x: Tensor) -> Tensor:
    assert x.dim() == 2
    assert x.shape[1] == 4
    assert len(x.shape) == 2
    return x


def either(_self: Any, x: Tensor) -> Tensor:
    return 2 * x if x.shape[0] > 2 else x


def nested(_self: Any, x: Tensor) -> Tensor:
    if x.size(0) == 7:
        raise ValueError
    if x.size(1) == 4:
        return x
    if x.size(1) == 5:
        return -x
    raise ValueError


@pytest.mark.parametrize("body", [raising, asserting, nested])
def test_size_checks_are_followed(body: Any) -> None:
    model = Net(body).double()
    x = torch.randn(3, 4, dtype=torch.float64)
    for training in (False, True):
        compare(pursuitify, model, x, training=training, tolerance=1e-12)


class OwnError(Exception):
    """An error of a kind that no library knows."""


def of_size(size: int) -> int:
    if size != 250:
        raise OwnError("another number of samples")
    return size


torch.fx.wrap("of_size")


def raising_its_own(_self: Any, x: Tensor) -> Tensor:
    if x.shape[0] != 250:
        raise OwnError("another number of samples")
    return x


#: Bodies that no usual number of samples fits, with a question that has the model itself run.
DEMANDING = {
    "assert": lambda _self, x: (_demands(hasattr(x, "shape"), x.shape[0] == 250), x)[1],
    "torch._assert": lambda _self, x: (
        torch._assert(hasattr(x, "shape") and x.shape[0] == 250, f"{x.shape[0]} is not 250"),
        x,
    )[1],
    "raised": lambda self, x: raising_its_own(self, x) if hasattr(x, "shape") else x,
    "wrapped": lambda _self, x: (of_size(x.shape[0]), getattr(x, "shape"), x)[2],  # noqa: B009
}


def _demands(asked: bool, condition: bool) -> None:
    assert asked
    assert condition


@pytest.mark.parametrize("example", [False, True])
@pytest.mark.parametrize("name", DEMANDING)
def test_what_a_model_raises_on_other_sizes_escapes_no_conversion(name: str, example: bool) -> None:
    model, x = Net(DEMANDING[name]).double(), torch.randn(250, 4, dtype=torch.float64)
    given = {"example_inputs": x} if example else {}
    assert explain(model, **given).ok
    compare(functools.partial(pursuitify, **given), model, x, training=False, tolerance=1e-12)
    with pytest.raises((InputError, OwnError)):
        pursuitify(model, **given)(x[:9])


def test_the_text_of_an_assertion_costs_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*args: Any, **kwargs: Any) -> Any:
        traces.append(kwargs)
        return once(*args, **kwargs)

    def body(plain: bool, _self: Any, x: Tensor) -> Tensor:
        size, other = x.shape
        if plain:
            torch._assert(size > 0, "too few")
        else:
            torch._assert(size > 0, f"{size} of {pair[0]:2}: too few, {other:3} {pair[1] - 1}")
        return x

    pair = (4, 5)
    once, traces = tracing._run, list[Any]()
    monkeypatch.setattr(tracing, "_run", run)
    counts = []
    for plain in (True, False):
        traces.clear()
        assert explain(Net(functools.partial(body, plain))).ok
        counts.append(len(traces))
    assert counts[0] == counts[1]


def _tells(condition: bool, text: str, kept: list[str]) -> None:
    torch._assert(condition, text)
    kept.append(text)


def _kept(kept: list[str], _condition: bool, text: str) -> None:
    kept.append(text)


def told(_self: Any, x: Tensor) -> Tensor:
    kept: list[str] = []
    _tells(x.shape[0] > 0, f"{x.shape[0]}", kept)
    return 2 * x if kept[0] == "3" else x


def told_in_a_loop(_self: Any, x: Tensor) -> Tensor:
    kept: list[str] = []
    for call in (functools.partial(_kept, kept), torch._assert):
        call(x.shape[0] > 0, f"{x.shape[0]}")
    return 2 * x if kept[0] == "3" else x


def told_first(_self: Any, x: Tensor) -> Tensor:
    torch._assert({"3": x.shape[0] > 9}.get(f"{x.shape[0]}", True), "three")
    return 2 * x if f"{x.shape[0]}" in {"3": 0} else x


def told_before(_self: Any, x: Tensor) -> Tensor:
    text = f"{x.shape[0]}"
    torch._assert(x.shape[0] > 0, text)
    return 2 * x if text == "3" else x


@pytest.mark.parametrize("body", [told, told_in_a_loop, told_first, told_before])
def test_a_text_that_goes_elsewhere_than_to_an_assertion_needs_an_example(body: Any) -> None:
    with pytest.raises(TraceError, match="its text"):
        pursuitify(Net(body))


def checked(_self: Any, x: Tensor) -> Tensor:
    torch._check(x.shape[0] == 3, lambda: "three")
    return x


def asserted_value(_self: Any, x: Tensor) -> Tensor:
    assert (x >= 0).all(), "negative"
    return x


def asserted_as_said(_self: Any, x: Tensor) -> Tensor:
    torch._assert((x >= 0).all(), "negative")
    torch._assert(x.shape[0] == 3, "three")
    return x


@pytest.mark.parametrize(
    ("body", "said"),
    [(checked, "write assert condition"), (asserted_value, r"Write torch\._assert\(condition")],
)
def test_an_assertion_that_cannot_be_traced_says_how_to_write_it(body: Any, said: str) -> None:
    with pytest.raises(TraceError, match=said):
        pursuitify(Net(body))
    x = torch.randn(3, 4, dtype=torch.float64)
    compare(pursuitify, Net(asserted_as_said).double(), x.abs(), training=False, tolerance=1e-12)


def test_a_forward_that_raises_whatever_the_sizes_is_said_to() -> None:
    def body(_self: Any, x: Tensor) -> Tensor:
        raise OwnError("never")

    with pytest.raises(TraceError, match=r"OwnError: never\. The forward raises this itself"):
        pursuitify(Net(body))


@pytest.mark.parametrize("sweeps", [0, 2])
def test_the_branch_not_taken_is_an_error(sweeps: int) -> None:
    net = pursuitify(Net(either), iterations=sweeps)
    net(torch.randn(2, 4))
    with pytest.raises(InputError, match=r"shape\[0\] > 2.*False"):
        net(torch.randn(3, 4))


def test_isinstance_sees_a_tensor() -> None:
    def body(_self: Any, x: Any) -> Tensor:
        return 2 * x if isinstance(x, Tensor) and torch.is_tensor(x) else x

    compare(pursuitify, Net(body).double(), torch.randn(2, 4).double(), training=False)


def test_in_place_counters_in_buffers_run_once_per_forward() -> None:
    def body(self: Any, x: Tensor) -> Tensor:
        self.calls += 1
        self.count += 1
        return x

    model = Net(body)
    before, calls = state(model), model.calls
    net = pursuitify(model)
    assert model.calls == calls
    assert_same_state(before, state(model))
    for sweeps in (0, 3):
        net.iterations = sweeps
        expected = float(net.count) + 1
        net(torch.randn(2, 4))
        assert float(net.count) == expected


def test_replaced_buffers_are_refused() -> None:
    def body(self: Any, x: Tensor) -> Tensor:
        self.count = self.count * 0.9 + x.mean()
        return x

    with pytest.raises(TraceError, match="buffer 'count'"):
        pursuitify(Net(body))


def test_python_state_that_matters_is_refused() -> None:
    def body(self: Any, x: Tensor) -> Tensor:
        self.calls += 1
        return x if self.calls > 1 else 2 * x

    with pytest.raises(TraceError, match="called again"):
        pursuitify(Net(body))


@pytest.mark.parametrize("draw", [random.random, lambda: float(torch.rand(()))])
def test_random_control_flow_is_refused(draw: Any) -> None:
    def body(_self: Any, x: Tensor) -> Tensor:
        return x if draw() < 0.5 else 2 * x

    model = Net(body)
    random.seed(3)
    torch.manual_seed(3)
    expected = (random.random(), float(torch.rand(())))
    random.seed(3)
    torch.manual_seed(3)
    with pytest.raises(TraceError, match="random numbers"):
        pursuitify(model)
    assert (random.random(), float(torch.rand(()))) == expected


def test_hooks_are_refused() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    handle = model[0].register_forward_hook(lambda _m, _a, y: 2 * y)
    (problem,) = explain(model).problems
    assert "hooks" in problem.reason
    handle.remove()
    model.register_forward_pre_hook(lambda _m, x: x)
    with pytest.raises(TraceError, match="hooks"):
        pursuitify(model)


@pytest.mark.parametrize("layer", [NormAct, NormActInline])
def test_the_model_is_bit_identical_afterwards(layer: Any) -> None:
    """Tracing in train mode with a bare tracer really counts batches."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), layer(4), nn.Conv2d(4, 4, 3), nn.ReLU()).train()
    twin = copy.deepcopy(model)
    pursuitify(model)
    explain(model)
    assert_same_state(state(twin), state(model))
    assert model.training
    assert int(model[1].num_batches_tracked) == 0
    for mine, theirs in zip(model.modules(), twin.modules(), strict=True):
        plain = {k: v for k, v in vars(theirs).items() if isinstance(v, (bool, int, float, str))}
        assert plain == {k: vars(mine)[k] for k in plain}


def test_mixed_modes_are_exact_or_refused() -> None:
    """A leaf BatchNorm reads its own mode; inlined code has it fixed, and says so."""
    x = torch.randn(4, 3, 8, 8)
    leaf = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).train()
    net = pursuitify(leaf, iterations=0)
    leaf[1].eval()
    net.get_submodule("1").eval()
    assert error(net(x), leaf(x)) == 0
    inlined = pursuitify(nn.Sequential(nn.Conv2d(3, 4, 3), NormAct()).train(), iterations=0)
    inlined(x)
    inlined.get_submodule("1").eval()
    for sweeps in (0, 1):
        inlined.iterations = sweeps
        with pytest.raises(InputError, match="module '1' is in eval mode"):
            inlined(x)
    inlined.eval()
    inlined(x)


def test_one_program_where_the_modes_agree() -> None:
    traces = trace_modes(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU()))
    assert traces[True] is traces[False]


class Auxiliary(nn.Module):
    """An auxiliary branch in training mode, before calls of the same functions."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.aux = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Any:
        x = F.relu(self.fc1(x))
        aux = F.relu(self.aux(x)) if self.training else None
        x = F.relu(self.fc2(x))
        return (x, aux) if self.training else x


def test_latents_have_one_name_in_both_modes() -> None:
    traces = trace_modes(Auxiliary())
    names = {
        mode: {n.name: n.all_input_nodes[0].name for n in t.graph.nodes if n.target is F.relu}
        for mode, t in traces.items()
    }
    assert names[True] == {"relu": "fc1", "relu_1": "aux", "relu_2": "fc2"}
    assert names[False] == {"relu": "fc1", "relu_2": "fc2"}


def test_augmented_assignment_keeps_aliases() -> None:
    def body(_self: Any, x: Tensor) -> Tensor:
        y = x
        y += 1.0
        return x * 2 + y

    compare(pursuitify, Net(body).double(), torch.randn(2, 4).double(), training=False)


def test_parametrised_modules_run_their_parametrisation_once() -> None:
    conv = nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4))
    names = [n.op for n in trace(nn.Sequential(conv, nn.ReLU()), training=True).graph.nodes]
    assert names.count("call_module") == 2  # the parametrisation and the ReLU


def test_slots_follow_names() -> None:
    trained, evaluated, count = slots(["a", "aux", "b"], ["a", "b", "c"])
    assert (trained, evaluated, count) == ([0, 1, 2], [0, 2, 3], 4)


def shouting(_self: Any, x: Tensor) -> Tensor:
    print("here", x.shape)
    return x * x.size(1) if x.dim() == 2 else x


PRINTING = {
    "once": lambda _self, x: (print("here"), x)[1],
    "tensor": lambda _self, x: (print("here", x), x)[1],
    "sizes": shouting,
    "mode": lambda self, x: (print("here", self.training), x)[1],
    "flushed": lambda _self, x: (print("here", flush=True), x)[1],
    "compared": lambda _self, x: (print("here"), x if x.dtype is None else 2 * x)[1],
    "wrong at first": lambda self, x: (print("here"), raising(self, x))[1],
}


@pytest.mark.parametrize("example", [False, True])
@pytest.mark.parametrize("name", PRINTING)
def test_a_forward_that_prints_is_heard_once(
    name: str, example: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """A forward is traced several times, in both modes, and run on example inputs."""
    inputs = torch.rand(2, 4) if example else None
    pursuitify(Net(PRINTING[name]).eval(), example_inputs=inputs)
    assert capsys.readouterr().out.count("here") == 1
    assert explain(Net(PRINTING[name]).eval()).ok
    assert capsys.readouterr().out.count("here") == 1


def test_a_forward_that_is_refused_is_heard_once(capsys: pytest.CaptureFixture[str]) -> None:
    def body(_self: Any, x: Tensor) -> Tensor:
        print("here")
        return F.gelu(x)

    assert not explain(Net(body).eval()).ok
    assert capsys.readouterr().out.count("here") == 1
