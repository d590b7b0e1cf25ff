"""Convolutions, plain and transposed, and what they fuse with."""

from typing import ClassVar

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from pursuitify.operators import Adjoint, Conv, Place, Scale, compose, conv_transpose_map, dottest
from pursuitify.testing import Case, MapTests, matrix_of, randn

CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


def conv_case(weight, size, batch=1, groups=1, tight=None, **call):
    dims = len(size)
    return Case(
        build=lambda w: Conv.from_call(size, w, groups=groups, **call),
        native=lambda w, x: CONV[dims](x, w, groups=groups, **call),
        shape=(batch, weight[1] * groups, *size),
        parameter=randn(*weight, seed=5),
        tight=tight,
    )


def transposed_case(weight, size, batch=1, groups=1, **call):
    dims = len(size)
    return Case(
        build=lambda w: conv_transpose_map(size, w, groups=groups, **call),
        native=lambda w, x: TRANSPOSED[dims](x, w, groups=groups, **call),
        shape=(batch, weight[0], *size),
        parameter=randn(*weight, seed=6),
    )


class TestConv(MapTests):
    cases: ClassVar = {
        "plain": conv_case((4, 3, 3, 3), (7, 6), batch=2),
        "padded": conv_case((4, 3, 3, 3), (7, 5), padding=1),
        "stride2": conv_case((3, 2, 3, 3), (8, 7), stride=2, padding=1),
        "stride3": conv_case((3, 2, 3, 2), (9, 8), stride=(3, 2), padding=(1, 0)),
        "stride-beyond-kernel": conv_case((3, 2, 1, 1), (7, 6), stride=2),
        "stem": conv_case((4, 3, 7, 7), (13, 12), stride=2, padding=3),
        "dilated": conv_case((3, 2, 3, 3), (9, 8), padding=2, dilation=2),
        "dilated-stride": conv_case((3, 2, 3, 3), (9, 8), stride=2, padding=2, dilation=(2, 3)),
        "same-even": conv_case((3, 2, 4, 2), (7, 6), padding="same"),
        "same-dilated": conv_case((3, 2, 2, 3), (7, 6), padding="same", dilation=3),
        "valid": conv_case((3, 2, 2, 3), (5, 6), padding="valid"),
        "grouped": conv_case((4, 2, 3, 3), (6, 5), padding=1, groups=2),
        "depthwise": conv_case((6, 1, 3, 3), (6, 5), stride=2, padding=1, groups=3),
        "1d": conv_case((4, 3, 5), (11,), stride=2, padding=2, batch=2),
        "3d": conv_case((2, 2, 3, 2, 3), (4, 5, 3), stride=(1, 2, 1), padding=1),
        "representative": conv_case((4, 3, 3, 3), (14, 14), padding=1, tight=0.1),
        "representative-wide": conv_case((2, 5, 3, 3), (14, 14), padding=1, tight=0.1),
        "representative-stride": conv_case((4, 2, 3, 3), (20, 20), stride=2, padding=1, tight=0.1),
        "representative-depthwise": conv_case(
            (4, 1, 3, 3), (14, 14), padding=1, groups=4, tight=0.1
        ),
        "representative-1d": conv_case((4, 3, 3), (40,), padding=2, dilation=2, tight=0.1),
        "pointwise": conv_case((4, 3, 1, 1), (4, 3), tight=1e-9),
    }

    def test_scaled_and_narrowed(self, case: Case) -> None:
        linear, weight = case.bound(torch.float64)
        assert isinstance(linear, Conv)
        x, s = randn(*case.shape), randn(weight.shape[0], seed=7)
        shape = (1, -1) + (1,) * (weight.dim() - 2)
        torch.testing.assert_close(linear.scaled(s).apply(x), linear.apply(x) * s.view(shape))
        s = randn(x.shape[1], seed=8)
        torch.testing.assert_close(linear.scaled_input(s).apply(x), linear.apply(x * s.view(shape)))
        place = Place(1, 1, x.shape[1] - 1, x.shape[1])
        part = x.narrow(1, 1, x.shape[1] - 1)
        chain = compose([place, linear])
        assert len(chain) == (1 if linear.groups == 1 else 2)
        for item in chain:
            part = item.apply(part)
        torch.testing.assert_close(part, linear.apply(place.apply(x.narrow(1, 1, place.length))))


class TestTransposed(MapTests):
    cases: ClassVar = {
        "plain": transposed_case((3, 2, 3, 3), (4, 5), batch=2),
        "stride": transposed_case((3, 2, 3, 3), (4, 3), stride=2, padding=1, output_padding=1),
        "grouped": transposed_case((4, 2, 2, 2), (3, 4), stride=2, groups=2),
        "dilated": transposed_case((2, 3, 3, 2), (4, 3), stride=2, dilation=2, padding=1),
        "long-output-padding": transposed_case(
            (2, 3, 3), (4,), stride=2, dilation=4, padding=1, output_padding=3
        ),
        "1d": transposed_case((2, 3, 4), (5,), stride=3, output_padding=2),
        "3d": transposed_case((2, 2, 2, 2, 3), (3, 2, 2), stride=2, padding=(0, 1, 1)),
    }

    def test_scale_folds(self, case: Case) -> None:
        linear = case.bound(torch.float64)[0]
        x = randn(*case.shape)
        y = linear.apply(x)
        scale = Scale(randn(1, y.shape[1], *(1,) * (y.dim() - 2), seed=4))
        fused = scale.after(linear)
        assert isinstance(fused, Adjoint)
        torch.testing.assert_close(fused.apply(x), scale.apply(y))


@st.composite
def calls(draw):
    dims = draw(st.integers(1, 2))
    each = lambda low, high: tuple(draw(st.integers(low, high)) for _ in range(dims))  # noqa: E731
    kernel, dilation, stride = each(1, 4), each(1, 3), each(1, 3)
    padding = draw(st.one_of(st.just("valid"), st.just(each(0, 3)), st.just("same")))
    if padding == "same":
        stride = (1,) * dims
    size = tuple(d * (k - 1) + 1 + e for d, k, e in zip(dilation, kernel, each(0, 4), strict=True))
    groups = draw(st.integers(1, 2))
    weight = (groups * draw(st.integers(1, 2)), draw(st.integers(1, 3)), *kernel)
    return weight, size, groups, {"stride": stride, "padding": padding, "dilation": dilation}


@settings(max_examples=20, deadline=None)
@given(calls())
def test_any_call(call) -> None:
    weight, size, groups, options = call
    case = conv_case(weight, size, groups=groups, **options)
    linear, w = case.bound(torch.float64)
    x = randn(*case.shape)
    y = CONV[len(size)](x, w, groups=groups, **options)
    torch.testing.assert_close(linear.apply(x), y)
    assert dottest(linear, x) <= 1e-12
    norm = torch.linalg.matrix_norm(matrix_of(linear.apply, case.shape), 2)
    assert float(linear.norm_bound()) >= float(norm) * (1 - 1e-12)


def test_unknown_padding_is_refused() -> None:
    with pytest.raises(ValueError, match="full"):
        Conv.from_call((5, 5), randn(2, 2, 3, 3), padding="full")
