"""The adjoint by phases is the adjoint, and strided stems use it."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F

from pursuitify.operators import Conv, dottest
from pursuitify.operators.conv_phases import phase_kernel

GRID = list(itertools.product((1, 2, 3), (1, 2, 3, 7), (2, 3), ((0, 0), (3, 3), (1, 0), (2, -1))))


@pytest.mark.parametrize(("dims", "taps", "stride", "padding"), GRID)
def test_dot(dims: int, taps: int, stride: int, padding: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    for size in (9, 10, 11):
        weight = torch.randn(4, 3, *[taps] * dims, generator=generator, dtype=torch.float64)
        x = torch.randn(2, 3, *[size] * dims, generator=generator, dtype=torch.float64)
        conv = Conv(weight, (stride,) * dims, (padding,) * dims, (1,) * dims, 1, (size,) * dims)
        assert conv.adjoint(conv.apply(x)).shape == x.shape
        assert dottest(conv, x) <= 1e-12


def test_agrees_with_the_transposed_convolution() -> None:
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(6, 3, 7, 7, generator=generator, dtype=torch.float64)
    y = torch.randn(2, 6, 8, 8, generator=generator, dtype=torch.float64)
    conv = Conv(weight, (2, 2), ((3, 3), (3, 3)), (1, 1), 1, (16, 16))
    native = F.conv_transpose2d(y, weight, None, 2, 3, 1)
    assert torch.allclose(conv.adjoint(y), native, rtol=1e-12, atol=1e-12)
    assert phase_kernel(weight, (2, 2), (1, 1)).shape == (12, 6, 4, 4)
