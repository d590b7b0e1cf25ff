"""These tests check what a sweep may cost, counted: no clock, so that it holds on every machine.

That each weighted operator runs once forward and once adjoint is in test_pursuit_network.py.
"""

from __future__ import annotations

import pytest

pytest.importorskip("torchvision")
import torch
from torch import Tensor, nn

from pursuitify import pursuitify
from pursuitify.models import ChainNet, DenseBlock, ResidualNet
from tests.support.sweep_cost import launches, sweep_cost


@pytest.fixture(autouse=True)
def sweeps_path() -> None:
    """Leave the fast path on: what is counted here is its cost."""


#: Passes over the concats of a dense block per sweep: the residuals' slots take the change of the
#: latent they read, and are fed back to it. Packed kernels read and write them in one piece.
JOINS = 2
#: The same where each unit reads activation(BatchNorm(concat)), as DenseNet's do: six of the
#: latent that the activation makes (two sums, its link, ReLU, and the link's product made and
#: subtracted from) and one to feed back to what is joined. No residual of that size is held.
READS = 7


class Grown(nn.Module):
    """One densely connected block of ``depth`` units."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.block = DenseBlock(2, 4, depth, stride=1, batch_norm=True)
        self.head = nn.Linear(4 * depth, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(x).mean((2, 3)))


class PreActivated(nn.Module):
    """One block of ``depth`` units that read conv(relu(norm(concat)))."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.BatchNorm2d(4 * n) for n in range(1, depth + 1))
        self.convs = nn.ModuleList(
            nn.Conv2d(4 * n if n else 2, 4, 3, padding=1, bias=False) for n in range(depth + 1)
        )
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        values = [torch.relu(self.convs[0](x))]
        for norm, conv in zip(self.norms, self.convs[1:], strict=True):
            values.append(conv(torch.relu(norm(torch.cat(values, 1)))))
        return self.head(torch.relu(values[-1]).mean((2, 3)))


def joined(depth: int, x: Tensor) -> int:
    """Return the elements that the source's own concats hold."""
    images = x.shape[0] * x[0, 0].numel()
    return sum(4 * n * images for n in range(2, depth))


@pytest.mark.parametrize("build", [ChainNet, ResidualNet])
def test_the_rest_of_a_sweep_grows_with_the_latents(build: type[nn.Module]) -> None:
    """Elements moved beside the weighted operators, per element of all latents: a constant."""
    x, shares = torch.rand(2, 3, 12, 12), []
    for depth in (1, 4):
        torch.manual_seed(0)
        model = build(in_channels=3, num_classes=2, depth=depth, width=4)
        size = sum(v.numel() for v in pursuitify(model.eval()).latents(x).values())
        shares.append(sweep_cost(model, x)[1] / size)
    assert shares[1] <= 1.1 * shares[0], shares


def test_a_dense_block_costs_its_concats_and_no_more() -> None:
    """Unit n reads n latents: joining them is quadratic in the source as well, nothing else is."""
    x, rest = torch.rand(2, 2, 8, 8), {}
    for depth in (4, 8, 16):
        torch.manual_seed(0)
        convolutions, elements = sweep_cost(Grown(depth), x)
        assert convolutions == 2 * 2 * depth
        rest[depth] = (elements - JOINS * joined(depth, x)) / depth
    assert rest[16] <= 1.02 * rest[4], rest


def test_rows_that_scale_one_concat_hold_it_once() -> None:
    x, rest = torch.rand(2, 2, 8, 8), {}
    for depth in (4, 8, 16):
        torch.manual_seed(0)
        convolutions, elements = sweep_cost(PreActivated(depth), x)
        assert convolutions == 2 * (depth + 1)
        rest[depth] = (elements - READS * joined(depth + 1, x)) / depth
    assert rest[16] <= 1.02 * rest[4], rest


#: Operators that a call adds to the source's own, per convolution: six fold its BatchNorm into its
#: kernel, one reads the kernel for its fingerprint, and its row has a threshold and a start.
PER_CONVOLUTION = 8.5
#: The same per block: its sum has the offsets of all that is added, for its row's signal.
PER_SUM = 4


@pytest.mark.parametrize("blocks", [[1, 1, 1, 1], [3, 4, 6, 3]])
def test_what_a_call_runs_beside_its_sweeps(blocks: list[int]) -> None:
    """Narrow resnet50s: steps and norms are worked on as one vector, not latent by latent."""
    from torchvision.models.resnet import Bottleneck, ResNet

    torch.manual_seed(0)
    model = ResNet(Bottleneck, blocks, width_per_group=2)
    convolutions = sum(isinstance(m, nn.Conv2d) for m in model.modules())
    source, fixed, sweep = launches(model, torch.rand(1, 3, 64, 64))
    assert fixed - source <= PER_CONVOLUTION * convolutions + PER_SUM * sum(blocks) + 30
    assert sweep <= 10 * convolutions
