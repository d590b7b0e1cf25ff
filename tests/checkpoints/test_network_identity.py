"""Two networks with the same names and shapes are told apart by what their operations do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pursuitify import CheckpointError, load, pursuitify, save
from pursuitify.checkpoints.network_identity import identity
from pursuitify.rules import frozen
from tests.support.nets import CASES, Case


class Net(nn.Module):
    """A small network, every part of which can be another one."""

    def __init__(self, **other: Any) -> None:
        super().__init__()
        self.conv = other.get("conv", nn.Conv2d(2, 4, 3, padding=1))
        self.act = other.get("act", nn.ReLU())
        self.pool = other.get("pool", nn.MaxPool2d(2))
        self.last = nn.Conv2d(4, 4, 1)
        self.dim = other.get("dim", 1)
        self.factor = other.get("factor", 0.5)
        self.made = other.get("made", torch.tensor([1.0, 2.0, 3.0, 4.0]))
        self.register_buffer("mean", other.get("mean", torch.zeros(1, 2, 1, 1)), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.pool(self.act(self.conv(x - self.mean)))
        y = F.leaky_relu(self.last(y) * self.made.clone().view(1, -1, 1, 1), self.factor)
        return y.flatten(self.dim)


OTHERS: dict[str, tuple[dict[str, Callable[[], Any]], str]] = {
    "leaky": ({"act": lambda: nn.LeakyReLU(0.1)}, "'act' .*operation is 'ReLU'.*'LeakyReLU'"),
    "stride": ({"conv": lambda: nn.Conv2d(2, 4, 3, 2, 1)}, "'conv' .*stride is '1'.*'2'"),
    "padding": ({"conv": lambda: nn.Conv2d(2, 4, 3)}, "'conv' .*padding is '1'.*'0'"),
    "dilation": ({"conv": lambda: nn.Conv2d(2, 4, 3, 1, 1, 2)}, "dilation is '1'.*'2'"),
    "mode": ({"conv": lambda: nn.Conv2d(2, 4, 3, 1, 1, padding_mode="circular")}, "padding_mode"),
    "kernel": ({"pool": lambda: nn.MaxPool2d(3, 2)}, "'pool' .*kernel_size is '2'.*'3'"),
    "average": ({"pool": lambda: nn.AvgPool2d(2)}, "'pool' .*'MaxPool2d'.*'AvgPool2d'"),
    "argument": ({"dim": lambda: 2}, "'flatten' .*arguments is"),
    "factor": ({"factor": lambda: 0.25}, "'leaky_relu' .*negative_slope is '0.5'.*'0.25'"),
    "constant": ({"made": lambda: torch.tensor([1.0, 2.0, 3.0, 4.1])}, "constant '_tensor_const"),
    "buffer": ({"mean": lambda: torch.full((1, 2, 1, 1), 0.1)}, "constant 'mean'"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_another_network_is_refused(name: str, tmp_path: Path) -> None:
    others, message = OTHERS[name]
    save(pursuitify(Net()), tmp_path / "net")
    with pytest.raises(CheckpointError, match=f"another (graph|network).*{message}"):
        load(tmp_path / "net", Net(**{key: make() for key, make in others.items()}))


@pytest.mark.parametrize(
    ("one", "other", "message"),
    [
        (nn.LeakyReLU(0.1), nn.LeakyReLU(0.2), "negative_slope is '0.1'.*'0.2'"),
        (nn.Hardtanh(0, 6), nn.Hardtanh(0, 5), "max_val is '6'.*'5'"),
        (nn.ReLU6(), nn.ReLU(), "'ReLU6'.*'ReLU'"),
    ],
)
def test_constants_of_activations(
    one: nn.Module, other: nn.Module, message: str, tmp_path: Path
) -> None:
    save(pursuitify(Net(act=one)), tmp_path / "net")
    load(tmp_path / "net", Net(act=one))
    with pytest.raises(CheckpointError, match=f"'act' .*{message}"):
        load(tmp_path / "net", Net(act=other))


class Window(nn.Module):
    """A module with a rule of the user's, and modules in it."""

    def __init__(self, size: int, slope: float, scale: float) -> None:
        super().__init__()
        self.size, self.inner = size, nn.LeakyReLU(slope)
        self.register_buffer("scale", torch.tensor(scale), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.inner(F.avg_pool2d(x, self.size, 1)) * self.scale
        return pooled.mean((2, 3), keepdim=True)


class Gated(nn.Module):
    """A network with such a module as its gate."""

    def __init__(self, size: int, slope: float, scale: float) -> None:
        super().__init__()
        self.conv, self.gate = nn.Conv2d(2, 4, 3, padding=1), Window(size, slope, scale)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.conv(x))
        return F.relu(y * self.gate(y))


def test_modules_that_are_not_traced_into(tmp_path: Path) -> None:
    rules = {Window: frozen()}
    save(pursuitify(Gated(2, 0.1, 3.0), rules=rules), tmp_path / "net")
    load(tmp_path / "net", Gated(2, 0.1, 3.0), rules=rules)
    for other, message in [
        ((3, 0.1, 3.0), "'gate' .*size is '2'.*'3'"),
        ((2, 0.2, 3.0), r"'gate' .*inner\.negative_slope"),
        ((2, 0.1, 4.0), r"constant 'gate\.scale'"),
    ]:
        with pytest.raises(CheckpointError, match=message):
            load(tmp_path / "net", Gated(*other), rules=rules)


def test_spellings_of_the_same_network_are_the_same(tmp_path: Path) -> None:
    save(pursuitify(Net()), tmp_path / "net")
    load(tmp_path / "net", Net(act=nn.ReLU(inplace=True), pool=nn.MaxPool2d((2, 2), stride=(2, 2))))


def test_what_training_alone_reads_may_differ(tmp_path: Path) -> None:
    def build(p: float, momentum: float) -> nn.Module:
        norm = nn.BatchNorm2d(3, momentum=momentum)
        return nn.Sequential(nn.Conv2d(2, 3, 3), norm, nn.ReLU(), nn.Dropout(p), nn.Conv2d(3, 2, 1))

    save(pursuitify(build(0.1, 0.1)), tmp_path / "net")
    load(tmp_path / "net", build(0.5, 0.01))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_another_precision_has_the_same_constants(dtype: torch.dtype, tmp_path: Path) -> None:
    mean = torch.tensor([0.1, 0.2]).view(1, 2, 1, 1)
    save(pursuitify(Net(mean=mean)).to(dtype), tmp_path / "net")
    assert load(tmp_path / "net", Net(mean=mean)).mean.dtype == torch.float32
    with pytest.raises(CheckpointError, match="constant 'mean'"):
        load(tmp_path / "net", Net(mean=2 * mean))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_identity_depends_on_the_architecture_alone(case: Case) -> None:
    first, second = pursuitify(case.build()), pursuitify(case.build(seed=5))
    before = identity(first)
    with torch.no_grad():
        first(case.input())
        first.train()(case.input())
    assert identity(first) == before == identity(second)
