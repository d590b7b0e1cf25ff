"""The tracer at the edge to Python: what a forward may do with a tensor, and branches on sizes."""

from __future__ import annotations

import copy
import math
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn

from pursuitify import InputError, OptionError, PursuitifyError, TraceError, explain, pursuitify
from pursuitify.compiler.tracing.trace import trace, trace_modes
from pursuitify.rules import frozen
from tests.support.agreement import compare, error
from tests.support.examples import examples

IDIOMS = Path(__file__).resolve().parents[2] / "support" / "idioms.py"
#: Idioms that must not only be survived: they convert, wherever in the network they stand.
CONVERTS = {
    "plain", "isinstance", "is_tensor", "isinstance of an attribute", "not a parameter",
    "__class__", "no number", "as_tensor", "as_tensor of a dtype", "asarray", "checkpoint",
    "checkpoint of a function", "checkpoint in a checkpoint", "checkpoint without random states",
    "checkpoint_sequential", "saved tensors elsewhere", "|=", "format", "hash", "unbound method",
    "functional_call",
}  # fmt: skip


def test_no_idiom_ends_the_process_or_is_wrong() -> None:
    """In a process of its own, which the tracer of before did not survive."""
    run = subprocess.run(
        [sys.executable, IDIOMS], capture_output=True, text=True, timeout=600, check=False
    )
    lines = dict(line.rsplit(": ", 1) for line in run.stdout.splitlines())
    last = run.stdout.splitlines()[-1:]
    assert run.returncode == 0, (last, run.stderr[-2000:])
    assert len(lines) > 150
    wrong = {name: said for name, said in lines.items() if said not in {"same", "refused"}}
    assert not wrong
    converted = {name.rsplit(",", 1)[0] for name, said in lines.items() if said == "same"}
    refused = {name.rsplit(",", 1)[0] for name, said in lines.items() if said == "refused"}
    assert converted >= CONVERTS
    assert not CONVERTS & refused


def test_what_torch_does_not_see_is_named() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(self.fc(torch.tensor(F.relu(self.fc(x)))))

    with pytest.raises(TraceError, match="the traced value 'relu' to code that torch"):
        pursuitify(Net())


def test_a_mode_is_read_off_the_copy_alone() -> None:
    """Nothing is put on nn.Module, and what forwards do with the mode still works."""
    seen: list[bool] = []

    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.norm = nn.Linear(4, 4), nn.BatchNorm1d(4)

        def forward(self, x: Tensor) -> Tensor:
            seen.append("training" in vars(nn.Module))
            self.norm.eval()
            assert self.norm.training is False
            self.norm.train(self.training)
            assert hasattr(self, "training")
            assert [name for name, _ in self.named_buffers()] == names
            return F.relu(self.norm(self.fc(x))) if self.training else F.relu(self.fc(x))

    model = Reads().train()
    names = [name for name, _ in model.named_buffers()]
    traces = trace_modes(model)
    assert seen and not any(seen)  # noqa: PT018
    assert traces[True].modes == traces[False].modes == {}
    assert model.norm.training and "training" in vars(model)  # noqa: PT018

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.silent = Reads(), nn.Sequential(nn.Linear(4, 4), nn.ReLU())

        def forward(self, x: Tensor) -> Tensor:
            return self.silent(self.inner(x))

    assert set(trace(Outer(), training=True).modes) == {"inner"}


# -- branches on sizes ------------------------------------------------------------------------


class Branching(nn.Module):
    """A convolution, a branch, a convolution and a head."""

    def __init__(self, condition: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.fc, self.condition = nn.Linear(4, 2), condition

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv1(x))
        x = 2 * x if self.condition(x) else x
        return self.fc(F.relu(self.conv2(x)).mean((2, 3)))


