"""Large blocks take other ways through memory: they give the same products."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pursuitify import pursuitify
from pursuitify.analysis.gram import channel_products
from tests.support.dense_gram import agree
from tests.support.nets import BY_NAME, LAYOUTS, randomise


class Resized(nn.Module):
    """A convolution that reads a resized latent: taps with several coefficients, many rows."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv1d(2, 3, 3, padding=1), nn.Conv1d(3, 4, 3, padding=1)

    def forward(self, x):
        x = nn.functional.interpolate(torch.relu(self.a(x)), scale_factor=2.0, mode="linear")
        return torch.relu(self.b(x)).mean(2)


def dictionary(name, layout):
    if name == "resized":
        x = torch.randn(1, 2, 7, dtype=torch.float64)
        return pursuitify(randomise(Resized()).double().eval(), layout=layout).dictionary(x)
    case = BY_NAME[name]
    return pursuitify(case.build(), layout=layout).dictionary(case.input())


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["conv_residual", "conv_dense", "separable", "tied", "resized"])
@pytest.mark.parametrize("table", [0, 60])
def test_products_on_demand_agree_with_materialize(name, layout, table, monkeypatch):
    monkeypatch.setattr(channel_products, "TABLE", table)
    with torch.no_grad():
        agree(dictionary(name, layout))


@pytest.mark.parametrize("cut", [1, 2, 3, 7, 9])
def test_a_symmetric_product_from_its_lower_blocks(cut):
    one = torch.randn(2, 4, 7, dtype=torch.float64)
    assert torch.allclose(channel_products._symmetric(one, one, cut), one.mT @ one, atol=1e-12)


def test_a_derivative_copies_no_table_per_pair_of_taps():
    """The derivative of indexing a table is as large as the table, for every index anew."""
    left, right = (torch.randn(1, 5, 3, 9, requires_grad=True) for _ in range(2))
    cols = torch.arange(3)[None]
    products = channel_products.Products(channel_products.Aligned(left, right, (cols, cols)))
    sums = [products.sum(((t, u, 1.0),)) for t in range(9) for u in range(9)]
    torch.stack(sums).square().sum().backward()
    expected = torch.einsum("grat,grbu->gtaub", left, right)
    wanted = torch.autograd.grad(expected.square().sum(), (left, right))
    for own, other in zip((left, right), wanted, strict=True):
        torch.testing.assert_close(own.grad, other)
    seen, stack = set(), [s.grad_fn for s in sums]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        stack += [before for before, _ in node.next_functions]
    names = [node.name() for node in seen]
    assert not [n for n in names if n.startswith(("Select", "Index", "Slice"))], names
