"""Contexts around an operation are kept where a graph can hold them, or refused by name."""

from __future__ import annotations

import cProfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pursuitify import ConversionError, InputError, OptionError, explain, pursuitify
from pursuitify.compiler.tracing import contexts
from pursuitify.operators import Identity
from pursuitify.operators.base import Detached, dottest
from pursuitify.rules import frozen, linear
from tests.support.agreement import compare, error

Context = Callable[[], AbstractContextManager[Any]]

KEPT: dict[str, Context] = {
    "no_grad": torch.no_grad,
    "set_grad_enabled": lambda: torch.set_grad_enabled(False),
    "enable_grad": torch.enable_grad,
}
REFUSED: dict[str, Context] = {
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
}


class Stack(nn.Module):
    """Four layers, one after the other, each under a context of its own (or none)."""

    def __init__(self, contexts: list[Context | None]) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(3, 3, 3, padding=1) for _ in contexts)
        self.norms = nn.ModuleList(nn.BatchNorm2d(3) for _ in contexts)
        self.acts = nn.ModuleList(nn.PReLU(3) for _ in contexts)
        self.fc, self.contexts = nn.Linear(3, 2), contexts

    def forward(self, x: Tensor) -> Tensor:
        for conv, norm, act, context in zip(
            self.convs, self.norms, self.acts, self.contexts, strict=True
        ):
            if context is None:
                x = act(norm(conv(x)) + x)
            else:
                with context():
                    x = act(norm(conv(x)) + x)
        return self.fc(x.mean((2, 3)))


def lost(model: nn.Module) -> dict[str, bool]:
    """Which parameters have no derivative at all (None, not zero)."""
    return {
        name: p.grad is None for name, p in model.named_parameters() if not name.startswith("purs")
    }


@given(
    names=st.lists(st.sampled_from([None, *KEPT]), min_size=2, max_size=4),
    training=st.booleans(),
    sweeps=st.integers(0, 2),
    memory=st.sampled_from(["store", "recompute"]),
)
@settings(max_examples=25, deadline=None)
def test_no_grad_is_a_detach_that_the_sweeps_respect(
    names: list[str | None], training: bool, sweeps: int, memory: str
) -> None:
    torch.manual_seed(0)
    contexts = [None if name is None else KEPT[name] for name in names]
    model = Stack(contexts).double().train(training)
    net = pursuitify(model, iterations=sweeps, memory=memory)
    x = torch.rand(2, 3, 6, 6, dtype=torch.float64)
    inputs = [x.clone().requires_grad_(), x.clone().requires_grad_()]
    outputs = [model(inputs[0]), net(inputs[1])]
    if sweeps == 0:
        assert error(outputs[1], outputs[0]) == 0
    for output in outputs:
        output.square().sum().backward()
    assert lost(net) == lost(model)
    assert (inputs[0].grad is None) == (inputs[1].grad is None)
    if sweeps == 0:
        for name, theirs in model.named_parameters():
            if theirs.grad is not None:
                ours = net.get_parameter(name).grad
                torch.testing.assert_close(ours, theirs.grad, rtol=1e-9, atol=1e-12)


def test_no_grad_around_everything() -> None:
    class Whole(Stack):
        @torch.no_grad()
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x)

    net = pursuitify(Whole([None, None]), iterations=1)
    assert not net(torch.rand(2, 3, 6, 6)).requires_grad
    compare(
        pursuitify, Whole([None, None]).double(), torch.rand(2, 3, 6, 6).double(), training=False
    )


def test_what_surrounds_the_conversion_is_no_part_of_the_model() -> None:
    """Converted under no_grad or autocast it is the same network."""
    model, x = Stack([None, torch.no_grad]), torch.rand(2, 3, 6, 6)
    for around in (*KEPT.values(), REFUSED["autocast"]):
        with around():
            net = pursuitify(model, iterations=0)
        assert net(x).requires_grad
        assert error(net(x), model(x)) == 0


