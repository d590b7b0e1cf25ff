"""Range and NaN: lengths are taken after scaling, and what is not finite is refused, never lost."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pursuitify import PursuitNetwork, coherence, pursuitify
from pursuitify.analysis import FramePotentialPenalty, certify
from pursuitify.errors import InputError, PursuitifyError


def source() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(4, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(20, 6), nn.ReLU(), nn.Linear(6, 3),
    ).eval()  # fmt: skip


SHAPE = (2, 8, 8)


def chain() -> nn.Sequential:
    torch.manual_seed(0)
    layers = (nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 6), nn.ReLU(), nn.Linear(6, 2))
    return nn.Sequential(*layers).eval()


def converted(model: nn.Module, factors: dict[str, float]) -> PursuitNetwork:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.mul_(factors.get(name, 1.0))
    return pursuitify(model, layout="decoder").eval()


@settings(max_examples=25, deadline=None)
@given(st.floats(-30, 30), st.sampled_from([("interior", "centre"), ("exact", "batch")]))
def test_the_scale_of_one_layer_does_not_matter(exponent: float, how: tuple[str, str]) -> None:
    """A latent in one row: its columns' directions do not change with the scale of its weights."""
    boundary, switches = how
    model = nn.Sequential(nn.Conv2d(2, 6, 3), nn.ReLU()).eval()
    torch.manual_seed(0)
    torch.nn.init.normal_(model[0].weight)
    wanted = coherence(pursuitify(model), (2, 5, 5), boundary, switches=switches)
    with torch.no_grad():
        model[0].weight.mul_(10.0**exponent)
        model[0].bias.zero_()
    found = coherence(pursuitify(model), (2, 5, 5), boundary, switches=switches)
    assert found.mutual_coherence == pytest.approx(wanted.mutual_coherence, rel=1e-5)
    assert found.frame_potential == pytest.approx(wanted.frame_potential, rel=1e-5)
    assert found.column_norms[0].zero == 0
    ratio = found.column_norms[0].minimum / wanted.column_norms[0].minimum
    assert ratio == pytest.approx(10.0**exponent, rel=1e-4)


@settings(max_examples=20, deadline=None)
@given(st.integers(-30, 30), st.sampled_from([torch.float32, torch.float64]))
def test_both_forms_agree_at_every_scale(exponent: int, dtype: torch.dtype) -> None:
    """Identity parts stand in the columns too: the kernel form and the dense one say the same."""
    model = chain().to(dtype)
    factors = {"2.weight": 10.0**exponent, "0.bias": 0.0, "2.bias": 0.0}
    net = converted(model, factors)
    try:
        found = coherence(net, (5,))
    except InputError:
        return
    wide = converted(chain().double(), factors)
    matrix = wide.dictionary(torch.zeros(1, 5, dtype=torch.float64)).materialize()[0].detach()
    top = matrix.abs().amax(0)
    unit = matrix / top
    unit = unit / unit.norm(dim=0)
    gram = (unit.T @ unit).fill_diagonal_(0)
    assert found.mutual_coherence == pytest.approx(float(gram.abs().max()), rel=1e-4)
    wanted = float(gram.square().sum())
    got = sum(block.squares for block in found.blocks)
    assert got == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("boundary", ["interior", "exact"])
@pytest.mark.parametrize("name", ["0.weight", "3.weight", "6.weight"])
def test_what_is_not_finite_is_refused(value: float, boundary: str, name: str) -> None:
    model = source()
    with torch.no_grad():
        dict(model.named_parameters())[name].view(-1)[3] = value
    for layout in ("decoder", "encoder"):
        net = pursuitify(model, layout=layout).eval()
        with pytest.raises(PursuitifyError, match=r"NaN|finite|infinite"):
            coherence(net, SHAPE, boundary)
    with pytest.raises(PursuitifyError, match=r"NaN|finite|infinite"):
        coherence(pursuitify(model), SHAPE, switches="worst")
    with pytest.raises(PursuitifyError, match=r"NaN|finite|infinite"):
        FramePotentialPenalty(pursuitify(model), SHAPE)()


def test_half_precision_is_measured_in_float32() -> None:
    wanted = coherence(pursuitify(chain()), (5,))
    found = coherence(pursuitify(chain().bfloat16()), (5,))
    assert found.mutual_coherence == pytest.approx(wanted.mutual_coherence, rel=2e-2)


@pytest.mark.parametrize("estimate", [False, True])
@pytest.mark.parametrize("factor", [1e-4, 1e-10, 1e-20, 1e-38, 0.0])
def test_dead_channels_have_small_derivatives_in_the_penalty(factor: float, estimate: bool) -> None:
    def slopes(scale: float) -> tuple[float, Tensor]:
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 6, 3, padding=1, stride=2),
            nn.ReLU(), nn.Flatten(), nn.Linear(96, 3),
        )  # fmt: skip
        with torch.no_grad():
            model[2].weight[[1, 4]] *= scale
        penalty = FramePotentialPenalty(pursuitify(model), (1, 8, 8))
        net = penalty._net
        value = penalty() if estimate else penalty.exact()
        value.backward()
        found = [p.grad.abs().max() for p in net.parameters() if p.grad is not None]
        return float(value.detach()), torch.stack(found)

    _, usual = slopes(1.0)
    value, found = slopes(factor)
    assert math.isfinite(value)
    assert bool(torch.isfinite(found).all())
    assert float(found.max()) <= 10 * float(usual.max())


def test_the_penalty_is_exact_where_no_channel_is_dead() -> None:
    net = pursuitify(source())
    report = coherence(net, SHAPE)
    penalty = FramePotentialPenalty(net, SHAPE)
    assert float(penalty.exact().detach()) == pytest.approx(report.frame_potential**2, rel=1e-5)


@pytest.mark.parametrize("method", ["dense", "lanczos"])
@pytest.mark.parametrize("name", ["0.weight", "0.bias", "2.weight", "2.bias"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_nothing_is_certified_of_what_is_not_finite(method: str, name: str, value: float) -> None:
    model = chain()
    with torch.no_grad():
        dict(model.named_parameters())[name].view(-1)[0] = value
    few = {"iterations": 20} if method == "lanczos" else {}
    with pytest.raises(PursuitifyError, match=r"NaN|finite|infinite"):
        certify(pursuitify(model), torch.randn(1, 5), method=method, **few)
