"""NaN cannot vanish in a maximum, a minimum, an argmax or a share of right answers."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pursuitify import calibrate, pursuitify
from pursuitify.data.samples import right
from pursuitify.errors import InputError, RangeError
from pursuitify.export import largest_difference
from pursuitify.training import evaluate
from tests.support.examples import examples

WRONG = [math.nan, math.inf, -math.inf]


class Spoiled(nn.Module):
    """Logits that are NaN from some input on."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.layer, self.relu, self.last = nn.Linear(width, 8), nn.ReLU(), nn.Linear(8, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.relu(self.layer(x)))


@given(st.integers(0, 3), st.integers(0, 2), st.sampled_from(WRONG), st.booleans())
def test_a_difference_to_what_is_not_finite_is_no_difference(
    row: int, column: int, value: float, ours: bool
) -> None:
    good = torch.arange(12.0).reshape(4, 3)
    bad = good.clone()
    bad[row, column] = value
    others = [good[:1], good]
    if ours:
        with pytest.raises(InputError, match="NaN or infinite"):
            largest_difference([good[:1], bad], others)
    else:
        assert largest_difference([good[:1], good], [good[:1], bad]) == math.inf
    assert largest_difference(others, others) == 0.0


def test_a_difference_of_shapes_is_a_difference() -> None:
    assert largest_difference([torch.ones(2, 2)], [torch.ones(4)]) == math.inf
    assert largest_difference([torch.ones(2)], [torch.ones(2), torch.ones(1)]) == math.inf
    found = largest_difference([torch.tensor([1e-30, 0.0])], [torch.tensor([1e-30, 1e-31])])
    assert found == pytest.approx(0.1)


def test_the_export_check_refuses_an_output_that_is_not_finite(tmp_path: Path) -> None:
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name)
    from pursuitify.export import export_onnx

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2)).eval()
    with torch.no_grad():
        model[0].weight.mul_(60)
    net = pursuitify(model.half(), iterations=3).eval()
    x = (torch.rand(2, 64) * 60).half()
    with pytest.raises(InputError, match="float32"):
        net(x)
    with pytest.raises(InputError, match="float32"):
        export_onnx(net, x, tmp_path / "net.onnx")
    assert not list(tmp_path.iterdir())


@given(st.integers(1, 5), st.integers(2, 4), st.data())
def test_logits_with_nan_are_never_right(count: int, classes: int, data: st.DataObject) -> None:
    logits = torch.randn(count, classes)
    y = torch.tensor([data.draw(st.integers(0, classes - 1)) for _ in range(count)])
    before = right(logits, y)
    row, column = data.draw(st.integers(0, count - 1)), data.draw(st.integers(0, classes - 1))
    logits[row, column] = math.nan
    after = right(logits, y)
    assert not after[row]
    assert after.sum() == before.sum() - before[row].long()


def test_a_network_of_nan_has_accuracy_zero() -> None:
    model = Spoiled(4, 3).eval()
    with torch.no_grad():
        model.last.bias[1] = math.nan
    score = evaluate(model, (torch.rand(20, 4), torch.arange(20) % 3))
    assert score.accuracy == 0.0
    assert math.isnan(score.loss)


@settings(max_examples=10, deadline=None)
@given(st.sampled_from([math.nan, math.inf]))
def test_calibration_refuses_a_source_of_nan(value: float) -> None:
    model = Spoiled(4, 3).eval()
    with torch.no_grad():
        model.layer.weight[0, 0] = value
        model.last.weight[0, 0] = 0
    with pytest.raises(InputError, match=r"NaN|finite"):
        calibrate(pursuitify(model, iterations=2), [torch.rand(6, 4)])


def test_calibration_never_chooses_a_trial_of_nan() -> None:
    """Steps that overflow are not taken for steps that agree."""
    torch.manual_seed(0)
    model = Spoiled(4, 3).half().eval()
    with torch.no_grad():
        model.layer.weight.mul_(300)
        model.layer.bias.mul_(1000)
    net = pursuitify(model, iterations=6)
    net.step_scale = 1.0
    report = calibrate(net, [(torch.rand(6, 4) * 40).half()], agreement=0.0)
    assert math.isfinite(report.chosen.objective) or report.chosen.step_scale == 0


@pytest.mark.parametrize("build", [nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.Softshrink])
@pytest.mark.parametrize("where", ["first weight", "last weight", "bias"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sweeps_keep_nan(dtype: torch.dtype, where: str, build: Callable[[], nn.Module]) -> None:
    """oneDNN's ReLU turns NaN into zero, and a network of NaN would answer with numbers."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), build(), nn.Conv2d(4, 4, 3, padding=1), build(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3),
    ).to(dtype).eval()  # fmt: skip
    x = torch.rand(2, 3, 8, 8, dtype=dtype)
    holds = {
        "first weight": model[0].weight, "last weight": model[2].weight,
        "bias": model[2].bias,
    }[where]  # fmt: skip
    with torch.no_grad():
        holds.view(-1)[0] = torch.nan
        assert model(x).isnan().any()
        for iterations in (0, 1, 3):
            net = pursuitify(model, iterations=iterations)
            assert net(x).isnan().any()
            assert any(w.isnan().any() for w in net.latents(x).values())


@examples(6, 60, data=st.data())
def test_sweeps_of_finite_networks_are_finite_or_say_so(data: st.DataObject) -> None:
    """Weights that a pass can bear and sweeps cannot, which multiply by their squares."""
    solver = data.draw(st.sampled_from(["global", "layered", "synchronous"]))
    dtype = data.draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float64]))
    options = {"layout": data.draw(st.sampled_from(["auto", "encoder"])), "solver": solver}
    if solver == "global":
        options["steps"] = data.draw(st.sampled_from(["certified", "adaptive"]))
    most = math.log10(torch.finfo(dtype).max)
    size = 10.0 ** data.draw(st.floats(0, 0.6 * most))
    with torch.random.fork_rng():
        torch.manual_seed(data.draw(st.integers(0, 9)))
        model = nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(),
            nn.Linear(64, 3),
        ).to(dtype).eval()  # fmt: skip
        x = torch.rand(2, 3, 8, 8).to(dtype)
    with torch.no_grad():
        model[0].weight.mul_(size)
        model[2].weight.div_(size**0.5)
        assert model(x).isfinite().all()
    net = pursuitify(model, iterations=3, verify="off", **options)
    for run in (lambda: net(x), lambda: net.latents(x)):
        with torch.no_grad(), contextlib.suppress(RangeError):
            found = run()
            parts = found.values() if isinstance(found, dict) else [found]
            assert all(part.isfinite().all() for part in parts)
    if size < 1e4:
        net(x)


def test_a_source_that_is_not_finite_is_no_fault_of_the_sweeps() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    with torch.no_grad():
        model[0].weight.mul_(1e20)
    net = pursuitify(model, iterations=2, verify="off")
    with pytest.raises(RangeError, match=r"float32, whose largest number is 3.40282e\+38"):
        net(torch.rand(2, 4))
    assert not net(torch.full((2, 4), 1e30)).isfinite().any()
    net.double()
    assert net(torch.rand(2, 4).double()).isfinite().all()  # as the message says
