"""These tests check what a network proves of itself, and of the model it was converted from.

Special handling of a kind of fault may refuse it before the proof is asked. The tests here are
about the proof alone, so they build the fault behind the back of whatever else looks for it:
operators and rules of a right network are changed, and compiled programs are taken as they are.
"""

from __future__ import annotations

import copy
import dataclasses
import types
from collections.abc import Callable
from functools import partial
from typing import Any

import hypothesis
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from pursuitify import PursuitNetwork, explain, pursuitify
from pursuitify.dictionary.structured import StructuredDictionary
from pursuitify.errors import ConversionError, OptionError, VerificationError
from pursuitify.models import ChainNet, ResidualNet
from pursuitify.network import tensor_differences, verification
from pursuitify.operators import Chain, Conv, Scale, Select
from pursuitify.operators.onednn_conv import PackedConv
from pursuitify.utils import running_statistics
from tests.support.nets import ReadsAll
from tests.support.randomnets import general_net

IMAGE = (2, 3, 8, 8)


class Small(nn.Sequential):
    """Two convolutions with BatchNorm and a pooling, and a dense layer."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(8, 6, 3, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(96, 3),
        )


def image(dtype: torch.dtype = torch.float64, batch: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.rand(batch, *IMAGE[1:], generator=generator, dtype=torch.float64).to(dtype)


def converted(dtype: torch.dtype = torch.float64, **options: Any) -> PursuitNetwork:
    torch.manual_seed(0)
    return pursuitify(Small().to(dtype).eval(), iterations=2, **options)


def checks_of(net: PursuitNetwork, x: Tensor) -> int:
    """Return how many passes are proven in one call."""
    found = []
    prove, verification.prove = verification.prove, lambda *a: found.append(1) or prove(*a)
    try:
        with torch.no_grad():
            net(x)
    finally:
        verification.prove = prove
    return len(found)


# -- right networks -------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("build", [Small, ResidualNet, ChainNet])
def test_a_right_network_passes_at_every_scale(
    build: Callable[[], nn.Module], scale: float, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    net = pursuitify(build().to(dtype), iterations=1)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(scale)
    size = 8 if build is Small else 32
    x = torch.rand(3, 3, size, size).to(dtype)
    for mode in (True, False):
        report = net.train(mode).verify(x)
        assert report.ok
        assert report.training is mode
        assert report.worst("equation") <= report.tolerance


@pytest.mark.parametrize("mode", [True, False])
def test_samples_that_are_alike_pass(mode: bool) -> None:
    """A BatchNorm whose variance is zero makes rounding as large as its values."""

    class Embedding(nn.Sequential):
        def __init__(self) -> None:
            super().__init__(
                nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(),
                nn.Linear(216, 5), nn.BatchNorm1d(5),
            )  # fmt: skip

    torch.manual_seed(1)
    net = pursuitify(Embedding(), iterations=1).train(mode)
    for x in (torch.zeros(IMAGE), torch.ones(IMAGE), 1e3 * torch.rand(1, 3, 8, 8).expand(IMAGE)):
        assert net.verify(x).ok


def test_what_cancels_passes() -> None:
    """Kernels of mean zero on a constant image give nothing but rounding."""

    class Cancels(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 3, bias=False), nn.Conv2d(4, 4, 3, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            h = F.relu(self.a(x) + 1.7)
            return F.relu(self.b(h) - 0.3 * h[:, :, 1:-1, 1:-1]).mean((2, 3))

    torch.manual_seed(0)
    model = Cancels()
    with torch.no_grad():
        for conv in (model.a, model.b):
            conv.weight -= conv.weight.mean((1, 2, 3), keepdim=True)
    net = pursuitify(model.eval(), iterations=1)
    assert net.verify(torch.ones(IMAGE)).ok


@hypothesis.settings(max_examples=20, deadline=None)
@given(general_net(), st.booleans())
def test_right_networks_always_pass(drawn: tuple[nn.Module, Tensor], mode: bool) -> None:
    model, x = drawn
    net = pursuitify(model.train(mode), iterations=1)
    report = net.verify(x)
    assert report.ok
    assert all(row.source == 0 or row.source <= 1e-12 for row in report.rows)
    single = pursuitify(copy.deepcopy(model).float(), iterations=1, example_inputs=x.float())
    with torch.no_grad():
        assert checks_of(single, x.float()) == 1


# -- wrong operators ------------------------------------------------------------------------------


class Moved(Conv):
    """A convolution whose adjoint is shifted by one pixel."""

    def adjoint(self, y: Tensor) -> Tensor:
        """Return A^T y, moved."""
        return super().adjoint(y).roll(1, -1)


class OnePixel(Conv):
    """A convolution whose result is wrong in one entry."""

    def apply(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Return A x but for one entry."""
        value = super().apply(x, bias).clone()
        value.flatten()[1] += value.abs().max()
        return value


