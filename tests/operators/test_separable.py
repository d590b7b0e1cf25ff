"""Average pooling, padding and interpolation against the native operators."""

from typing import ClassVar

import pytest
import torch
import torch.nn.functional as F

from pursuitify.operators import (
    BlockMean,
    Identity,
    Separable,
    adaptive_avg_pool,
    avg_pool,
    interpolate,
    pad,
)
from pursuitify.testing import Case, MapTests, randn

AVG = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
ADAPTIVE = {1: F.adaptive_avg_pool1d, 2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}
EXACT = 1e-5


def pool_case(size, *args):
    return Case(
        lambda w: avg_pool(size, *args, like=w),
        (2, 2, *size),
        lambda w, x: AVG[len(size)](x, *args),
        tight=EXACT,
    )


def adaptive_case(size, out):
    return Case(
        lambda w: adaptive_avg_pool(size, out, like=w),
        (2, 2, *size),
        lambda w, x: ADAPTIVE[len(size)](x, out),
        tight=EXACT,
    )


def pad_case(size, pads, mode):
    return Case(
        lambda w: pad(size, pads, mode, like=w),
        (2, 2, *size),
        lambda w, x: F.pad(x, pads, mode),
        tight=EXACT,
    )


def resize_case(size, out=None, mode="nearest", align=None, scale=None, antialias=False):
    return Case(
        lambda w: interpolate(size, out, mode, align, scale, antialias, like=w),
        (1, 2, *size),
        lambda w, x: F.interpolate(x, out, scale, mode, align, antialias=antialias),
        tight=EXACT,
    )


class TestAveragePool(MapTests):
    cases: ClassVar = {
        "blocks": pool_case((6, 5), 2),
        "overlapping": pool_case((7, 6), 3, 1, 1),
        "exclude-pad": pool_case((7, 6), 3, 2, 1, False, False),
        "ceil": pool_case((7, 6), (3, 2), 2, 1, True),
        "ceil-blocks": pool_case((7, 5), 2, 2, 0, True),
        "divisor": pool_case((7, 6), 3, 2, 1, True, True, 5),
        "divisor-blocks": pool_case((6, 6), 3, 3, 0, False, True, 4),
        "1d": pool_case((9,), 3, 2, 1),
        "3d": pool_case((4, 3, 5), 2, 1),
        "adaptive": adaptive_case((7, 6), (3, 4)),
        "adaptive-global": adaptive_case((5, 3), 1),
        "adaptive-none": adaptive_case((6, 5), (None, 2)),
        "adaptive-3d": adaptive_case((4, 3, 5), (2, 2, 2)),
    }

    def test_fast_path_is_taken(self) -> None:
        like = randn(1)
        assert isinstance(avg_pool((6, 6), 2, 2, like=like), BlockMean)
        assert isinstance(adaptive_avg_pool((14, 14), 7, like=like), BlockMean)
        assert isinstance(adaptive_avg_pool((7, 7), 7, like=like), Identity)
        assert isinstance(avg_pool((6, 6), 3, 2, like=like), Separable)


class TestPad(MapTests):
    cases: ClassVar = {
        mode: pad_case((6, 5), (1, 2, 3, 0), mode)
        for mode in ("constant", "reflect", "replicate", "circular")
    } | {
        "one-dim": pad_case((6, 5), (1, 2), "constant"),
        "crop": pad_case((6, 5), (-1, 2, 0, -2), "constant"),
        "1d": pad_case((6,), (2, 1), "reflect"),
    }


class TestInterpolate(MapTests):
    cases: ClassVar = {
        "nearest": resize_case((4, 3), (8, 7)),
        "nearest-down": resize_case((7, 6), (3, 4)),
        "nearest-exact": resize_case((4, 3), (7, 5), "nearest-exact"),
        "bilinear": resize_case((4, 3), (7, 6), "bilinear", False),
        "bilinear-corners": resize_case((4, 3), (7, 3), "bilinear", True),
        "scale": resize_case((5, 4), None, "bilinear", False, 1.7),
        "scales": resize_case((5, 4), None, "nearest", None, (2.0, 1.5)),
        "linear": resize_case((5,), (8,), "linear", False),
        "trilinear": resize_case((3, 2, 3), (4, 4, 2), "trilinear", True),
        "bicubic": resize_case((4, 3), (7, 6), "bicubic", False),
        "bicubic-corners": resize_case((4, 3), (7, 2), "bicubic", True),
        "bicubic-scale": resize_case((5, 4), None, "bicubic", False, (1.7, 0.6)),
        "antialias": resize_case((9, 4), (3, 6), "bilinear", False, None, True),
        "antialias-scale": resize_case((9, 4), None, "bicubic", False, (0.4, 1.5), True),
        "area": resize_case((6, 5), (3, 2), "area"),
    }

    def test_an_unknown_mode_is_refused(self) -> None:
        with pytest.raises(ValueError, match="lanczos"):
            interpolate((4, 4), (8, 8), "lanczos", like=randn(1))


def test_matrices_are_ordinary_tensors_even_if_first_made_in_inference_mode() -> None:
    with torch.inference_mode():
        pad((17, 19), (1, 1, 1, 1), "reflect", like=randn(1))
    x = randn(1, 1, 17, 19).requires_grad_()
    pad((17, 19), (1, 1, 1, 1), "reflect", like=x).apply(x).sum().backward()
    assert x.grad is not None
