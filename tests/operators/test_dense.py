"""Dense layers, diagonal scales, and how they fold."""

from typing import ClassVar

import torch
import torch.nn.functional as F

from pursuitify.operators import Conv, Dense, Place, SampleMatrices, Scale, compose
from pursuitify.testing import Case, MapTests, randn


class TestDense(MapTests):
    cases: ClassVar = {
        "tall": Case(Dense, (3, 5), lambda w, x: F.linear(x, w), randn(9, 5), 1e-9),
        "wide": Case(Dense, (3, 20), lambda w, x: F.linear(x, w), randn(12, 20), 5e-3),
        "three-dims": Case(Dense, (2, 4, 5), lambda w, x: F.linear(x, w), randn(3, 5), 1e-9),
    }


class TestSampleMatrices(MapTests):
    cases: ClassVar = {
        "wide": Case(SampleMatrices, (2, 3, 4, 5), lambda w, x: w @ x, randn(2, 3, 2, 4)),
        "one-row": Case(SampleMatrices, (3, 1, 4, 2), lambda w, x: w @ x, randn(3, 1, 1, 4), 1e-9),
    }


def test_matrices_are_bounded_sample_by_sample() -> None:
    weight = randn(3, 2, 4, 4)
    alone = [SampleMatrices(weight[i : i + 1]).norm_bound() for i in range(3)]
    assert torch.equal(SampleMatrices(weight).norm_bound(), torch.cat(alone))


class TestScale(MapTests):
    cases: ClassVar = {
        f"{shape}": Case(Scale, (2, 3, 4, 3), lambda w, x: w * x, randn(*shape, seed=3), 1e-12)
        for shape in [(), (1, 3, 1, 1), (2, 3, 1, 1), (2, 3, 4, 3), (1, 1, 1, 1)]
    } | {"number": Case(lambda w: Scale(-2.5), (2, 3), lambda w, x: -2.5 * x, None, 0.0)}

    def test_narrow(self, case: Case) -> None:
        linear = case.bound(torch.float64)[0]
        x = randn(*case.shape)
        part = linear.narrow(1, 1, 2).apply(x.narrow(1, 1, 2))
        torch.testing.assert_close(part, linear.apply(x).narrow(1, 1, 2))


def test_bound_is_per_sample_where_the_factor_is() -> None:
    gate = randn(4, 3, 1, 1)
    assert torch.equal(Scale(gate).norm_bound(), gate.abs().amax(1, keepdim=True))
    assert Scale(gate[:1]).norm_bound().shape == ()
    assert Scale(-3.0).norm_bound() == 3.0


def test_scale_folds_into_weights() -> None:
    x = randn(2, 4, 5, 5)
    conv = Conv.from_call((5, 5), randn(6, 4, 3, 3), padding=1)
    for factor in (randn(1, 6, 1, 1), randn()):
        (fused,) = compose([conv, Scale(factor)])
        torch.testing.assert_close(fused.apply(x), conv.apply(x) * factor)
    for factor in (randn(2, 6, 1, 1), randn(1, 6, 5, 5), 2.0):
        assert len(compose([conv, Scale(factor)])) == 2
    x, dense = randn(3, 4), Dense(randn(6, 4))
    (fused,) = compose([dense, Scale(randn(1, 6))])
    torch.testing.assert_close(fused.apply(x), dense.apply(x) * randn(1, 6))
    assert len(compose([dense, Scale(randn(3, 6))])) == 2
    (merged,) = compose([Scale(2.0), Scale(randn(1, 4)), Scale(0.5)])
    torch.testing.assert_close(merged.apply(x), randn(1, 4) * x)


def test_dense_absorbs_a_placement_on_its_last_dim_only() -> None:
    weight, x = randn(6, 7), randn(3, 2)
    place = Place(1, 3, 2, 7)
    (fused,) = compose([place, Dense(weight, dims=2)])
    torch.testing.assert_close(fused.apply(x), F.linear(place.apply(x), weight))
    assert len(compose([place, Dense(weight)])) == 2
    assert len(compose([place, Dense(weight, dims=3)])) == 2
    assert len(compose([Place(-1, 3, 2, 7), Dense(weight)])) == 1