class OtherWeight(Conv):
    """A convolution whose adjoint has another kernel."""

    def adjoint(self, y: Tensor) -> Tensor:
        """Return A^T y by a kernel that is off by one percent."""
        return 1.01 * super().adjoint(y)


class NoNumber(Conv):
    """A convolution whose adjoint is NaN in one entry, which no comparison is true of."""

    def adjoint(self, y: Tensor) -> Tensor:
        """Return A^T y but for one entry."""
        value = super().adjoint(y).clone()
        value.flatten()[1] = torch.nan
        return value


class Infinite(Conv):
    """A convolution whose adjoint is infinite: NaN in a product with a zero of a latent."""

    def adjoint(self, y: Tensor) -> Tensor:
        """Return infinities of the sign of A^T y."""
        return super().adjoint(y) * torch.inf


class OneEntry(Conv):
    """A convolution whose adjoint is wrong in one entry."""

    def adjoint(self, y: Tensor) -> Tensor:
        """Return A^T y but for its last entry."""
        value = super().adjoint(y).clone()
        value.flatten()[-1] *= 2
        return value


class Itself(Conv):
    """A convolution that is taken for its own adjoint, where it has as many rows as columns."""

    def adjoint(self, y: Tensor) -> Tensor:
        """Return A y, or A^T y where there is no such."""
        square = [y.shape[1], *y.shape[2:]] == [self.weight.shape[1] * self.groups, *self.size]
        return super().apply(y) if square else super().adjoint(y)


class Raising(Conv):
    """A convolution whose adjoint cannot be computed."""

    def adjoint(self, y: Tensor) -> Tensor:
        """Raise what torch raises of shapes that do not fit."""
        return y @ torch.zeros(y.shape[-1] + 1, 1).to(y)


def altered(conv: Conv, kind: type[Conv]) -> Conv:
    return kind(*(getattr(conv, f.name) for f in dataclasses.fields(conv)))


MUTATIONS: dict[str, Callable[[Any], Any]] = {
    "adjoint moved": lambda m: altered(m, Moved),
    "adjoint scaled": lambda m: altered(m, OtherWeight),
    "adjoint NaN": lambda m: altered(m, NoNumber),
    "adjoint infinite": lambda m: altered(m, Infinite),
    "adjoint wrong in one entry": lambda m: altered(m, OneEntry),
    "its own adjoint": lambda m: altered(m, Itself),
    "adjoint raises": lambda m: altered(m, Raising),
    "one pixel": lambda m: altered(m, OnePixel),
}


def mutated(
    bound: Any, mutate: Callable[[Any], Any], number: int, kinds: tuple[type, ...] = (Conv,)
) -> Any | None:
    """Return the dictionary with one of its maps changed, or None where it has none."""
    count = [0]

    def change(maps: tuple[Any, ...]) -> tuple[Any, ...]:
        new = []
        for item in maps:
            if isinstance(item, kinds):
                count[0] += 1
                item = mutate(item) if count[0] - 1 == number else item
            new.append(item)
        return tuple(new)

    rows = []
    for row in bound.rows:
        diagonal = None if row.diagonal is None else Chain(change(row.diagonal.maps))
        slots = tuple(
            tuple(
                dataclasses.replace(path, maps=change(path.maps)) if path.leaf >= 0 else path
                for path in paths
            )
            for paths in row.slots
        )
        rows.append(dataclasses.replace(row, diagonal=diagonal, slots=slots))
    if count[0] == 0:
        return None
    if count[0] <= number:
        return mutated(bound, mutate, number % count[0], kinds)
    return dataclasses.replace(bound, rows=tuple(rows))


def proven(net: PursuitNetwork, x: Tensor, change: Callable[[Any], Any]) -> Any:
    """Return the report of a pass whose dictionary was changed; None where nothing could be."""
    with verification.aside(net, (x,)) as began:
        first, bound = net._bind(net._program, (x,))
        wrong = change(bound)
        if wrong is None:
            return None
        return net._prove(began, first, wrong, wrong)


def is_another(conv: Conv, wrong: Conv) -> bool:
    """Whether a changed convolution computes anything else: shifting one column is no change."""
    x = torch.randn(2, conv.weight.shape[1] * conv.groups, *conv.size).to(conv.weight)
    value = conv.apply(x)
    y = torch.randn_like(value)
    try:
        back = wrong.adjoint(y)
    except RuntimeError:
        return True
    return not (torch.equal(wrong.apply(x), value) and torch.allclose(back, conv.adjoint(y)))


