"""Forwards composed of everyday idioms (``tests.support.idiom_grammar``) are exact, or refused."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pursuitify import TraceError, explain, pursuitify
from tests.support.idiom_grammar import ENDS, STEPS, WRAPPERS, Base, made
from tests.support.idiom_outcome import outcome

#: What may be refused at a call and no earlier: it depends on the mode of autograd or the dtype.
LATE = {"requires_grad", "register_hook", "float and back"}
#: Kinds of fault that are known and not mended: the derivative of a Function that makes no
#: operation at all, whose call nothing in the trace shows.
KNOWN = {"constant Function"}
#: What is refused as the only step after an activation. Everything else converts, and must go on.
REFUSED = {
    *(() if sys.version_info >= (3, 11) else ("size arithmetic",)),
    "view written", "entry written", "module copied",
    "is_leaf", "contiguous asked", "running mean", "random in training", "finfo",
    "finfo of the weight", "no_grad writes", "Function", "dirty Function of a layer",
    "register_hook always", "retain_grad", "derivative", "vmap", "func", "replaced buffer",
    "toggled", "eval inside", "eval and back", "block eval", "eps set", "momentum set",
    "momentum set after", "p set", "slope set", "frozen", "frozen module", "assigned data",
    "seeded", "is_grad_enabled", "registered late", "functional_call",
}  # fmt: skip
#: What the model itself cannot do after an activation whose derivative needs its output.
NO_MODEL = {"act in place on a skip", "out", "dirty Function", "backward"}

STEADY = st.sampled_from(sorted(STEPS.keys() - KNOWN - REFUSED - NO_MODEL))
ANY = st.sampled_from(sorted(STEPS.keys() - KNOWN))

recipes = st.lists(
    st.tuples(
        st.one_of(STEADY, STEADY, STEADY, STEADY, ANY),
        st.lists(st.sampled_from(sorted(WRAPPERS)), max_size=2).map(tuple),
    ),
    min_size=1,
    max_size=4,
)
cases = {
    "recipe": recipes,
    "end": st.sampled_from(sorted(ENDS)),
    "first": st.booleans(),
    "example": st.booleans(),
    "seed": st.integers(0, 99),
}


def inputs(seed: int = 1, height: int = 6) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    # A batch of a size that nothing else in these networks has: it may not be compiled in.
    return torch.randn(9, 3, height, 4, generator=generator, dtype=torch.float64)


def check(
    recipe: list[tuple[str, tuple[str, ...]]], end: str, first: bool, example: bool, seed: int
) -> None:
    found = outcome(made(recipe, end, first), inputs(seed, 5 + seed % 3), example)
    if found.startswith("late: the"):
        assert LATE & {name for name, _ in recipe}, found
    else:
        assert found in {"exact", "refused", "no model"}


@pytest.mark.filterwarnings("ignore")
@given(**cases)
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_a_forward_of_idioms_is_exact_or_refused(
    recipe: list[tuple[str, tuple[str, ...]]], end: str, first: bool, example: bool, seed: int
) -> None:
    check(recipe, end, first, example, seed)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@given(**cases)
@settings(max_examples=2000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_many_forwards_of_idioms_are_exact_or_refused(
    recipe: list[tuple[str, tuple[str, ...]]], end: str, first: bool, example: bool, seed: int
) -> None:
    check(recipe, end, first, example, seed)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", sorted(STEPS.keys() - KNOWN - LATE))
def test_each_idiom_alone(name: str) -> None:
    """What converts today goes on converting."""
    wanted = "refused" if name in REFUSED else "no model" if name in NO_MODEL else "exact"
    assert outcome(made([(name, ())], "logits", True), inputs()) == wanted


@pytest.mark.parametrize("end", ENDS)
def test_each_end(end: str) -> None:
    """What is returned has the source's own types: an OrderedDict stays one."""
    assert outcome(made([("F.relu", ())], end, True), inputs()) == "exact"


@pytest.mark.parametrize("name", sorted(WRAPPERS.keys() - {"autocast", "inference_mode"}))
def test_each_wrapper(name: str) -> None:
    assert outcome(made([("F.relu", (name,))], "logits", True), inputs()) == "exact"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("eval inside", "puts 'norm' into another mode"),
        ("eval and back", "puts 'norm' into another mode"),
        ("block eval", "puts 'block.norm' into another mode"),
        ("eps set", "sets eps of 'norm', a BatchNorm2d"),
        ("momentum set after", "sets momentum of 'norm'"),
        ("functional_call", "runs 'conv' with other tensors than its own"),
        ("p set", "sets p of 'drop', a Dropout"),
        ("slope set", "sets negative_slope of 'leaky'"),
        ("frozen module", "freezes parameters or thaws them .conv.weight"),
        ("dirty Function of a layer", "mark_dirty on 'conv'"),
        ("backward", "calls backward itself"),
        ("derivative", "calls grad itself"),
        ("retain_grad", "calls retain_grad itself"),
        ("vmap", r"a transform of torch.func \(vmap"),
    ],
)
def test_refusals_say_what_was_found(name: str, text: str) -> None:
    model = made([(name, ())], "logits", True)
    with pytest.raises(TraceError, match=text) as raised:
        pursuitify(model)
    assert "INTERNAL ASSERT" not in str(raised.value)
    assert all(p.requires_grad for p in model.parameters())


class _Read(Base):
    """A row that reads an activation through a function."""

    def __init__(self, read: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.read = read

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.read(self.stem(x).relu())).relu()


@pytest.mark.parametrize(
    "read", [lambda x: x.type_as(x.relu()), lambda x: x.to(x.relu())], ids=["type_as", "to"]
)
def test_a_row_reads_an_activation_in_the_type_of_another(read: Any) -> None:
    model = _Read(read).double().eval()
    assert explain(model).ok
    net = pursuitify(model, iterations=2)
    assert any(edge == ("relu", "relu_2") for edge in net.graph.edges), net.graph.edges


@pytest.mark.parametrize("layout", ["auto", "encoder"])
@pytest.mark.parametrize("read", [Tensor.detach, torch.detach], ids=["method", "function"])
def test_no_derivative_of_a_sweep_goes_through_detach(read: Any, layout: Any) -> None:
    torch.manual_seed(0)
    net = pursuitify(_Read(read).double().eval(), iterations=3, layout=layout)
    net(inputs()).square().sum().backward()
    behind, before = (net.get_parameter(f"{name}.weight").grad for name in ("conv", "stem"))
    assert behind is not None
    assert float(behind.abs().max()) > 1e-3
    assert before is None or not before.any()


class _Clipped(Base):
    """Weight clipping inside the forward, as a WGAN's critic has it."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.conv.weight.clamp_(-0.1, 0.1)
        return self.conv(torch.relu(self.stem(x))).relu()


def test_a_parameter_written_without_derivatives_is_written_before_it_is_used() -> None:
    """It is written in the network's own weights, at every call and at any T."""
    model = _Clipped().double().eval()  # in training mode norms are estimated call by call
    # The proof of a first call would run the forward, and write, once more before the derivatives.
    net = pursuitify(model, iterations=2, verify="off")
    assert float(model.conv.weight.abs().max()) > 0.1
    net(inputs()).sum().backward()
    weight = net.get_parameter("conv.weight")
    assert float(weight.detach().abs().max()) == 0.1
    assert weight.grad is not None
    torch.testing.assert_close(
        net(inputs()), pursuitify(_clip(model), iterations=2)(inputs()), rtol=1e-12, atol=1e-12
    )


def _clip(model: nn.Module) -> nn.Module:
    model(inputs())
    return model
