"""Pooling and interpolation: the operator gives the very value that torch's own kernel gives.

torch has a kernel of its own for every number of dims, dtype, memory format and number of channels,
and they round an index differently: nearest interpolation then picks other entries.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pursuitify import pursuitify
from pursuitify.operators import dottest
from pursuitify.operators.separable import Separable
from pursuitify.rules import linear
from pursuitify.rules.pooling import adaptive_average_pool, average_pool, resample

MODES = {
    1: ("nearest", "nearest-exact", "area", "linear"),
    2: ("nearest", "nearest-exact", "area", "bilinear"),
    3: ("nearest", "nearest-exact", "area", "trilinear"),
}
LARGEST = {1: 400, 2: 70, 3: 12}
FORMATS = {2: torch.channels_last, 3: torch.channels_last_3d}


@st.composite
def images(draw: st.DrawFn) -> Tensor:
    dims = draw(st.integers(1, 3))
    size = [draw(st.integers(1, LARGEST[dims])) for _ in range(dims)]
    channels = draw(st.sampled_from([1, 2, 3, 4, 5, 17]))
    dtype = draw(st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]))
    x = torch.randn(draw(st.integers(1, 2)), channels, *size, dtype=torch.float64).to(dtype)
    if dims > 1 and draw(st.booleans()):
        x = x.contiguous(memory_format=FORMATS[dims])
    return x


@st.composite
def calls(draw: st.DrawFn) -> tuple[Tensor, dict[str, object]]:
    x = draw(images())
    dims = x.dim() - 2
    mode = draw(st.sampled_from(MODES[dims]))
    kwargs: dict[str, object] = {"mode": mode}
    if draw(st.booleans()):
        kwargs["size"] = tuple(draw(st.integers(1, 2 * LARGEST[dims])) for _ in range(dims))
    else:
        drawn = st.floats(0.3, 3.1) | st.sampled_from([0.5, 1.0, 1.1, 1.5, 2.0, 2.1, 3.0])
        factors = [max(draw(drawn), 1.001 / n) for n in x.shape[2:]]
        alike = max(factors)
        kwargs["scale_factor"] = alike if draw(st.booleans()) else tuple(factors)
        kwargs["recompute_scale_factor"] = draw(st.sampled_from([None, True, False]))
    if mode.endswith("linear"):
        kwargs["align_corners"] = draw(st.booleans())
    return x, kwargs


@settings(max_examples=300, deadline=None)
@given(calls())
def test_interpolation_is_the_value(call: tuple[Tensor, dict[str, object]]) -> None:
    x, kwargs = call
    found = resample(lambda t: F.interpolate(t, **kwargs), x, **kwargs)  # type: ignore[arg-type]
    got = found.maps[0].apply(x)
    if "nearest" in str(kwargs["mode"]):
        assert torch.equal(got, found.value)
        assert got.shape[2:] == found.value.shape[2:]
    else:
        # What the weights were rounded to, and a source index of up to 800 in float32.
        rounding = max(torch.finfo(x.dtype).eps * 8, 1e-12)
        rounding *= max(x.shape[2:]) if x.dtype == torch.float32 else 1
        torch.testing.assert_close(got, found.value, rtol=rounding, atol=rounding * 4)
    if x.dtype == torch.float64:
        assert dottest(found.maps[0], x) < 1e-12


@pytest.mark.parametrize("mode", ["nearest", "nearest-exact"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("channels", [1, 5])
def test_nearest_interpolation_of_many_sizes(mode: str, dtype: torch.dtype, channels: int) -> None:
    """Few sizes are rounded differently by torch's kernels: draws alone would seldom meet them."""
    calls: list[tuple[int, dict[str, object]]] = [
        *((n, {"size": (3, out)}) for n in range(2, 100, 6) for out in range(1, 100, 4)),
        *((n, {"scale_factor": k / 20}) for n in range(2, 30, 3) for k in range(11, 60, 3)),
    ]
    for n, kwargs in calls:
        x = torch.randn(1, channels, 2, n, dtype=torch.float64).to(dtype)
        x = x.contiguous(memory_format=torch.channels_last)
        found = resample(
            lambda t, kwargs=kwargs: F.interpolate(t, mode=mode, **kwargs),  # type: ignore[misc]
            x,
            mode=mode,
            **kwargs,  # type: ignore[arg-type]
        )
        assert torch.equal(found.maps[0].apply(x), found.value), (n, kwargs)


