"""A slot of a concat that covers other channels of each group of a convolution."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pursuitify import coherence, pursuitify


class Uneven(nn.Module):
    """``b`` is the second channel of the first group and the first channel of the second."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(2, n, 3, padding=1) for n in (1, 2, 1))
        self.d = nn.Conv2d(4, 4, 3, padding=1, groups=2)

    def forward(self, x: Tensor) -> Tensor:
        parts = [torch.relu(m(x)) for m in (self.a, self.b, self.c)]
        return torch.relu(self.d(torch.cat(parts, 1)))


@pytest.mark.parametrize("layout", ["auto", "encoder"])
def test_each_group_reads_its_own_channel_of_the_slot(layout: str) -> None:
    torch.manual_seed(0)
    net = pursuitify(Uneven().double().eval(), layout=layout)
    matrix = net.dictionary(torch.rand(1, 2, 5, 4, dtype=torch.float64)).materialize()[0].detach()
    gram = torch.nn.functional.normalize(matrix, dim=0)
    gram = (gram.T @ gram).fill_diagonal_(0)
    report = coherence(net, (2, 5, 4), boundary="exact")
    assert report.mutual_coherence == pytest.approx(float(gram.abs().max()), rel=1e-9)
    squares = report.frame_potential**2 * report.count
    assert squares == pytest.approx(float(gram.square().sum()), rel=1e-9)