def test_sizes_are_positive() -> None:
    always: list[Callable[[Tensor], Any]] = [
        lambda x: x.numel() > 0, lambda x: x.shape[1] != 0, lambda x: x.size(0) >= 1,
        lambda x: x.shape[-1] > 0, lambda x: x.shape[2] * x.shape[3] > 0,
        lambda x: x.numel() != 0,
        lambda x: -(-x.shape[2] // 2) * 2 >= x.shape[2], lambda x: max(x.shape[2] - 1, 0) >= 0,
        lambda x: (math.ceil(x.shape[2] / 2) - 1) * 2 + 3 - x.shape[2] > 0,
        lambda x: x.dtype == torch.float32, lambda x: x.device.type == "cpu",
        lambda x: x.device == x.new_zeros(1).device, lambda x: not x.is_cuda,
    ]  # fmt: skip
    for i, condition in enumerate(always):
        model = Branching(condition).eval()
        net = pursuitify(model, iterations=1)
        net.iterations = 0
        for size in (1, 2, 5, 32):
            x = torch.rand(1 + size % 2, 3, size, size + 1)
            assert error(net(x), model(x)) == 0, (i, size)


def test_a_branch_that_is_sure_is_not_turned_round() -> None:
    """What only the branch that no input takes could do is no conversion."""

    def condition(x: Tensor) -> bool:
        if x.numel() > 0:
            raise ValueError("never for an input")
        return True

    with pytest.raises(TraceError, match="never for an input"):
        pursuitify(Branching(condition))


def test_branches_that_exclude_each_other_are_refused_with_advice() -> None:
    """Once a branch is taken, what follows from it is; a way that no input goes is refused."""

    def follows(x: Tensor) -> bool:
        if x.shape[2] % 2 == 0:
            return False
        return bool(x.shape[2] % 2 == 1)

    model = Branching(follows).eval()
    net = pursuitify(model, iterations=0)
    x = torch.rand(1, 3, 7, 7)
    assert error(net(x), model(x)) == 0

    def excluded(x: Tensor) -> bool:
        if x.shape[2] % 2 == 0:
            raise ValueError("odd sizes alone")
        if x.shape[2] % 2 == 1:
            raise ValueError("no odd sizes")
        return True

    with pytest.raises(TraceError, match="example_inputs"):
        pursuitify(Branching(excluded))


@pytest.mark.parametrize(
    ("untraceable", "said"),
    [
        (lambda x: list(range(x.sum())), "__index__"),
        (lambda x: int(x.mean()), "__int__"),
        (lambda x: float(x.mean()), "__float__"),
    ],
)
@pytest.mark.parametrize("first", [False, True])
def test_what_no_example_can_mend_is_not_blamed_on_a_branch(
    untraceable: Callable[[Tensor], Any], said: str, first: bool
) -> None:
    """A branch on which the model itself raises an error is no way that an input goes."""

    def condition(x: Tensor) -> bool:
        if bool(x.shape[2] % 7 == 0) is first:
            raise ValueError("not this size")
        untraceable(x)
        return True

    for options in ({}, {"example_inputs": torch.rand(1, 3, 8 if first else 7, 7)}):
        with pytest.raises(TraceError, match=re.escape(said)) as caught:
            pursuitify(Branching(condition), **options)
        assert "example_inputs" not in str(caught.value)


@pytest.mark.parametrize(
    "sizes",
    [
        lambda x: [2 * s for s in x.shape[2:]],
        lambda x: tuple(2 * s for s in x.size()[-2:]),
        lambda x: [s * k for s, k in zip(x.shape[2:], (2, 2), strict=True)],
        lambda x: [2 * s for s in x.shape[:1:-1]][::-1],
        lambda x: [2 * x.shape[2:][i] for i in range(len(x.shape[2:]))],
    ],
)
def test_some_of_the_sizes_are_iterated(sizes: Callable[[Tensor], Any]) -> None:
    class Resizing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.conv2 = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.conv1(x))
            return F.relu(self.conv2(F.interpolate(x, size=sizes(x))))

    model = Resizing().double().eval()
    net = pursuitify(model, iterations=1)
    for shape in ((2, 3, 5, 7), (1, 3, 8, 6)):
        x = torch.rand(shape, dtype=torch.float64)
        assert net.verify(x).ok
        net.iterations = 0
        assert error(net(x), model(x)) == 0
        net.iterations = 1


def test_a_size_that_the_model_demands_is_found() -> None:
    """An equality with one number is one that inputs may have, so it stays a guess."""

    def demands(x: Tensor) -> bool:
        if x.shape[2] != 301:
            raise ValueError("301 pixels")
        return bool(x.shape[2] % 7 == 0)

    model = Branching(demands).eval()
    x = torch.rand(1, 3, 301, 5)
    assert error(pursuitify(model, iterations=0)(x), model(x)) == 0


CONDITIONS: dict[str, Callable[[Tensor, int], Any]] = {
    "shape": lambda x, n: x.shape[2] > n,
    "size": lambda x, n: x.size(-1) <= n,
    "modulo": lambda x, n: x.size()[-2:][0] % n == 0,
    "unpacked": lambda x, n: (lambda b, c, h, w: h * w >= n * b)(*x.shape),
    "rank": lambda x, n: len(x.shape) == n,
    "dim": lambda x, n: x.dim() > n,
    "batch": lambda x, n: x.shape[0] != n,
    "two sizes": lambda x, n: x.shape[2] == x.shape[3],
    "maximum": lambda x, n: max(x.shape[2], n) == n,
    "pooled": lambda x, n: F.max_pool2d(x, 2).shape[2] == n,
    "reshaped": lambda x, n: x.flatten(1).shape[1] > 4 * n * n,
    "dtype": lambda x, n: x.dtype == torch.float64,
}


