"""A network changed after its conversion is what a fresh conversion would be, or refuses."""

from __future__ import annotations

import copy
import functools
import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune, weight_norm

from pursuitify import PursuitNetwork, pursuitify
from pursuitify.errors import ConversionError, PursuitifyError
from pursuitify.models import ResidualNet


class Block(nn.Module):
    """A residual block whose forward reads attributes of its own."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)
        self.act, self.factor, self.skip, self.calls = nn.ReLU(), 0.5, True, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        y = self.act(self.norm(self.conv(x)))
        return x + self.factor * y if self.skip else y


def made() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.LeakyReLU(0.2),
        nn.MaxPool2d(2),
        Block(6),
        nn.Conv2d(6, 6, 3, padding=1, padding_mode="reflect"),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.1),
        nn.Linear(24, 3),
    )
    return model.eval()


def _at(path: str) -> Callable[[nn.Module], nn.Module]:
    return lambda model: model.get_submodule(path)


def _set(path: str, name: str, value: object) -> Callable[[nn.Module], object]:
    return lambda model: setattr(model.get_submodule(path), name, value)


def _put(path: str, new: Callable[[], nn.Module]) -> Callable[[nn.Module], object]:
    def change(model: nn.Module) -> None:
        torch.manual_seed(1)
        above, _, name = path.rpartition(".")
        like = next(model.parameters())
        setattr(model.get_submodule(above), name, new().to(like).train(model.training))

    return change


def _scaled(path: str) -> Callable[[nn.Module], object]:
    return lambda model: model.get_parameter(path).data.mul_(1.3)


def _assigned(model: nn.Module) -> None:
    weight = model.get_submodule("4").weight
    model.get_submodule("4").weight = nn.Parameter(weight.detach() * 0.7)


def _loaded(model: nn.Module) -> None:
    state = {k: v * 1.1 if v.is_floating_point() else v for k, v in model.state_dict().items()}
    own = {k: v for k, v in state.items() if not k.startswith("pursuit.")}
    model.load_state_dict(own, strict=False)


def _hooked(path: str) -> Callable[[nn.Module], object]:
    return lambda m: m.get_submodule(path).register_forward_hook(_amplified)


def _amplified(_module: nn.Module, _args: object, output: Tensor) -> Tensor:
    return 1.5 * output


def _patched(model: nn.Module) -> None:
    relu = model.get_submodule("5")
    relu.forward = lambda x: torch.relu(x) * 2  # type: ignore[method-assign]


class Standardised(nn.Conv2d):
    """A convolution that standardises its weight."""

    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(input, self.weight - self.weight.mean(), self.bias)


#: What is followed: the network must be what a fresh conversion of the changed model is.
FOLLOWED: dict[str, Callable[[nn.Module], object]] = {
    "dilation": lambda m: [_set("0", n, (2, 2))(m) for n in ("dilation", "padding")],
    "stride": _set("0", "stride", (2, 2)),
    "padding": lambda m: [
        _set("3.conv", n, v)(m) for n, v in (("dilation", (2, 2)), ("padding", "same"))
    ],
    "eps": _set("3.norm", "eps", 0.5),
    "momentum": _set("3.norm", "momentum", 0.5),
    "slope": _set("1", "negative_slope", 0.7),
    "pool": _set("2", "padding", 1),
    "dropout": _set("8", "p", 0.5),
    "weight": _scaled("4.weight"),
    "norm weight": _scaled("3.norm.weight"),
    "assigned": _assigned,
    "loaded": _loaded,
    "frozen": lambda m: m.get_parameter("0.weight").requires_grad_(False),
    "no bias": _set("4", "bias", None),
    "same kind": _put("0", lambda: nn.Conv2d(3, 6, 5, padding=2)),
    "head": _put("9", lambda: nn.Linear(24, 5)),
    "head hook": _hooked("9"),
    "buffer": lambda m: m.get_buffer("3.norm.running_var").mul_(2.0),
}
#: What cannot be followed. At the path the error must name.
REFUSED: dict[str, tuple[str, Callable[[nn.Module], object]]] = {
    "activation": ("5", _put("5", nn.GELU)),
    "other rule": ("1", _put("1", nn.Identity)),
    "pool kind": ("2", _put("2", lambda: nn.AvgPool2d(2))),
    "inner activation": ("3.act", _put("3.act", lambda: nn.LeakyReLU(0.3))),
    "subclass": ("4", _put("4", lambda: Standardised(6, 6, 3, padding=1))),
    "container": ("3", _put("3", lambda: nn.Sequential(nn.Conv2d(6, 6, 1), nn.ReLU()))),
    "deep head": ("9", _put("9", lambda: nn.Sequential(nn.Linear(24, 4), nn.ReLU()))),
    "pruned": ("4", lambda m: prune.l1_unstructured(_at("4")(m), "weight", 0.5)),
    "weight norm": ("3.conv", lambda m: weight_norm(_at("3.conv")(m))),
    "parametrised": ("0", lambda m: parametrizations.weight_norm(_at("0")(m))),
    "hook": ("3.conv", _hooked("3.conv")),
    "block hook": ("3", _hooked("3")),
    "pre-hook": ("5", lambda m: _at("5")(m).register_forward_pre_hook(lambda _m, a: (-a[0],))),
    "backward hook": (
        "5",
        lambda m: _at("5")(m).register_full_backward_hook(lambda _m, g, _o: (2 * g[0],)),
    ),
    "patched": ("5", _patched),
    "factor": ("3", _set("3", "factor", 2.0)),
    "branch": ("3", _set("3", "skip", False)),
    "indices": ("2", _set("2", "return_indices", True)),
    "reflect": ("4", _set("4", "padding", (2, 2))),
    "inplace": ("5", _set("5", "inplace", True)),
}
FREE: dict[str, Callable[[PursuitNetwork], PursuitNetwork]] = {
    "call": lambda net: net,
    "deepcopy": copy.deepcopy,
    "modes": lambda net: net.train().eval(),  # type: ignore[return-value]
    "pickle": lambda net: pickle.loads(pickle.dumps(net)),
}


def outputs(net: PursuitNetwork, x: Tensor) -> list[Tensor]:
    """Return T = 0 and T = 3, with derivatives and without, twice: caches are filled in between."""
    found = []
    for iterations in (0, 3):
        net.iterations = iterations
        found += [net(x).detach()]
        with torch.no_grad():
            found += [net(x), net(x)]
    return found


def agree(net: PursuitNetwork, model: nn.Module, x: Tensor) -> None:
    expected = outputs(pursuitify(model, iterations=3), x)
    for found, wanted in zip(outputs(net, x), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=2e-4, atol=2e-5)


X = torch.rand(2, 3, 12, 12, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("name", FOLLOWED)
def test_what_is_read_at_every_call_is_followed(name: str) -> None:
    model, net = made(), pursuitify(made(), iterations=3)
    before = outputs(net, X)
    for changed in (model, net):
        FOLLOWED[name](changed)
    agree(net, model, X)
    if name not in {"momentum", "dropout", "frozen", "head"}:
        assert not torch.equal(outputs(net, X)[-1], before[-1]), "the change does nothing"


@pytest.mark.parametrize("called", [True, False])
@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_followed_is_refused(name: str, called: bool) -> None:
    net = pursuitify(made(), iterations=3)
    if called:
        outputs(net, X)
    path, change = REFUSED[name]
    change(net)
    for iterations in (3, 0):
        net.iterations = iterations
        for use in (net, net.infer, net.latents, net.diagnose):
            with pytest.raises(ConversionError, match=r"not the one that was converted") as raised:
                use(X)
            problem = raised.value.problems[0]
            assert problem.module == path
            assert "again" in problem.hint or "Remove the hook" in problem.hint
            assert len(raised.value.problems) == 1


def test_all_changes_are_named_at_once() -> None:
    net = pursuitify(made(), iterations=3)
    for name in ("activation", "factor", "pruned"):
        REFUSED[name][1](net)
    net.get_submodule("3").norm = nn.Identity()
    with pytest.raises(ConversionError) as raised:
        net(X)
    assert [p.module for p in raised.value.problems] == ["3", "3.norm", "4", "5"]


def test_undone_changes_are_forgotten() -> None:
    net = pursuitify(made(), iterations=3)
    expected = net(X)
    handle = net.get_submodule("3.conv").register_forward_hook(lambda *_: None)
    prune.random_unstructured(net.get_submodule("4"), "weight", 0.0)
    with pytest.raises(ConversionError):
        net(X)
    handle.remove()
    prune.remove(net.get_submodule("4"), "weight")
    torch.testing.assert_close(net(X), expected)


def test_a_forward_may_keep_state() -> None:
    """With copy=False the model goes on counting its own calls, in the modules that are shared."""
    model = made()
    net = pursuitify(model, iterations=3, copy=False)
    expected = net(X)
    model(X)
    assert torch.equal(net(X), expected)


def test_what_no_code_runs_is_not_asked() -> None:
    model = made()
    model.add_module("unused", nn.ReLU())
    model[3].spare = nn.Linear(2, 2)

    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.extra = model, nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            for layer in list(self.body)[:10]:
                x = layer(x)
            return x

    net = pursuitify(Wrapped().eval(), iterations=3)
    expected = net(X)
    del net.extra, net.get_submodule("body.3").spare
    net.loss = nn.CrossEntropyLoss()
    net.register_forward_hook(lambda *_: None)
    assert torch.equal(net(X), expected)


def test_compiled_code_is_refused_alike() -> None:
    torch.compiler.reset()
    net = pursuitify(made(), iterations=1)
    REFUSED["activation"][1](net)
    with torch.no_grad(), pytest.raises(Exception, match=r"it was a ReLU when converted"):
        torch.compile(net, backend="eager")(X)


@pytest.mark.parametrize(
    "seed", [*range(15), *(pytest.param(n, marks=pytest.mark.slow) for n in range(15, 40))]
)
def test_any_changes_agree_with_a_fresh_conversion_or_are_refused(seed: int) -> None:
    """Changes of all kinds in any order, between calls of any kind."""
    draw = random.Random(seed)
    model, net, x = made(), pursuitify(made(), iterations=3), X
    everything = {**FOLLOWED, **{name: change for name, (_, change) in REFUSED.items()}}
    refused: list[str] = []
    for _ in range(draw.randint(1, 4)):
        free = [name for name in FREE if name != "pickle" or not refused]
        net = FREE[draw.choice(free)](net)
        if draw.random() < 0.7 and not refused:
            outputs(net, x[: draw.randint(1, 2)])
        name = draw.choice(list(FOLLOWED if draw.random() < 0.8 else everything))
        try:
            everything[name](model)
        except (AttributeError, ValueError, RuntimeError):
            break  # the changes before have taken away what this one changes
        everything[name](net)
        refused += [name] * (name in REFUSED)
    if refused:
        with pytest.raises(PursuitifyError):
            net(x)
        return
    agree(net, model, x)
    agree(net.double(), model.double(), x.double())


class _Scaled(nn.Module):
    """A root with attributes of its own: one that the forward reads, one that nothing reads."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.scale, self.note = nn.Linear(4, 4), 2.0, "a model"

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.fc(x)) * self.scale