@pytest.mark.parametrize("name", MUTATIONS)
@hypothesis.settings(
    max_examples=8,
    # Not every network has a convolution that a mutation can change, a square one for instance.
    suppress_health_check=[hypothesis.HealthCheck.filter_too_much],
)
@given(general_net(), st.integers(0, 20), st.booleans())
def test_a_wrong_operator_is_always_seen(
    name: str, drawn: tuple[nn.Module, Tensor], number: int, mode: bool
) -> None:
    """Whatever values the pass has: a latent may be zero or constant, and prove nothing then."""
    model, x = drawn
    net = pursuitify(model.train(mode), iterations=1)

    others: list[bool] = []

    def change(conv: Conv) -> Conv:
        wrong = MUTATIONS[name](conv)
        others.append(is_another(conv, wrong))
        return wrong

    for place in range(number, number + 4):  # the first convolution from there that it changes
        report = proven(net, x, partial(mutated, mutate=change, number=place))
        if report is None or others[-1]:
            break
    hypothesis.assume(report is not None and others[-1])
    assert not report.ok
    with pytest.raises(VerificationError, match=r"dot test|equation|operators of the row"):
        report.demand()


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_wrong_adjoint_is_seen_at_values_that_say_nothing(value: float) -> None:
    """At a latent that is zero, or the same in every column, a shifted adjoint gives the same."""
    net, x = converted(), image()
    conv = net.get_submodule("0")
    with torch.no_grad():
        conv.weight.zero_()
        conv.bias.zero_()
        net.get_submodule("1").bias.fill_(value)
        net.get_submodule("1").running_mean.zero_()
    assert bool((net.dictionary(x).rows[1].u[0] == value).all())
    report = proven(net, x, lambda bound: mutated(bound, lambda m: altered(m, Moved), 1))
    (problem,) = report.problems
    assert problem.node == net._program.rows[1].name
    assert "dot test" in problem.reason


def test_a_wrong_offset_is_seen() -> None:
    net, x = converted(), image()

    def change(bound: Any) -> Any:
        rows = list(bound.rows)
        rows[1] = dataclasses.replace(rows[1], threshold=rows[1].threshold * 1.001)
        return dataclasses.replace(bound, rows=tuple(rows))

    report = proven(net, x, change)
    (problem,) = report.problems
    assert (problem.node, problem.module) == (net._program.rows[1].name, "5")
    assert "equation (17)" in problem.reason


def test_a_wrong_selected_pixel_is_seen() -> None:
    net, x = converted(), image()
    largest = int(net.dictionary(x).rows[1].u[0].argmax())

    def change(item: Select) -> Select:
        indices = item.indices.clone()
        indices.flatten()[largest] = (indices.flatten()[largest] + 1) % 64
        return dataclasses.replace(item, indices=indices)

    report = proven(net, x, lambda b: mutated(b, change, 0, (Select,)))
    assert not report.ok


def test_a_wrong_scale_is_seen() -> None:
    net, x = converted(), image()
    report = proven(net, x, lambda b: mutated(b, lambda m: Scale(m.factor * 1.0001), 0, (Scale,)))
    if report is not None:
        assert not report.ok


@pytest.mark.parametrize("every", [True, False])
@pytest.mark.parametrize("number", range(6))
def test_a_wrong_factor_of_a_slot_is_seen(number: int, every: bool) -> None:
    """BatchNorm of a concat scales all slots at once, where every slot ends in such a factor."""
    torch.manual_seed(0)
    model = ReadsAll().double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    net, x = pursuitify(model.eval()), image()
    assert verification._slot_factors(net.dictionary(x).rows[3]) is not None

    def report(mutate: Callable[[Any], Any]) -> Any:
        with verification.aside(net, (x,)) as began:
            first, bound = net._bind(net._program, (x,))
            wrong = mutated(bound, mutate, number, (Scale,))
            return net._prove(began, first, wrong, wrong, every)

    assert report(lambda item: item).ok
    assert not report(lambda item: Scale(item.factor * 1.0001)).ok


# -- changed after the conversion -----------------------------------------------------------------


class Standardised(nn.Conv2d):
    """A convolution that standardises its weight."""

    def forward(self, x: Tensor) -> Tensor:
        w = self.weight
        w = (w - w.mean((1, 2, 3), True)) / w.std((1, 2, 3), keepdim=True)
        return self._conv_forward(x, w, self.bias)


REPLACED: dict[str, tuple[str, Callable[[], nn.Module]]] = {
    "LeakyReLU": ("2", lambda: nn.LeakyReLU(0.3)),
    "no activation": ("2", nn.Identity),
    "GELU": ("5", nn.GELU),
    "average": ("3", lambda: nn.AvgPool2d(2)),
    "standardised": ("4", lambda: Standardised(8, 6, 3, padding=1).double()),
}


