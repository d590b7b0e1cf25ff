"""What a model does is what was traced of it, also where Python asks what leaves no operation."""

from __future__ import annotations

import builtins
from collections.abc import Callable, Sequence, Sized
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.fx import _symbolic_trace

from pursuitify import TraceError, pursuitify
from pursuitify.compiler.tracing.comparisons import Rerun
from pursuitify.compiler.tracing.trace import trace

Question = Callable[[Any, Tensor], Any]
#: Questions that a traced value answers otherwise than a tensor, a number or a dtype does.
UNSEEN: dict[str, Question] = {
    "dtype is": lambda _s, x: x.dtype is torch.float32,
    "dtype is not": lambda _s, x: x.dtype is not torch.float32,
    "layout is": lambda _s, x: x.layout is torch.strided,
    "device is": lambda _s, x: x.is_cuda is False,
    "requires no gradient": lambda _s, x: x.requires_grad is False,
    "weight requires one": lambda s, x: s.last.weight.requires_grad is True,
    "gradients are recorded": lambda _s, x: torch.is_grad_enabled(),
    "floating": lambda _s, x: x.dtype.is_floating_point is True,
    "contiguous": lambda _s, x: x.is_contiguous() is True,
    "type of old": lambda _s, x: builtins.type(x) is Tensor,
    "identity": lambda _s, x: id(x.dtype) == id(torch.float32),
    "sized": lambda _s, x: isinstance(x.size(2), Sized),
    "sequence": lambda _s, x: isinstance(x.size(2), Sequence),
    "callable": lambda _s, x: callable(x),
    "has a node": lambda _s, x: hasattr(x, "node"),
    "has keys": lambda _s, x: hasattr(x.shape, "keys"),
    "dir": lambda _s, x: "tracer" in dir(x),
    "vars": lambda _s, x: "node" in vars(x),
    "proxy": lambda _s, x: isinstance(x, torch.fx.Proxy),
    "overridden": lambda _s, x: torch.overrides.has_torch_function((x,)),
    "traced": lambda _s, x: _symbolic_trace.is_fx_symbolic_tracing(),
}
#: Questions of the same kinds that a traced value answers as a tensor does.
SEEN: dict[str, Question] = {
    "none": lambda _s, x: x is None,
    "no None": lambda _s, x: x.dtype is None,
    "itself": lambda _s, x: any(x is y for y in (x,)),
    "has no name": lambda _s, x: getattr(x, "tensors", None) is None,
    "has a shape": lambda _s, x: hasattr(x, "shape"),
    "sequence of sizes": lambda _s, x: isinstance(x.shape, Sequence),
    "sized tensor": lambda _s, x: isinstance(x, Sized),
    "exporting": lambda _s, x: torch.onnx.is_in_onnx_export() is True,
    "compiling": lambda _s, x: torch.compiler.is_compiling() is False,
    "own attribute": lambda s, x: s.where is s.where,
}
#: What is done with the tensor if so, and what if not.
WAYS: dict[str, Callable[[Any, Tensor, Any], Tensor]] = {
    "other operation": lambda _s, x, yes: F.relu(x) if yes else x,
    "other number": lambda _s, x, yes: x * (2.0 if yes else 3.0),
    "other operand": lambda _s, x, yes: (2 * x) * x if yes else x * (2 * x),
    "other weight": lambda s, x, yes: (s.one if yes else s.two)(x),
    "nothing more": lambda s, x, yes: x + 1 if yes else x,
}


class Net(nn.Module):
    """Two layers with a question between them."""

    def __init__(self, question: Question, way: str = "other number", where: int = 0) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 1)
        self.one, self.two = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.question, self.way, self.where = question, WAYS[way], where

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.first(x))
        y = self.way(self, y, self.question(self, x if self.where else y))
        return F.relu(self.last(y))


@pytest.mark.parametrize("name", UNSEEN)
def test_what_is_answered_otherwise_is_refused(name: str) -> None:
    """On the feature map or the input, in evaluation mode and in training mode."""
    with pytest.raises(TraceError, match="something else than what can be traced"):
        pursuitify(Net(UNSEEN[name]).eval())


@pytest.mark.filterwarnings("ignore")
@given(
    st.sampled_from(sorted({**UNSEEN, **SEEN})),
    st.sampled_from(sorted(WAYS)),
    st.integers(0, 1),
    st.booleans(),
)
@settings(max_examples=12, deadline=None)
def test_a_network_is_its_source_or_is_refused(
    name: str, way: str, where: int, training: bool
) -> None:
    torch.manual_seed(0)
    model = Net({**UNSEEN, **SEEN}[name], way, where).train(training)
    try:
        net = pursuitify(model, iterations=0)
    except TraceError:
        assert name in UNSEEN
        return
    x = torch.randn(2, 3, 6, 5)
    for given_ in (x, x.clone().requires_grad_()):
        assert torch.equal(net(given_), model(given_))
        with torch.no_grad():
            assert torch.equal(net(given_), model(given_))


#: What the text of a tensor says that a trace does not know.
TEXTS: dict[str, Question] = {
    "derivative": lambda _s, x: "grad_fn" in str(x),
    "no derivative": lambda _s, x: "grad_fn" not in f"{x}",
    "numbers": lambda _s, x: "nan" in repr(x),
    # The older ways to format ask a value otherwise than an f-string does.
    "dtype": lambda _s, x: "float64" in "{}".format(x),  # noqa: UP032
    "device": lambda _s, x: "cuda" in "%s" % x,  # noqa: UP031
    "length": lambda _s, x: len(str(x)) > 99,
}


