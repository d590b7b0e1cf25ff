"""Bad models, options and inputs: clear typed errors, and the model as it was."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pursuitify import (
    ConversionError,
    InputError,
    OptionError,
    PursuitifyError,
    PursuitNetwork,
    TraceError,
    explain,
    pursuitify,
)
from pursuitify.conversion.convert import compile_model
from pursuitify.network.pursuit_network import RESERVED
from pursuitify.utils import option_checks


def snapshot(model: nn.Module) -> list[Any]:
    """Return everything a conversion could change, tensors copied."""
    found: list[Any] = []
    for name, module in model.named_modules():
        python = {k: v for k, v in vars(module).items() if k[0] != "_"}
        hooks = [len(v) for k, v in sorted(vars(module).items()) if k.endswith("_hooks")]
        found.append((name, id(module), type(module), repr(sorted(python.items())), hooks))
        for kind in (module._parameters, module._buffers):
            for key, value in kind.items():
                if value is None:
                    found.append((name, key, None))
                    continue
                state = (value.data_ptr(), value._version, value.requires_grad, value.is_leaf)
                found.append((name, key, id(value), state, value.detach().clone()))
    return found


def same(before: list[Any], after: list[Any]) -> bool:
    def equal(a: Any, b: Any) -> bool:
        if isinstance(a, Tensor):
            return torch.equal(a, b)
        if isinstance(a, tuple):
            return len(a) == len(b) and all(map(equal, a, b))
        return a == b

    return len(before) == len(after) and all(map(equal, before, after))


class Plain(nn.Module):
    """A small convertible network with every kind of state."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.drop, self.relu = nn.Dropout(0.3), nn.ReLU(inplace=True)
        self.last = nn.Linear(4 * 4 * 4, 2)
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))
        self.settings = {"a": 1}
        self.count = 0

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.flatten(self.drop(self.relu(self.norm(self.conv(x)))), 1))


class Wrapped(Plain):
    """``Plain`` with something in the way."""

    def __init__(self, way: Any, **parts: nn.Module) -> None:
        super().__init__()
        self.way = way
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x: Tensor) -> Tensor:
        x = self.way(self, self.norm(self.conv(x)))
        return self.last(torch.flatten(self.relu(x), 1))


@pytest.fixture
def image() -> Tensor:
    return torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))


def test_a_snapshot_sees_every_change() -> None:
    changes = [
        lambda m: m.eval(),
        lambda m: m.norm.eval(),
        lambda m: m.calls.add_(1),
        lambda m: m.norm.running_mean.mul_(1.0),
        lambda m: setattr(m, "count", 1),
        lambda m: m.settings.update(a=2),
        lambda m: setattr(m, "relu", nn.ReLU(inplace=True)),
        lambda m: m.conv.weight.requires_grad_(False),
        lambda m: m.relu.register_forward_hook(print),
    ]
    for change in changes:
        model = Plain()
        before = snapshot(model)
        assert same(before, snapshot(model))
        change(model)
        assert not same(before, snapshot(model))


# ---------------------------------------------------------------- models


@pytest.mark.parametrize(
    ("candidate", "message"),
    [
        (None, "a NoneType"),
        ("resnet18", "a str"),
        (torch.zeros(3), "a Tensor"),
        (lambda x: x, "a function"),
        (Plain, "the class Plain"),
    ],
)
def test_not_a_module(candidate: Any, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        pursuitify(candidate)
    report = explain(candidate)
    assert not report.ok
    assert message in str(report.problems[0])


def test_modules_that_hold_no_python_code_or_no_weights() -> None:
    with pytest.raises(OptionError, match="pass the wrapped model"):
        pursuitify(nn.DataParallel(Plain()))
    with pytest.raises(OptionError, match="lazy"):
        pursuitify(nn.Sequential(nn.LazyLinear(3), nn.ReLU()))
    for holder in (nn.ModuleList([Plain()]), nn.ModuleDict({"a": Plain()}), nn.Module()):
        with pytest.raises(OptionError, match=f"a {type(holder).__name__} has no forward"):
            pursuitify(holder)
    calls = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ModuleList([nn.ReLU()]), nn.ReLU())
    with pytest.raises(ConversionError, match=r"use torch\.nn\.Sequential"):
        pursuitify(calls)


