"""Arithmetic on sizes, by Python's functions and NumPy's.

Nothing but calls of ``int`` and ``float`` may stand in this file: elsewhere they are the types.
"""

from __future__ import annotations

import functools
import math
import operator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pursuitify import TraceError, pursuitify
from tests.support.agreement import compare

SIZES: dict[str, Any] = {
    "int": lambda x: x.view(int(x.size(0)), -1),
    "int of a quotient": lambda x: x[:, :, : int(x.size(2) / 2)],
    "ints": lambda x: x.view(*[int(n) for n in x.shape[:2]], -1),
    "float": lambda x: x / float(x.size(2)),
    "round": lambda x: x[:, :, : round(x.size(2) * 0.5)] * round(x.size(3) / 3, 1),
    "divmod": lambda x: x[:, :, : divmod(x.size(2), 2)[0]] + divmod(x.size(3), 3)[1],
    "floor and ceil": lambda x: x[:, :, math.floor(x.size(2) / 4) : math.ceil(x.size(2) / 2)],
    "prod": lambda x: x.view(-1, np.prod(x.shape[1:])),
    "int of prod": lambda x: x.view(-1, int(np.prod(x.size()[1:]))),
    "prod of an array": lambda x: x.view(-1, int(np.array(x.shape[1:]).prod())),
    "math.prod": lambda x: x.view(x.shape[0], math.prod(x.shape[1:])),
    "reduce": lambda x: x.view(x.size(0), functools.reduce(operator.mul, x.shape[1:])),
    "sqrt": lambda x: x / np.sqrt(x.size(1)) + 1 / math.sqrt(x.size(2)),
    "log2": lambda x: x * int(np.log2(x.size(1))),
    "numpy's floor and ceil": lambda x: x[
        :, :, int(np.floor(x.size(2) / 4)) : int(np.ceil(x.size(2) / 2))
    ],
    "several": lambda x: x.view(*x.shape[:2], -1) * float(int(x.size(3) / 3) + 0.5),
}


class _Sized(nn.Module):
    def __init__(self, by_size: Any) -> None:
        super().__init__()
        self.a, self.b, self.by_size = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 1), by_size

    def forward(self, x: Tensor) -> Tensor:
        z = self.by_size(F.relu(self.a(x))).flatten(1)
        return F.relu(self.b(z[:, :4, None, None])) + z.mean(1)[:, None, None, None]


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("name", SIZES)
def test_sizes_follow_the_input(name: str, given: bool) -> None:
    torch.manual_seed(0)
    model = _Sized(SIZES[name]).double()
    x, other = torch.randn(2, 1, 8, 9).double(), torch.randn(3, 1, 10, 7).double()
    options = {"example_inputs": x} if given else {}
    net, worst = compare(
        functools.partial(pursuitify, **options), model, x, training=False, tolerance=1e-12
    )
    assert worst == 0
    net.iterations = 0
    assert torch.equal(net(other), model(other))


def test_what_a_number_has_not_is_refused_when_it_is_traced() -> None:
    for by_size in (lambda x: x / np.cbrt(x.size(1)), lambda x: x / x.size(1).item()):
        with pytest.raises(TraceError, match=r"no callable cbrt|no attribute item"):
            pursuitify(_Sized(by_size))