@pytest.mark.parametrize(("name", "way"), zip(TEXTS, [*WAYS, *WAYS], strict=False))
def test_what_depends_on_the_text_of_a_tensor_is_refused(name: str, way: str) -> None:
    with pytest.raises(TraceError, match="depends on the text of a tensor"):
        pursuitify(Net(TEXTS[name], way).eval())


def test_a_constant_that_depends_on_the_text_of_a_tensor_is_refused() -> None:
    """The operations are the same whatever the text; what they read is not."""
    model = Net(lambda _s, x: "grad_fn" in str(x)).eval()
    model.way = lambda _s, x, yes: x * torch.tensor([2.0 if yes else 3.0])
    with pytest.raises(TraceError, match="depends on the text of a tensor"):
        pursuitify(model)


def test_a_text_that_decides_nothing_converts() -> None:
    """Constants that the forward makes anew are the same in every trace."""
    model = Net(lambda _s, x: bool(str(x)), "other number").eval()
    first = model.way
    model.way = lambda s, x, yes: first(s, x * torch.tensor([2.0]), yes)
    net, x = pursuitify(model, iterations=0), torch.randn(2, 3, 6, 5)
    assert torch.equal(net(x), model(x))


#: Sizes that are compared by ``is``, with a number in the code, or one that an object holds.
IDENTITIES: dict[str, Question] = {
    "number": lambda _s, x: x.size(2) is [7, 11][1],
    "not": lambda _s, x: x.shape[2] is not SIZE,
    "attribute": lambda s, x: x.shape[-1] is s.width,
    "other way round": lambda s, x: s.width is x.size(3),
    "helper": lambda _s, x: same(x.size(2), SIZE),
    "batch": lambda s, x: len(x) is s.width,
}
SIZE = 11


def same(a: Any, b: Any) -> bool:
    return a is b


@pytest.mark.parametrize("example", [False, True])
@pytest.mark.parametrize("name", IDENTITIES)
def test_a_size_that_is_compared_by_is_is_refused(name: str, example: bool) -> None:
    """The sizes of usual images tell nothing: none of them is 11."""
    model = Net(IDENTITIES[name], where=1).eval()
    model.width = 11
    inputs = torch.rand(2, 3, 8, 8) if example else None
    with pytest.raises(TraceError, match=r"on a tensor torch.float32 \[11, 3, 11, 11\]"):
        pursuitify(model, example_inputs=inputs)


@pytest.mark.parametrize("name", SEEN)
def test_what_is_answered_alike_converts(name: str) -> None:
    torch.manual_seed(0)
    model, x = Net(SEEN[name]).eval(), torch.randn(2, 3, 6, 5)
    net = pursuitify(model, iterations=0)
    assert torch.equal(net(x), model(x))


def test_constants_buffers_and_contexts_are_no_difference() -> None:
    """The model makes its constants in every pass, its trace had them made once."""

    class Made(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.norm, self.last = (
                nn.Conv2d(3, 4, 3),
                nn.BatchNorm2d(4),
                nn.Linear(4, 2),
            )
            self.loose = torch.full((4, 1, 1), 2.0)
            self.register_buffer("seen", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.seen += 1
            y = (
                F.relu(self.norm(self.first(x)))
                * self.loose
                * torch.tensor([1.0, 2, 3, 4]).view(4, 1, 1)
            )
            with torch.no_grad():
                y = y + y.mean((2, 3), keepdim=True)
            y = y if hasattr(x, "shape") and x.dim() == 4 else 3 * y
            y = F.dropout(y + torch.arange(4).view(4, 1, 1).type_as(y), 0.1, self.training)
            return self.last(F.relu(y).mean((2, 3)))

    torch.manual_seed(0)
    model, x = Made(), torch.randn(2, 3, 6, 5)
    net = pursuitify(model, iterations=0).eval()
    assert torch.equal(net(x), model.eval()(x))
    assert int(model.seen) == 1


def test_the_model_is_compared_in_every_dtype_it_may_get() -> None:
    """At float32, float64 is not asked for; a converted network may be given it."""
    model = Net(lambda _s, x: x.dtype is torch.float64).eval()
    with pytest.raises(TraceError, match=r"on a tensor torch.float64 \[2, 3, 32, 32\] the model"):
        pursuitify(model)


def test_where_the_two_differ_is_said() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval()
    graph, tensors = trace(model, training=False).graph, dict(model.named_parameters())

    def build(held: dict[str, Any]) -> nn.Module:
        made = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sigmoid())
        made[0].weight, made[0].bias = held["0.weight"], held["0.bias"]
        return made

    x = torch.empty(2, 3, 8, 8)
    found = Rerun(model, tensors, build, [[x]], given=True).difference(graph, [None])
    assert found == (
        "on a tensor torch.float32 [2, 3, 8, 8] the model calls aten.sigmoid.default, where its "
        "trace calls aten.relu.default"
    )
    assert not Rerun(model, tensors, lambda _held: nn.Flatten(9), [[x]], True).difference(
        graph, [None]
    )
