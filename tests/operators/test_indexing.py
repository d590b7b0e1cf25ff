"""Maps that pick entries by given indices, sparse matrices, and windows."""

from typing import ClassVar

import torch
import torch.nn.functional as F

from pursuitify.operators.indexing import Gather, Pick, SparseMatrix, Unfold
from pursuitify.testing import Case, MapTests, randn

SHAPE = (2, 4, 3, 5)


def pick_case(dim, index):
    places = torch.tensor(index)
    return Case(
        lambda w: Pick(dim, places, SHAPE[dim]),
        SHAPE,
        lambda w, x: x.index_select(dim, places),
        tight=1e-12,
    )


def unfold_case(*sizes, tight=None):
    return Case(
        lambda w: Unfold((6, 5), *sizes),
        (2, 2, 6, 5),
        lambda w, x: F.unfold(x, *sizes),
        tight=tight,
    )


class TestPick(MapTests):
    cases: ClassVar = {
        "order": pick_case(1, [3, 1, 0, 2]),
        "some": pick_case(2, [2]),
        "many-times": pick_case(3, [4, 0, 4, 4, 1, 0, 2]),
        "samples": pick_case(0, [1, 0, 1]),
    }


def gather_case(dim, *shape, tight=1e-12):
    generator = torch.Generator().manual_seed(dim)
    index = torch.randint(SHAPE[dim], shape, generator=generator)
    return Case(
        lambda w: Gather(dim, index, SHAPE), SHAPE, lambda w, x: x.gather(dim, index), tight=tight
    )


class TestGather(MapTests):
    cases: ClassVar = {
        "channels": gather_case(1, 2, 4, 3, 5),
        "many": gather_case(2, 2, 4, 7, 5),
        "few": gather_case(3, 2, 2, 1, 2),
        "samples": gather_case(0, 3, 4, 3, 5),
        "fewer-samples": gather_case(1, 1, 3, 3, 5),
    }


def test_a_gather_is_bounded_sample_by_sample():
    index = torch.tensor([[0, 1, 2, 3], [0, 0, 0, 0]])
    assert Gather(1, index, (2, 4)).norm_bound().flatten().tolist() == [1.0, 2.0]


def sparse_case(dim, rows, columns, size):
    shape = (size, SHAPE[dim])
    places = torch.tensor([rows, columns])

    def native(values, x):
        matrix = torch.sparse_coo_tensor(places, values, shape).to_dense()
        return torch.tensordot(matrix, x, ([1], [dim])).movedim(0, dim)

    return Case(
        lambda values: SparseMatrix(dim, *places, values, shape),
        SHAPE,
        native,
        randn(len(rows), seed=2),
    )


class TestSparseMatrix(MapTests):
    cases: ClassVar = {
        "channels": sparse_case(1, [0, 2, 2], [3, 0, 1], 3),
        "one-place-twice": sparse_case(3, [1, 1, 0, 4], [2, 2, 2, 4], 6),
        "samples": sparse_case(0, [2, 0], [1, 1], 3),
    }


class TestUnfold(MapTests):
    cases: ClassVar = {
        "overlapping": unfold_case((3, 2), (1, 1), (1, 0), (1, 1), tight=1e-9),
        "blocks": unfold_case((2, 2), (1, 1), (0, 0), (2, 2), tight=1e-9),
        "gaps": unfold_case((2, 1), (1, 1), (1, 1), (3, 2), tight=1e-9),
        "dilated": unfold_case((2, 2), (2, 3), (1, 2), (1, 2)),
    }
