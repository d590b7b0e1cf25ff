"""torchvision's transforms inside a model: converted as the affine maps they are, or refused."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision import transforms as v1
from torchvision.transforms import v2

from pursuitify import ConversionError, InputError, PursuitifyError, explain, pursuitify
from pursuitify.operators import dottest, interpolate
from pursuitify.rules import default
from tests.support.agreement import bound_pass, error, rows_error

FAMILIES = {"v1": v1, "v2": v2}
MODES = ["NEAREST", "NEAREST_EXACT", "BILINEAR", "BICUBIC"]


def _model(*transforms: nn.Module, channels: int = 3) -> nn.Module:
    torch.manual_seed(0)
    body = [nn.Conv2d(channels, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3, padding=1), nn.ReLU()]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)]
    return nn.Sequential(*transforms, *body, *head).double().eval()


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(4, 3), (9, 5), (5, 16), (1, 1), (2, 30)], ids=str)
def test_resizing_is_torch_s(size: tuple[int, int], mode: str, antialias: bool) -> None:
    x = torch.randn(2, 3, 7, 5, dtype=torch.float64)
    linear = interpolate((7, 5), size, mode, False, antialias=antialias, like=x)
    options = {"mode": mode, "align_corners": False, "antialias": antialias}
    torch.testing.assert_close(
        linear.apply(x), F.interpolate(x, size, **options), rtol=1e-12, atol=1e-12
    )  # type: ignore[arg-type]
    dottest(linear, x)


@st.composite
def _transforms(draw: Any, family: Any) -> nn.Module:
    number = st.floats(0.1, 0.9)
    size = st.one_of(st.integers(4, 15), st.tuples(st.integers(4, 15), st.integers(4, 15)))
    kind = draw(st.sampled_from(["Normalize", "Resize", "Pad", "CenterCrop", "Grayscale"]))
    if kind == "Normalize":
        values = [draw(st.lists(number, min_size=3, max_size=3)) for _ in range(2)]
        return family.Normalize(*values, inplace=draw(st.booleans()))
    if kind == "Resize":
        mode = v1.InterpolationMode[draw(st.sampled_from(MODES))]
        return family.Resize(draw(size), mode, antialias=draw(st.booleans()))
    if kind == "Pad":
        padding = st.one_of(
            st.integers(0, 3),
            st.tuples(*[st.integers(0, 3)] * 2),
            st.tuples(*[st.integers(0, 3)] * 4),
        )
        mode = draw(st.sampled_from(["constant", "edge", "reflect"]))
        fill = draw(st.sampled_from([0, 0.5]))
        drawn = draw(padding)
        drawn = drawn if isinstance(drawn, int) else list(drawn)
        return family.Pad(drawn, fill, mode)
    if kind == "CenterCrop":
        return family.CenterCrop(draw(size))
    return family.Grayscale(draw(st.sampled_from([1, 3])))


@pytest.mark.parametrize("name", FAMILIES)
@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_a_rule_is_the_transform(name: str, data: st.DataObject) -> None:
    """Value = map of the input + offset, with the map's true adjoint and a bound on its norm."""
    transform = data.draw(_transforms(FAMILIES[name]))
    x = torch.randn(2, 3, data.draw(st.integers(5, 12)), data.draw(st.integers(5, 12))).double()
    rule = default()[type(transform)]
    given = {n: getattr(transform, n) for n in rule.parameters if hasattr(transform, n)}
    assert rule.bind is not None
    before = x.clone()
    bound = rule.bind(transform, x, **given)
    assert torch.equal(x, before)  # in place would overwrite the signal
    assert torch.equal(bound.value, transform(x.clone()))
    linear = bound.maps[0].apply(x)
    total = linear if bound.offset is None else linear + bound.offset
    torch.testing.assert_close(total, bound.value, rtol=1e-12, atol=1e-12)
    dottest(bound.maps[0], x)
    other = torch.randn_like(x)
    gain = float(bound.maps[0].apply(other).norm() / other.norm())
    assert gain <= float(torch.as_tensor(bound.maps[0].norm_bound()).max()) * (1 + 1e-9)


@pytest.mark.parametrize("name", FAMILIES)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_networks_with_transforms(name: str, data: st.DataObject) -> None:
    """T = 0 is the source, and eq. (17) holds at the feed-forward latents."""
    chain = data.draw(st.lists(_transforms(FAMILIES[name]), min_size=1, max_size=3))
    if name == "v2" and data.draw(st.booleans()):
        chain = [v2.Compose(chain)]
    x = torch.rand(2, 3, 12, 13, dtype=torch.float64)
    try:
        prepared = nn.Sequential(*chain)(x.clone())
    except (ValueError, RuntimeError):  # no transform of this image
        return
    if min(prepared.shape[-2:]) < 3:
        return
    model = _model(*chain, channels=prepared.shape[1])
    net = pursuitify(model, iterations=0)
    expected = model(x.clone())
    assert error(net(x.clone()), expected) == 0
    net.iterations = 2
    out, first, bound = bound_pass(net, (x.clone(),))
    assert error(out, expected) < 1e-12
    assert rows_error(first, bound) < 1e-12
    assert torch.isfinite(net(x.clone())).all()