@examples(
    12,
    200,
    names=st.lists(st.sampled_from(sorted(CONDITIONS)), min_size=1, max_size=3),
    n=st.integers(1, 9),
    sizes=st.tuples(st.integers(1, 4), st.integers(2, 12), st.integers(2, 12)),
    other=st.tuples(st.integers(1, 4), st.integers(2, 12), st.integers(2, 12)),
    training=st.booleans(),
)
def test_branches_go_as_the_example_says(
    names: list[str], n: int, sizes: Any, other: Any, training: bool
) -> None:
    """With it every branch converts and fits; any other input is right, or refused."""

    def condition(x: Tensor) -> bool:
        found = [bool(CONDITIONS[name](x, n)) for name in names]
        return sum(found) % 2 == 1

    model = Branching(condition).double().train(training)
    x = torch.rand(sizes[0], 3, *sizes[1:], dtype=torch.float64)
    net = pursuitify(model, iterations=0, example_inputs=x)
    assert explain(model, example_inputs=(x,)).ok
    assert error(net(x), model(x)) == 0
    y = torch.rand(other[0], 3, *other[1:], dtype=torch.float64)
    for made in (net, pursuitify(model, iterations=0)):
        try:
            output = made(y)
        except InputError as problem:
            assert "example_inputs" in str(problem)  # noqa: PT017
        else:
            assert error(output, model(y)) == 0


def test_an_example_leaves_no_trace() -> None:
    model = Branching(lambda x: x.shape[2] > 4).train()
    model.conv1 = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4))  # type: ignore[assignment]
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state, x = torch.get_rng_state(), torch.rand(2, 3, 8, 8, requires_grad=True)
    state = torch.get_rng_state()
    pursuitify(model, example_inputs=x)
    assert torch.equal(state, torch.get_rng_state())
    assert x.grad is None
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


@pytest.mark.parametrize(
    "example", [[torch.rand(1, 3, 8, 8)], (), (3,), "x", (torch.rand(1), torch.rand(1))]
)
def test_an_example_that_is_none_is_refused(example: Any) -> None:
    model = Branching(lambda x: True)
    with pytest.raises(OptionError, match="example_inputs"):
        pursuitify(model, example_inputs=example)
    assert not explain(model, example_inputs=example).ok


def test_an_example_with_several_arguments() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x: Tensor, y: Tensor, scale: float = 2.0) -> Tensor:
            x = F.relu(self.fc(x))
            return F.relu(self.fc(x + y if y.shape[0] > 2 else x)) * scale

    model, x = Two(), torch.rand(3, 4)
    net = pursuitify(model, iterations=0, example_inputs=(x, x))
    assert error(net(x, x), model(x, x)) == 0


def test_the_advice_is_given_where_a_guess_failed() -> None:
    def condition(x: Tensor) -> bool:
        if x.shape[2] % 5 == 3:
            return True
        raise ValueError(str(x.shape[0] > 1 and float(x.mean())))

    with pytest.raises(PursuitifyError):
        pursuitify(Branching(lambda x: float(x.mean()) if x.shape[2] % 5 == 3 else float(x.sum())))
    model, x = Branching(condition).eval(), torch.rand(1, 3, 8, 8)
    assert error(pursuitify(model, iterations=0, example_inputs=x)(x), model(x)) == 0


def _in_place(module: Any) -> None:
    module.seen += 1


def _by_method(module: Any) -> None:
    module.seen.add_(1)


@pytest.mark.parametrize("example", [None, torch.rand(2, 3, 8, 8)])
@pytest.mark.parametrize("write", [_in_place, _by_method])
def test_a_branch_after_a_written_buffer_is_decided(
    write: Callable[[Any], None], example: Tensor | None
) -> None:
    """The sizes are tried on the buffer as it was; on the traced one they recorded, unending."""

    class Counting(nn.Module):
        seen: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)
            self.register_buffer("seen", torch.zeros(3))

        def forward(self, x: Tensor) -> Tensor:
            write(self)
            x = F.relu(self.conv(x))
            if x.shape[2] > 1:
                x = x * 2
            return x * 3 if x.shape[3] > self.seen.shape[0] else x

    model, x = Counting().eval(), torch.rand(2, 3, 8, 8)
    before = model.seen.clone()
    traced = trace(model, training=False, example=() if example is None else (example,))
    assert torch.equal(model.seen, before)
    assert any(node.target == "seen" for node in traced.graph.nodes)
    if example is None:
        assert error(pursuitify(model, iterations=0)(x), model(x)) == 0