def branch(m: nn.Module, x: Tensor) -> Tensor:
    return x if x.sum() > 0 else -x


def loop(m: nn.Module, x: Tensor) -> Tensor:
    for _ in range(int(x.sum())):
        x = x + 1
    return x


def several(m: Any, x: Tensor) -> Tensor:
    x = m.norm2(F.gelu(m.silu(x)))
    return x + torch.sin(x)


def many() -> nn.Module:
    return Wrapped(several, silu=nn.SiLU(), norm2=nn.Softmax(1))


REFUSED = {
    "no activation": (lambda: nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2)), ConversionError),
    "only a sigmoid": (lambda: nn.Sequential(nn.Linear(3, 3), nn.Sigmoid()), ConversionError),
    "branch": (lambda: Wrapped(branch), TraceError),
    "loop": (lambda: Wrapped(loop), TraceError),
    "several": (
        lambda: Wrapped(several, silu=nn.SiLU(), norm2=nn.Softmax(1)),
        ConversionError,
    ),
    "product": (lambda: Wrapped(lambda m, x: x * m.conv2(x), conv2=nn.Conv2d(4, 4, 1)), None),
    "recurrent": (lambda: nn.Sequential(nn.Linear(3, 3), nn.RNN(3, 3), nn.ReLU()), ConversionError),
}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", REFUSED)
def test_refused_models_stay_as_they_were(name: str, training: bool) -> None:
    make, error = REFUSED[name]
    model = make().train(training)
    before = snapshot(model)
    if error is not None:
        with pytest.raises(error):
            pursuitify(model)
        assert not explain(model).ok
    else:
        pursuitify(model)
        assert explain(model).ok
    assert same(before, snapshot(model))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("copied", [False, True])
def test_converted_models_stay_as_they_were(training: bool, copied: bool, image: Tensor) -> None:
    model = Plain().train(training)
    before = snapshot(model)
    net = pursuitify(model, iterations=2, copy=copied)
    explain(model, input_shape=(3, 6, 6))
    assert same(before, snapshot(model))
    if copied:
        net(image).sum().backward()
        net.to(torch.float64).train(not training)
        assert same(before, snapshot(model))
        assert all(p.grad is None for p in model.parameters())


def test_everything_unsupported_is_listed_at_once() -> None:
    model = nn.Sequential(many())
    with pytest.raises(ConversionError) as caught:
        pursuitify(model)
    found = {p.op: p for p in caught.value.problems}
    assert set(found) == {"SiLU", "gelu", "Softmax", "sin"}
    assert found["SiLU"].module == "0.silu"
    assert found["Softmax"].module == "0.norm2"
    assert found["gelu"].module == found["sin"].module == "0"
    for problem in found.values():
        assert problem.node in str(caught.value)
        assert problem.reason
        assert len(problem.hint) > 20
        assert problem.hint in str(caught.value)
    assert "proximal" in found["SiLU"].hint
    assert "frozen()" in found["Softmax"].hint
    assert [p.node for p in explain(model).problems] == [p.node for p in caught.value.problems]


def test_no_activation_says_so() -> None:
    with pytest.raises(ConversionError, match="no activation of the ReLU family"):
        pursuitify(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2)))


def test_dynamic_control_flow_says_where() -> None:
    with pytest.raises(TraceError, match=r"in module '0'.*control flow") as caught:
        pursuitify(nn.Sequential(Wrapped(branch)))
    assert "leaf_modules" in str(caught.value)


class Modes(Plain):
    """Convertible in one mode only."""

    def __init__(self, broken: bool) -> None:
        super().__init__()
        self.broken = broken

    def forward(self, x: Tensor) -> Tensor:
        if self.training is self.broken:
            x = torch.softmax(x, 1)
        return super().forward(x)