def prove_alone(net: PursuitNetwork, x: Tensor) -> None:
    """Prove a pass, whatever looks at the network before a call."""
    with verification.aside(net, (x,)) as began:
        first, bound = net._bind(net._program, (x,))
        net._prove(began, first, bound, bound).demand()


@pytest.mark.parametrize("name", REPLACED)
def test_a_replaced_module_is_seen(name: str) -> None:
    net, x = converted(), image()
    net(x)
    path, build = REPLACED[name]
    net.register_module(path, build())
    with pytest.raises(VerificationError, match=r"source.s operations|equation|operators"):
        prove_alone(net, x)
    with pytest.raises(ConversionError):
        net(x)


def test_a_changed_dilation_is_seen_in_the_packed_kernels() -> None:
    net, x = converted(torch.float32), image(torch.float32)
    with torch.no_grad():
        net(x)
        first, bound = net._bind(net._program, (x,))
        packed = net._given(bound, first, net._gammas(bound), net._pack()).packed().dictionary
        conv = net.get_submodule("4")
        conv.dilation = conv.padding = (2, 2)
        with verification.aside(net, (x,)) as began:
            first, bound = net._bind(net._program, (x,))
            report = net._prove(began, first, bound, packed)
    if any(isinstance(m, PackedConv) for m in packed.maps()):
        assert not report.ok
        assert "equation (17)" in str(report)


def test_a_weight_computed_by_a_hook_is_seen() -> None:
    from torch.nn.utils import prune

    net, x = converted(), image()
    net(x)
    layer = net.get_submodule("4")
    prune.l1_unstructured(layer, "weight", 0.5)
    with torch.no_grad():
        prove_alone(net, x)
        layer.weight_orig.mul_(3)
        with pytest.raises(VerificationError):
            prove_alone(net, x)
    with pytest.raises(ConversionError):
        net(x)


def test_a_hook_after_the_last_latents_costs_no_later_call_a_proof(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    net, x = converted(), image()
    proofs = []
    prove = verification.prove
    monkeypatch.setattr(verification, "prove", lambda *a: proofs.append(1) or prove(*a))
    net.get_submodule("7").register_forward_pre_hook(lambda _module, _args: None)
    for _ in range(3):
        net(x)
    assert len(proofs) == 1


def test_a_forward_patched_on_an_instance_is_seen() -> None:
    def circular(self: nn.Conv2d, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.conv2d(F.pad(x, (1,) * 4, mode="circular"), weight, bias)

    for patch in ("_conv_forward", "forward"):
        net, x = converted(), image()
        if patch == "forward":
            net.get_submodule("5").forward = F.gelu
        else:
            conv = net.get_submodule("4")
            conv._conv_forward = types.MethodType(circular, conv)
        with pytest.raises(VerificationError):
            prove_alone(net, x)


@pytest.mark.parametrize("layout", ["auto", "encoder"])
def test_a_fault_is_named_where_a_chain_holds_more_than_every_latent(layout: Any) -> None:
    torch.manual_seed(0)
    padded = nn.Conv2d(4, 4, 3, padding=2, padding_mode="reflect")
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), padded, nn.ReLU(), nn.Conv2d(4, 4, 5))
    net = pursuitify(model.append(nn.ReLU()).double().eval(), layout=layout)
    x, mutate = torch.rand(2, 3, 5, 5, dtype=torch.float64), MUTATIONS["adjoint scaled"]
    for number in range(3):

        def broken(bound: StructuredDictionary, n: int = number) -> Any:
            return mutated(bound, mutate, n)

        report = proven(net, x, broken)
        (problem,) = report.problems
        assert problem.reason.endswith("in its OtherWeight")
        assert "of its u_j" not in problem.reason


# -- against the model ----------------------------------------------------------------------------


class Frozen(Small):
    """A model that keeps its BatchNorm in evaluation mode."""

    def train(self, mode: bool = True) -> Frozen:
        """Set the mode of all but the BatchNorm."""
        super().train(mode)
        self[1].eval()
        return self


class ByType(Small):
    """A model that decides by the type of its input."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x * 2 if type(x) is Tensor else x)


def behind_the_back(model: nn.Module) -> PursuitNetwork:
    """Convert the plain model, and pretend that it is another's conversion."""
    plain = Small().to(next(model.parameters()).dtype)
    plain.load_state_dict(model.state_dict())
    return pursuitify(plain.train(model.training))


