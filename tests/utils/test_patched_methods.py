"""Methods replaced on an instance or in a class, and hooks: kept, or refused with the path."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from pursuitify import ConversionError, TraceError, explain, pursuitify
from tests.support.agreement import bound_pass, error, rows_error


def _model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64, 2),
    ).double()


def _circular(module: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.conv2d(F.pad(x, (1,) * 4, mode="circular"), weight, bias)


def _bound_kernel(module: Any) -> None:
    if isinstance(module, nn.Conv2d):
        module._conv_forward = types.MethodType(_circular, module)


def _plain_kernel(module: Any) -> None:
    if isinstance(module, nn.Conv2d):
        module._conv_forward = functools.partial(_circular, module)


def _wrapped(module: Any) -> None:
    old = module.forward
    module.forward = lambda x: old(x) * 2


def _method(module: Any) -> None:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        return type(self).forward(self, x) + 1  # type: ignore[operator]

    module.forward = types.MethodType(forward, module)


PATCHES = [_bound_kernel, _plain_kernel, _wrapped, _method]


@settings(max_examples=40, deadline=None)
@given(
    patches=st.lists(st.tuples(st.integers(0, 6), st.sampled_from(PATCHES)), max_size=4),
    training=st.booleans(),
)
def test_replaced_methods_are_traced(
    patches: list[tuple[int, Callable[[Any], None]]], training: bool
) -> None:
    """T = 0 is the model, its running statistics included; eq. (17) holds; the weights are ours."""
    model = _model().train(training)
    for index, patch in patches:
        patch(model[index])
    x = torch.randn(3, 3, 4, 4, dtype=torch.float64)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    net = pursuitify(model, iterations=0)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    out = net(x)
    assert error(out, model(x)) == 0
    for name, value in model.state_dict().items():
        assert torch.equal(net.state_dict()[name], value), name
    net.iterations = 2
    _, first, bound = bound_pass(net, (x,))
    assert rows_error(first, bound) < 1e-12
    with torch.no_grad():
        model[6].weight.zero_()
    net.iterations = 0
    assert error(net.eval()(x), model.eval()(x)) > 0  # a copy: the model's weights are not read


def test_a_replaced_activation_is_what_it_is_replaced_by() -> None:
    model = _model().eval()
    model[2].forward = F.gelu
    with pytest.raises(ConversionError, match=r"gelu \(gelu in '2'\)"):
        pursuitify(model)


def test_a_class_that_was_patched_is_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = _model().eval(), torch.randn(2, 3, 4, 4, dtype=torch.float64)
    plain = model(x)
    monkeypatch.setattr(nn.Conv2d, "_conv_forward", _circular)
    net = pursuitify(model, iterations=0)
    assert error(net(x), model(x)) == 0
    assert error(net(x), plain) > 0
    net.iterations = 2
    _, first, bound = bound_pass(net, (x,))
    assert rows_error(first, bound) < 1e-12


class _Tiled(nn.Conv2d):
    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return _circular(self, input, weight, bias)


def test_a_subclass_with_another_kernel_is_no_plain_layer() -> None:
    model = _model().eval()
    model[3] = _Tiled(4, 4, 3, padding=1).double()
    report = explain(model, leaf_modules=[_Tiled])
    assert "'3'" in str(report.problems[0])
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    assert error(pursuitify(model, iterations=0)(x), model(x)) == 0


def test_leaves_with_a_replaced_method_are_refused() -> None:
    model = _model().eval()
    _bound_kernel(model[3])
    with pytest.raises(ConversionError, match=r"'3'\): its _conv_forward is replaced"):
        pursuitify(model, leaf_modules=["3"])


def _hook(*_: Any) -> None:
    return None


@pytest.mark.parametrize(
    "register", ["register_full_backward_hook", "register_full_backward_pre_hook"]
)
def test_hooks_on_gradients_are_refused_with_their_path(register: str) -> None:
    for path in ("body.2", "body", ""):
        model = nn.Sequential()
        model.add_module("body", _model().eval())
        getattr(model.get_submodule(path), register)(_hook)
        match = f"'{path}'.*backward hooks" if path else "Sequential has backward hooks"
        with pytest.raises((TraceError, ConversionError), match=match):
            pursuitify(model)


def test_a_hook_on_the_head_works_as_in_the_source() -> None:
    """After the last activation modules run as they are, hooks included."""
    model, seen = _model().eval(), []
    net = pursuitify(model, iterations=2)
    other = _model().eval()
    other[6].register_full_backward_hook(lambda *_: seen.append(1))
    hooked = pursuitify(other, iterations=2)
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    assert error(hooked(x), net(x)) == 0
    hooked(x).sum().backward()
    assert seen


def test_a_forward_bound_to_the_root_is_the_forward() -> None:
    def twice(self: nn.Module, x: Tensor, factor: float = 2.0) -> Tensor:
        return nn.Sequential.forward(self, x) * factor  # type: ignore[arg-type]

    model, x = _model().eval(), torch.randn(2, 3, 4, 4, dtype=torch.float64)
    model.forward = types.MethodType(twice, model)  # type: ignore[method-assign]
    assert error(pursuitify(model, iterations=0)(x), model(x)) == 0
    model.forward = lambda x: x  # type: ignore[method-assign, assignment]
    with pytest.raises(TraceError, match="forward of Sequential is replaced"):
        pursuitify(model)


class _Calls(nn.Sequential):
    def __call__(self, x: Tensor) -> Any:
        return super().__call__(x * 2)


def test_an_overridden_call_is_refused_at_the_root_and_traced_inside() -> None:
    inner = _Calls(*_model()).eval()
    with pytest.raises(TraceError, match="_Calls overrides __call__"):
        pursuitify(inner)
    outer, x = nn.Sequential(inner).eval(), torch.randn(2, 3, 4, 4, dtype=torch.float64)
    assert error(pursuitify(outer, iterations=0)(x), outer(x)) == 0
