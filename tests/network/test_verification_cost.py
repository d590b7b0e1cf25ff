"""These tests bound what the self-check computes, in forward passes of its source.

Times depend on the machine and on what else runs there; what is counted here does not. Of the
weighted operators, which take most of the time, the multiplications are counted; of everything, the
numbers that are read and written, which is what elementwise operations cost.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from pursuitify import PursuitNetwork, pursuitify
from pursuitify.models import ResidualNet
from pursuitify.network import verification
from tests.support.nets import ReadsAll

ZOO = ("resnet18", "mobilenet_v2", "densenet121")


class Traffic(TorchDispatchMode):
    """Counts the numbers that operations read and write; views do neither."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and count."""
        out = func(*args, **(kwargs or {}))
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        made = [t for t in tree_leaves(out) if isinstance(t, Tensor)]
        owned = {t.untyped_storage().data_ptr() for t in given}
        written = func._schema.is_mutable
        fresh = not made or any(t.untyped_storage().data_ptr() not in owned for t in made)
        if written or fresh:
            self.numbers += sum(t.numel() for t in (*given, *made))
        return out


def multiplications(call: Callable[[], object]) -> int:
    """Return how many a call makes."""
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def numbers(call: Callable[[], object]) -> int:
    """Return how many a call reads and writes."""
    with Traffic() as traffic:
        call()
    return traffic.numbers


def network(name: str) -> tuple[nn.Module, PursuitNetwork]:
    torch.manual_seed(0)
    if name == "ResidualNet":
        model: nn.Module = ResidualNet().eval()
    else:
        model = getattr(pytest.importorskip("torchvision.models"), name)(weights=None).eval()
    return model, pursuitify(model, iterations=1)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    "name", ["ResidualNet", *(pytest.param(name, marks=pytest.mark.slow) for name in ZOO)]
)
def test_the_self_check_computes_at_most_so_much(name: str, training: bool) -> None:
    model, net = network(name)
    model.train(training)
    net.train(training)
    x = torch.rand(2, 3, 64, 64)

    def proving() -> None:
        net._proofs.forget()
        net(x)

    # oneDNN's own operators are no public ones, which the counters know alone: it is off.
    with torch.no_grad(), torch.backends.mkldnn.flags(enabled=False):
        net(x)
        for count, most in ((multiplications, 1.75), (numbers, 4.5)):
            cost = (count(proving) - count(lambda: net(x))) / count(lambda: model(x))
            assert 0.5 < cost < most, (count, cost)


def test_the_source_s_weights_are_applied_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the pass itself computes is not computed again, be it a latent that several rows read.

    Those are a densely connected network's, in which every layer reads all layers before it.
    """
    torch.manual_seed(0)
    net, x = pursuitify(ReadsAll(linear=True).eval(), iterations=1), torch.rand(2, 3, 8, 8)
    assert sum(row.identity for row in net._program.rows) == 3
    source, counts = verification._around_products, []

    def counted(*args: Any) -> Any:
        found = []
        counts.append(multiplications(lambda: found.append(source(*args))))
        return found[0]

    monkeypatch.setattr(verification, "_around_products", counted)
    with torch.no_grad(), torch.backends.mkldnn.flags(enabled=False):
        net(x)
        assert counts == [0]
        net.get_submodule("rest.1").weight.mul_(2)
        assert net.verify(x).ok