@pytest.mark.parametrize("build", [Frozen, ByType])
@pytest.mark.parametrize("mode", [True, False])
def test_a_model_that_is_not_its_program_is_seen(build: type[nn.Module], mode: bool) -> None:
    from pursuitify.conversion.compare_with_source import compare_with_source

    torch.manual_seed(0)
    model = build().double().train(mode)
    state = copy.deepcopy(model.state_dict())
    net = behind_the_back(model)
    with pytest.raises(VerificationError, match="mode") as caught:
        compare_with_source(net, model, (image(),))
    assert caught.value.problems
    assert all(torch.equal(state[k], v) for k, v in model.state_dict().items())
    assert all(torch.equal(state[k], net.state_dict()[k]) for k in state)
    # Converted as it is, it is its program: what it decides is kept, not lost.
    net = pursuitify(model, example_inputs=image(), iterations=0)
    twin = copy.deepcopy(model)
    assert torch.equal(net(image()), twin(image()))
    assert all(torch.equal(net.state_dict()[k], v) for k, v in twin.state_dict().items())
    assert explain(model, example_inputs=image()).ok


@pytest.mark.parametrize("options", [{}, {"copy": False}, {"balance": True}, {"paper": True}])
@pytest.mark.parametrize("mode", [True, False])
def test_example_inputs_of_a_right_model(options: dict[str, Any], mode: bool) -> None:
    torch.manual_seed(0)
    model = ResidualNet().train(mode)
    numbers, state = torch.get_rng_state(), copy.deepcopy(model.state_dict())
    x = torch.rand(4, 3, 32, 32)
    numbers = torch.get_rng_state()
    net = pursuitify(model, example_inputs=x, **options)
    assert torch.equal(numbers, torch.get_rng_state())
    assert net.training is mode
    assert all(m.training is mode for name, m in net.named_modules() if name != "pursuit")
    assert all(torch.equal(state[k], v) for k, v in model.state_dict().items())
    assert explain(model, example_inputs=(x,)).ok


def test_example_inputs_are_checked() -> None:
    for wrong in (3, [image()], (image(), 3), ()):
        with pytest.raises(OptionError, match="example_inputs"):
            pursuitify(Small().double(), example_inputs=wrong)
        assert not explain(Small().double(), example_inputs=wrong).ok
    with pytest.raises(OptionError, match="cannot run on example_inputs"):
        pursuitify(Small().double(), example_inputs=image()[:, :2])


# -- the self-check -------------------------------------------------------------------------------


def test_it_runs_once_per_program_dtype_and_size() -> None:
    net, x = converted(), image()
    assert [checks_of(net, x) for _ in range(3)] == [1, 0, 0]
    assert checks_of(net, image(batch=7)) == 0
    larger = F.pad(x, (0, 0, 0, 0, 0, 0, 0, 1))
    assert checks_of(net, larger) == 0
    assert [checks_of(net.train(), x) for _ in range(2)] == [1, 0]
    assert [checks_of(net.float().eval(), x.float()) for _ in range(2)] == [1, 0]
    assert checks_of(copy.deepcopy(net), x.float()) == 1
    with torch.no_grad():
        net.get_submodule("4").weight.mul_(2)
    assert checks_of(net, x.float()) == 0


def test_it_is_off_where_it_is_not_wanted() -> None:
    x = image()
    assert checks_of(converted(verify="off"), x) == 0
    net = converted()
    net.self_check = "off"
    assert checks_of(net, x) == 0
    net.self_check, net.iterations = "first", 0
    assert checks_of(net, x) == 0
    with pytest.raises(OptionError, match="'first', 'off'"):
        converted(verify="always")
    with pytest.raises(OptionError, match="'first', 'off'"):
        net.self_check = True
    torch.func.vmap(converted())(x[:, None])


def test_it_runs_again_after_a_change_that_is_followed() -> None:
    """The record of the modules says when; nothing but that record is asked in later calls."""
    net, x = converted(), image()
    assert checks_of(net, x) == 1
    net.get_submodule("4").dilation = net.get_submodule("4").padding = (2, 2)
    assert [checks_of(net, x) for _ in range(2)] == [1, 0]
    version = net._unchanged.version(False)
    for _ in range(3):
        net(x)
    assert net._unchanged.version(False) == version


def replays(net: PursuitNetwork, x: Tensor) -> list[bool]:
    """Return, per proof of a call, whether the source was run around the pass's products."""
    found = []
    around = verification._around_products

    def noted(*arguments: Any) -> Any:
        answer = around(*arguments)
        found.append(answer is not None)
        return answer

    verification._around_products = noted
    try:
        with torch.no_grad():
            net(x)
    finally:
        verification._around_products = around
    return found