@pytest.mark.parametrize("broken", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_both_modes_must_convert(broken: bool, training: bool) -> None:
    model = Modes(broken).train(training)
    with pytest.raises(ConversionError, match="softmax"):
        pursuitify(model)
    report = explain(model)
    assert not report.ok
    assert [p.op for p in report.problems] == ["softmax"]


@pytest.mark.parametrize("name", sorted(RESERVED - set(dir(nn.Module()))))
def test_names_pursuit_needs(name: str) -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(3, 3)
            self._modules[name] = nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            layer = self._modules[name]
            assert layer is not None
            return layer(F.relu(self.first(x)))

    model = Named()
    with pytest.raises(ConversionError, match=name):
        pursuitify(model)
    assert not explain(model).ok
    net = pursuitify(nn.Sequential(Named()), iterations=2)  # a level deeper there is room
    net(torch.randn(2, 3))


def test_reserved_names_are_all_there() -> None:
    net = pursuitify(Plain())
    own = set(vars(net)) - set(vars(nn.Module())) | set(net._modules) - set(Plain()._modules)
    public = {n for n in dir(PursuitNetwork) if not n.startswith("_")} - set(dir(nn.Module))
    assert own | public <= RESERVED


# ---------------------------------------------------------------- options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"iteration": 3}, "did you mean 'iterations'.*Valid options: iterations,.*layout"),
        ({"foo": 3}, r"'foo'\. Valid options: iterations"),
        ({"layout": "dense"}, "'auto', 'decoder', 'encoder'"),
        ({"layout": 1}, "'auto', 'decoder', 'encoder'"),
        ({"copy": "yes"}, "copy='yes' is not True or False"),
        ({"paper": 1}, "paper=1 is not True or False"),
        ({"rules": 3}, "rules=3"),
        ({"rules": {nn.ReLU: F.relu}}, "not of type Rule"),
        ({"leaf_modules": "conv"}, "leaf_modules='conv'"),
        ({"leaf_modules": 3}, "leaf_modules=3"),
        ({"leaf_modules": ["nowhere"]}, "'nowhere' is neither a type nor a path"),
        ({"leaf_modules": [nn.ReLU()]}, "neither a type nor a path"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    model = Plain()
    before = snapshot(model)
    with pytest.raises(OptionError, match=message):
        pursuitify(model, **options)
    assert same(before, snapshot(model))


def test_a_decoder_layout_that_is_not_possible() -> None:
    class Skip(Plain):
        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.conv(x))
            return F.relu(self.norm(x) + x)

    with pytest.raises(ConversionError, match="no decoder form"):
        pursuitify(Skip(), layout="decoder")
    assert not explain(Skip(), layout="decoder").ok
    assert explain(Skip()).ok


def test_leaf_modules_by_path_and_type() -> None:
    for leaf in ("conv", nn.Conv2d):
        programs, _ = compile_model(Plain(), "auto", None, [leaf])
        assert len(programs[False].rows) == 1


# ---------------------------------------------------------------- inputs

INPUTS = {
    "too few channels": (lambda x: x[:, :1], "module 'conv' reads it"),
    "unbatched": (lambda x: x[0], "module 'conv' reads it"),
    "too many dims": (lambda x: x[None], "module 'conv' reads it"),
    "a vector": (lambda x: x.flatten(), "module 'conv' reads it"),
    "a number": (lambda x: x.sum(), "no sample"),
    "too large for the head": (lambda x: torch.cat([x, x], 2), "cannot run on this input"),
    "too small": (lambda x: x[..., :2], "cannot run on this input"),
    "no pixels": (lambda x: x[..., :0], "cannot run on this input"),
    "an empty batch": (lambda x: x[:0], "no sample"),
    "integers": (lambda x: (x * 255).to(torch.uint8), "uint8"),
    "long integers": (lambda x: x.long(), "floating point"),
    "booleans": (lambda x: x > 0, "floating point"),
    "complex": (lambda x: x.to(torch.complex64), "complex64"),
    "NaN": (lambda x: x.where(x > 0, torch.nan), "NaN"),
    "infinite": (lambda x: x.where(x > 0, torch.inf), "NaN or infinite"),
    "double": (lambda x: x.double(), "float64"),
    "half": (lambda x: x.half(), "float16"),
    "another device": (lambda x: x.to("meta"), "on meta and the network on cpu"),
    "a list": (lambda x: [x], "a list"),
    "an array": (lambda x: x.numpy(), "ndarray"),
    "nothing": (lambda x: None, "NoneType"),
}


@pytest.mark.parametrize("solver", ["global", "layered", "synchronous", "feedforward"])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", INPUTS)
def test_bad_input(name: str, training: bool, solver: str, image: Tensor) -> None:
    make, message = INPUTS[name]
    net = pursuitify(Plain().train(training), iterations=2, solver=solver)
    before = snapshot(net)
    with pytest.raises(InputError, match=message):
        net(make(image))
    if "cannot run" not in message:  # those begin to run, as the source does
        assert same(before, snapshot(net))
        for inspect in (net.latents, net.dictionary, net.step_sizes, net.diagnose):
            with pytest.raises(InputError, match=message):
                inspect(make(image))
        assert same(before, snapshot(net))
    assert net(image).shape == (2, 2)


VECTORS = {
    "norm first": lambda: nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 3), nn.ReLU()),
    "flatten first": lambda: nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.ReLU()),
    "linear first": lambda: nn.Sequential(nn.Linear(4, 3), nn.ReLU()),
}