@settings(max_examples=150, deadline=None)
@given(images(), st.data())
def test_adaptive_average_pooling_is_the_value(x: Tensor, data: st.DataObject) -> None:
    dims = x.dim() - 2
    out = tuple(data.draw(st.integers(1, 2 * n)) for n in x.shape[2:])
    pool = (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d)[dims - 1]
    found = adaptive_average_pool(lambda t: pool(t, out), x, out)  # type: ignore[arg-type]
    rounding = max(torch.finfo(x.dtype).eps * 16, 1e-12)
    torch.testing.assert_close(found.maps[0].apply(x), found.value, rtol=rounding, atol=rounding)


@settings(max_examples=150, deadline=None)
@given(images(), st.data())
def test_average_pooling_is_the_value(x: Tensor, data: st.DataObject) -> None:
    dims = x.dim() - 2
    kernel = tuple(data.draw(st.integers(1, n)) for n in x.shape[2:])
    kwargs = {
        "kernel_size": kernel,
        "stride": data.draw(st.sampled_from([None, 1, 2, 3])),
        "padding": tuple(data.draw(st.integers(0, k // 2)) for k in kernel),
        "ceil_mode": data.draw(st.booleans()),
        "count_include_pad": data.draw(st.booleans()),
    }
    x = x.double()
    pool = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[dims - 1]
    found = average_pool(lambda t: pool(t, **kwargs), x, **kwargs)  # type: ignore[arg-type]
    torch.testing.assert_close(found.maps[0].apply(x), found.value, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "module",
    [
        nn.Upsample(scale_factor=2.1),
        nn.Upsample(scale_factor=2.1, recompute_scale_factor=True),
        nn.Upsample(size=(13, 11), mode="nearest-exact"),
        nn.Upsample(scale_factor=(1.1, 2.3)),
        nn.UpsamplingNearest2d(scale_factor=1.3),
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_dictionary_of_a_network_that_upsamples(module: nn.Module, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    source = nn.Sequential(nn.Conv2d(2, 6, 3), nn.ReLU(), module, nn.Conv2d(6, 3, 1), nn.ReLU())
    source = source.to(dtype).eval()
    net, x = pursuitify(source, iterations=0), torch.rand(2, 2, 10, 10, dtype=dtype)
    bound, latents = net.dictionary(x), net.latents(x)
    expected = source[2](source[1](source[0](x)))
    assert torch.equal(bound.rows[1].slots[0][0].apply(latents[bound.names[0]]), expected)


class _ByHand(nn.Module):
    """Picks pixels 0, 0, 1, 2 of 4 along both sides, as floor(i / 1.2) says."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, [0, 0, 1, 2]][..., [0, 0, 1, 2]]


def _upsampled(middle: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    first, last = nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
    return nn.Sequential(first, nn.ReLU(), middle, last, nn.ReLU()).eval()


@pytest.mark.slow
@pytest.mark.parametrize("iterations", [0, 3])
def test_compiled_code_picks_the_pixels_that_the_compiled_source_picks(iterations: int) -> None:
    """torch's kernel copies images that keep their size, whatever the factor; inductor does not."""
    model, by_hand = _upsampled(nn.Upsample(scale_factor=1.2)), _upsampled(_ByHand())
    picked = torch.eye(4)[[0, 0, 1, 2]]
    rules = {_ByHand: linear(Separable((picked, picked), 2 * (1 + 1e-6)))}
    x = torch.randn(2, 2, 4, 4)
    net = pursuitify(model, iterations=iterations)
    with torch.no_grad():
        compiled = torch.compile(net)(x)
        expected = pursuitify(
            by_hand, iterations=iterations, rules=rules, leaf_modules=[_ByHand]
        )(x)  # fmt: skip
        torch.testing.assert_close(compiled, expected, rtol=1e-4, atol=1e-5)
        if iterations == 0:
            torch.testing.assert_close(compiled, torch.compile(model)(x))
            torch.testing.assert_close(net(x), model(x))
            assert not torch.allclose(net(x), compiled), "torch's two answers have become one"
