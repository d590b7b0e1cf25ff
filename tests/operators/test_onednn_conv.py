"""Packed convolutions against the public operators in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pursuitify.operators import Conv, dottest
from pursuitify.operators.onednn_conv import (
    Kernel,
    PackedConv,
    adjoint_kernel,
    available,
    direct_kernel,
    packable,
)

pytestmark = pytest.mark.skipif(not available(), reason="this torch has no such operators")

#: channels in, out, kernel, stride, padding, dilation, groups, size
CALLS = [
    (3, 8, (3, 3), (1, 1), 1, (1, 1), 1, (7, 6)),
    (8, 4, (1, 1), (1, 1), 0, (1, 1), 1, (5, 5)),
    (8, 6, (1, 1), (2, 2), 0, (1, 1), 1, (7, 6)),
    (6, 8, (1, 1), (1, 2), 0, (1, 1), 2, (5, 8)),
    (4, 4, (3, 3), (2, 2), 1, (1, 1), 1, (8, 7)),
    (6, 6, (3, 3), (1, 1), 1, (1, 1), 6, (6, 6)),
    (6, 9, (3, 3), (1, 1), 2, (2, 2), 3, (9, 8)),
    (4, 5, (3, 1), (1, 1), 0, (1, 1), 1, (6, 7)),
    (4, 5, (1, 1), (1, 1), 1, (1, 1), 1, (6, 7)),
    (2, 3, (5, 2), (3, 1), (2, 0), (1, 1), 1, (11, 6)),
]


def made(call: tuple[Any, ...]) -> tuple[Conv, Tensor, Tensor]:
    """Return the map, an input and an output."""
    ci, co, kernel, stride, padding, dilation, groups, size = call
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(co, ci // groups, *kernel, generator=generator)
    conv = Conv.from_call(size, weight, stride, padding, dilation, groups)
    x = torch.randn(2, ci, *size, generator=generator).to(memory_format=torch.channels_last)
    y = torch.randn(conv.apply(x).shape, generator=generator)
    return conv, x, y.to(memory_format=torch.channels_last)


def double(conv: Conv) -> Conv:
    return Conv(
        conv.weight.double(), conv.stride, conv.padding, conv.dilation, conv.groups, conv.size
    )


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("call", CALLS, ids=str)
def test_sum_with_factor_and_bias(call: tuple[Any, ...]) -> None:
    conv, x, y = made(call)
    kernel = direct_kernel(conv, -0.7, 2)
    bias = torch.linspace(-1, 1, y.shape[1])
    expected = y.double() - 0.7 * double(conv).apply(x.double()) + bias.double()[:, None, None]
    for layout in (torch.channels_last, torch.contiguous_format):
        total = y.clone(memory_format=layout)
        found = kernel.add(total, x, bias)
        assert found.data_ptr() == total.data_ptr()
        close(total, expected)
    close(kernel.apply(x), -0.7 * double(conv).apply(x.double()))


@pytest.mark.parametrize("call", CALLS, ids=str)
def test_adjoint(call: tuple[Any, ...]) -> None:
    conv, x, y = made(call)
    exact = double(conv).adjoint(y.double())
    kernel = adjoint_kernel(conv, 0.3, 2)
    strided = max(conv.stride) > 1
    one = max(conv.weight.shape[2:]) == 1
    crops = any(p[0] > d * (k - 1) for p, d, k in zip(
        conv.padding, conv.dilation, conv.weight.shape[2:], strict=True))  # fmt: skip
    assert (kernel is None) == (crops or (strided and not one))
    if kernel is not None:
        total = x.clone()
        kernel.add(total, y)
        close(total, x.double() + 0.3 * exact)
    packed = PackedConv(conv, direct_kernel(conv, -1.0, 2), adjoint_kernel(conv, 1.0, 2))
    close(packed.adjoint(y), exact)
    close(packed.adjoint_into(torch.full_like(x, torch.nan).nan_to_num_(7.0), y), exact)
    assert dottest(packed, x) <= 1e-6


def test_adds_into_a_slot_and_reads_one() -> None:
    conv, _, _ = made(CALLS[0])
    wide = torch.randn(2, 9, 7, 6).to(memory_format=torch.channels_last)
    sums = torch.randn(2, 12, 7, 6).to(memory_format=torch.channels_last)
    before = sums.clone()
    direct_kernel(conv, 2.0, 2).add(sums[:, 1:9], wide[:, 4:7])
    close(sums[:, 1:9], before[:, 1:9].double() + 2 * double(conv).apply(wide[:, 4:7].double()))
    assert torch.equal(sums[:, :1], before[:, :1])
    assert torch.equal(sums[:, 9:], before[:, 9:])


def test_other_batches_and_sizes_than_it_is_packed_for() -> None:
    conv, _, _ = made(CALLS[0])
    x = torch.randn(5, 3, 4, 9).to(memory_format=torch.channels_last)
    expected = F.conv2d(x.double(), conv.weight.double(), padding=1)
    close(direct_kernel(conv, 1.0, 2).apply(x), expected)


def test_other_factors_go_to_the_convolution(monkeypatch: pytest.MonkeyPatch) -> None:
    conv, x, y = made(CALLS[0])
    packed = PackedConv(conv, direct_kernel(conv, -1.0, 2), adjoint_kernel(conv, 0.5, 2))
    close(packed.add_apply(y.clone(), x, 0.25), y.double() + 0.25 * double(conv).apply(x.double()))
    per_sample = torch.tensor([1.0, 3.0]).reshape(2, 1, 1, 1)
    expected = x.double() + per_sample.double() * double(conv).adjoint(y.double())
    close(packed.add_adjoint(x.clone(), y, per_sample), expected)

    def never(*args: Any) -> Tensor:
        raise AssertionError("packed for another factor")

    monkeypatch.setattr(Kernel, "add", never)
    packed.add_adjoint(x.clone(), y, torch.tensor(0.25))
    with pytest.raises(AssertionError, match="another factor"):
        packed.add_adjoint(x.clone(), y, torch.tensor(0.5))


def test_what_is_not_packed() -> None:
    conv, _, _ = made(CALLS[0])
    assert packable(conv)
    assert not packable(double(conv))
    line = Conv(torch.randn(2, 2, 3), (1,), ((1, 1),), (1,), 1, (5,))
    uneven = Conv(conv.weight, (1, 1), ((1, 1), (0, 1)), (1, 1), 1, (7, 6))
    assert not packable(line)
    assert not packable(uneven)