@pytest.mark.parametrize("mode", [True, False])
@pytest.mark.parametrize("build", [Small, ResidualNet, ChainNet])
def test_products_of_the_pass_are_not_computed_again(
    build: Callable[[], nn.Module], mode: bool
) -> None:
    """The source's own convolutions run once in a first call: in the pass that is proven."""
    torch.manual_seed(0)
    net = pursuitify(build().train(mode), iterations=1)
    x = torch.rand(2, 3, *((8, 8) if build is Small else (32, 32)))
    assert replays(net, x) == [True]
    counts = [0, 0]
    for number, check in enumerate(("off", "first")):
        net.self_check = check
        net._proofs.forget()
        first = next(m for m in net.modules() if isinstance(m, nn.Conv2d))
        forward = type(first)._conv_forward

        def counted(self: Any, *given: Any, _number: int = number, _forward: Any = forward) -> Any:
            counts[_number] += 1
            return _forward(self, *given)

        with pytest.MonkeyPatch.context() as patch, torch.no_grad():
            patch.setattr(nn.Conv2d, "_conv_forward", counted)
            net(x)
    assert counts[0] == counts[1] > 0


class WorksInPlace(nn.Module):
    """A source that works in place on what its products are, and on what they read."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.norm, self.relu = nn.BatchNorm2d(4), nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        h = self.relu(self.a(x))
        g = self.norm(self.b(h))
        g += h
        return self.relu(g).mean((2, 3))


@pytest.mark.parametrize("mode", [True, False])
def test_a_source_that_works_in_place_is_proven_and_left_alone(mode: bool) -> None:
    torch.manual_seed(0)
    model = WorksInPlace().double().train(mode)
    x = image()
    outcomes = []
    for verify in ("off", "first"):
        net = pursuitify(model, iterations=2, verify=verify)
        outcomes.append((net(x), dict(net.named_buffers())))
    (y, buffers), (z, others) = outcomes
    assert torch.equal(y, z)
    assert all(torch.equal(buffers[name], others[name]) for name in buffers)


def test_a_pass_that_is_not_the_sources_is_seen_without_its_products() -> None:
    """Products of another pass explain nothing: the source is run in full, and is blamed."""
    net, x = converted(), image()
    with verification.aside(net, (x,)) as began:
        first, bound = net._bind(net._program, (x,), began)
        wrong = dataclasses.replace(first, latents=(first.latents[0] * 1.01, first.latents[1]))
        report = net._prove(began, wrong, bound, bound)
    assert "source's operations" in str(report)
    assert not report.ok


def test_verify_tests_the_adjoint_of_every_convolution() -> None:
    """The self-check takes one of those that differ in their weights alone."""

    class Twice(nn.Sequential):
        def __init__(self) -> None:
            parts = [(nn.Conv2d(3, 3, 3, padding=1), nn.ReLU()) for _ in range(4)]
            super().__init__(*(layer for pair in parts for layer in pair))

    torch.manual_seed(0)
    net, x = pursuitify(Twice().double().eval(), iterations=1), image()
    first, bound = net._bind(net._program, (x,))
    found = []
    for every in (True, False):
        work = verification._Work(bound, bound, first, [None] * 4, 1e-10, every)
        tested = [
            work._is_tested(r.diagonal.maps, first.u[j], first.u[j])
            for j, r in enumerate(bound.rows)
        ]
        found.append(tested)
    assert found == [[True] * 4, [True, False, False, False]]


def test_the_self_check_tests_the_adjoint_of_every_kind_of_convolution() -> None:
    """Sizes make no kind, what a stride leaves over does; of a kind the cheapest is tested."""
    torch.manual_seed(0)
    parts: list[nn.Module] = []
    for stride, size, groups in ((1, 3, 1), (2, 3, 1), (1, 3, 1), (2, 3, 1), (1, 1, 1), (1, 3, 6)):
        parts += [nn.Conv2d(6, 6, size, stride, size // 2, groups=groups), nn.ReLU()]
    net, x = pursuitify(nn.Sequential(*parts).double().eval()), torch.rand(2, 6, 14, 14).double()
    first, bound = net._bind(net._program, (x,))
    work = verification._Work(bound, bound, first, [None] * 6, 1e-10, every=False)
    # From 14 pixels a stride of 2 leaves one over, from 7 none.
    assert [id(row.diagonal.maps[0]) in work.tested for row in bound.rows] == [
        False, True, True, True, True, True,
    ]  # fmt: skip


@pytest.mark.parametrize("layout", ["auto", "encoder"])
def test_what_several_rows_begin_with_is_computed_and_tested_once(layout: Any) -> None:
    """Rows that read a pooled value share the pool; its faults are seen at the first of them."""

    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(3, 4, 3, padding=1)
            self.rest = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            x = F.avg_pool2d(F.relu(self.first(x)), 2)
            parts = [F.relu(conv(x) + x) for conv in self.rest]
            return torch.cat(parts, 1).mean((2, 3))

    torch.manual_seed(0)
    net, x = pursuitify(Shared().double().eval(), layout=layout), image()
    pool = next(m for m in net.dictionary(x).maps() if type(m).__name__ == "BlockMean")
    calls: list[str] = []

    class Counted(type(pool)):  # type: ignore[misc]
        def apply(self, x: Tensor) -> Tensor:
            calls.append("apply")
            return super().apply(x)

        def adjoint(self, y: Tensor) -> Tensor:
            calls.append("adjoint")
            return super().adjoint(y)

    class Wrong(type(pool)):  # type: ignore[misc]
        def adjoint(self, y: Tensor) -> Tensor:
            return 1.01 * super().adjoint(y)

    def exchanged(bound: Any, kind: type) -> Any:
        """Return the dictionary with every pool of one identity exchanged for one other."""
        new: dict[int, Any] = {}

        def change(item: Any) -> Any:
            if type(item) is not type(pool):
                return item
            fields = [getattr(item, f.name) for f in dataclasses.fields(item)]
            return new.setdefault(id(item), kind(*fields))

        rows = [
            dataclasses.replace(
                row,
                slots=tuple(
                    tuple(
                        dataclasses.replace(path, maps=tuple(map(change, path.maps)))
                        for path in paths
                    )
                    for paths in row.slots
                ),
            )
            for row in bound.rows
        ]
        return bound.with_rows(rows)

    assert proven(net, x, lambda bound: exchanged(bound, Counted)).ok
    # Once at the values of the pass, and once for the dot test.
    assert calls == ["apply", "apply", "adjoint"]
    report = proven(net, x, lambda bound: exchanged(bound, Wrong))
    assert [p.node for p in report.problems] == [net._program.rows[1].name]
    assert "in its Wrong" in str(report)


class Noisy(nn.Sequential):
    """Dropout and BatchNorm, which draw and count."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.5),
            nn.Conv2d(6, 4, 3), nn.ReLU(), nn.Dropout(0.3), nn.Flatten(), nn.Linear(64, 3),
        )  # fmt: skip