@pytest.mark.parametrize(
    "question",
    [
        lambda m, x: x.shape[3] > m.seen.shape[0],
        lambda m, x: m.seen.dim() == 1,
        lambda m, x: m.seen.dtype == torch.float32,
        lambda m, x: m.seen.device.type == "cpu",
        lambda m, x: x.shape[0] + m.seen.size(0) < 5,
    ],
)
@pytest.mark.parametrize("example", [None, torch.rand(2, 3, 8, 8)])
def test_a_branch_on_a_replaced_buffer_ends_in_the_refusal_of_the_write(
    question: Callable[[Any, Tensor], bool], example: Tensor | None
) -> None:
    class Replacing(nn.Module):
        seen: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)
            self.register_buffer("seen", torch.zeros(3))

        def forward(self, x: Tensor) -> Tensor:
            self.seen = self.seen + 1
            x = F.relu(self.conv(x))
            return x * 3 if question(self, x) else x

    with pytest.raises(TraceError, match="assigns a new tensor to its buffer 'seen'"):
        pursuitify(Replacing().eval(), example_inputs=example)


class Act(nn.Module):
    """A user's layer without tensors."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * F.leaky_relu(x, 0.1)


class Keeping(nn.Module):
    """Layers that torch does not see, kept in some plain way."""

    def __init__(self, kept: Any, run: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 2, 1)
        self.kept, self.run = kept(self), run

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.last(self.run(self, self.first(x)))).mean((2, 3))


KEPT: dict[str, tuple[Any, Any]] = {
    "list": (lambda _: [nn.ReLU(), nn.MaxPool2d(2)], lambda m, x: m.kept[1](m.kept[0](x))),
    "dict": (lambda _: {"act": nn.ReLU6()}, lambda m, x: m.kept["act"](x)),
    "nested": (
        lambda _: ([nn.ReLU()], {"a": (nn.AvgPool2d(2),)}),
        lambda m, x: m.kept[1]["a"][0](m.kept[0][0](x)),
    ),
    "of a user": (lambda _: [Act(0.5)], lambda m, x: m.kept[0](x)),
    "made in forward": (lambda _: 3.0, lambda m, x: Act(m.kept)(nn.ReLU()(x))),
    "container": (
        lambda _: [nn.Sequential(nn.ReLU(), nn.Upsample(scale_factor=2))],
        lambda m, x: m.kept[0](x),
    ),
    "its own": (lambda m: [m.last], lambda m, x: F.relu(x) + m.kept[0](x).mean(1, keepdim=True)),
    "own container": (
        lambda m: (nn.Sequential(m.last, nn.ReLU()),), lambda m, x: x + m.kept[0](x).sum(1, True),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", KEPT)
def test_layers_without_tensors_in_plain_containers_convert(name: str) -> None:
    torch.manual_seed(0)
    model, x = Keeping(*KEPT[name]).double(), torch.rand(2, 3, 6, 6, dtype=torch.float64)
    for training in (True, False):
        net, worst = compare(pursuitify, model, x, training=training, tolerance=1e-12)
        assert worst == 0
    net.iterations = 2
    expected = net(x)
    for twin in (copy.deepcopy(net), pursuitify(copy.deepcopy(model), iterations=2)):
        assert torch.equal(twin(x), expected)
    mine = {k for k in net.state_dict() if not k.startswith("pursuit.")}
    assert mine == model.state_dict().keys()  # what is in no state_dict stays out of it


@pytest.mark.parametrize(
    "kept",
    [
        lambda _: [nn.Conv2d(4, 4, 1).double()],
        lambda _: {"a": [nn.BatchNorm2d(4).double()]},
        lambda _: [nn.Sequential(nn.PReLU().double())],
    ],
)
def test_layers_with_tensors_in_plain_containers_are_refused(kept: Any) -> None:
    def run(model: Any, x: Tensor) -> Tensor:
        layer = model.kept
        while not isinstance(layer, nn.Module):
            layer = layer["a"] if isinstance(layer, dict) else layer[0]
        return F.relu(layer(x))

    with pytest.raises(TraceError, match=r"neither parameters\(\) nor state_dict\(\).*Module"):
        pursuitify(Keeping(kept, run).double())


def test_a_rule_for_a_layer_in_a_list_is_not_passed_by() -> None:
    model = Keeping(*KEPT["of a user"])
    with pytest.raises(TraceError, match=r"Make it self\.kept = nn\.ModuleList"):
        pursuitify(model, rules={Act: frozen()})
