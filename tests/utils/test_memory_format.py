"""Sweeps in evaluation mode run in channels_last on a CPU; nothing else changes its format."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pursuitify import pursuitify
from pursuitify.models import ResidualNet
from pursuitify.utils.memory_format import preferred


@pytest.mark.parametrize(("training", "sweeps", "last"), [(False, 2, True), (False, 0, False)])
def test_the_sweeps_choose_their_format(training: bool, sweeps: int, last: bool) -> None:
    torch.manual_seed(0)
    net = pursuitify(ResidualNet(3, 10), iterations=sweeps).train(training)
    x = torch.rand(2, 3, 8, 8)
    for value in net.latents(x).values():
        assert value.is_contiguous(memory_format=torch.channels_last) == last


def test_training_mode_draws_the_source_s_dropout() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Dropout(0.5), nn.Conv2d(8, 8, 3), nn.ReLU()
    )
    net = pursuitify(model, iterations=2).train()
    x = torch.rand(4, 3, 8, 8)
    torch.manual_seed(1)
    first = net._bind(net._program, (x,))[0].latents[-1]
    torch.manual_seed(1)
    torch.testing.assert_close(first, model.train()(x), rtol=0, atol=0)


def test_what_is_no_image_batch_stays() -> None:
    for value in (
        torch.rand(2, 3),
        torch.rand(2, 1, 4, 4),
        torch.rand(2, 3, 4, 4).double(),
        3,
        None,
    ):
        assert preferred(value) is value
