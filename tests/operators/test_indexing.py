"""Maps that pick entries by constant indices, and windows."""

from typing import ClassVar

import torch
import torch.nn.functional as F

from pursuitify.operators.indexing import Pick, Unfold
from pursuitify.testing import Case, MapTests

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


class TestUnfold(MapTests):
    cases: ClassVar = {
        "overlapping": unfold_case((3, 2), (1, 1), (1, 0), (1, 1), tight=1e-9),
        "blocks": unfold_case((2, 2), (1, 1), (0, 0), (2, 2), tight=1e-9),
        "gaps": unfold_case((2, 1), (1, 1), (1, 1), (3, 2), tight=1e-9),
        "dilated": unfold_case((2, 2), (2, 3), (1, 2), (1, 2)),
    }
