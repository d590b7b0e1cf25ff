"""The signature of kernels: same contents, same signature, whatever wrote them."""

from __future__ import annotations

import copy
import functools
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from pursuitify.analysis import certify
from pursuitify.analysis.certificates.certified_radius import certified_radius
from pursuitify.analysis.certificates.support_recovery import certify_problem
from pursuitify.operators import conv_norm_bound, kernel_contents
from pursuitify.operators.norms import certified, fingerprint
from pursuitify.operators.norms.fingerprint import Versions
from pursuitify.utils.autocast import exact_products


def test_any_change_is_seen_and_undoing_it_too() -> None:
    weights = [torch.randn(4, 3, 3, 3).contiguous(memory_format=torch.channels_last)]
    weights += [torch.randn(5, 7), torch.randn(2, 2, 1)]
    before = kernel_contents(weights)
    assert kernel_contents([w.clone() for w in weights]) == before
    for weight in weights:
        for place in range(weight.numel()):
            flat = weight.data.view(-1) if weight.is_contiguous() else weight.permute(0, 2, 3, 1)
            entry = flat.reshape(-1)[place].clone()
            index = torch.unravel_index(torch.tensor(place), flat.shape)
            flat[index] = entry + 1e-2
            assert kernel_contents(weights) != before
            flat[index] = entry
    assert kernel_contents(weights) == before
    weights[1][[0, 1]] = weights[1][[1, 0]]
    assert kernel_contents(weights) != before
    assert kernel_contents(weights[:1]) != kernel_contents([weights[0].double()])


def test_two_steps_of_a_row_swapped() -> None:
    weight = torch.randn(3, 10)
    before = kernel_contents([weight])
    weight[:, [2, 5]] = weight[:, [5, 2]]
    assert kernel_contents([weight]) != before


def test_which_writes_versions_count() -> None:
    """Operations in place under no_grad, optimizers, loads, other storages; not fused ones."""
    layer = nn.Linear(3, 4)
    tensors = [layer.weight, layer.bias]

    def counted(write: Callable[[], object]) -> bool:
        before = Versions.of(tensors)
        assert before.still(tensors)
        write()
        return not before.still(tensors)

    def optimize(kind: type[torch.optim.Optimizer], **options: bool) -> None:
        layer(torch.rand(2, 3)).sum().backward()
        kind(layer.parameters(), lr=0.1, **options).step()

    @torch.no_grad()
    def in_place() -> None:
        layer.bias.add_(1)

    def numpy() -> None:
        layer.bias.detach().numpy()[0] += 1

    def replace() -> None:
        layer.bias.data = torch.ones(4)

    assert counted(in_place)
    assert counted(replace)
    assert counted(lambda: layer.load_state_dict(layer.state_dict()))
    for kind in (torch.optim.SGD, torch.optim.AdamW):
        for foreach in (False, True):
            assert counted(functools.partial(optimize, kind, foreach=foreach))
        assert not counted(functools.partial(optimize, kind, fused=True))
    assert not counted(lambda: layer(torch.rand(2, 3)))
    assert not counted(lambda: layer.bias.data.add_(1))
    assert not counted(numpy)
    known = Versions.of(tensors)
    assert not copy.deepcopy(known).still(tensors)
    assert not pickle.loads(pickle.dumps(known)).still(tensors)
    assert not known.still(tensors[:1])
    assert not Versions.of([]).still([])


def test_rounded_factors_hide_no_change(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fingerprint and the bounds are computed in float32 proper, and settings come back."""
    seen: list[str] = []

    def reads(inner: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            backends: Any = torch.backends
            settings = (backends.cuda.matmul, backends.cudnn.conv, backends.mkldnn.matmul)
            seen.extend(setting.fp32_precision for setting in settings)
            return inner(*args)

        return call

    monkeypatch.setattr(fingerprint, "_probes", reads(fingerprint._probes))
    monkeypatch.setattr(certified, "_largest_sample", reads(certified._largest_sample))
    weight = torch.randn(12, 10, 3, 3)
    before = torch.get_float32_matmul_precision()
    try:
        for setting in ("high", "medium"):
            torch.set_float32_matmul_precision(setting)
            seen.clear()
            kernel_contents([weight])
            assert seen == ["ieee"] * 3
            conv_norm_bound(weight + len(setting), (1, 1), (1, 1))
            assert seen == ["ieee"] * 9
            assert torch.get_float32_matmul_precision() == setting
            assert torch.backends.cuda.matmul.fp32_precision == "tf32"
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("call", [certify, certified_radius, certify_problem])
def test_no_certificate_is_computed_with_rounded_factors(call: Callable[..., Any]) -> None:
    class StopError(Exception):
        """Ends the call at its first look at an argument."""

    class Asked:
        def __getattribute__(self, name: str) -> Any:
            seen.append(torch.backends.cuda.matmul.fp32_precision)
            raise StopError

    seen: list[str] = []
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        with pytest.raises(StopError):
            call(Asked(), Asked())
        assert seen
        assert set(seen) == {"ieee"}
        assert torch.backends.cuda.matmul.fp32_precision == "tf32"
    finally:
        torch.set_float32_matmul_precision(before)


def test_settings_come_back_when_the_last_thread_leaves() -> None:
    setting: Any = torch.backends.cuda.matmul
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        first, second = exact_products(), exact_products()
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)  # entered first, left first: the other is still inside
        assert setting.fp32_precision == "ieee"
        second.__exit__(None, None, None)
        assert setting.fp32_precision == "tf32"
    finally:
        torch.set_float32_matmul_precision(before)
