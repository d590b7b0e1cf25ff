"""Factors as torch broadcasts them: fewer dimensions than the value, and masks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pursuitify import pursuitify


class _Scaled(nn.Module):
    """Rows that are one product with a factor, over features or images."""

    def __init__(self, factor: Tensor, images: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(2, 4, 3, padding=1) if images else nn.Linear(4, 4)
        self.last = nn.Conv2d(4, 2, 3) if images else nn.Linear(4, 2)
        self.register_buffer("factor", factor)

    def forward(self, x: Tensor) -> Tensor:
        a = F.relu(self.first(x))
        return self.last(F.relu(a * self.factor) + F.relu(0.5 * a))


@pytest.mark.parametrize("mask", [False, True], ids=["factor", "mask"])
@pytest.mark.parametrize(
    ("shape", "images"),
    [((4,), False), ((1, 4), False), ((4, 1, 1), True), ((1, 4, 1, 1), True), ((5,), True)],
    ids=str,
)
@pytest.mark.parametrize("batch", [1, 3, 4])
def test_a_factor_of_any_shape_is_its_full_twin(
    shape: tuple[int, ...], images: bool, mask: bool, batch: int
) -> None:
    generator = torch.Generator().manual_seed(1)
    factor = torch.rand(shape, generator=generator, dtype=torch.float64)
    size = (1, 4, 5, 5) if images else (1, 4)
    x = torch.rand(batch, *((2, 5, 5) if images else (4,)), dtype=torch.float64)
    given = (factor > 0.5) if mask else factor
    nets = [
        pursuitify(_Scaled(value, images).double().eval(), iterations=3)
        for value in (given, given.to(torch.float64).expand(size).clone())
    ]
    found, expected = (net(x).detach() for net in nets)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    with torch.no_grad():
        torch.testing.assert_close(nets[0](x), found, rtol=1e-12, atol=1e-12)