def test_pieces_made_without_derivatives_are_detached() -> None:
    class Halves(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.fc2 = nn.Linear(4, 4), nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                a, b = F.relu(self.fc1(x)).chunk(2, 1)
            return F.relu(self.fc2(a)) + b

    net = pursuitify(Halves(), iterations=2)
    net(torch.randn(3, 4)).sum().backward()
    assert net.get_parameter("fc1.weight").grad is None
    assert net.get_parameter("fc2.weight").grad is not None


def test_counters_under_no_grad_count_and_other_writes_are_refused() -> None:
    class Counting(nn.Module):
        def __init__(self, write: Callable[[Any, Tensor], Any]) -> None:
            super().__init__()
            self.fc, self.write = nn.Linear(4, 4), write
            self.register_buffer("count", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            x = self.fc(x)
            with torch.no_grad():
                self.write(self, x)
            return F.relu(x)

    net = pursuitify(Counting(lambda self, _x: self.count.add_(1)), iterations=1)
    net(torch.randn(2, 4))
    assert float(net.get_buffer("count")) == 1
    (problem,) = explain(Counting(lambda _self, x: x.mul_(2))).problems
    assert "no_grad" in problem.reason


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_graph_can_hold_is_refused_once_per_region(name: str) -> None:
    context = REFUSED[name]
    problems = explain(Stack([None, context, context, None, context])).problems
    assert len(problems) == 2  # two regions, for two that follow each other are one
    assert all(name in p.reason and name in p.hint for p in problems)
    assert [p.node for p in problems] == ["convs_1", "convs_4"]
    with pytest.raises(ConversionError, match=name):
        pursuitify(Stack([context]))


def test_a_context_in_one_mode_alone_is_seen() -> None:
    class Mixed(Stack):
        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16, enabled=self.training):
                return super().forward(x)

    for training in (False, True):
        assert not explain(Mixed([None]).train(training)).ok


def test_a_part_without_autocast_runs_without_and_says_so_under_it() -> None:
    model, x = Stack([None, lambda: torch.autocast("cpu", enabled=False)]), torch.rand(2, 3, 6, 6)
    net = pursuitify(model.eval(), iterations=0)
    assert error(net(x), model(x)) == 0
    for sweeps in (0, 1):
        net.iterations = sweeps
        with torch.autocast("cpu", torch.bfloat16), pytest.raises(InputError, match="autocast"):
            net(x)


def test_implicit_derivatives_know_no_part_without() -> None:
    net = pursuitify(Stack([torch.no_grad, None]), iterations=2, memory="implicit")
    with pytest.raises(OptionError, match="no_grad"):
        net(torch.rand(2, 3, 6, 6))
    net.implicit_last = 1
    net(torch.rand(2, 3, 6, 6)).sum().backward()
    assert net.get_parameter("convs.0.weight").grad is None


def test_the_dictionary_holds_no_derivatives_of_that_part() -> None:
    net = pursuitify(Stack([torch.no_grad, None]), iterations=1, offsets="threshold")
    first, *_, last = net.dictionary(torch.rand(2, 3, 6, 6)).thresholds.values()
    assert not first.requires_grad
    assert last.requires_grad


def test_the_map_is_the_identity() -> None:
    x = torch.randn(2, 3, dtype=torch.float64)
    assert dottest(Detached(), x) == 0
    assert Detached().norm_bound() == 1
    assert not Detached().apply(x.requires_grad_()).requires_grad


class Reversal(torch.autograd.Function):
    """A gradient reversal layer."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *bars: Any) -> Any:
        return -bars[0]


class Returning(Reversal):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x


class Scaled(torch.autograd.Function):
    """In the newer style, with arguments that are no tensors."""

    @staticmethod
    def forward(x: Tensor, factor: float, *more: float) -> Tensor:
        return x * (factor + sum(more))

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *bars: Any) -> Any:
        return bars[0], None, None


class Rebinding(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        factor = 2 * factor
        return x * factor

    @staticmethod
    def backward(ctx: Any, *bars: Any) -> Any:
        return bars[0], None


def custom(apply: Callable[[Tensor], Tensor]) -> nn.Module:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.fc2 = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(self.fc2(apply(F.relu(self.fc1(x)))))

    torch.manual_seed(0)
    return Net().double()


FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "Reversal": Reversal.apply,
    "Returning": lambda x: Returning.apply(x),
    "Scaled": lambda x: Scaled.apply(x, 2.0, 1.0),
    "Rebinding": lambda x: Rebinding.apply(x, 2.0),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_custom_functions_are_refused_by_name(name: str) -> None:
    (problem,) = explain(custom(FUNCTIONS[name])).problems
    assert problem.op == name
    assert "autograd.Function" in problem.reason


class Constant(Reversal):
    """Returns a new tensor, which torch gives the derivative below."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.full((4,), 2.0, dtype=torch.float64)

    @staticmethod
    def backward(ctx: Any, *bars: Any) -> Any:
        return bars[0].expand(3, 4)


class Pair(Constant):
    @staticmethod
    def forward(ctx: Any, *parts: Tensor) -> Any:  # type: ignore[override]
        return torch.tensor([1, 2, 3, 4]), torch.full((4,), 2.0, dtype=torch.float64)


class Newer(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return torch.full((4,), 2.0, dtype=torch.float64)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *bars: Any) -> Any:
        return bars[0].expand(3, 4)


class Fixed(Constant):
    """Has no derivative, and says so."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        found = torch.full((4,), 2.0, dtype=torch.float64)
        ctx.mark_non_differentiable(found)
        return found


def without_derivatives(x: Tensor) -> Tensor:
    with torch.no_grad():
        return Constant.apply(x)


#: Calls of Functions whose result is no traced value, and whether a derivative would be lost.
CONSTANTS: dict[str, tuple[Callable[[Tensor], Tensor], bool]] = {
    "Constant": (lambda x: x * Constant.apply(x), True),
    "later": (lambda x: x + (Constant.apply(x) + 1).exp(), True),
    "Pair": (lambda x: x * Pair.apply(x, x)[1], True),
    "Newer": (lambda x: x * Newer.apply(x), True),
    "Fixed": (lambda x: x * Fixed.apply(x), False),
    "no_grad": (lambda x: x * without_derivatives(x), False),
    "of a constant": (lambda x: x * Constant.apply(torch.ones(3, 4)), False),
}


@pytest.mark.parametrize("name", CONSTANTS)
def test_a_custom_function_that_returns_a_constant_keeps_or_is_refused(name: str) -> None:
    apply, lost = CONSTANTS[name]
    model, x = custom(apply), torch.randn(3, 4, dtype=torch.float64)
    if lost:
        (problem,) = explain(model).problems
        with cProfile.Profile():  # takes the place of what watches calls
            assert [p.reason for p in explain(model).problems] == [problem.reason]
        assert "whose own derivative" in problem.reason
        assert "leaf_modules" in problem.hint
    else:
        net = pursuitify(model, iterations=0)
        model(x).sum().backward()
        net(x).sum().backward()
        for path, p in model.named_parameters():
            assert torch.equal(net.get_parameter(path).grad, p.grad)


@pytest.mark.parametrize("key", [Reversal, Reversal.apply])
def test_rules_take_a_custom_function(key: Any) -> None:
    model, x = custom(Reversal.apply), torch.randn(3, 4, dtype=torch.float64)
    net = pursuitify(model, rules={key: linear(Identity())}, iterations=0)
    model(x).sum().backward()
    net(x).sum().backward()
    for name, p in model.named_parameters():
        assert torch.equal(net.get_parameter(name).grad, p.grad)  # reversed in both
    net.iterations = 2
    net(x)
    assert explain(model, rules={Reversal: linear(Identity())}).ok


def test_a_custom_function_keeps_its_arguments() -> None:
    model, x = custom(FUNCTIONS["Scaled"]), torch.randn(3, 4, dtype=torch.float64)
    rules = {Scaled: linear(lambda _op, _x, *_more: Identity())}
    assert error(pursuitify(model, rules=rules, iterations=0)(x), model(x)) == 0
    # What its forward was called with is no longer known, so the value could be wrong.
    (problem,) = explain(custom(FUNCTIONS["Rebinding"]), rules={Rebinding: frozen()}).problems
    assert "leaf_modules" in problem.hint


class Untraceable(Reversal):
    """Its forward counts to a value, which a traced one does not let it do."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        if x.size(0) > 1000:
            raise ValueError("too many samples")
        return x.view(x.size(0) + len(range(int(0 * x.sum()))), -1)


class Reversing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return Untraceable.apply(x)


def test_what_to_do_about_a_custom_function_that_cannot_be_traced_works() -> None:
    model, x = custom(lambda x: Untraceable.apply(x)), torch.randn(3, 4, dtype=torch.float64)
    (problem,) = explain(model).problems
    assert "in the torch.autograd.Function Untraceable" in problem.reason
    assert "module of its own" in problem.reason
    assert "leaf_modules" in problem.reason
    assert "example_inputs" not in problem.reason  # they would change nothing

    class Holding(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.fc2 = nn.Linear(4, 4), nn.Linear(4, 4)
            self.reversing = Reversing()

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(self.fc2(self.reversing(F.relu(self.fc1(x)))))

    rules = {Reversing: linear(Identity())}
    net = pursuitify(Holding().double(), rules=rules, leaf_modules=[Reversing], iterations=2)
    assert net.verify(x).ok


def test_every_call_is_watched_only_where_a_constant_needs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    watched: list[bool] = []
    plain = contexts.Watch.constants

    def counting(self: contexts.Watch) -> Any:
        watched.append(True)
        return plain(self)

    monkeypatch.setattr(contexts.Watch, "constants", counting)
    assert explain(custom(lambda x: x * 2)).ok
    assert not watched  # it makes tracing slow, and this forward makes no tensor of its own
    assert explain(custom(lambda x: x * torch.full((4,), 2.0, dtype=torch.float64))).ok
    assert watched
