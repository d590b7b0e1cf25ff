"""Private interfaces of torch: all in one file, and each may be missing."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.fx.experimental import proxy_tensor
from torch.utils import _python_dispatch

import pursuitify as package
from pursuitify import estimate_memory, pursuitify
from pursuitify.errors import EstimateError
from pursuitify.operators import onednn_conv
from pursuitify.utils import func_transforms, torch_internals

HOME = Path(package.__file__).parent
#: Names with an underscore that the package may use outside that file: the registries and hooks of
#: nn.Module, the version counter of a tensor, and base classes that torch has no public name for.
ALLOWED = {
    "_BatchNorm", "_ConvNd", "_NormBase",
    "_buffers", "_forward_hooks", "_forward_pre_hooks", "_modules", "_parameters", "_version",
}  # fmt: skip


def _private(name: str) -> bool:
    """Whether a name has an underscore in front, and is not one of Python's own, as __file__."""
    return name.startswith("_") and not name.startswith("__")


def private_uses(path: Path) -> list[str]:
    """Return private names of torch that a file reaches, as written."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "torch":
            names = [node.module, *(alias.name for alias in node.names)]
            found += [n for n in names if n and any(_private(p) for p in n.split("."))]
        if isinstance(node, ast.Attribute):
            text = ast.unparse(node)
            inner = any(_private(part) for part in text.split("."))
            if text.split(".")[0] in {"torch", "nn", "fx", "F", "forward_ad"} and inner:
                found.append(text)
            if text.startswith("torch.ops."):
                found.append(text)
    return [name for name in found if name.split(".")[-1] not in ALLOWED]


def test_no_other_file_reaches_torch_internals() -> None:
    files = [p for p in HOME.rglob("*.py") if p.name != "torch_internals.py"]
    assert len(files) > 100
    found = {str(p.relative_to(HOME)): uses for p in files if (uses := private_uses(p))}
    assert not found
    assert private_uses(HOME / "utils" / "torch_internals.py"), "the search finds nothing"


def test_without_the_question_for_transforms_nothing_is_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert not func_transforms.active()
    monkeypatch.delattr(forward_ad, "_current_level")
    assert func_transforms.active()
    net = pursuitify(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).eval())
    with torch.no_grad():
        slow = net(torch.ones(2, 3))
        monkeypatch.undo()
        torch.testing.assert_close(net(torch.ones(2, 3)), slow)


def test_without_the_proxy_mode_nothing_traces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(proxy_tensor, "get_proxy_mode")
    assert not torch_internals.make_fx_is_tracing()


def test_without_the_mode_that_sees_results_memory_is_not_estimated(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
    assert estimate_memory(model, (3,)).peak > 0
    monkeypatch.delattr(_python_dispatch, "TorchDispatchMode")
    with pytest.raises(EstimateError, match="TorchDispatchMode"):
        estimate_memory(model, (3,))


def test_without_that_mode_models_convert_uncompared(monkeypatch: pytest.MonkeyPatch) -> None:
    class Asks(nn.Sequential):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = super().forward(x if hasattr(x, "shape") else 2 * x)
            return y

    model, x = Asks(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).eval(), torch.ones(2, 3)
    monkeypatch.delattr(_python_dispatch, "TorchDispatchMode")
    assert torch.equal(pursuitify(model, iterations=0)(x), model(x))


def test_without_assertions_nothing_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = torch._assert
    assert torch_internals.is_assertion(kept)
    monkeypatch.delattr(torch, "_assert")
    assert not torch_internals.is_assertion(kept)
    assert not torch_internals.is_assertion(None)


def test_without_the_switch_for_modes_the_context_is_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(_python_dispatch, "_disable_current_modes")
    with torch_internals.without_dispatch_modes():
        assert torch.ones(1).item() == 1


@pytest.mark.parametrize("name", ["packed_convolution", "add_packed_convolution", "pack_kernel"])
@pytest.mark.parametrize("error", [AttributeError, RuntimeError, TypeError])
def test_without_packed_convolutions_nothing_is_packed(
    monkeypatch: pytest.MonkeyPatch, name: str, error: type[Exception]
) -> None:
    def gone(*_: object) -> None:
        raise error

    monkeypatch.setattr(torch_internals, name, gone)
    onednn_conv.available.cache_clear()
    try:
        assert not onednn_conv.available()
        net = pursuitify(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten()).eval())
        with torch.no_grad():
            assert net(torch.ones(1, 3, 5, 5)).shape == (1, 36)
    finally:
        monkeypatch.undo()
        onednn_conv.available.cache_clear()


def test_hooks_on_derivatives_are_known_where_torch_says_so() -> None:
    value = torch.ones(2, requires_grad=True)
    assert not torch_internals.has_gradient_hooks(value)
    handle = value.register_hook(lambda g: g)
    assert torch_internals.has_gradient_hooks(value)
    handle.remove()
    assert not torch_internals.has_gradient_hooks(value)
    assert not torch_internals.has_gradient_hooks(object())  # type: ignore[arg-type]