@pytest.mark.parametrize("batch", [2, 7])
def test_it_leaves_no_trace(batch: int) -> None:
    outcomes = []
    for verify in ("off", "first"):
        torch.manual_seed(0)
        net = pursuitify(Noisy().double(), iterations=2, verify=verify)
        torch.manual_seed(5)
        y = net(image(batch=batch))
        y.sum().backward()
        buffers = {name: b.clone() for name, b in net.named_buffers()}
        slopes = [p.grad.clone() for p in net.parameters() if p.grad is not None]
        outcomes.append((y.detach(), buffers, slopes, torch.get_rng_state()))
    (y, buffers, slopes, numbers), other = outcomes
    assert torch.equal(y, other[0])
    assert all(torch.equal(buffers[k], other[1][k]) for k in buffers)
    assert all(torch.equal(a, b) for a, b in zip(slopes, other[2], strict=True))
    assert torch.equal(numbers, other[3])


def _augmented(module: Any, x: Tensor) -> None:
    module.seen += 1


def _by_method(module: Any, x: Tensor) -> None:
    module.seen.add_(1)


def _on_a_view(module: Any, x: Tensor) -> None:
    module.seen[:1].mul_(2).add_(3)


def _by_copy(module: Any, x: Tensor) -> None:
    module.seen.copy_(module.seen + x.mean())


def _statistics_always(module: Any, x: Tensor) -> None:
    F.batch_norm(x, module.seen, module.spread, training=True)


WRITES = [_augmented, _by_method, _on_a_view, _by_copy, _statistics_always]


@pytest.mark.parametrize("mode", [False, True])
@pytest.mark.parametrize("write", WRITES)
def test_buffers_that_a_forward_writes_in_any_mode_stay_in_queries(
    write: Callable[[Any, Tensor], None], mode: bool
) -> None:
    class Counting(nn.Module):
        seen: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, 5)
            self.register_buffer("seen", torch.zeros(3))
            self.register_buffer("spread", torch.ones(3))

        def forward(self, x: Tensor) -> Tensor:
            write(self, x)
            y: Tensor = self.fc(F.relu(self.conv(x)).mean((2, 3)))
            return y

    model, x = Counting().train(mode), torch.rand(2, 3, 8, 8)
    net = pursuitify(model, iterations=2, example_inputs=x)
    assert not net.seen.any()
    for query in (net.verify, net.latents, net.dictionary, net.step_sizes):
        query(x)
        assert not net.seen.any(), query
    net.objective(x, net.latents(x))
    assert not net.seen.any()
    model(x)
    net(x)  # proves itself, and counts once
    torch.testing.assert_close(net.seen, model.seen)
    assert net.seen.any()