def test_normalise_is_its_arithmetic_at_every_sweep() -> None:
    mean, std = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.3, 0.1])

    class Arithmetic(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x - mean.double().view(-1, 1, 1)) / std.double().view(-1, 1, 1)

    x = torch.rand(2, 3, 8, 8, dtype=torch.float64)
    wanted = pursuitify(_model(Arithmetic()), iterations=5)(x)
    for family in FAMILIES.values():
        got = pursuitify(_model(family.Normalize(mean, std)), iterations=5)(x)
        assert error(got, wanted) < 1e-9


def test_bytes_are_cast_and_divided() -> None:
    """A uint8 image goes in as the source takes it; the cast is a scale of the signal."""
    x = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    normal = v2.Normalize([0.5] * 3, [0.2] * 3)
    for cast in (
        v2.ToDtype(torch.float64, scale=True),
        v2.ToDtype(torch.float64),
        v1.ConvertImageDtype(torch.float64),
        v2.Compose([v2.ToImage(), v2.ToDtype(torch.float64, scale=True), v2.ToPureTensor()]),
    ):
        model = _model(cast, normal)
        net = pursuitify(model, iterations=0)
        assert error(net(x), model(x)) == 0
        net.iterations = 2
        _, first, bound = bound_pass(net, (x,))
        assert rows_error(first, bound) < 1e-12


def test_resizing_bytes_rounds_and_is_refused() -> None:
    x = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    model = _model(v2.Compose([v2.Resize(6), v2.ToDtype(torch.float64, scale=True)]))
    net = pursuitify(model, iterations=0)
    assert error(net(x), model(x)) == 0
    net.iterations = 1
    with pytest.raises(InputError, match="Resize of whole numbers"):
        net(x)


@pytest.mark.parametrize(
    "transform",
    [
        v2.RandomHorizontalFlip(),
        v2.ColorJitter(0.5),
        v2.Pad(1, padding_mode="symmetric"),
        v2.Compose([v2.Resize(8), v2.GaussianBlur(3)]),
        v2.Pad(1, fill={Tensor: 1}),
        v2.ToDtype(torch.uint8),
        v1.Pad(1, padding_mode="symmetric"),
    ],
    ids=lambda t: type(t).__name__,
)
def test_what_has_no_map_is_refused_by_name(transform: nn.Module) -> None:
    report = explain(_model(transform))
    assert not report.ok
    assert any(type(transform).__name__ in str(p) and "'0'" in str(p) for p in report.problems)
    with pytest.raises(ConversionError):
        pursuitify(_model(transform))


class _Doubled(v2.Normalize):
    """A subclass that computes something else: the rule of its base is not for it."""

    def transform(self, inpt: Tensor, params: dict[str, Any]) -> Tensor:
        return 2 * inpt


def test_a_subclass_of_a_transform_is_traced() -> None:
    model = _model(_Doubled([0.5] * 3, [0.2] * 3))
    x = torch.rand(2, 3, 8, 8, dtype=torch.float64)
    assert error(pursuitify(model, iterations=0)(x), model(x)) == 0


class _Listed(nn.Module):
    """The transforms are in a plain object, as in torchvision's first Compose."""

    def __init__(self) -> None:
        super().__init__()
        self.prepare = v1.Compose([v1.Normalize([0.5] * 3, [0.2] * 3)])
        self.body = _model()

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self.prepare(x))


def test_a_module_outside_the_model_is_named() -> None:
    with pytest.raises(PursuitifyError, match=r"calls a Normalize .* nn.Sequential"):
        pursuitify(_Listed().double().eval())


def test_networks_with_transforms_are_copied_and_pickled(tmp_path: Any) -> None:
    x = torch.rand(2, 3, 8, 8, dtype=torch.float64)
    net = pursuitify(_model(v2.Resize(6), v1.Normalize([0.5] * 3, [0.2] * 3)), iterations=2)
    torch.save(net, tmp_path / "net.pt")
    loaded = torch.load(tmp_path / "net.pt", weights_only=False)
    for other in (copy.deepcopy(net), loaded):
        assert error(other(x), net(x)) < 1e-12


def test_kornia_s_normalise() -> None:
    enhance = pytest.importorskip("kornia.enhance")
    model = _model(enhance.Normalize(torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.3, 0.1])))
    x = torch.rand(2, 3, 8, 8, dtype=torch.float64)
    net = pursuitify(model, iterations=0)
    assert error(net(x), model(x)) == 0
    net.iterations = 2
    _, first, bound = bound_pass(net, (x,))
    assert rows_error(first, bound) < 1e-12
