"""Normalisations by statistics of each sample: exact, and frozen for the sweeps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pursuitify import InputError, OptionError, PursuitNetwork, explain, pursuitify
from pursuitify.robust import certified_radius
from tests.support.agreement import assert_adjoint, assert_descends, compare
from tests.support.compare_modes import assert_same, assert_same_outputs, differentiate
from tests.support.nets import randomise
from tests.support.oracle import Oracle, Row, row

EXACT = 1e-10
C = 4


class Call(nn.Module):
    """A function as a module."""

    def __init__(self, f: Callable[[Tensor], Tensor], eps: float = 1e-5) -> None:
        super().__init__()
        self.f, self.eps = f, eps

    def forward(self, x: Tensor) -> Tensor:
        return self.f(x)


#: name -> the layer, and the sets of entries of one sample that are normalised together: a label
#: per entry of (C, 3, 5), from which NumPy takes the statistics.
CHANNEL = np.arange(C)[:, None, None] + np.zeros((1, 3, 5), int)
NORMS: dict[str, tuple[Callable[[], nn.Module], np.ndarray]] = {
    "group": (lambda: nn.GroupNorm(2, C), CHANNEL // 2),
    "group of all, function": (
        lambda: Call(lambda x: F.group_norm(x, 1, eps=0.1), 0.1),
        0 * CHANNEL,
    ),
    "torch.group_norm": (lambda: Call(lambda x: torch.group_norm(x, 4)), CHANNEL),
    "instance": (lambda: nn.InstanceNorm2d(C), CHANNEL),
    "instance, affine": (lambda: nn.InstanceNorm2d(C, affine=True, eps=1e-2), CHANNEL),
    "instance, function": (lambda: Call(F.instance_norm), CHANNEL),
    "layer": (lambda: nn.LayerNorm([C, 3, 5]), 0 * CHANNEL),
    "layer of the last": (lambda: nn.LayerNorm(5), np.arange(C * 3).reshape(C, 3, 1) + 0 * CHANNEL),
    "layer, function": (lambda: Call(lambda x: F.layer_norm(x, x.shape[2:])), CHANNEL),
}


def frozen(norm: Any, labels: np.ndarray, at: Tensor) -> Callable[[Tensor], Tensor]:
    """Return the affine map that a norm is at one value, its statistics taken in NumPy."""
    value, eps = at.detach().numpy()[0], norm.eps
    mean, factor = np.empty_like(value), np.empty_like(value)
    for label in np.unique(labels):
        members = value[labels == label]
        centre = members.sum() / members.size
        mean[labels == label] = centre
        spread = ((members - centre) ** 2).sum() / members.size
        factor[labels == label] = 1 / np.sqrt(spread + eps)
    weight, bias = getattr(norm, "weight", None), getattr(norm, "bias", None)
    shape = (C, 1, 1) if weight is not None and weight.dim() == 1 and len(weight) == C else None

    def given(t: Tensor | None, default: float) -> Tensor:
        if t is None:
            return torch.tensor(default, dtype=torch.float64)
        return t.detach().reshape(shape) if shape else t.detach()

    scale = torch.from_numpy(factor) * given(weight, 1.0)
    shift = given(bias, 0.0) - torch.from_numpy(mean) * scale
    return lambda u: u * scale + shift


class Net(nn.Module):
    """conv, norm, relu, a residual sum that is normalised again, relu."""

    def __init__(self, norm: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(2, C, 3, padding=1), nn.Conv2d(C, C, 3, padding=1)
        self.norm1, self.norm2 = norm(), norm()

    def forward(self, x: Tensor) -> Tensor:
        a = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(a) + a)).mean((2, 3))


def made(norm: Callable[[], nn.Module], batch: int = 3) -> tuple[Net, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Net(norm).double().eval()
        for name, p in model.named_parameters():
            if "norm" in name:
                nn.init.uniform_(p, 0.4, 1.5)
        return model, torch.randn(batch, 2, 3, 5, dtype=torch.float64)


def rows(model: Net, labels: np.ndarray, names: list[str], x: Tensor) -> list[Row]:
    """The rows at one input, every norm replaced by what it is there."""
    with torch.no_grad():
        z = model.conv1(x)
        first = frozen(model.norm1, labels, z)
        a = F.relu(first(z))
        second = frozen(model.norm2, labels, model.conv2(a) + a)
    return [
        row(names[0], "x", diag=lambda u: first(model.conv1(u))),
        row(names[1], names[0], lambda u: second(model.conv2(u) + u)),
    ]


@pytest.mark.parametrize("offsets", ["threshold", "signal"])
@pytest.mark.parametrize("name", NORMS)
def test_sweeps_against_the_oracle(name: str, offsets: Any) -> None:
    norm, labels = NORMS[name]
    model, x = made(norm)
    net = pursuitify(model, offsets=offsets)
    assert_oracle(net, rows(model, labels, list(net.latents(x)), x[:1]), x, offsets)


def assert_oracle(net: PursuitNetwork, described: list[Row], x: Tensor, offsets: str) -> None:
    """The first sample of a batch is pursued as the oracle pursues it alone."""
    oracle = Oracle(described, x[:1], offsets)
    steps = {n: float(s.detach().reshape(-1)[0]) for n, s in net.step_sizes(x).items()}
    exact = oracle.lipschitz()
    for count in (0, 1, 5):
        net.iterations = count
        found = torch.cat([w[0].detach().flatten() for w in net.latents(x).values()]).numpy()
        wanted = oracle.sweeps(count, steps) if count else oracle.w0
        assert np.abs(found - wanted).max() <= EXACT * max(1.0, np.abs(wanted).max())
    for key, step in steps.items():
        assert step * exact[key] <= 1 + EXACT  # the bound holds for the sample's own factors


def test_local_response_norm_and_rms_norm_against_the_oracle() -> None:
    def local(value: np.ndarray) -> np.ndarray:
        mean = np.zeros_like(value)
        for c in range(C):
            near = [k for k in (c - 1, c, c + 1) if 0 <= k < C]
            mean[c] = (value[near] ** 2).sum(0) / 3
        return (1.5 + 2.0 * mean) ** -0.6

    def root(value: np.ndarray) -> np.ndarray:
        return 1 / np.sqrt((value**2).mean(axis=2, keepdims=True) + 1e-3) + 0 * value

    for norm, factor in (
        (lambda: nn.LocalResponseNorm(3, 2.0, 0.6, 1.5), local),
        (lambda: nn.RMSNorm(5, eps=1e-3, elementwise_affine=False), root),
    ):
        model, x = made(norm)
        net = pursuitify(model)
        one, two = net.latents(x)
        with torch.no_grad():
            z = model.conv1(x[:1])
            s = torch.from_numpy(factor(z.numpy()[0]))
            a = F.relu(z * s)
            t = torch.from_numpy(factor((model.conv2(a) + a).numpy()[0]))
        described = [
            row(one, "x", diag=lambda u, m=model, s=s: m.conv1(u) * s),
            row(two, one, lambda u, m=model, t=t: (m.conv2(u) + u) * t),
        ]
        assert_oracle(net, described, x, "signal")


@pytest.mark.parametrize("size", [1, 2, 4, 5])
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_local_response_norm_takes_the_channels_that_torch_takes(size: int, dims: int) -> None:
    conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
    model = nn.Sequential(
        conv(2, 5, 1), nn.ReLU(), nn.LocalResponseNorm(size, 3.0), conv(5, 2, 1), nn.ReLU()
    ).double()
    compare(pursuitify, model, randn(2, 2, *[4] * dims), training=False, tolerance=1e-12)


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


class Standardised(nn.Conv2d):
    """A convolution whose weight is standardised, as networks with GroupNorm have it."""

    def forward(self, x: Tensor) -> Tensor:
        w = self.weight
        w = (w - w.mean((1, 2, 3), keepdim=True)) / (w.std((1, 2, 3), keepdim=True) + 1e-5)
        return F.conv2d(x, w, self.bias, self.stride, self.padding)


def weight_standardised() -> nn.Module:
    """Pre-activation residual units, weight standardisation and GroupNorm."""

    class Unit(nn.Module):
        def __init__(self, stride: int) -> None:
            super().__init__()
            self.norm1, self.norm2 = nn.GroupNorm(2, C), nn.GroupNorm(2, C)
            self.conv1 = Standardised(C, C, 3, stride, 1, bias=False)
            self.conv2 = Standardised(C, C, 3, 1, 1, bias=False)
            self.down = Standardised(C, C, 1, stride, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            y = F.relu(self.norm1(x))
            return self.conv2(F.relu(self.norm2(self.conv1(y)))) + self.down(y)

    return nn.Sequential(
        nn.Conv2d(3, C, 3, 1, 1), Unit(1), Unit(2), nn.GroupNorm(1, C), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(C, 3),
    )  # fmt: skip


def resnet_gn() -> nn.Module:
    class Unit(nn.Module):
        def __init__(self, inputs: int, stride: int) -> None:
            super().__init__()
            self.conv1 = nn.Conv2d(inputs, C, 3, stride, 1, bias=False)
            self.conv2 = nn.Conv2d(C, C, 3, 1, 1, bias=False)
            self.norm1, self.norm2 = nn.GroupNorm(2, C), nn.GroupNorm(2, C)
            self.down = nn.Sequential(nn.Conv2d(inputs, C, 1, stride), nn.GroupNorm(2, C))

        def forward(self, x: Tensor) -> Tensor:
            y = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
            return F.relu(y + self.down(x))

    return nn.Sequential(
        Unit(3, 1), nn.MaxPool2d(2), Unit(C, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(C, 3),
    )  # fmt: skip


class UNet(nn.Module):
    """A U-Net with InstanceNorm; MONAI's order is norm, dropout, PReLU."""

    def __init__(self, act: Callable[[], nn.Module], dropout: float, **norm: Any) -> None:
        super().__init__()

        def block(inputs: int, stride: int = 1) -> nn.Module:
            return nn.Sequential(
                nn.Conv2d(inputs, C, 3, stride, 1), nn.InstanceNorm2d(C, **norm),
                nn.Dropout(dropout), act(),
            )  # fmt: skip

        self.down1, self.down2, self.up1 = block(3), block(C, 2), block(2 * C)
        self.up = nn.Sequential(
            nn.ConvTranspose2d(C, C, 3, 2, 1, output_padding=1), nn.InstanceNorm2d(C, **norm), act()
        )
        self.last = nn.Conv2d(C, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.down1(x)
        return self.last(self.up1(torch.cat([a, self.up(self.down2(a))], 1)))


class TokenMixer(nn.Module):
    """LayerNorm over channels of an image (channels last and back), with ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, C, 3, padding=1), nn.LayerNorm(C)
        self.one, self.two = nn.Linear(C, 6), nn.Linear(6, C)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        y = self.norm(x.permute(0, 2, 3, 1))
        return F.relu(x + self.two(F.relu(self.one(y))).permute(0, 3, 1, 2)).mean((2, 3))


NETS: dict[str, Callable[[], nn.Module]] = {
    "resnet-gn": resnet_gn,
    "weight standardised": weight_standardised,
    "unet": lambda: UNet(nn.ReLU, 0.0),
    "monai": lambda: UNet(nn.PReLU, 0.2, affine=True, track_running_stats=True),
    "channels last": TokenMixer,
}


@pytest.mark.parametrize("name", NETS)
def test_networks_convert_in_both_modes_and_all_settings(name: str) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = randomise(NETS[name]()).double()
    x = randn(3, 3, 8, 8)
    for training in (True, False):
        compare(pursuitify, model, x, training=training, tolerance=EXACT)
    model.eval()
    net = pursuitify(model, iterations=2)
    net.verify(x)
    assert_adjoint(net, x)
    for layout, offsets, steps in (
        ("auto", "signal", "adaptive"),
        ("encoder", "threshold", "certified"),
        ("encoder", "signal", "adaptive"),
    ):
        net = pursuitify(model, iterations=2, layout=layout, offsets=offsets)
        net.steps = steps
        assert_descends(net, x, sweeps=3)
        expected, theirs = differentiate(net, x, memory="store")
        outputs, mine = differentiate(net, x, memory="recompute")
        assert_same_outputs(outputs, expected, 1e-11)
        assert_same(mine, theirs, 1e-10)
        with torch.no_grad():  # no sample is coupled to another
            whole, alone = net(x), net(x[1:2])
        assert float((whole[1:2] - alone).abs().max()) <= 1e-9 * float(whole.abs().max())
    net.iterations = 0
    assert torch.equal(net(x), model(x))


def test_running_statistics_are_updated_once_and_taken_in_evaluation_mode() -> None:
    model, x = made(lambda: nn.InstanceNorm2d(C, affine=True, track_running_stats=True))
    net = pursuitify(model.train(), iterations=3)
    twin, _ = made(lambda: nn.InstanceNorm2d(C, affine=True, track_running_stats=True))
    twin.train()(x)
    net(x)
    for name, buffer in twin.named_buffers():
        torch.testing.assert_close(net.get_buffer(name), buffer, rtol=1e-12, atol=1e-12)
    assert "frozen" in notes(model)["norm1"]
    assert "frozen" not in notes(model.eval())["norm1"]


def notes(model: nn.Module) -> dict[str, str]:
    return {entry.module: entry.note for entry in explain(model).entries}


def test_explain_says_what_is_frozen_and_a_certificate_is_refused() -> None:
    model, x = made(lambda: nn.GroupNorm(2, C))
    found = notes(model)
    for name in ("norm1", "norm2"):
        note = "frozen at the feed-forward pass: its statistics are those of each sample"
        assert note in found[name]
    net = pursuitify(model, iterations=3, solver="synchronous")
    with pytest.raises(OptionError, match="norm1: its statistics are those of each sample"):
        certified_radius(net, x)


def test_derivatives_go_through_the_frozen_statistics() -> None:
    model, x = made(lambda: nn.GroupNorm(2, C), 1)
    net = pursuitify(model, iterations=2, offsets="signal")
    assert torch.autograd.gradcheck(net, (x.requires_grad_(),), eps=1e-7, atol=1e-5)


ALIKE = {
    "zeros": torch.zeros(2, 3, 8, 8),
    "constant": torch.full((2, 3, 8, 8), 3.0),
    "tiny": 1e-6 * torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)),
    "far": 1e3 + torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)),
}


@pytest.mark.parametrize("name", ALIKE)
@pytest.mark.parametrize(
    "norm", [nn.InstanceNorm2d, lambda c: nn.GroupNorm(c, c), nn.BatchNorm2d], ids=["I", "G", "B"]
)
def test_values_that_are_alike_are_no_error_of_the_network(name: str, norm: Any) -> None:
    """Their variance is rounding, which the norm enlarges: the self-check must know it."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, C, 1), norm(C), nn.ReLU(), nn.Conv2d(C, C, 3), nn.ReLU())
    net = pursuitify(model.train(), iterations=2)
    assert torch.isfinite(net(ALIKE[name])).all()  # the self-check runs at the first call
    net.verify(ALIKE[name])


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.InstanceNorm1d(C), (C, 8)),
        (nn.LayerNorm([2, C]), (2, C)),
        (nn.RMSNorm([2, C]), (2, C)),
    ],
    ids=["instance", "layer", "rms"],
)
def test_an_input_without_a_batch_is_refused(layer: nn.Module, shape: tuple[int, ...]) -> None:
    net = pursuitify(nn.Sequential(layer, nn.ReLU(), nn.Linear(shape[-1], 3), nn.ReLU()))
    with pytest.raises(InputError, match="batch dimension"):
        net(torch.randn(shape))
