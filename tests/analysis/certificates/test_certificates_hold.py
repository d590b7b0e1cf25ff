"""Certificates over generated bodies, heads and rules: attacks inside the radius change nothing."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn

from pursuitify import OptionError, pursuitify
from pursuitify.analysis.certificates import certified_radius as certified_module
from pursuitify.errors import InputError, PursuitifyError, VerificationError
from pursuitify.operators import Dense, LinearMap, Scale
from pursuitify.operators.activations import Activation, ReLU
from pursuitify.robust import certified_radius
from pursuitify.rules import activation, linear
from tests.support.examples import examples
from tests.support.nets import randomise

BATCH, CHANNELS, SIZE, CLASSES = 4, 4, 4, 3


# -- bodies: modules from (batch, CHANNELS, SIZE, SIZE) to the same shape --------------------------


class Own(nn.Module):
    """A module that only a rule of the user's own knows; ``f`` is what it computes."""

    def __init__(self, f: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.f = f

    def forward(self, x: Tensor) -> Tensor:
        return self.f(x)


class OwnActivation(Own):
    """The same, an activation."""


class Excite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Conv2d(CHANNELS, CHANNELS, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(10 * self.fc(x.mean((2, 3), keepdim=True)))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + F.relu(self.conv(x))


class Dense2(nn.Module):
    """Two branches side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(CHANNELS, CHANNELS, 1), nn.Conv2d(2 * CHANNELS, CHANNELS, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.cat([x, F.relu(self.a(x))], 1))


class Resized(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(F.avg_pool2d(x, 2), scale_factor=2.0, mode="bilinear")


class Sized(nn.Module):
    """A convolution, and what ``f`` makes of it."""

    def __init__(self, f: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.f = nn.Conv2d(CHANNELS, CHANNELS, 1), f

    def forward(self, x: Tensor) -> Tensor:
        return self.f(self.conv(x))


def _gate(x: Tensor) -> Tensor:
    return (x.sum(tuple(range(1, x.dim())), keepdim=True) > 0).to(x)


def _soft(x: Tensor) -> Tensor:
    return torch.sigmoid(x.mean(tuple(range(1, x.dim())), keepdim=True))


def _centred(x: Tensor) -> Tensor:
    return x - 0.5 * x.mean(0, keepdim=True)


@dataclass(frozen=True, eq=False)
class Gating(LinearMap):
    """A product with a frozen gate."""

    gate: Tensor

    def apply(self, x: Tensor) -> Tensor:
        return x * self.gate

    def adjoint(self, y: Tensor) -> Tensor:
        return y * self.gate

    def norm_bound(self) -> float:
        return 1.0


@dataclass(frozen=True, eq=False)
class Centring(LinearMap):
    """Self-adjoint; mixes the samples and does not say so."""

    def apply(self, x: Tensor) -> Tensor:
        return _centred(x)

    def adjoint(self, y: Tensor) -> Tensor:
        return _centred(y)

    def norm_bound(self) -> float:
        return 1.0


@dataclass(frozen=True, eq=False)
class Understated(LinearMap):
    """Three times the identity, with a bound that is too small."""

    def apply(self, x: Tensor) -> Tensor:
        return 3 * x

    def adjoint(self, y: Tensor) -> Tensor:
        return 3 * y

    def norm_bound(self) -> float:
        return 0.2


@dataclass(frozen=True, eq=False)
class Leaking(Activation):
    """A proximal operator, of LeakyReLU's penalty, that says that it is zero below zero."""

    @property
    def nonnegative(self) -> bool:
        return True

    def __call__(self, z: Tensor) -> Tensor:
        return self.prox(z, 1.0)

    def prox(self, v: Tensor, step: Tensor | float) -> Tensor:
        return torch.where(v >= 0, v, v / (1 + step))

    def penalty(self, w: Tensor) -> Tensor:
        return torch.where(w < 0, 0.5 * w * w, torch.zeros_like(w))


class Steep(Activation):
    """No proximal operator: it stretches. At step 1 it is what the module computes."""

    def __call__(self, z: Tensor) -> Tensor:
        return 4 * F.relu(z)

    def prox(self, v: Tensor, step: Tensor | float) -> Tensor:
        return 4 * F.relu(v)

    def penalty(self, w: Tensor) -> Tensor:
        return torch.zeros_like(w)


class Shifted(ReLU):
    """A ReLU by class alone: what its prox gives below zero is not zero."""

    def __call__(self, z: Tensor) -> Tensor:
        return F.relu(z + 1.0)

    def prox(self, v: Tensor, step: Tensor | float) -> Tensor:
        return F.relu(v + step)


@dataclass(frozen=True)
class Shrunk(Activation):
    """Soft thresholding: the prox of a convex penalty."""

    def __call__(self, z: Tensor) -> Tensor:
        return F.softshrink(z, 0.1)

    def prox(self, v: Tensor, step: Tensor | float) -> Tensor:
        return v.sign() * (v.abs() - 0.1 * step).clamp_min(0)

    def penalty(self, w: Tensor) -> Tensor:
        return 0.1 * w.abs()


def named(f: Callable[..., Any], name: str) -> Callable[..., Any]:
    f.__name__ = name
    return f


def own(f: Callable[[Tensor], Tensor], make: Callable[[Tensor], LinearMap], **promise: Any) -> Any:
    """Return a body of a user's own linear rule, and its rule, called ``name``."""

    def body(name: str) -> tuple[nn.Module, dict[Any, Any]]:
        class Mine(Own):
            pass

        rule = linear(named(lambda _, x: make(x), name), **promise)
        return nn.Sequential(Mine(f), nn.Conv2d(CHANNELS, CHANNELS, 1), nn.ReLU()), {Mine: rule}

    return body


def own_activation(act: Activation, **promise: Any) -> Any:
    def body(name: str) -> tuple[nn.Module, dict[Any, Any]]:
        class Mine(OwnActivation):
            pass

        rule = activation(named(lambda *_: act, name), **promise)
        return nn.Sequential(nn.Conv2d(CHANNELS, CHANNELS, 1), Mine(act.__call__)), {Mine: rule}

    return body


def plain(*make: Callable[[], nn.Module]) -> Any:
    return lambda _: (nn.Sequential(*(m() for m in make)), {})


def conv() -> nn.Module:
    return nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)


PROMISE = {"input_dependent": False}
#: Bodies that can be certified, and bodies that cannot.
SOUND: dict[str, Any] = {
    "conv relu": plain(conv, nn.ReLU),
    "conv leaky": plain(conv, lambda: nn.LeakyReLU(0.2)),
    "conv relu6": plain(conv, nn.ReLU6),
    "conv norm": plain(conv, lambda: nn.BatchNorm2d(CHANNELS), nn.ReLU),
    "prelu": plain(conv, nn.PReLU),
    "prelu of channels": plain(conv, lambda: nn.PReLU(CHANNELS, init=0.7)),
    "residual": plain(Residual, nn.ReLU),
    "dense": plain(Dense2, nn.ReLU),
    "resized": plain(Resized, conv, nn.ReLU),
    "dropout": plain(conv, nn.ReLU, nn.Dropout),
    "honest map": own(lambda x: 0.5 * x, lambda x: Scale(0.5), **PROMISE),
    "honest activation": own_activation(Shrunk(), **PROMISE),
    "shifted relu": own_activation(Shifted(), **PROMISE),
}
UNSOUND: dict[str, Any] = {
    "max pool": plain(lambda: nn.MaxPool2d(3, 1, 1), conv, nn.ReLU),
    "excite": plain(Excite, conv, nn.ReLU),
    "batch statistics": plain(
        conv, lambda: nn.BatchNorm2d(CHANNELS, track_running_stats=False), nn.ReLU
    ),
    "gate, no promise": own(lambda x: x * _soft(x), lambda x: Gating(_soft(x))),
    "gate, a lie": own(lambda x: x * _soft(x), lambda x: Gating(_soft(x)), **PROMISE),
    "map, no promise": own(lambda x: 0.5 * x, lambda x: Scale(0.5)),
    "centring, a lie": own(_centred, lambda x: Centring(), **PROMISE),
    "bound, a lie": own(lambda x: 3 * x, lambda x: Understated(), **PROMISE),
    "activation, no promise": own_activation(Shrunk()),
    "activation, a lie": own_activation(Steep(), **PROMISE),
    "nonnegative, a lie": own_activation(Leaking(), **PROMISE),
    "by size": plain(lambda: Sized(lambda x: x * (1 + x.shape[0] // 9)), nn.ReLU),
    "by place": plain(lambda: Sized(lambda x: torch.cat([x[:9], 2 * x[9:]])), nn.ReLU),
}

# -- heads: functions of (latents (batch, features), fc, input) ------------------------------------


def _inplace(z: Tensor, fc: nn.Module, x: Tensor) -> Tensor:
    z = 2 * z
    z.mul_(0.5)
    out = fc(z)
    out += 0.1
    return out


def _split(z: Tensor, fc: nn.Module, x: Tensor) -> Tensor:
    a, b = fc(z).split([1, 2], 1)
    return torch.cat([b, a], 1)


SOUND_HEADS: dict[str, Any] = {
    "linear": lambda z, fc, x: fc(z),
    "in place": _inplace,
    "view": lambda z, fc, x: fc(z.view(x.size(0), -1)),
    "zeros": lambda z, fc, x: fc(z) + torch.cat([z.new_zeros(x.shape[0], CLASSES)], 1),
    "split": _split,
    "columns": lambda z, fc, x: fc(z)[:, [2, 0, 1]],
    "ellipsis": lambda z, fc, x: fc(z)[..., None][..., 0],
    "expanded": lambda z, fc, x: fc(z) + z.new_ones(1, CLASSES).expand(x.shape[0], -1),
    "by width": lambda z, fc, x: fc(z) / x.shape[-1] ** 0.5,
    "times first": lambda z, fc, x: torch.stack([fc(z), fc(2 * z)]).sum(0),
    "negative": lambda z, fc, x: 1 - fc(z),
}
UNSOUND_HEADS: dict[str, Any] = {
    "softmax": lambda z, fc, x: torch.softmax(fc(z), 1),
    "softmax over the batch": lambda z, fc, x: torch.softmax(fc(z), 0),
    "centred": lambda z, fc, x: fc(z) - fc(z).mean(0, keepdim=True),
    "barely centred": lambda z, fc, x: fc(z) - 1e-3 * fc(z).mean(0, keepdim=True),
    "turned": lambda z, fc, x: fc(z).flip(0),
    "rolled": lambda z, fc, x: fc(z) + 0.1 * fc(z).roll(-1, 0),
    "by size": lambda z, fc, x: fc(z) * x.shape[0],
    "divided by size": lambda z, fc, x: fc(z) / x.size(0),
    "shifted by size": lambda z, fc, x: fc(z) + x.shape[0] * z.new_ones(CLASSES).cumsum(0),
    "by size, late": lambda z, fc, x: fc(z) * (1 + x.shape[0] // 9),
    "shifted late": lambda z, fc, x: fc(z) + z.new_ones(CLASSES).cumsum(0) * (x.shape[0] // 9),
    "columns by size": lambda z, fc, x: fc(z).roll(x.numel() // 150, 1),
    "by place, late": lambda z, fc, x: torch.cat([fc(z)[:9], -fc(z)[9:]]),
    "rolled far": lambda z, fc, x: fc(z) + 0.1 * fc(z).roll(60, 0),
    "by place": lambda z, fc, x: fc(z) * torch.arange(1, x.shape[0] + 1)[:, None],
    "cumulated": lambda z, fc, x: fc(z).cumsum(0),
    "square": lambda z, fc, x: fc(z) * fc(z),
    "input": lambda z, fc, x: fc(z) + x.mean((1, 2, 3))[:, None] * torch.arange(CLASSES),
    "dropout": lambda z, fc, x: fc(F.dropout(z, 0.5, True)),
    "joined": lambda z, fc, x: fc(z).reshape(-1)[None],
    "constant": lambda z, fc, x: z.new_zeros(x.shape[0], CLASSES),
}


class Net(nn.Module):
    def __init__(self, bodies: list[nn.Module], head: Any, pooled: bool) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, CHANNELS, 3, padding=1)
        self.bodies, self.head, self.pooled = nn.Sequential(*bodies), head, pooled
        self.fc = nn.Linear(CHANNELS * (1 if pooled else SIZE * SIZE), CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        z = self.bodies(F.relu(self.stem(x)))
        z = z.mean((2, 3)) if self.pooled else z.flatten(1)
        return self.head(z, self.fc, x)


class Two(nn.Module):
    """The same with two inputs."""

    def __init__(self, net: Net) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.net(x + y)


NAMES = ("conv", "neg", "div", "cat", "relu", "mul", "batch_norm", "mine")


def made(
    bodies: list[str],
    head: str,
    name: str = "conv",
    pooled: bool = True,
    seed: int = 0,
    **options: Any,
) -> tuple[Any, Tensor]:
    """Return a converted network and inputs."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        parts = [{**SOUND, **UNSOUND}[b](name) for b in bodies]
        rules = {k: v for _, own_rules in parts for k, v in own_rules.items()}
        model = Net([m for m, _ in parts], {**SOUND_HEADS, **UNSOUND_HEADS}[head], pooled)
        model = randomise(model, seed).double().eval()
        x = torch.randn(BATCH, 1, SIZE, SIZE, dtype=torch.float64)
    gains = options.pop("gains", False)
    net = pursuitify(model, iterations=6, solver="synchronous", rules=rules, **options)
    net = net.eval().requires_grad_(False)
    if gains:
        net.atom_gains = some_gains(net, x, seed)
    return net, x


def some_gains(net: Any, x: Tensor, seed: int) -> dict[str, Tensor]:
    """Return gains between 0.05 and 1 of every decoder row, one per channel."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for row, shape in zip(net.dictionary(x).rows, net.dictionary(x).shapes, strict=True):
        if row.diagonal is not None:
            size = (shape[1], *[1] * (len(shape) - 2))
            found[row.name] = 0.05 + 0.95 * torch.rand(size, generator=generator, dtype=x.dtype)
    return found


def broken(net: Any, x: Tensor, certificate: Any, seed: int = 0) -> Tensor:
    """Return which decisions change strictly inside the radii: alone, or all samples moving."""
    generator = torch.Generator().manual_seed(seed)
    reach = 0.999 * certificate.radius.clamp_max(1e3).reshape(-1, *[1] * (x.dim() - 1))
    leaf = x.clone().requires_grad_()
    steps = [torch.ones_like(x), -torch.ones_like(x), x, -x]
    steps += [torch.randn(x.shape, generator=generator, dtype=x.dtype) for _ in range(8)]
    with torch.enable_grad():
        logits = net(leaf)
        own = certificate.predictions
        lead = logits.gather(1, own[:, None]) - logits
        for c in range(CLASSES if lead.requires_grad else 0):  # too few sweeps: constant
            (slope,) = torch.autograd.grad(lead[:, c].sum(), leaf, retain_graph=True)
            steps += [-slope, slope]
    found = torch.zeros(len(x), dtype=torch.bool)
    for e in steps:
        length = e.flatten(1).norm(dim=1).clamp_min(1e-30).reshape(reach.shape)
        for share in (0.3, 1.0):
            there = x + share * reach * e / length
            found |= net(there).argmax(1) != own
            if share < 1:
                continue
            many = net(there.repeat(5, *[1] * (x.dim() - 1)))  # in a larger batch
            found |= (many.argmax(1) != own.repeat(5)).reshape(5, -1).any(0)
            for i in range(len(x)):  # in the company of samples that do not move, and alone
                mixed = x.clone()
                mixed[i] = there[i]
                found |= net(mixed).argmax(1) != own
                found[i] |= bool(net(there[i : i + 1]).argmax() != own[i])
    return found


def broken_fed_forward(net: Any, x: Tensor, certificate: Any, seed: int = 0) -> Tensor:
    """Return the same for the network at T = 0 and its radii."""
    before = net.iterations
    net.iterations = 0
    try:
        fed = SimpleNamespace(
            predictions=certificate.feedforward_predictions, radius=certificate.feedforward_radius
        )
        return broken(net, x, fed, seed)
    finally:
        net.iterations = before


@pytest.mark.parametrize("head", SOUND_HEADS)
@pytest.mark.parametrize("pooled", [True, False])
def test_sound_heads_are_certified(head: str, pooled: bool) -> None:
    net, x = made(["conv relu"], head, pooled=pooled)
    certificate = certified_radius(net, x)
    assert bool((certificate.radius > 0).all())
    assert not broken(net, x, certificate).any()


@pytest.mark.parametrize("body", SOUND)
def test_sound_bodies_are_certified(body: str) -> None:
    net, x = made([body, "conv relu"], "linear", seed=1)
    certificate = certified_radius(net, x)
    assert bool((certificate.radius > 0).all())
    assert not broken(net, x, certificate).any()


@pytest.mark.parametrize(
    ("offsets", "layout", "gains"),
    [
        ("signal", "encoder", False),
        ("signal", "encoder", True),
        ("threshold", "auto", True),
    ],
)
def test_layouts_offsets_and_gains_are_certified(offsets: str, layout: str, gains: bool) -> None:
    """Gains change the dictionary and no feed-forward layer: at T = 0 the radii are the same."""
    options: dict[str, Any] = {"offsets": offsets, "layout": layout, "seed": 1}
    net, x = made(["conv relu", "residual"], "linear", gains=gains, **options)
    certificate = certified_radius(net, x)
    assert bool((certificate.radius > 0).all())
    assert not broken(net, x, certificate).any()
    assert not broken_fed_forward(net, x, certificate).any()
    plain_net, _ = made(["conv relu", "residual"], "linear", **options)
    expected = certified_radius(plain_net, x).feedforward_radius
    assert torch.allclose(certificate.feedforward_radius, expected, rtol=1e-6)


@pytest.mark.parametrize("head", UNSOUND_HEADS)
@pytest.mark.parametrize("batch", [1, 3, BATCH])
def test_other_heads_are_refused(head: str, batch: int) -> None:
    net, x = made(["conv relu"], head)
    with pytest.raises(PursuitifyError, match=r"certified"):
        certified_radius(net, x[:batch])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("body", UNSOUND)
def test_other_bodies_are_refused_whatever_they_are_called(body: str, name: str) -> None:
    net, x = made([body], "linear", name)
    with pytest.raises(OptionError, match="cannot be certified"):
        certified_radius(net, x)


def test_a_rule_called_cat_is_no_concat() -> None:
    net, x = made(["honest map"], "linear", "cat")
    assert torch.allclose(net(x), made(["honest map"], "linear", "mine")[0](x))


LIES: dict[str, Any] = {
    "gate": (lambda x: x * _gate(x), lambda x: Gating(_gate(x))),
    "centring": (_centred, lambda x: Centring()),
    "bound": (lambda x: 3 * x, lambda x: Understated()),
}


@pytest.mark.parametrize("lie", LIES)
def test_the_attack_breaks_what_is_not_tried(lie: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Promises that are lies: refused; and were they not tried, the attack breaks the radii."""
    torch.manual_seed(0)
    f, make = LIES[lie]
    model = nn.Sequential(Own(f), nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, CLASSES))
    rule = linear(named(lambda _, x: make(x), "conv"), input_dependent=False)
    net = pursuitify(
        model.double().eval(), iterations=8, solver="synchronous", rules={Own: rule}
    ).eval()
    x = torch.randn(32, 4, dtype=torch.float64)
    with pytest.raises(OptionError, match="cannot be certified"):
        certified_radius(net, x)
    for name in ("check_dictionary", "check_head", "check_promises"):
        monkeypatch.setattr(certified_module, name, lambda *_: None)
    assert broken(net, x, certified_radius(net, x)).any()


@examples(10, 200, data=st.data())
def test_what_is_certified_holds(data: st.DataObject) -> None:
    """Sound parts most of the time, so that many are certified; any part at all otherwise."""
    bodies = data.draw(
        st.lists(st.sampled_from([*SOUND, *SOUND, *UNSOUND]), min_size=1, max_size=2)
    )
    head = data.draw(st.sampled_from([*SOUND_HEADS, *SOUND_HEADS, *SOUND_HEADS, *UNSOUND_HEADS]))
    options = {
        "layout": data.draw(st.sampled_from(["auto", "encoder"])),
        "offsets": data.draw(st.sampled_from(["signal", "threshold"])),
        "gains": data.draw(st.booleans()),
    }
    seed, name = data.draw(st.integers(0, 99)), data.draw(st.sampled_from(NAMES))
    try:
        net, x = made(bodies, head, name, data.draw(st.booleans()), seed, **options)
        net.iterations = data.draw(st.sampled_from([1, 3, 8]))
        net.step_scale = data.draw(st.sampled_from([1.0, 0.5]))
        certificate = certified_radius(net, x, local=data.draw(st.booleans()))
    except PursuitifyError:
        return
    assert head in SOUND_HEADS
    assert set(bodies) <= {*SOUND}
    assert not broken(net, x, certificate, seed).any()
    assert not broken_fed_forward(net, x, certificate, seed).any()


def test_a_map_that_is_not_the_value_is_refused() -> None:
    """Its feed-forward layer would be taken for 0.5 times what it reads, and is 30 times that."""
    model = nn.Sequential(Own(lambda x: 30 * x), nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, CLASSES))
    rule = linear(lambda _, x: Scale(0.5), input_dependent=False)
    net = pursuitify(
        model.double().eval(), 4, "synchronous", rules={Own: rule}, verify="off"
    ).eval()
    with pytest.raises(VerificationError, match="do not give"):
        certified_radius(net, torch.randn(4, 4, dtype=torch.float64))


@pytest.mark.parametrize("y", [torch.eye(BATCH)[:, :3], torch.eye(BATCH), torch.zeros(BATCH, 1)])
def test_accuracy_wants_one_class_per_input(y: Tensor) -> None:
    certificate = certified_radius(*made(["conv relu"], "linear"))
    with pytest.raises(InputError, match="one class per input"):
        certificate.accuracy(y, 0.0)
    for eps in (math.nan, -1.0):
        with pytest.raises(OptionError, match="eps"):
            certificate.accuracy(certificate.predictions, eps)


def test_two_inputs_are_refused() -> None:
    net, x = made(["conv relu"], "linear")
    model = Two(Net([nn.ReLU()], SOUND_HEADS["linear"], True)).double().eval()
    net = pursuitify(model, iterations=4, solver="synchronous").eval()
    with pytest.raises(OptionError, match="2 arguments"):
        certified_radius(net, x)


def test_a_matrix_of_the_users_own() -> None:
    """A weighted rule that promises: certified, and refused without the promise."""

    class Mine(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return F.linear(input, self.weight)

    model = nn.Sequential(Mine(6, 5), nn.ReLU(), nn.Linear(5, 3)).double().eval()
    x = torch.randn(4, 6, dtype=torch.float64)
    for promise in (True, False):
        rule = linear(
            lambda m, x: Dense(m.weight, x.dim()), weighted=True, input_dependent=not promise
        )
        net = pursuitify(model, iterations=5, solver="synchronous", rules={Mine: rule}).eval()
        if promise:
            assert bool((certified_radius(net, x).radius > 0).all())
        else:
            with pytest.raises(OptionError, match="does not say"):
                certified_radius(net, x)
