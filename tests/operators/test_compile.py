"""Maps inside torch.compile and torch.export: one graph, same numbers."""

import pytest
import torch
import torch.nn.functional as F

from pursuitify.operators import (
    Conv,
    Dense,
    Expand,
    Pick,
    Reduce,
    Scale,
    Select,
    Slice,
    Unfold,
    Unpool,
    adaptive_avg_pool,
    avg_pool,
    conv_norm_bound,
    conv_norm_estimate,
    conv_transpose_map,
    cover,
    interpolate,
    pad,
)
from pursuitify.operators.norms import power_iteration
from pursuitify.testing import randn


class Everything(torch.nn.Module):
    """Builds every family at run time, then applies it and its adjoint."""

    def __init__(self) -> None:
        super().__init__()
        self.w = torch.nn.Parameter(randn(4, 3, 3, 3))
        self.d = torch.nn.Parameter(randn(5, 7))

    def forward(self, x):
        indices = F.max_pool2d(x, 3, 2, 1, return_indices=True)[1]
        maps = [
            Scale(self.w[:1, :, :1, :1]),
            Select(indices, (7, 7), cover((3, 3), (2, 2), (1, 1))),
            Conv.from_call((7, 7), self.w, 2, "valid"),
            conv_transpose_map((7, 7), self.w[:3], 2, 1, 1),
            Dense(self.d),
            avg_pool((7, 7), 2, like=x),
            adaptive_avg_pool((7, 7), (3, 2), like=x),
            pad((7, 7), (1, 2, 1, 1), "reflect", like=x),
            interpolate((7, 7), (9, 5), "bilinear", False, like=x),
            interpolate((7, 7), (9, 5), "bicubic", False, antialias=True, like=x),
            Pick(2, torch.tensor([6, 0, 0, 3], device=x.device), 7),
            Unfold((7, 7), (3, 2), (1, 2), (1, 0), (2, 1)),
            Unpool(torch.arange(49).view(7, 7).expand(x.shape), (8, 8), x > 0),
            Slice(2, 1, 7, 2, 7),
            Expand((2, 3, 7, 7), (4, 2, 3, 7, 7)),
            Reduce((2, 3, 7, 7), (1,), mean=True),
        ]
        out = []
        for linear in maps:
            y = linear.apply(x)
            out += [y, linear.adjoint(y), torch.as_tensor(linear.norm_bound())]
        out.append(conv_norm_bound(self.w, (2, 2), (1, 1)))
        return [*out, *conv_norm_estimate(self.w, (1, 1), (1, 1))]


@pytest.fixture
def model(monkeypatch):
    """Return the maps; a cold power iteration has few steps, each of which is traced."""
    monkeypatch.setattr(power_iteration, "COLD_STEPS", 3)
    return Everything()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_compile_is_one_graph(model, layout: torch.memory_format) -> None:
    x = randn(2, 3, 7, 7).contiguous(memory_format=layout)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), model(x))


@pytest.mark.parametrize("strict", [True, False])
def test_export(model, strict: bool) -> None:
    x = randn(2, 3, 7, 7)
    program = torch.export.export(model.eval(), (x,), strict=strict)
    torch.testing.assert_close(program.module()(x), model(x))
