"""einops, which is traced as the torch operations that it calls; skipped where it is missing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.support.agreement import converted_exactly
from tests.support.ops import Around, Lambda

einops = pytest.importorskip("einops")
layers = pytest.importorskip("einops.layers.torch")

EYE = torch.eye(4, 5, dtype=torch.float64)
#: An operation of einops on (batch, 4, height, width), and the number of channels it gives.
CALLS: dict[str, tuple[Any, int]] = {
    "rearrange": (lambda x: einops.rearrange(x, "b (g c) h w -> b (c g) w h", g=2), 4),
    "rearrange-of-several": (lambda x: einops.rearrange([x, 2 * x], "k b c h w -> b (k c) h w"), 8),
    "repeat": (lambda x: einops.repeat(x, "b c h w -> b (c 2) (h r) w", r=2), 8),
    "reduce-mean": (lambda x: x - einops.reduce(x, "b c ... -> b c 1 1", "mean"), 4),
    "reduce-max": (lambda x: einops.reduce(x, "b c (h 2) (w q) -> b c h w", "max", q=2), 4),
    "einsum": (lambda x: einops.einsum(x, EYE, "b c h w, c d -> b d h w"), 5),
    "pack": (lambda x: einops.pack([x, 2 * x], "b * h w")[0], 8),
}


@pytest.mark.parametrize("name", CALLS)
def test_functions_of_einops_convert(name: str) -> None:
    call, out = CALLS[name]

    def double(x: Tensor) -> Tensor:
        found: Tensor = call(x)
        return found

    check(Lambda(double), out)


def check(op: nn.Module, out: int) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, x = Around(op, out), torch.randn(2, 3, 6, 6)
    net = converted_exactly(model.double(), x.double())
    assert len(net.latents(x.double())) >= 2


def test_layers_of_einops_convert() -> None:
    check(
        nn.Sequential(
            layers.Rearrange("b c (h p) (w q) -> b (c p q) h w", p=2, q=2),
            layers.EinMix("b c h w -> b d h w", weight_shape="c d", bias_shape="d", c=16, d=4),
            Lambda(F.relu),
            layers.Reduce("b (c r) h w -> b c h w", "mean", r=2),
        ),
        2,
    )
