"""relu_twin: what is replaced and named, and what stays."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pursuitify import OptionError, explain, pursuitify, relu_twin
from tests.support.agreement import assert_descends, compare


def mixed() -> nn.Module:
    shared = nn.SiLU(inplace=True)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.GELU(), nn.Sequential(nn.Conv2d(4, 4, 1), shared),
        nn.Conv2d(4, 4, 1), shared, nn.Conv2d(4, 4, 1), nn.Hardswish(), nn.Conv2d(4, 4, 1),
        nn.Mish(), nn.Conv2d(4, 4, 1), nn.ReLU6(),
    )  # fmt: skip


@pytest.mark.parametrize("training", [False, True])
def test_the_twin_converts_and_the_model_is_not_changed(training: bool) -> None:
    model = mixed().train(training)
    before, kinds = model.state_dict(), [type(m) for m in model.modules()]
    twin = relu_twin(model)
    assert [(r.module, r.old, r.new) for r in twin.replaced] == [
        ("1", "GELU", "ReLU"), ("2.1", "SiLU", "ReLU"), ("6", "Hardswish", "ReLU"),
        ("8", "Mish", "ReLU"),
    ]  # fmt: skip
    assert [type(m) for m in model.modules()] == kinds
    assert all(m.training is training for m in twin.model.modules())
    assert twin.model[2][1] is twin.model[4]  # shared as it was
    assert isinstance(twin.model[10], nn.ReLU6)
    own = twin.model.state_dict()
    assert own.keys() == before.keys()
    for key, value in before.items():
        assert torch.equal(own[key], value)
        assert own[key].data_ptr() != value.data_ptr()
    assert not explain(model).ok
    compare(pursuitify, twin.model, torch.randn(2, 3, 6, 6), training=training)


def test_a_mapping_comes_first() -> None:
    class Own(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.silu(x)

    class Derived(nn.GELU):
        pass

    model = nn.Sequential(nn.Linear(3, 3), nn.GELU(), Own(), nn.Linear(3, 3), Derived())
    twin = relu_twin(model, {nn.GELU: nn.Softplus, Own: lambda: nn.LeakyReLU(0.3)})
    assert [r.new for r in twin.replaced] == ["Softplus", "LeakyReLU"]
    assert twin.model[2].negative_slope == 0.3
    assert type(twin.model[4]) is Derived
    alone = relu_twin(nn.GELU())
    assert (type(alone.model), alone.replaced[0].module) == (nn.ReLU, "")


@pytest.mark.parametrize("mapping", [{"GELU": nn.ReLU}, {nn.GELU: 3}, {nn.GELU: lambda: 3}])
def test_a_wrong_mapping_is_refused(mapping: Any) -> None:
    with pytest.raises(OptionError, match="mapping"):
        relu_twin(mixed(), mapping)


def test_a_twin_in_the_place_of_its_model_is_refused_with_what_to_give() -> None:
    with pytest.raises(OptionError, match=r"not a Twin: give its \.model"):
        pursuitify(relu_twin(mixed()))  # type: ignore[arg-type]
    assert isinstance(pursuitify(relu_twin(mixed()).model), nn.Module)
    with pytest.raises(OptionError, match=r"not the class ReLU$"):
        pursuitify(nn.ReLU)  # type: ignore[arg-type]


def test_explain_names_it() -> None:
    problems = explain(mixed()).problems
    assert {p.op for p in problems} == {"GELU", "SiLU", "Hardswish", "Mish"}
    assert all("relu_twin(model)" in p.hint for p in problems)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["efficientnet_b0", "mobilenet_v3_small", "mobilenet_v3_large"])
def test_twins_of_torchvision_convert(name: str) -> None:
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(0)
    twin = relu_twin(models.get_model(name, weights=None))
    x = torch.rand(2, 3, 64, 64)
    for training in (True, False):
        net, _ = compare(pursuitify, twin.model, x, training=training, check_rows=False)
    assert_descends(net, x)
    assert len(twin.replaced) > 10
