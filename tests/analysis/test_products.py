"""Large blocks take other ways through memory: they give the same products."""

from __future__ import annotations

import pytest
import torch
from analysis.test_gram import agree
from nets import BY_NAME, LAYOUTS

from pursuitify import pursuitify
from pursuitify.analysis import products


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["conv_residual", "conv_dense", "mix", "separable", "tied"])
@pytest.mark.parametrize("table", [0, 40])
def test_products_on_demand_agree_with_materialize(name, layout, table, monkeypatch):
    monkeypatch.setattr(products, "TABLE", table)
    case = BY_NAME[name]
    dictionary = pursuitify(case.build(), layout=layout).dictionary(case.input())
    with torch.no_grad():
        agree(dictionary)


@pytest.mark.parametrize("cut", [1, 2, 3, 7, 9])
def test_a_symmetric_product_from_its_lower_blocks(cut):
    one = torch.randn(2, 4, 7, dtype=torch.float64)
    assert torch.allclose(products._symmetric(one, one, cut), one.mT @ one, atol=1e-12)
