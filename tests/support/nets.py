"""Small networks with hand-written oracle rows, and a hypothesis strategy for random ones.

``CASES`` pairs each network with its rows in both layouts, written by hand after mathematics.md,
section 1 from the network's own torch modules. ``random_net`` draws convertible networks from
recipes; those have no rows. Nothing here imports the package.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.support.oracle import INPUT, Affine, Row, Slot, frozen_max_pool, row

LAYOUTS = ("auto", "encoder")


@dataclass(frozen=True)
class Case:
    """A network and its description by hand.

    Attributes:
        name: Identifier for parametrised tests.
        net: Class of the network.
        shape: Shape of the input without the batch.
        rows: (model, layout, x of batch one) -> rows in graph order.
        order: Names of the latents in graph order, as the fx nodes are called.
        gain: Factor on the input (to reach the clip of ReLU6, for instance).
    """

    name: str
    net: Callable[[], nn.Module]
    shape: tuple[int, ...]
    rows: Callable[[Any, str, Tensor], list[Row]]
    order: tuple[str, ...]
    gain: float = 1.0

    def build(self, seed: int = 0, dtype: torch.dtype = torch.float64) -> nn.Module:
        """Return the network in eval mode with seeded, randomised parameters and buffers."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = self.net()
        return randomise(model, seed).to(dtype).eval()

    def input(self, seed: int = 0, batch: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
        """Return a seeded input."""
        generator = torch.Generator().manual_seed(1000 + seed)
        x = torch.randn(batch, *self.shape, generator=generator, dtype=torch.float64)
        return (self.gain * x).to(dtype)

    def __str__(self) -> str:
        """Return the name, for pytest ids."""
        return self.name


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give biases both signs and BatchNorms running statistics, scales and offsets, in place."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(like: Tensor, low: float, high: float) -> Tensor:
        return (low + (high - low) * torch.rand(like.shape, generator=generator)).to(like)

    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
                if module.running_mean is not None and module.running_var is not None:
                    module.running_mean.copy_(uniform(module.running_mean, -0.4, 0.4))
                    module.running_var.copy_(uniform(module.running_var, 0.5, 1.5))
                if module.affine:
                    sign = torch.where(uniform(module.weight, 0, 1) < 0.2, -1.0, 1.0)
                    module.weight.copy_(uniform(module.weight, 0.6, 1.4) * sign)
                    module.bias.copy_(uniform(module.bias, -0.4, 0.4))
            elif getattr(module, "bias", None) is not None:
                module.bias.copy_(uniform(module.bias, -0.4, 0.4))
    return model


def norm_slice(bn: nn.BatchNorm2d, start: int, stop: int) -> Affine:
    """Return channels start..stop of an eval-mode BatchNorm as a function of those alone."""
    cut = slice(start, stop)

    def fn(u: Tensor) -> Tensor:
        mean, var = bn.running_mean[cut], bn.running_var[cut]  # type: ignore[index]
        return F.batch_norm(u, mean, var, bn.weight[cut], bn.bias[cut], eps=bn.eps)

    return fn


def weighted(
    name: str,
    leaves: str | tuple[str, ...],
    operator: Affine,
    layout: str,
    path: Affine | None = None,
    activation: Any = "relu",
) -> Row:
    """Return the row of act(operator(path(leaves))): decoder, or encoder where the layout says."""
    names = (leaves,) if isinstance(leaves, str) else leaves
    inner = path or (lambda u: u)
    if layout == "encoder" and INPUT not in names:
        return row(name, names, lambda *u: operator(inner(*u)), None, activation)
    return row(name, names, inner, operator, activation)


def joined(name: str, leaves: tuple[str, ...], operator: Affine, layout: str) -> Row:
    """Return the row of relu(operator(cat(leaves, 1))): a slot per leaf under the diagonal."""

    def whole(*u: Tensor) -> Tensor:
        return operator(torch.cat(u, 1))

    if layout == "encoder" and INPUT not in leaves:
        return row(name, leaves, whole)
    return Row(name, tuple(Slot((k,), lambda u: u) for k in leaves), whole)


# ---------------------------------------------------------------- chains


class LinearChain(nn.Module):
    """(a) Three linear layers with ReLU and a linear head."""

    def __init__(self, activation: Callable[[], nn.Module] = nn.ReLU) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(6, 8), nn.Linear(8, 7), nn.Linear(7, 5)
        self.act1, self.act2, self.act3 = activation(), activation(), activation()
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act1(self.fc1(x))
        x = self.act2(self.fc2(x))
        return self.head(self.act3(self.fc3(x)))


def linear_chain_rows(activation: Any) -> Callable[[Any, str, Tensor], list[Row]]:
    """Return the rows function of ``LinearChain``."""

    def rows(m: Any, layout: str, x: Tensor) -> list[Row]:
        return [
            weighted("act1", INPUT, m.fc1, layout, activation=activation),
            weighted("act2", "act1", m.fc2, layout, activation=activation),
            weighted("act3", "act2", m.fc3, layout, activation=activation),
        ]

    return rows


class ConvChain(nn.Module):
    """(b) Convolutions with BatchNorm, stride, and overlapping padded max pooling between."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(2, 3, 3, stride=2, padding=1, bias=False)
        self.bn1, self.relu1 = nn.BatchNorm2d(3), nn.ReLU(inplace=True)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        self.conv2, self.bn2 = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.conv3, self.relu3 = nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.ReLU()
        self.relu2 = nn.ReLU()
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.relu1(self.bn1(self.conv1(x))))
        x = self.relu2(self.bn2(self.conv2(x)))
        return self.head(torch.flatten(self.relu3(self.conv3(x)), 1))


def conv_chain_rows(m: Any, layout: str, x: Tensor) -> list[Row]:
    select = frozen_max_pool(F.relu(m.bn1(m.conv1(x))), 3, 2, 1)
    return [
        weighted("relu1", INPUT, lambda u: m.bn1(m.conv1(u)), layout),
        weighted("relu2", "relu1", lambda u: m.bn2(m.conv2(u)), layout, select),
        weighted("relu3", "relu2", m.conv3, layout),
    ]


class LeakyConvChain(nn.Module):
    """(h) Two convolutions with functional LeakyReLU, a Conv1d sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(2, 3, 3, stride=2, padding=1, dilation=1)
        self.conv2 = nn.Conv1d(3, 2, 3, padding=2, dilation=2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.leaky_relu(self.conv1(x), 0.1)
        return F.leaky_relu(self.conv2(x), 0.3).mean(2)


def leaky_conv_rows(m: Any, layout: str, x: Tensor) -> list[Row]:
    return [
        weighted("leaky_relu", INPUT, m.conv1, layout, activation=("leaky", 0.1)),
        weighted("leaky_relu_1", "leaky_relu", m.conv2, layout, activation=("leaky", 0.3)),
    ]


class Separable(nn.Module):
    """A depthwise convolution feeds a pointwise one with no activation between."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.relu1 = nn.Conv2d(2, 3, 3, padding=1, stride=2), nn.ReLU()
        self.dw, self.bn_dw = nn.Conv2d(3, 3, 3, padding=1, groups=3, bias=False), nn.BatchNorm2d(3)
        self.pw, self.relu2 = nn.Conv2d(3, 2, 1), nn.ReLU()
        self.head = nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu1(self.conv(x))
        x = self.relu2(self.pw(self.bn_dw(self.dw(x))))
        return self.head(x.mean((2, 3)))


def separable_rows(m: Any, layout: str, x: Tensor) -> list[Row]:
    depthwise = lambda u: m.bn_dw(m.dw(u))  # noqa: E731
    return [
        weighted("relu1", INPUT, m.conv, layout),
        weighted("bn_dw", "relu1", depthwise, layout, activation="identity"),
        weighted("relu2", "bn_dw", m.pw, layout),
    ]


class Tied(nn.Module):
    """One convolution called twice ('same', even kernel, dilation), a scaled skip, mean, linear."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.relu = nn.Conv2d(2, 3, 3, stride=2, padding=1), nn.ReLU()
        self.conv = nn.Conv2d(3, 3, (2, 3), padding="same", dilation=(1, 2))
        self.bn = nn.BatchNorm2d(3)
        self.fc, self.head = nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.stem(x))
        x = self.relu(self.bn(self.conv(x)))
        x = self.relu(self.bn(self.conv(x)) + 0.5 * x)
        return self.head(self.relu(self.fc(x.mean((2, 3)))))


def tied_rows(m: Any, layout: str, x: Tensor) -> list[Row]:
    return [
        weighted("relu", INPUT, m.stem, layout),
        weighted("relu_1", "relu", lambda u: m.bn(m.conv(u)), layout),
        row("relu_2", "relu_1", lambda u: m.bn(m.conv(u)) + 0.5 * u),
        weighted("relu_3", "relu_2", m.fc, layout, lambda u: u.mean((2, 3))),
    ]


class Mix(nn.Module):
    """(g) Max pooling before ReLU, dropout, average pooling, a lone BatchNorm, flatten."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.pool = nn.Conv2d(2, 3, 3, padding=1), nn.MaxPool2d(2)
        self.relu1 = nn.ReLU()
        self.drop, self.avg, self.bn = nn.Dropout(0.3), nn.AvgPool2d(2), nn.BatchNorm2d(3)
        self.conv2, self.relu2 = nn.Conv2d(3, 4, 3, padding=1), nn.ReLU()
        self.fc, self.relu3 = nn.Linear(16, 6), nn.ReLU()
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu1(self.pool(self.conv1(x)))
        x = self.relu2(self.conv2(self.bn(self.avg(self.drop(x)))))
        return self.head(self.drop(self.relu3(self.fc(torch.flatten(x, 1)))))


def mix_rows(m: Any, layout: str, x: Tensor) -> list[Row]:
    select = frozen_max_pool(m.conv1(x), 2)
    return [
        row("relu1", INPUT, lambda u: select(m.conv1(u))),
        weighted("relu2", "relu1", m.conv2, layout, lambda u: m.bn(m.avg(u))),
        weighted("relu3", "relu2", m.fc, layout, lambda u: u.flatten(1)),
    ]


# ---------------------------------------------------------------- residual


class LinearResidual(nn.Module):
    """(c) Skips added to pre-activations (one from the input) and to a layer's input."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 7)
        self.fc4, self.fc5, self.head = nn.Linear(7, 6), nn.Linear(6, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        a = F.relu(self.fc1(x))
        b = torch.relu(self.fc2(a) + x)
        c = self.fc3(b).relu()
        d = F.relu(self.fc4(c) + b + a)
        return self.head(F.relu(self.fc5(torch.add(d, a))))


def linear_residual_rows(m: Any, layout: str, x: Tensor) -> list[Row]:
    return [
        weighted("relu", INPUT, m.fc1, layout),
        row("relu_1", ("relu", INPUT), lambda a, x: m.fc2(a) + x),
        weighted("relu_2", "relu_1", m.fc3, layout),
        row("relu_3", ("relu_2", "relu_1", "relu"), lambda c, b, a: m.fc4(c) + b + a),
        weighted("relu_4", ("relu_3", "relu"), m.fc5, layout, lambda d, a: d + a),
    ]


class SharedAdd(nn.Module):
    """An add of an add that two read (cut: "add_1"); the add of two latents below it is not."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(6, 5), nn.Linear(5, 5), nn.Linear(5, 5)
        self.fc4, self.fc5, self.head = nn.Linear(5, 5), nn.Linear(5, 4), nn.Linear(4, 3)
        self.relu = nn.ReLU()
        for layer in (self.fc1, self.fc2, self.fc3, self.fc4, self.fc5):
            nn.init.orthogonal_(layer.weight)  # well conditioned, but no exact block step
            layer.weight.data *= torch.linspace(0.7, 1.2, len(layer.weight))[:, None]

    def forward(self, x: Tensor) -> Tensor:
        a = self.relu(self.fc1(x))
        b = self.relu(self.fc2(a))
        s = a + b
        c = self.relu(self.fc3(s))
        t = s + c
        d = self.relu(self.fc4(t))
        return self.head(self.relu(self.fc5(t + d)))


def shared_add_rows(m: Any, layout: str, x: Tensor) -> list[Row]:
    return [
        weighted("relu", INPUT, m.fc1, layout),
        weighted("relu_1", "relu", m.fc2, layout),
        weighted("relu_2", ("relu", "relu_1"), m.fc3, layout, lambda a, b: a + b),
        row("add_1", ("relu", "relu_1", "relu_2"), lambda a, b, c: a + b + c, None, "identity"),
        weighted("relu_3", "add_1", m.fc4, layout),
        weighted("relu_4", ("add_1", "relu_3"), m.fc5, layout, lambda t, d: t + d),
    ]


class Block(nn.Module):
    """torchvision's BasicBlock in small: one ReLU module called twice."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1, self.relu = nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
        self.conv2, self.bn2 = conv(outputs, outputs), nn.BatchNorm2d(outputs)
        self.down: nn.Module | None = None
        if stride > 1 or inputs != outputs:
            shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.down = nn.Sequential(shortcut, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out += x if self.down is None else self.down(x)
        return self.relu(out)


class ConvResidual(nn.Module):
    """(d) Stem, an identity block and a strided block with a 1x1 shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.relu = nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU()
        self.block1, self.block2 = Block(3, 3), Block(3, 4, 2)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block2(self.block1(self.relu(self.bn(self.conv(x)))))
        return self.head(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))


def conv_residual_rows(m: Any, layout: str, x: Tensor) -> list[Row]:
    p, q = m.block1, m.block2
    return [
        weighted("relu", INPUT, lambda u: m.bn(m.conv(u)), layout),
        weighted("block1_relu", "relu", lambda u: p.bn1(p.conv1(u)), layout),
        row("block1_relu_1", ("block1_relu", "relu"), lambda a, s: p.bn2(p.conv2(a)) + s),
        weighted("block2_relu", "block1_relu_1", lambda u: q.bn1(q.conv1(u)), layout),
        row(
            "block2_relu_1",
            ("block2_relu", "block1_relu_1"),
            lambda a, s: q.bn2(q.conv2(a)) + q.down(s),
        ),
    ]


class PreActResidual(nn.Module):
    """Pre-activation residual net: identity latents in the trunk, lone BatchNorms."""

    def __init__(self) -> None:
        super().__init__()
        self.conv0, self.conv1 = nn.Conv2d(2, 2, 3, padding=1), conv(2, 2)
        self.bn1 = nn.BatchNorm2d(2)
        self.bn2, self.conv2 = nn.BatchNorm2d(2), nn.Conv2d(2, 2, 3, padding=1)
        self.bn3, self.conv3 = nn.BatchNorm2d(2), conv(2, 3)
        self.bn4, self.conv4, self.bn5 = nn.BatchNorm2d(3), conv(3, 2), nn.BatchNorm2d(2)
        self.head = nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv0(x)
        y = self.conv2(F.relu(self.bn2(self.conv1(F.relu(self.bn1(x))))))
        x = x + y
        y = self.conv4(F.relu(self.bn4(self.conv3(F.relu(self.bn3(x))))))
        return self.head(F.relu(self.bn5(x + y)).mean((2, 3)))


def conv(inputs: int, outputs: int) -> nn.Conv2d:
    """Return a 3x3 convolution of stride 1 without bias."""
    return nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)


def preact_rows(m: Any, layout: str, x: Tensor) -> list[Row]:
    return [
        weighted("conv0", INPUT, m.conv0, layout, activation="identity"),
        row("relu", "conv0", m.bn1),
        weighted("relu_1", "relu", lambda u: m.bn2(m.conv1(u)), layout),
        row("add", ("conv0", "relu_1"), lambda s, a: s + m.conv2(a), None, "identity"),
        row("relu_2", "add", m.bn3),
        weighted("relu_3", "relu_2", lambda u: m.bn4(m.conv3(u)), layout),
        row("relu_4", ("add", "relu_3"), lambda s, a: m.bn5(s + m.conv4(a))),
    ]


# ---------------------------------------------------------------- dense


class LinearDense(nn.Module):
    """(e) Every layer reads the concatenation of former outputs, some with the input."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(5, 4), nn.Linear(9, 4), nn.Linear(13, 4)
        self.fc4, self.head = nn.Linear(8, 4), nn.Linear(12, 3)
        self.relu1, self.relu2, self.relu3, self.relu4 = (nn.ReLU() for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        a = self.relu1(self.fc1(x))
        b = self.relu2(self.fc2(torch.cat([x, a], 1)))
        c = self.relu3(self.fc3(torch.cat([x, a, b], 1)))
        d = self.relu4(self.fc4(torch.cat((a, c), dim=-1)))
        return self.head(torch.cat([b, c, d], 1))


def linear_dense_rows(m: Any, layout: str, x: Tensor) -> list[Row]:
    return [
        weighted("relu1", INPUT, m.fc1, layout),
        joined("relu2", (INPUT, "relu1"), m.fc2, layout),
        joined("relu3", (INPUT, "relu1", "relu2"), m.fc3, layout),
        joined("relu4", ("relu1", "relu3"), m.fc4, layout),
    ]


class ConvDense(nn.Module):
    """(f) relu(conv(cat(..))), with BatchNorm and a concatenation of parallel branches."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(2, 2, 3, padding=1), nn.Conv2d(2, 2, 3, padding=1)
        self.conv3, self.bn3 = nn.Conv2d(4, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.conv4, self.conv5 = nn.Conv2d(7, 2, 3, 2, 1), nn.Conv2d(3, 1, 1, 2)
        self.head = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        a = F.relu(self.conv1(x))
        b = F.relu(self.conv2(a))
        c = F.relu(self.bn3(self.conv3(torch.cat([a, b], 1))))
        d = F.relu(torch.cat([self.conv4(torch.cat([a, b, c], 1)), self.conv5(c)], 1))
        return self.head(d.mean((2, 3)))


def conv_dense_rows(m: Any, layout: str, x: Tensor) -> list[Row]:
    branches = (
        Slot(("relu", "relu_1", "relu_2"), lambda *u: m.conv4(torch.cat(u, 1))),
        Slot(("relu_2",), m.conv5),
    )
    return [
        weighted("relu", INPUT, m.conv1, layout),
        weighted("relu_1", "relu", m.conv2, layout),
        joined("relu_2", ("relu", "relu_1"), lambda u: m.bn3(m.conv3(u)), layout),
        Row("relu_3", branches),
    ]


class PreActDense(nn.Module):
    """(f) densenet: relu(bn(cat(..))), bottleneck, convolution outputs as identity latents."""

    def __init__(self) -> None:
        super().__init__()
        self.conv0, self.conv1 = nn.Conv2d(2, 2, 3, padding=1), conv(2, 3)
        self.bn1 = nn.BatchNorm2d(2)
        self.bn2, self.conv2 = nn.BatchNorm2d(3), nn.Conv2d(3, 2, 3, padding=1)
        self.bn3, self.conv3, self.bn4 = nn.BatchNorm2d(4), conv(4, 1), nn.BatchNorm2d(5)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        f0 = self.conv0(x)
        f1 = self.conv2(F.relu(self.bn2(self.conv1(F.relu(self.bn1(f0))))))
        f2 = self.conv3(F.relu(self.bn3(torch.cat([f0, f1], 1))))
        return self.head(F.relu(self.bn4(torch.cat([f0, f1, f2], 1))).mean((2, 3)))


def preact_dense_rows(m: Any, layout: str, x: Tensor) -> list[Row]:
    third, fourth = norm_slice(m.bn3, 0, 2), norm_slice(m.bn4, 0, 2)
    tail = norm_slice(m.bn4, 4, 5)
    return [
        weighted("conv0", INPUT, m.conv0, layout, activation="identity"),
        row("relu", "conv0", m.bn1),
        weighted("relu_1", "relu", lambda u: m.bn2(m.conv1(u)), layout),
        weighted("conv2", "relu_1", m.conv2, layout, activation="identity"),
        Row("relu_2", (Slot(("conv0",), third), Slot(("conv2",), norm_slice(m.bn3, 2, 4)))),
        Row(
            "relu_3",
            (
                Slot(("conv0",), fourth),
                Slot(("conv2",), norm_slice(m.bn4, 2, 4)),
                Slot(("relu_2",), lambda u: tail(m.conv3(u))),
            ),
        ),
    ]


FUNCTIONAL = ("relu", "relu_1", "relu_2", "relu_3", "relu_4")
ACTS = ("act1", "act2", "act3")
CASES: list[Case] = [
    Case("linear_chain", LinearChain, (6,), linear_chain_rows("relu"), ACTS),
    Case("conv_chain", ConvChain, (2, 9, 9), conv_chain_rows, ("relu1", "relu2", "relu3")),
    Case("linear_residual", LinearResidual, (6,), linear_residual_rows, FUNCTIONAL),
    Case(
        "shared_add",
        SharedAdd,
        (6,),
        shared_add_rows,
        ("relu", "relu_1", "relu_2", "add_1", "relu_3", "relu_4"),
    ),
    Case(
        "conv_residual",
        ConvResidual,
        (2, 5, 5),
        conv_residual_rows,
        ("relu", "block1_relu", "block1_relu_1", "block2_relu", "block2_relu_1"),
    ),
    Case(
        "preact_residual",
        PreActResidual,
        (2, 4, 4),
        preact_rows,
        ("conv0", "relu", "relu_1", "add", "relu_2", "relu_3", "relu_4"),
    ),
    Case(
        "linear_dense", LinearDense, (5,), linear_dense_rows, ("relu1", "relu2", "relu3", "relu4")
    ),
    Case("conv_dense", ConvDense, (2, 5, 5), conv_dense_rows, FUNCTIONAL[:4]),
    Case(
        "preact_dense",
        PreActDense,
        (2, 4, 4),
        preact_dense_rows,
        ("conv0", "relu", "relu_1", "conv2", "relu_2", "relu_3"),
    ),
    Case("separable", Separable, (2, 6, 6), separable_rows, ("relu1", "bn_dw", "relu2")),
    Case("tied", Tied, (2, 7, 7), tied_rows, FUNCTIONAL[:4]),
    Case("mix", Mix, (2, 8, 8), mix_rows, ("relu1", "relu2", "relu3")),
    Case(
        "leaky_chain",
        lambda: LinearChain(lambda: nn.LeakyReLU(0.2)),
        (6,),
        linear_chain_rows(("leaky", 0.2)),
        ACTS,
    ),
    Case("leaky_conv", LeakyConvChain, (2, 9), leaky_conv_rows, ("leaky_relu", "leaky_relu_1")),
    Case(
        "relu6_chain",
        lambda: LinearChain(nn.ReLU6),
        (6,),
        linear_chain_rows(("clip", 0.0, 6.0)),
        ACTS,
        gain=10.0,
    ),
]
BY_NAME = {case.name: case for case in CASES}


# ---------------------------------------------------------------- random networks


@dataclass(frozen=True)
class Step:
    """One operation of a random network: ``how`` spells it, ``key`` names its module."""

    op: str
    reads: tuple[int, ...]
    how: str = ""
    key: str = ""
    settings: tuple[tuple[str, Any], ...] = ()

    def __str__(self) -> str:
        """Return the step in one line; v0 is the input, v1 the first step's value."""
        said = [f"v{i}" for i in self.reads] + [k for k in (self.how, self.key) if k]
        return f"{self.op}({', '.join(said + [f'{k}={v}' for k, v in self.settings])})"


LINEAR: tuple[Any, ...] = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORM = (nn.BatchNorm1d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
MAX_POOL: tuple[Any, ...] = (None, F.max_pool1d, F.max_pool2d, F.max_pool3d)
AVG_POOL: tuple[Any, ...] = (None, F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)
RELU = ("module", "shared", "functional", "torch", "method", "inplace", "functional_", "method_")
IN_PLACE = {"inplace": "module", "functional_": "functional", "method_": "method", "iadd": "plus"}


class RandomNet(nn.Module):
    """Runs drawn steps one after the other: plain Python over stored modules, fx traceable.

    Attributes:
        steps: What forward does; step i makes value i + 1, value 0 is the input.
        tails: Values the head reads.
        dims: Spatial dimensions, 0 for vectors.
    """

    def __init__(
        self,
        steps: tuple[Step, ...],
        tails: tuple[int, ...],
        parts: dict[str, nn.Module],
        features: int,
        dims: int,
        pool: str,
    ) -> None:
        super().__init__()
        self.steps, self.tails, self.dims, self.pool = steps, tails, dims, pool
        self.parts = nn.ModuleDict(parts)
        self.shared_relu, self.head = nn.ReLU(), nn.Linear(features, 3)

    def forward(self, x: Tensor) -> Tensor:
        values = [x]
        for step in self.steps:
            values.append(self.run(step, [values[i] for i in step.reads]))
        ends = [values[i] for i in self.tails]
        if self.dims and self.pool == "mean":
            ends = [v.mean(tuple(range(2, 2 + self.dims))) for v in ends]
        elif self.dims:
            ends = [torch.flatten(v, 1) for v in ends]
        return self.head(ends[0] if len(ends) == 1 else torch.cat(ends, 1))

    def run(self, step: Step, v: list[Tensor]) -> Tensor:
        """Return the value of one step."""
        settings = dict(step.settings)
        if step.op == "call":
            return self.parts[step.key](v[0])
        if step.op == "add":
            return self.add(step.how, v[0], v[1])
        if step.op == "cat":
            return torch.cat(v, dim=1) if step.how == "cat" else torch.concat(v, 1)
        if step.op == "max":
            return MAX_POOL[self.dims](v[0], **settings)
        if step.op == "avg":
            return AVG_POOL[self.dims](v[0], **settings)
        return self.relu(step, v[0])

    def add(self, how: str, a: Tensor, b: Tensor) -> Tensor:
        """Return a + b as spelled."""
        if how == "iadd":
            a += b
            return a
        if how == "torch":
            return torch.add(a, b)
        return a.add(b) if how == "method" else a + b

    def relu(self, step: Step, v: Tensor) -> Tensor:
        """Return relu(v) as spelled."""
        if step.how == "functional":
            return F.relu(v)
        if step.how == "functional_":
            return F.relu(v, inplace=True)
        if step.how == "torch":
            return torch.relu(v)
        if step.how == "method":
            return v.relu()
        if step.how == "method_":
            return v.relu_()
        return self.shared_relu(v) if step.how == "shared" else self.parts[step.key](v)

    def __repr__(self) -> str:
        """Return the recipe, for hypothesis' reports."""
        lines = [f"v{i + 1} = {s}" for i, s in enumerate(self.steps)]
        modules = [f"{k}: {m}" for k, m in self.parts.items() if not isinstance(m, nn.ReLU)]
        head = f"head(v{self.tails}, {self.pool})"
        return "RandomNet(\n  " + "\n  ".join([*lines, head, *modules]) + "\n)"


class _Recipe:
    """Draws one random network, value by value."""

    def __init__(self, draw: st.DrawFn, dims: int) -> None:
        self.draw, self.dims = draw, dims
        low, high = (5, 9) if dims < 3 else (5, 6)
        size = tuple(draw(st.integers(low, high)) for _ in range(dims))
        self.shapes: list[tuple[int, ...]] = [(draw(st.integers(1, 3 if dims else 6)), *size)]
        self.steps: list[Step] = []
        self.parts: dict[str, nn.Module] = {}

    def flip(self) -> bool:
        return self.draw(st.booleans())

    def pick(self) -> int:
        """Return a value to read, the latest most often."""
        last = len(self.shapes) - 1
        return last if self.flip() else self.draw(st.integers(0, last))

    def push(self, step: Step, shape: tuple[int, ...]) -> int:
        self.steps.append(step)
        self.shapes.append(shape)
        return len(self.shapes) - 1

    def part(self, module: nn.Module) -> str:
        key = f"p{len(self.parts)}"
        self.parts[key] = module
        return key

    def call(self, value: int, key: str) -> int:
        """Apply a stored module; its output shape comes from running it."""
        with torch.no_grad():
            out = self.parts[key].eval()(torch.zeros(1, *self.shapes[value]))
        return self.push(Step("call", (value,), key=key), tuple(out.shape[1:]))

    def weight(self, value: int, keep: bool = False) -> str:
        """Store a convolution (or Linear) that fits ``value``; ``keep`` keeps the whole shape."""
        channels, *size = self.shapes[value]
        out = channels if keep else self.draw(st.integers(1, 6))
        bias = self.flip()
        if not self.dims:
            return self.part(nn.Linear(channels, out, bias=bias))
        groups = channels if keep and self.flip() else 1
        if keep:
            kernel, more = self.draw(st.sampled_from([3, 1, 2])), {"padding": "same"}
        else:
            kernel = self.draw(st.sampled_from([k for k in (3, 1, 2) if k <= min(size)]))
            padding = self.draw(st.integers(0, kernel // 2))
            more = {"stride": self.draw(st.integers(1, 2)), "padding": padding}
        if kernel == 3 and more["padding"] in (1, "same") and min(size) >= 5 and self.flip():
            more["dilation"] = 2 if keep else (1,) * (self.dims - 1) + (2,)
        return self.part(LINEAR[self.dims](channels, out, kernel, groups=groups, bias=bias, **more))

    def norm(self, value: int) -> int:
        return self.call(value, self.part(NORM[self.dims](self.shapes[value][0])))

    def relu(self, value: int) -> int:
        how = self.draw(st.sampled_from(RELU))
        key = self.part(nn.ReLU(inplace=how == "inplace")) if how in ("module", "inplace") else ""
        return self.push(Step("relu", (value,), how, key), self.shapes[value])

    def maybe(self, value: int, norm: bool = True) -> int:
        """Maybe a BatchNorm, and most often a ReLU."""
        if norm and self.flip():
            value = self.norm(value)
        return self.relu(value) if self.draw(st.integers(0, 4)) < 4 else value

    def plus(self, a: int, b: int) -> int:
        how = self.draw(st.sampled_from(["plus", "iadd", "torch", "method", "iadd"]))
        return self.push(Step("add", (a, b), how), self.shapes[a])

    def unit(self) -> None:
        value = self.pick()
        self.maybe(self.call(value, self.weight(value)))

    def residual(self) -> None:
        value = self.pick()
        inner = self.call(value, self.weight(value, keep=True))
        if self.flip():
            inner = self.norm(inner)
        pair = (value, inner) if self.draw(st.integers(0, 2)) == 2 else (inner, value)
        self.maybe(self.plus(*pair), norm=False)

    def add(self) -> None:
        a = self.pick()
        same = [i for i, shape in enumerate(self.shapes) if shape == self.shapes[a]]
        others = [i for i in reversed(same) if i != a]
        self.maybe(self.plus(a, self.draw(st.sampled_from([*others, a]))), norm=False)

    def cat(self) -> None:
        first = self.pick()
        same = [i for i, s in enumerate(self.shapes) if s[1:] == self.shapes[first][1:]]
        more = self.draw(st.lists(st.sampled_from(same), min_size=1, max_size=2))
        reads = (first, *more)
        channels = sum(self.shapes[i][0] for i in reads)
        if channels <= 12:
            how = self.draw(st.sampled_from(["cat", "concat"]))
            self.push(Step("cat", reads, how), (channels, *self.shapes[first][1:]))

    def pool(self) -> None:
        value = self.pick()
        channels, *size = self.shapes[value]
        if not size or min(size) < 3:
            return
        kernel = self.draw(st.integers(2, 3))
        settings: dict[str, Any] = {
            "kernel_size": kernel,
            "stride": self.draw(st.integers(1, kernel)),
            "padding": self.draw(st.integers(0, kernel // 2)),
            "ceil_mode": self.flip(),
        }
        op = self.draw(st.sampled_from(["max", "avg"]))
        if op == "avg":
            settings["count_include_pad"] = self.flip()
        run = (MAX_POOL if op == "max" else AVG_POOL)[self.dims]
        shape = tuple(run(torch.zeros(1, channels, *size), **settings).shape[1:])
        self.push(Step(op, (value,), settings=tuple(settings.items())), shape)

    def lone(self) -> None:
        self.relu(self.norm(self.pick()))

    def tied(self) -> None:
        value = self.pick()
        key, norm = self.weight(value, keep=True), ""
        if self.flip():
            norm = self.part(NORM[self.dims](self.shapes[value][0]))
        for _ in range(2):
            value = self.call(value, key)
            value = self.relu(self.call(value, norm) if norm else value)

    def dropout(self) -> None:
        self.call(self.pick(), self.part(nn.Dropout(0.2)))

    def build(self, seed: int) -> RandomNet:
        """Return the network with what nothing reads pruned and unsafe in-place calls respelled."""
        last = len(self.shapes) - 1
        self.relu(self.call(last, self.weight(last)))
        tails = [len(self.shapes) - 1]
        if self.draw(st.integers(0, 3)) == 3:
            tails.insert(0, self.draw(st.integers(1, len(self.shapes) - 1)))
        live, queue = set(), list(tails)
        while queue:
            value = queue.pop()
            if value not in live and value > 0:
                live.add(value)
                queue.extend(self.steps[value - 1].reads)
        order = {0: 0} | {value: i + 1 for i, value in enumerate(sorted(live))}
        kept = [self.steps[v - 1] for v in sorted(live)]
        uses = [i for step in kept for i in step.reads] + tails
        steps = []
        for step in kept:
            if step.how in IN_PLACE and not self.fresh(step, uses):
                how = IN_PLACE[step.how]
                if step.how == "inplace":
                    self.parts[step.key] = nn.ReLU()
                step = replace(step, how=how)
            steps.append(replace(step, reads=tuple(order[i] for i in step.reads)))
        pool = self.draw(st.sampled_from(["mean", "flatten"])) if self.dims else ""
        flat = [self.shapes[i] for i in tails]
        features = sum(s[0] if pool == "mean" else torch.Size(s).numel() for s in flat)
        used = {step.key for step in steps}
        parts = {k: m for k, m in self.parts.items() if k in used}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for module in parts.values():
                if hasattr(module, "reset_parameters"):
                    module.reset_parameters()
            model = RandomNet(
                tuple(steps), tuple(order[i] for i in tails), parts, features, self.dims, pool
            )
        return randomise(model, seed)  # type: ignore[return-value]

    def fresh(self, step: Step, uses: list[int]) -> bool:
        """Whether the value a step overwrites is a weighted output or sum that none else reads."""
        value = step.reads[0]
        if uses.count(value) != 1 or value == 0:
            return False
        source = self.steps[value - 1]
        module = self.parts.get(source.key)
        return source.op == "add" or isinstance(module, (*LINEAR, *NORM))


@st.composite
def random_net(
    draw: st.DrawFn,
    dims: tuple[int, ...] = (2, 0, 1, 3),
    max_moves: int = 6,
    batch: int = 2,
    dtype: torch.dtype = torch.float64,
) -> tuple[RandomNet, Tensor]:
    """Draw a small convertible network in eval mode and an input for it.

    Args:
        draw: Given by hypothesis.
        dims: Spatial dimensions to choose from; 0 is a network of vectors.
        max_moves: Most building moves before the closing layer, ReLU and head.
        batch: Size of the input's batch.
        dtype: Type of parameters and input.
    """
    recipe = _Recipe(draw, draw(st.sampled_from(dims)))
    moves = ["unit", "residual", "add", "cat", "tied", "dropout", "lone"]
    if recipe.dims:
        moves.insert(4, "pool")
    for move in draw(st.lists(st.sampled_from(moves), min_size=1, max_size=max_moves)):
        getattr(recipe, move)()
    seed = draw(st.integers(0, 2**16))
    model = recipe.build(seed).to(dtype).eval()
    generator = torch.Generator().manual_seed(seed + 1)
    x = torch.randn(batch, *recipe.shapes[0], generator=generator, dtype=torch.float64)
    return model, x.to(dtype)


class Gated(nn.Module):
    """A squeeze-excite gate, a max pool, a BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.squeeze, self.excite = nn.Linear(4, 2), nn.Linear(2, 4)
        self.last = nn.Conv2d(4, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.norm(self.conv(x))), 3, 2, 1)
        gate = torch.sigmoid(self.excite(F.relu(self.squeeze(x.mean((2, 3))))))
        return F.relu(self.last(x * gate[:, :, None, None])).mean((2, 3))


def dense_chain(inputs: int, widths: Sequence[int]) -> nn.Sequential:
    """Return dense layers with ReLU of these widths, and a head of two outputs."""
    layers: list[nn.Module] = []
    for before, after in zip([inputs, *widths], widths, strict=False):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(widths[-1], 2))


class ReadsAll(nn.Module):
    """A densely connected network: each layer reads the concat of all before it, through a norm.

    Its layers end in activations, or, if ``linear``, they are linear values that several rows read.
    """

    def __init__(self, linear: bool = False) -> None:
        super().__init__()
        self.linear = linear
        self.last: Callable[[Tensor], Tensor] = nn.Identity() if linear else nn.ReLU()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(4 * (i + 1)) for i in range(3))
        self.rest = nn.ModuleList(nn.Conv2d(4 * (i + 1), 4, 1) for i in range(3))

    def forward(self, x: Tensor) -> Tensor:
        parts = [self.last(self.first(x))]
        for norm, conv in zip(self.norms, self.rest, strict=True):
            parts.append(self.last(conv(torch.relu(norm(torch.cat(parts, 1))))))
        joined = torch.cat(parts, 1)
        return (torch.relu(joined) if self.linear else joined).mean((2, 3))
