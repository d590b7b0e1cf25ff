"""balance=True: the outputs stay, the gains come together, what cannot move is named."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from torch import Tensor, nn

from pursuitify import OptionError, load, pursuitify, save
from pursuitify.models import ChainNet, DenselyConnectedNet, ResidualNet
from pursuitify.operators import Scale
from pursuitify.rules import linear
from tests.support.agreement import assert_descends, error, state
from tests.support.nets import BY_NAME, CASES, Case, random_net, randomise

cases = pytest.mark.parametrize("case", CASES, ids=str)
modes = pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
references = pytest.mark.parametrize("build", [ChainNet, ResidualNet, DenselyConnectedNet])


def check(model: nn.Module, x: Tensor, training: bool, tolerance: float = 1e-12) -> Any:
    """T = 0 is unchanged, running statistics included, and so is the user's model."""
    model.train(training)
    before = state(model)
    net = pursuitify(model, iterations=0, balance=True)
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key
    twin = copy.deepcopy(model)
    with torch.no_grad():
        torch.manual_seed(5)
        expected = twin(x)
        torch.manual_seed(5)
        assert error(net(x), expected) <= tolerance
    statistics = {k for k, _ in model.named_buffers()}
    for key, value in twin.state_dict().items():
        if key in statistics and value.is_floating_point():
            assert error(net.state_dict()[key], value) <= tolerance, key
    return net


@modes
@cases
def test_outputs_stay_as_they_are(case: Case, training: bool) -> None:
    check(case.build(), case.input(batch=3), training)


@modes
@references
@pytest.mark.parametrize("norm", [True, False], ids=["bn", "bias"])
def test_reference_networks(build: type[nn.Module], norm: bool, training: bool) -> None:
    torch.manual_seed(0)
    model = randomise(build(2, 5, depth=2, width=3, batch_norm=norm)).double()
    net = check(model, torch.randn(3, 2, 9, 9, dtype=torch.float64), training)
    assert any(scale != 1 for scale in net.balanced.scales.values())
    assert_descends(net, torch.randn(3, 2, 9, 9, dtype=torch.float64))


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(drawn=random_net(batch=3))
def test_random_networks(drawn: tuple[nn.Module, Tensor]) -> None:
    check(*drawn, training=False)


@pytest.mark.slow
@modes
@pytest.mark.parametrize(
    "name",
    ["resnet18", "vgg11_bn", "densenet121", "googlenet", "mobilenet_v2", "regnet_y_400mf",
     "shufflenet_v2_x0_5", "squeezenet1_1", "resnext50_32x4d"],
)  # fmt: skip
def test_torchvision(name: str, training: bool) -> None:
    from torchvision import models

    torch.manual_seed(0)
    options = {"init_weights": True} if name == "googlenet" else {}
    model = randomise(models.get_model(name, weights=None, **options)).double()
    check(model, torch.rand(2, 3, 64, 64, dtype=torch.float64), training, 1e-10)


def test_a_chain_gets_equal_row_scales() -> None:
    """Every row's filters have a root mean square norm of one, BatchNorm's scale included."""
    torch.manual_seed(0)
    model = randomise(ChainNet(2, 5, depth=1, width=4)).double().eval()
    net = pursuitify(model, balance=True)
    assert not net.balanced.fixed
    assert all(abs(gain) <= 1e-12 for gain in net.balanced.after.values())
    assert any(abs(gain) > 0.1 for gain in net.balanced.before.values())
    dictionary = net.dictionary(torch.randn(1, 2, 8, 8, dtype=torch.float64))
    for row in dictionary.rows:
        (conv,) = row.diagonal.maps  # BatchNorm's scale is in its kernel
        filters = conv.weight.flatten(1).norm(dim=1)
        assert float(filters.square().mean().sqrt().detach()) == pytest.approx(1, abs=1e-12)


def test_the_reported_scale_is_that_of_the_latent() -> None:
    torch.manual_seed(0)
    model = randomise(DenselyConnectedNet(2, 5, depth=2, width=3)).double().eval()
    x = torch.randn(2, 2, 9, 9, dtype=torch.float64)
    plain, net = pursuitify(model, iterations=0), pursuitify(model, iterations=0, balance=True)
    with torch.no_grad():
        before, after = plain.latents(x), net.latents(x)
    for name, scale in net.balanced.scales.items():
        assert torch.allclose(after[name], scale * before[name], rtol=1e-10, atol=1e-12), name
    assert len(set(net.balanced.scales.values())) > 3