@pytest.mark.parametrize("sweeps", [0, 2])
@pytest.mark.parametrize("called", [False, True])
def test_an_attribute_of_the_source_set_on_the_network_is_refused(
    sweeps: int, called: bool
) -> None:
    net, x = pursuitify(_Scaled().eval(), iterations=sweeps), torch.rand(2, 4)
    if called:
        net(x)
    net.note = "nothing reads it"
    before = net(x)
    net.scale = 5.0
    with pytest.raises(ConversionError, match="'scale' was set after the conversion"):
        net(x)
    with pytest.raises(ConversionError, match="scale"):
        copy.deepcopy(net)(x)
    del net.scale
    torch.testing.assert_close(net(x), before)


def _through_helper(model: Any, x: Tensor) -> Tensor:
    y: Tensor = model.fc(F.relu(model.first(x))) * model.factor
    return y


BODIES: dict[str, Any] = {
    "function": lambda model, x: model.fc(F.relu(model.first(x))) * model.factor,
    "helper": lambda model, x: _through_helper(model, x),
    "partial": functools.partial(_through_helper),
    "table": {"a": [_through_helper]},
}


@pytest.mark.parametrize("name", BODIES)
def test_an_attribute_that_a_held_function_reads_is_not_set_in_vain(name: str) -> None:
    """The network has none of the source's own attributes: one that is set would be ignored."""

    class Holds(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.fc = nn.Linear(3, 4), nn.Linear(4, 2)
            self.factor, self.note, self.body = 2.0, "a note", BODIES[name]

        def forward(self, x: Tensor) -> Tensor:
            body = self.body["a"][0] if isinstance(self.body, dict) else self.body
            y: Tensor = body(self, x)
            return y

    net, x = pursuitify(Holds(), iterations=1), torch.rand(2, 3)
    net(x)
    net.note = "another"  # which no code reads
    net(x)
    net.factor = 3.0
    with pytest.raises(ConversionError, match="'factor' was set after the conversion"):
        net(x)


def _shard(net: PursuitNetwork, part: str) -> Any:
    from torch.distributed.fsdp import fully_shard

    if part == "blocks":
        for block in net.blocks:
            fully_shard(block)
    if part == "convolutions":
        for conv in [m for m in net.modules() if isinstance(m, nn.Conv2d)]:
            fully_shard(conv)
    return fully_shard(net)


def test_only_a_network_sharded_as_a_whole_pursues(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sweeps read weights outside of modules' forwards, where a module's shards are apart."""
    if not torch.distributed.is_available():
        pytest.skip("torch was built without it")
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    model, x = ResidualNet(1, 3, width=2).eval(), torch.rand(2, 1, 8, 8)
    store = f"file://{tmp_path}/store"
    torch.distributed.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    try:
        for part in ("blocks", "convolutions"):
            net = pursuitify(model, iterations=2)
            _shard(net, part)
            with pytest.raises(ConversionError, match=r"fully_shard\(net\)") as raised:
                net(x)
            assert "is sharded on its own" in str(raised.value)
        net = pursuitify(model, iterations=2)
        expected = net(x)
        assert torch.equal(_shard(net, "")(x), expected)
    finally:
        torch.distributed.destroy_process_group()