def test_a_network_that_writes_nothing_in_evaluation_mode_is_not_copied() -> None:
    class Functional(nn.Module):
        mean: Tensor
        var: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
            self.register_buffer("mean", torch.zeros(4))
            self.register_buffer("var", torch.ones(4))

        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(
                F.batch_norm(self.norm(self.conv(x)), self.mean, self.var, training=self.training)
            )
            return F.dropout(x, 0.5, self.training)

    net = pursuitify(Functional().eval())
    assert not running_statistics.writes_buffers(net)
    assert running_statistics.writes_buffers(net.train())


def test_the_report_reads() -> None:
    report = converted().verify(image())
    assert [row.name for row in report.rows] == list(converted().latents(image()))
    assert "2 rows: holds" in str(report)
    assert report.demand() is report


def test_what_a_network_returns_is_compared_place_by_place() -> None:
    a = {"out": torch.ones(2), "aux": (torch.zeros(1), 3)}
    assert tensor_differences.difference(a, copy.deepcopy(a)) == 0
    b = {"out": torch.ones(2), "aux": (torch.zeros(1), 4)}
    assert dict(tensor_differences.differences(a, b))["['aux'][1]"] == float("inf")
    assert tensor_differences.difference(a, {"out": torch.ones(2)}) == float("inf")
    nan = torch.tensor([float("nan"), 1.0])
    assert tensor_differences.difference(nan, nan.clone()) == 0
    assert tensor_differences.difference(nan, torch.ones(2)) == float("inf")
    assert tensor_differences.difference(
        torch.ones(2), torch.ones(2, dtype=torch.float64)
    ) == float("inf")


ZOO = (
    "resnet18", "densenet121", "googlenet", "mobilenet_v2", "shufflenet_v2_x1_0",
    "regnet_y_400mf",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", ZOO)
def test_the_zoo_passes(name: str) -> None:
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(0)
    rest = {"init_weights": False} if name == "googlenet" else {}
    model = getattr(models, name)(weights=None, **rest)
    x = torch.rand(2, 3, 64, 64)
    assert pursuitify(model, iterations=1, example_inputs=x).verify(x).ok
    for scale in (1e-3, 1e3):
        twin = copy.deepcopy(model)
        with torch.no_grad():
            for parameter in twin.parameters():
                parameter.mul_(scale)
        net = pursuitify(twin, iterations=1)
        for mode in (False, True):
            assert net.train(mode).verify(x).ok


class Viewed(nn.Module):
    """A network that flattens by ``view``, which takes contiguous values alone."""

    def __init__(self, flat: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.flat = flat
        self.first, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 3)
        self.dense, self.last = nn.Linear(80, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        x = F.relu(self.second(F.relu(self.first(x))))
        return self.last(F.relu(self.dense(self.flat(x))))


@pytest.mark.parametrize("verify", ["call", "method", "example"])
@pytest.mark.parametrize(
    "flat",
    [lambda x: x.view(x.size(0), -1), lambda x: x.view(-1, 80), lambda x: x.view(x.shape[0], 80)],
)
def test_the_source_is_run_in_the_memory_format_of_the_call(
    flat: Callable[[Tensor], Tensor], verify: str
) -> None:
    """The sweeps turn images to another format; the source's own `view` would fail on it."""
    torch.manual_seed(0)
    model, x = Viewed(flat).eval(), image(torch.float32)
    net = pursuitify(model, iterations=1, example_inputs=x if verify == "example" else None)
    with torch.no_grad():
        if verify == "method":
            assert net.verify(x).ok
        assert net(x).isfinite().all()
        net.iterations = 0
        assert torch.equal(net(x), model(x))


class Trunk(nn.Module):
    """A network whose trunk runs without derivatives, as a frozen backbone does."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.head = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)
        self.last = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        with torch.no_grad():
            x = F.relu(self.trunk(x))
        return self.last(F.relu(self.head(x)).mean((2, 3)))


@pytest.mark.parametrize("batch", [1, 2, 5, 9])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("derivatives", [False, True])
def test_a_detached_branch_is_proven_at_every_batch_size(
    batch: int, training: bool, derivatives: bool
) -> None:
    """The proof runs without derivatives, the call it is part of may not."""
    torch.manual_seed(0)
    net = pursuitify(Trunk().train(training), iterations=2)
    with torch.set_grad_enabled(derivatives):
        output = net(image(torch.float32, batch))
    assert output.isfinite().all()
    assert output.requires_grad is derivatives
    assert net.verify(image(torch.float32, batch)).ok