@pytest.mark.parametrize("iterations", [0, 2])
@pytest.mark.parametrize("shape", [(4,), (2, 5), (0, 4), ()])
@pytest.mark.parametrize("name", VECTORS)
def test_bad_shapes_of_vectors(name: str, shape: tuple[int, ...], iterations: int) -> None:
    net = pursuitify(VECTORS[name]().eval(), iterations=iterations)
    with pytest.raises(InputError):
        net(torch.zeros(shape))


def test_a_single_sample_has_no_batch_statistics() -> None:
    net = pursuitify(VECTORS["norm first"]().train())
    with pytest.raises(InputError, match="more than 1 value"):
        net(torch.zeros(1, 4))


def test_half_precision_input_under_autocast(image: Tensor) -> None:
    net = pursuitify(Plain().eval(), iterations=2)
    with torch.autocast("cpu", torch.bfloat16):
        assert net(image).shape == (2, 2)
    with pytest.raises(InputError, match="bfloat16"):
        net(image.bfloat16())


def test_arguments_that_are_compiled_in() -> None:
    class Default(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(4, 4)

        def forward(self, x: Tensor, scale: float = 2.0, mask: Tensor | None = None) -> Tensor:
            y = F.relu(self.first(x)) * scale
            return y if mask is None else y * mask

    x = torch.randn(2, 4)
    for iterations in (0, 2):
        net = pursuitify(Default().eval(), iterations=iterations)
        assert torch.equal(net(x), net(x, scale=2.0, mask=None))
        for options in ({"scale": 3.0}, {"mask": torch.ones(4)}):
            with pytest.raises(InputError, match=f"{next(iter(options))}.*default"):
                net(x, **options)


def test_errors_are_one_family() -> None:
    assert issubclass(OptionError, PursuitifyError)
    assert issubclass(OptionError, ValueError)
    assert issubclass(InputError, PursuitifyError)
    assert issubclass(InputError, ValueError)
    assert option_checks.count("n", 0) == 0
    assert option_checks.one_of("s", "a", ("a", "b")) == "a"


def test_the_copy_is_deep() -> None:
    model = Plain()
    net = pursuitify(model)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for tensor in (*net.parameters(), *net.buffers()):
            tensor.add_(1)
    assert same(list(twin.state_dict().values()), list(model.state_dict().values()))


def _cleared(parameter: Tensor) -> None:
    assert parameter.grad is not None
    parameter.grad.zero_()


GRADIENT_HOOKS: dict[str, Callable[[nn.Parameter], Any]] = {
    "register_hook": lambda p: p.register_hook(lambda g: 0 * g),
    "post_accumulate": lambda p: p.register_post_accumulate_grad_hook(_cleared),
}


@pytest.mark.parametrize("path", ["0.weight", "2.bias"])
@pytest.mark.parametrize("kind", GRADIENT_HOOKS)
def test_hooks_on_derivatives_of_parameters_are_kept_or_refused(kind: str, path: str) -> None:
    model, x = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)), torch.rand(3, 4)
    handle = GRADIENT_HOOKS[kind](model.get_parameter(path))
    with pytest.raises(ConversionError, match=f"'{path}'.*copy=False"):
        pursuitify(model)
    assert path in str(explain(model).problems)
    shared = pursuitify(model, copy=False, iterations=2)
    shared(x).sum().backward()
    zero = {name: not p.grad.any() for name, p in shared.named_parameters() if p.grad is not None}
    assert [name for name, is_zero in zero.items() if is_zero] == [path]
    handle.remove()
    assert explain(model).ok
    net = pursuitify(model, iterations=2)
    GRADIENT_HOOKS[kind](net.get_parameter(path))  # as the refusal says
    net(x).sum().backward()
    assert not net.get_parameter(path).grad.any()
