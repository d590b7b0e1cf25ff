"""``type(x)`` in a forward: the answer is what it is when the model runs."""

from __future__ import annotations

import builtins
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pursuitify import pursuitify
from tests.support.agreement import error


def _helper(x: Any) -> Any:
    return x * 2 if type(x) is Tensor else x


class _Plain:
    """A plain object that a module holds."""

    def __call__(self, x: Any) -> Any:
        return x + 1 if type(x) in (list, Tensor) else x


class _Net(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.plain = kind, _Plain()
        self.body = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))

    def forward(self, x: Any) -> Tensor:
        match self.kind:
            case "is":
                x = x * 2 if type(x) is torch.Tensor else x
            case "equals":
                x = x * 2 if type(x) == Tensor else x  # noqa: E721
            case "subclass":
                x = x * 2 if issubclass(type(x), Tensor) else x
            case "list":
                x = x[0] if type(x) is list else x
            case "name":
                x = x * 2 if type(x).__name__ == "Tensor" else x
            case "table":
                x = {Tensor: torch.relu, int: abs}[type(x)](x)
            case "helper":
                x = _helper(x)
            case "object":
                x = self.plain(x)
            case "nested":
                x = torch.cat([y * 2 if type(y) is Tensor else y for y in (x, x)], 1)[:, :4]
            case "makes":
                x = x * 2 if isinstance(type("New", (), {}), type) and isinstance(int, type) else x
            case "self":
                x = x * 2 if type(self) is _Net and type(self.kind) is str else x
        return self.body(x)


KINDS = [
    "is", "equals", "subclass", "list", "name", "table", "helper", "object", "nested", "makes",
    "self",
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_a_branch_on_the_type_goes_the_source_s_way(kind: str) -> None:
    torch.manual_seed(0)
    model, x = _Net(kind).eval(), torch.randn(3, 4)
    net = pursuitify(model, iterations=0)
    assert error(net(x), model(x)) == 0
    assert "type" not in vars(sys.modules[__name__])  # nothing is left behind
    assert builtins.type is type
