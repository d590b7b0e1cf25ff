"""Maps that move, cut, repeat and sum."""

from typing import ClassVar

import torch
import torch.nn.functional as F

from pursuitify.operators import (
    Adjoint,
    CumulativeSum,
    Expand,
    Identity,
    Narrow,
    Permute,
    Place,
    Reduce,
    Reshape,
    Scale,
    Slice,
    ZeroPad,
    compose,
)
from pursuitify.operators.reshape import Roll
from pursuitify.testing import Case, MapTests, randn

SHAPE = (2, 4, 3, 5)


def case(linear, native, shape=SHAPE):
    return Case(lambda w: linear, shape, lambda w, x: native(x), tight=1e-9)


class TestShape(MapTests):
    cases: ClassVar = {
        "identity": case(Identity(), lambda x: x),
        "reshape": case(Reshape(SHAPE, (2, 60)), lambda x: x.flatten(1)),
        "permute": case(Permute((0, 2, -1, 1)), lambda x: x.permute(0, 2, 3, 1)),
        "narrow": case(Narrow(1, 1, 2, 4), lambda x: x[:, 1:3]),
        "narrow-last": case(Narrow(-1, 2, 3, 5), lambda x: x[..., 2:]),
        "place": case(Place(1, 2, 4, 9), lambda x: F.pad(x, (0, 0, 0, 0, 2, 3))),
        "slice": case(Slice(3, 1, 5, 2, 5), lambda x: x[..., 1:5:2]),
        "slice-negative": case(Slice(2, -2, 3, 1, 3), lambda x: x[:, :, -2:3]),
        "slice-long-step": case(Slice(1, 0, 4, 3, 4), lambda x: x[:, ::3]),
        "roll": case(Roll((2,), (3,)), lambda x: x.roll(2, 3)),
        "roll-many": case(Roll((-1, 7, 1), (2, 3, 1)), lambda x: x.roll((-1, 7, 1), (2, 3, 1))),
        "cumulative-sum": case(CumulativeSum(3, 5), lambda x: x.cumsum(3)),
        "cumulative-sum-of-samples": case(CumulativeSum(0, 2), lambda x: x.cumsum(0)),
        "zero-pad": case(ZeroPad((1, 0, 2, 1)), lambda x: F.pad(x, (1, 0, 2, 1))),
        "expand": case(Expand((2, 4, 1, 1), SHAPE), lambda x: x.expand(SHAPE), (2, 4, 1, 1)),
        "expand-new": case(Expand((3, 1), (2, 4, 3, 2)), lambda x: x.expand(2, 4, 3, 2), (3, 1)),
        "sum": case(Reduce(SHAPE, (1, -1)), lambda x: x.sum((1, 3))),
        "mean": case(Reduce(SHAPE, (2, 3), True, True), lambda x: x.mean((2, 3), True)),
        "mean-flat": case(Reduce(SHAPE, (-2, -1), False, True), lambda x: x.mean((2, 3))),
        "adjoint": case(Adjoint(Place(1, 1, 2, 4)), lambda x: x[:, 1:3]),
    }


def test_chains_fuse() -> None:
    place, narrow = Place(1, 2, 3, 8), Narrow(1, 2, 3, 8)
    assert compose([place, narrow]) == ()
    assert len(compose([place, Narrow(1, 1, 3, 8)])) == 2
    assert compose([Reshape((2, 6), (2, 3, 2)), Reshape((2, 3, 2), (2, 6))]) == ()
    assert len(compose([Reshape((2, 6), (2, 3, 2)), Reshape((2, 3, 2), (12,))])) == 1
    assert len(compose([Identity(), Scale(2.0), Identity()])) == 1


def test_float32_stays_float32() -> None:
    x = randn(*SHAPE, dtype=torch.float32)
    assert Reduce(SHAPE, (1,), mean=True).adjoint(x[:, 0]).dtype == torch.float32