def test_latents_joined_by_an_addition_share_a_scale() -> None:
    balanced = pursuitify(BY_NAME["conv_residual"].build(), balance=True).balanced
    scales = list(balanced.scales.values())
    assert scales[0] == scales[2], "the addition's operands"
    assert len(set(scales)) == len(scales) - 1


class Gated(nn.Module):
    """What must hold a latent: gates, outputs, clips, constants, shared and functional weights."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d, self.e, self.f, self.g, self.h = (
            nn.Conv2d(3, 3, 3, padding=1) for _ in range(8)
        )
        self.gate = nn.Linear(3, 3)
        self.plain = nn.BatchNorm2d(3, affine=False)
        self.free = nn.Parameter(torch.rand(3, 3, 1, 1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        gated = F.relu(self.a(x))
        gate = torch.sigmoid(self.gate(gated.mean((2, 3))))
        clipped = F.relu6(self.b(gated * gate[:, :, None, None]))
        shared = F.relu(self.c(clipped))
        again = F.relu(self.c(shared))
        constant = F.relu(self.d(again) + 0.5)
        bare = F.relu(self.plain(self.e(constant)))
        functional = F.relu(F.conv2d(bare, self.free))
        moved = F.relu(self.f(functional))
        out = F.relu(self.g(moved))
        return out, self.h(out)


@modes
def test_what_cannot_move_is_named(training: bool) -> None:
    torch.manual_seed(0)
    net = check(randomise(Gated()).double(), torch.randn(3, 3, 6, 6).double(), training)
    fixed, scales = net.balanced.fixed, net.balanced.scales
    free = [name for name in scales if name not in fixed]
    assert [name for name, scale in scales.items() if scale != 1] == free
    assert len(free) == 1, "all but one are held by something"
    reasons = " ".join(fixed.values())
    for word in (
        "no known linear map",
        "positively homogeneous",
        "adds a constant",
        "parameters that are its alone",
        "it is an output",
    ):
        assert word in reasons, word
    assert "why 1" in str(net.balanced)


def test_two_modules_with_one_weight_are_left_alone() -> None:
    torch.manual_seed(0)
    layers = [nn.Linear(4, 4) for _ in range(4)]
    layers[2].weight = layers[1].weight
    relus = [nn.ReLU() for _ in range(3)]
    model = nn.Sequential(
        *(m for pair in zip(layers, relus, strict=False) for m in pair), layers[3]
    )
    net = check(model.double(), torch.randn(5, 4).double(), training=False)
    assert set(net.balanced.scales.values()) == {1.0}
    assert "parameters that are its alone" in str(net.balanced.fixed)


class Shifted(nn.Module):
    """Affine, which a rule of the user's own may be."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * x + 1


def test_a_rule_of_the_users_own_holds_its_latents() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(4, 5), nn.ReLU(), Shifted(), nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 2)
    ).double()
    rule = linear(Scale(2.0), offset=lambda op, x: torch.ones_like(x[:1]))
    net = pursuitify(model, iterations=0, balance=True, rules={Shifted: rule})
    x = torch.randn(3, 4).double()
    assert error(net(x), model(x)) <= 1e-12
    first, last = net.balanced.scales.values()
    assert first == 1 != last
    assert "rule of the user's own" in next(iter(net.balanced.fixed.values()))


def test_refusals() -> None:
    with pytest.raises(OptionError, match=r"balance=True.*copy=False"):
        pursuitify(ChainNet(), balance=True, copy=False)
    with pytest.raises(OptionError, match="balance=1"):
        pursuitify(ChainNet(), balance=1)
    with torch.device("meta"):
        model = ChainNet()
    with pytest.raises(OptionError, match="meta device"):
        pursuitify(model, balance=True)
    assert pursuitify(ChainNet()).balanced is None


def test_dead_filters_do_no_harm() -> None:
    model = ChainNet(2, 3, width=2).double().eval()
    nn.init.zeros_(model.blocks[1][0].norm1.weight)
    net = check(model, torch.randn(2, 2, 8, 8).double(), training=False)
    assert all(math.isfinite(scale) and scale > 0 for scale in net.balanced.scales.values())


def test_a_checkpoint_keeps_the_scaled_weights(tmp_path: Any) -> None:
    model = ChainNet(2, 3, width=2).double().eval()
    net = pursuitify(model, iterations=3, balance=True)
    save(net, tmp_path / "net")
    again = load(tmp_path / "net", ChainNet(2, 3, width=2).double().eval())
    x = torch.randn(2, 2, 8, 8).double()
    with torch.no_grad():
        assert torch.equal(net(x), again(x))
