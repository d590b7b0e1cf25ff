"""A call on an accelerator waits for nothing after the first: run on CUDA tensors without values.

Fake tensors have a device, shapes and storages, and raise when a value is read. So no device is
needed to find every place that would wait for one.
"""

from __future__ import annotations

import copy
import itertools
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch._subclasses.fake_tensor import DataDependentOutputException

from pursuitify import PursuitNetwork, pursuitify
from pursuitify.dictionary import norm_bounds
from pursuitify.models import ChainNet, DenselyConnectedNet, ResidualNet
from pursuitify.network import slope_checks
from pursuitify.operators.norms import fingerprint
from tests.support.nets import BY_NAME, Gated


def resnet() -> nn.Module:
    models = pytest.importorskip("torchvision").models
    return models.resnet.ResNet(models.resnet.BasicBlock, [1, 1, 1, 1], width_per_group=64)


NETWORKS: dict[str, Any] = {
    "chain": lambda: ChainNet(2, 3, width=4),
    "residual": lambda: ResidualNet(2, 3, width=4),
    "dense": lambda: DenselyConnectedNet(2, 3, width=4),
    "densenet": lambda: BY_NAME["preact_dense"].build(),
    "gated": Gated,
    "prelu": lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.PReLU(), nn.Conv2d(4, 3, 3), nn.ReLU()),
    "resnet": resnet,
}


@pytest.fixture(autouse=True)
def no_fake_constants() -> Iterator[None]:
    """Constants that are kept by device must not be those of another test's fake mode."""
    fingerprint._probes.cache_clear()
    yield
    fingerprint._probes.cache_clear()


def fake_copy(net: PursuitNetwork, mode: FakeTensorMode) -> PursuitNetwork:
    """Return the network with its tensors on a CUDA device, without values."""

    def fake(value: Tensor) -> Tensor:
        with mode:
            found = torch.empty(value.shape, dtype=value.dtype, device="cuda")
        return nn.Parameter(found) if isinstance(value, nn.Parameter) else found

    memo: dict[int, Any] = {id(v): fake(v) for v in (*net.parameters(), *net.buffers())}
    twin = copy.deepcopy(net, memo)
    twin.self_check = "off"
    return twin


def first_call(net: PursuitNetwork, x: Tensor, moving: bool) -> None:
    """Call it with the readings of a first call answered, which need values."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(norm_bounds, "conv_norm_bound", lambda *bank: 1.0)
        patch.setattr(norm_bounds, "kernel_contents", lambda weights: b"read")
        patch.setattr(slope_checks, "checked_and_moving", lambda *rest: moving)
        net(x)


def ways() -> Iterator[Any]:
    """All of a network's ways, in the slow tests those that another network shows quickly."""
    for name, layout, moving in itertools.product(NETWORKS, ("auto", "encoder"), (False, True)):
        repeated = name not in ("residual", "gated") and (layout, moving) != ("auto", False)
        marks = [pytest.mark.slow] if repeated else []
        yield pytest.param(name, layout, moving, marks=marks)


@pytest.mark.parametrize(("name", "layout", "moving"), list(ways()))
def test_the_second_call_reads_nothing(name: str, layout: Any, moving: bool) -> None:
    torch.manual_seed(0)
    net = pursuitify(NETWORKS[name]().float().eval(), iterations=3, layout=layout)
    mode = FakeTensorMode()
    twin = fake_copy(net, mode)
    channels = next(m for m in net.modules() if isinstance(m, nn.Conv2d)).in_channels
    with mode, torch.no_grad():
        x = torch.empty(2, channels, 16, 16, device="cuda")
        with pytest.raises(DataDependentOutputException):
            twin(x)  # the first call reads: the test sees what it is for
        first_call(twin, x, moving)
        out = twin(x)
        assert out.device.type == "cuda"
        with torch.enable_grad():  # what is trained may change, and no version say so
            first_call(twin, x, moving)
        with pytest.raises(DataDependentOutputException):
            twin(x)
        first_call(twin, x, moving)
        twin(x)
        next(iter(twin.parameters())).add_(1)
        with pytest.raises(DataDependentOutputException):
            twin(x)  # a write that a version counts is looked at


def test_a_mode_is_looked_at_again() -> None:
    net = pursuitify(ResidualNet(2, 3, width=4).eval(), iterations=2)
    mode = FakeTensorMode()
    twin = fake_copy(net, mode)
    with mode, torch.no_grad():
        x = torch.empty(2, 2, 8, 8, device="cuda")
        first_call(twin, x, False)
        twin(x)
        pickle.dumps(twin._norms)
        with pytest.raises(DataDependentOutputException):
            twin.eval()


def test_a_write_that_no_version_counts_makes_steps_nan() -> None:
    """On the CPU by hand: NaN where sums differ though versions stand still, else a new record."""
    conv = nn.Conv2d(2, 3, 3)
    made = [conv.weight]
    norms = norm_bounds.Norms()
    norms.made_of = made
    norms._recall_on_device(norm_bounds._certify, [conv.weight], b"")
    assert norms.lost is None
    first = norms._on_device
    for _ in range(2):
        norms._recall_on_device(norm_bounds._certify, [conv.weight], b"")
        assert norms._on_device is first
        assert norms.lost is not None
        assert norms.lost.item() == 0
    conv.weight.data.mul_(2)
    norms._recall_on_device(norm_bounds._certify, [conv.weight], b"")
    assert norms._on_device is first
    assert norms.lost is not None
    assert norms.lost.isnan()
    norms.look_again()
    norms._recall_on_device(norm_bounds._certify, [conv.weight], b"")
    assert norms._on_device is not first
    second = norms._on_device
    with torch.no_grad():
        conv.weight.mul_(2)
    norms.lost = None
    norms._recall_on_device(norm_bounds._certify, [conv.weight], b"")
    assert norms.lost is None
    assert norms._on_device is not second


def test_what_was_not_read_of_a_call_makes_steps_nan() -> None:
    alpha, x = torch.zeros(3), torch.rand(2, 3)
    assert slope_checks.unseen_lost([x, 3, torch.ones(2).long()], alpha, True).item() == 0
    for wrong in (torch.nan, torch.inf):
        bad = x.clone()
        bad[1, 2] = wrong
        assert slope_checks.unseen_lost([x, bad], alpha, True).isnan()
    alpha[1] = 0.5
    assert slope_checks.unseen_lost([x], alpha, True).isnan()
    assert slope_checks.unseen_lost([x], alpha, False).item() == 0
