"""timm's ReLU families, without weights; skipped where timm is not installed."""

from __future__ import annotations

import pytest
import torch

from pursuitify import explain, pursuitify
from tests.support.agreement import assert_descends, compare

timm = pytest.importorskip("timm")

QUICK = ("seresnet18", "resnetblur18", "dla34")
SLOW = (
    "resnet26d", "ecaresnet26t", "resnetv2_50", "regnetx_002", "regnety_002", "densenet121",
    "mobilenetv2_050", "hrnet_w18_small", "vovnet39a", "ese_vovnet19b_slim", "selecsls42",
    "res2net50_14w_8s", "repvgg_a0", "mnasnet_small", "tf_mobilenetv3_small_minimal_100",
    "cspresnet50", "darknet53", "dpn68", "skresnet18", "resnest14d",
)  # fmt: skip


def check(name: str, descend: bool) -> None:
    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=False, num_classes=10)
    x = torch.rand(2, 3, 64, 64)
    for training in (True, False):
        net, _ = compare(pursuitify, model, x, training=training, check_rows=not training)
    if descend:
        assert_descends(net, x)


@pytest.mark.parametrize("name", QUICK)
def test_quick(name: str) -> None:
    check(name, descend=False)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*QUICK, *SLOW])
def test_all(name: str) -> None:
    check(name, descend=True)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "convnext_atto", "efficientnet_b0"])
def test_other_families_are_refused_by_name(name: str) -> None:
    report = explain(timm.create_model(name, pretrained=False))
    assert not report.ok
    assert all(p.reason for p in report.problems)
