"""Frozen max pooling."""

from typing import ClassVar

import pytest
import torch
import torch.nn.functional as F

from pursuitify.operators import Select, Unpool, cover
from pursuitify.testing import Case, MapTests, randn

UNPOOL = {1: F.max_unpool1d, 2: F.max_unpool2d, 3: F.max_unpool3d}
POOL = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}


def pool_case(size, kernel, stride, padding=0, dilation=1, ceil_mode=False, last=False):
    dims = len(size)
    shape = (2, 2, *size)
    options = {
        "stride": stride,
        "padding": padding,
        "dilation": dilation,
        "ceil_mode": ceil_mode,
    }
    x = randn(*shape, seed=9)
    if last:
        x = x.contiguous(memory_format=torch.channels_last)
    indices = POOL[dims](x, kernel, return_indices=True, **options)[1]
    many = cover((kernel,) * dims, (stride,) * dims, (dilation,) * dims)

    def matrix():
        jacobian = torch.autograd.functional.jacobian(lambda x: POOL[dims](x, kernel, **options), x)
        return jacobian.reshape(indices.numel(), x.numel())

    return Case(lambda w: Select(indices, size, many), shape, matrix=matrix)


class TestSelect(MapTests):
    cases: ClassVar = {
        "blocks": pool_case((6, 5), 2, 2),
        "overlapping": pool_case((7, 6), 3, 2, padding=1),
        "ceil": pool_case((6, 7), 3, 2, ceil_mode=True),
        "every": pool_case((5, 5), 3, 1, padding=1),
        "gaps": pool_case((7, 5), 2, 3),
        "dilated": pool_case((7, 8), 3, 2, dilation=2),
        "channels-last": pool_case((7, 6), 3, 2, padding=1, last=True),
        "1d": pool_case((9,), 3, 2, padding=1),
        "3d": pool_case((4, 4, 3), 2, 1),
    }

    def test_narrow(self, case: Case) -> None:
        linear = case.bound(torch.float64)[0]
        x = randn(*case.shape)
        part = linear.narrow(1, 1, 1).apply(x.narrow(1, 1, 1))
        torch.testing.assert_close(part, linear.apply(x).narrow(1, 1, 1))
        with pytest.raises(NotImplementedError):
            linear.narrow(2, 0, 1)


def unpool_case(size, kernel, stride, padding=0):
    dims = len(size)
    indices = POOL[dims](randn(2, 2, *size, seed=9), kernel, stride, padding, return_indices=True)[
        1
    ]

    def native(x):
        sizes = (kernel, stride, padding, size)
        return UNPOOL[dims](x, indices[: len(x)], *sizes)

    x = randn(*indices.shape)
    number = torch.arange(1.0, 1 + x[0, 0].numel()).reshape(x.shape[2:]).expand(x.shape)
    last = native(number.contiguous()).flatten(2).gather(2, indices.flatten(2))
    kept = last.reshape(x.shape) == number
    return Case(lambda w: Unpool(indices, size, kept), tuple(x.shape), lambda w, x: native(x))


class TestUnpool(MapTests):
    cases: ClassVar = {
        "blocks": unpool_case((6, 5), 2, 2),
        "one-place-for-several": unpool_case((7, 6), 3, 1, padding=1),
        "1d": unpool_case((9,), 3, 2, padding=1),
        "3d": unpool_case((4, 4, 3), 2, 2),
    }

    def test_narrow(self, case: Case) -> None:
        linear = case.bound(torch.float64)[0]
        x = randn(*case.shape)
        part = linear.narrow(1, 1, 1).apply(x.narrow(1, 1, 1))
        torch.testing.assert_close(part, linear.apply(x).narrow(1, 1, 1))
        with pytest.raises(NotImplementedError):
            linear.narrow(2, 0, 1)


@pytest.mark.parametrize("last", [False, True])
def test_memory_that_cannot_be_flattened(last: bool) -> None:
    """Windows of larger images: the factor is applied once, and the window is written to."""
    linear = pool_case((6, 5), 2, 2, last=last).bound(torch.float64)[0]
    x, y = randn(2, 2, 6, 5), randn(2, 2, 3, 2, seed=1)
    into_x, into_y = randn(2, 2, 8, 7)[:, :, 1:7, 1:6], randn(2, 2, 5, 4)[:, :, 1:4, 1:3]
    wanted = into_x - 0.5 * linear.adjoint(y)
    torch.testing.assert_close(linear.add_adjoint(into_x, y, -0.5), wanted)
    torch.testing.assert_close(into_x, wanted)
    torch.testing.assert_close(linear.apply_into(into_y, x), linear.apply(x))


@pytest.mark.parametrize("k", [1, 2, 3, 5])
@pytest.mark.parametrize("s", [1, 2, 3, 4])
@pytest.mark.parametrize("d", [1, 2, 3])
def test_cover_counts_windows(k: int, s: int, d: int) -> None:
    reads = [n * s + d * t for n in range(20) for t in range(k)]
    assert cover((k,), (s,), (d,)) == max(reads.count(i) for i in set(reads))


def test_the_bound_is_attained() -> None:
    spike = torch.zeros(1, 1, 7, 7, dtype=torch.float64)
    spike[0, 0, 3, 3] = 1
    indices = F.max_pool2d(spike, 3, 2, 1, return_indices=True)[1]
    linear = Select(indices, (7, 7), cover((3, 3), (2, 2), (1, 1)))
    assert float(linear.apply(spike).norm()) == linear.norm_bound() == 2.0
