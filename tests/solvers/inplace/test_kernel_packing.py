"""Packed kernels in a network: used, right, and never older than the weights."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from pursuitify import PursuitNetwork, pursuitify
from pursuitify.models import ChainNet, DenselyConnectedNet, ResidualNet
from pursuitify.operators import onednn_conv
from pursuitify.solvers.inplace import kernel_packing

pytestmark = pytest.mark.skipif(
    not onednn_conv.available(), reason="this torch has no such operators"
)


def made(build: type[nn.Module] = ResidualNet, **options: Any) -> tuple[PursuitNetwork, Tensor]:
    torch.manual_seed(0)
    net = pursuitify(build(in_channels=3, num_classes=5, width=8).eval(), iterations=4, **options)
    return net, torch.rand(4, 3, 16, 16)


@pytest.fixture
def packings(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The factors that kernels were packed with."""
    factors: list[float] = []
    pack = onednn_conv._pack

    def watched(weight: Tensor, conv: Any, factor: float, *rest: Any) -> onednn_conv.Kernel:
        factors.append(factor)
        return pack(weight, conv, factor, *rest)

    onednn_conv.available()
    monkeypatch.setattr(onednn_conv, "_pack", watched)
    return factors


def agrees(net: PursuitNetwork, x: Tensor) -> None:
    """Whether the network without derivatives, packed, is the one with them, which is not."""
    recorded = net(x).detach()
    with torch.no_grad():
        found = net(x)
    torch.testing.assert_close(found, recorded, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("alpha", [0.0, 0.3])
@pytest.mark.parametrize("layout", ["auto", "encoder"])
@pytest.mark.parametrize("build", [ChainNet, ResidualNet, DenselyConnectedNet])
def test_agrees_with_the_plain_sweeps(
    build: type[nn.Module], layout: str, alpha: float, packings: list[float]
) -> None:
    net, x = made(build, layout=layout)
    with torch.no_grad():
        net.pursuit.alpha.fill_(alpha)
    agrees(net, x)
    assert packings, "nothing was packed"
    with torch.no_grad():
        net.pursuit.alpha.fill_(0.3 - alpha)
    agrees(net, x)


def test_kernels_are_kept_until_something_changes(packings: list[float]) -> None:
    net, x = made()
    agrees(net, x)
    once = len(packings)
    agrees(net, x)
    assert len(packings) == once
    net.step_scale = 0.5
    agrees(net, x)
    assert len(packings) > once, "steps are in the kernels"
    for change in (lambda w: w.data.mul_(1.5), lambda w: w.data.copy_(torch.rand_like(w) - 0.5)):
        before = len(packings)
        change(next(m for m in net.modules() if isinstance(m, nn.Conv2d)).weight)
        agrees(net, x)
        assert len(packings) > before, "weights are in the kernels"
    with torch.no_grad():
        net.pursuit.beta.mul_(0.8)
    agrees(net, x)
    for other in (x[:2], x[:, :, :12], x):
        agrees(net, other)


def test_statistics_of_batch_norm_are_in_the_kernels() -> None:
    net, x = made()
    agrees(net, x)
    norm = next(m for m in net.modules() if isinstance(m, nn.BatchNorm2d))
    norm.running_var.mul_(3.0)
    norm.running_mean.add_(0.1)
    agrees(net, x)


def test_copies_pack_their_own() -> None:
    net, x = made()
    with torch.no_grad():
        net(x)
    for twin in (copy.deepcopy(net), net):
        agrees(twin, x)
    kept = pickle.loads(pickle.dumps(net._kernels))
    assert isinstance(kept, kernel_packing.Kernels)
    assert not kept._kept


def test_nothing_is_packed_where_it_cannot_be(packings: list[float]) -> None:
    net, x = made()
    net(x)  # derivatives recorded
    net.train()
    with torch.no_grad():
        net(x)
    net.eval()
    with torch.no_grad():
        with torch.backends.mkldnn.flags(enabled=False), FlopCounterMode(display=False) as plain:
            net(x)
        torch.jit.trace(net, x, check_trace=False)
        net.double()(x.double())
    assert not packings
    with FlopCounterMode(display=False) as recorded:
        net(x.double())
    assert plain.get_total_flops() == recorded.get_total_flops()


def test_other_devices_are_not_asked_for_their_steps() -> None:
    """Reading one would make the host wait for the device."""
    net, x = made()
    bound = net.dictionary(x)
    steps = [torch.empty((), device="meta") for _ in bound.rows]
    assert kernel_packing.Kernels().pack(bound, steps, False, b"known") is bound


def test_without_the_operators_the_answer_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    net, x = made()
    with torch.no_grad():
        found = net(x)
        monkeypatch.setattr(onednn_conv, "available", lambda: False)
        torch.testing.assert_close(copy.deepcopy(net)(x), found, rtol=1e-5, atol=1e-6)
