"""Slopes that leave (0, 1] after the conversion are refused, at no further wait for the device."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from pursuitify import PursuitNetwork, pursuitify
from pursuitify.errors import OptionError

X = torch.randn(2, 2, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def network(act: Callable[[], nn.Module], **options: Any) -> PursuitNetwork:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 3, 3), act(), nn.Conv2d(3, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2)
    )
    return pursuitify(model.double().eval(), iterations=3, **options)


USES: dict[str, Callable[[PursuitNetwork], Any]] = {
    "forward": lambda net: net(X),
    "training": lambda net: net.train()(X),
    "latents": lambda net: net.latents(X),
    "infer": lambda net: net.infer(X),
    "dictionary": lambda net: net.dictionary(X),
    "diagnose": lambda net: net.diagnose(X),
    "steps": lambda net: net.step_sizes(X),
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("slope", [-0.1, 0.0, 1.001, float("nan"), float("inf")])
def test_learned_slopes_outside_the_range(slope: float, use: str) -> None:
    net = network(lambda: nn.PReLU(3))
    state = net.state_dict()
    state["1.weight"] = torch.tensor([0.25, slope, 0.5], dtype=torch.float64)
    net.load_state_dict(state)
    with pytest.raises(OptionError, match=r"slope of module '1' .*outside \(0, 1\].*[Cc]lamp"):
        USES[use](net)
    net.train(False).iterations = 0
    expected = net.source(X)
    assert torch.equal(net(X).nan_to_num(7), expected.nan_to_num(7)), "the source takes any"
    net.iterations = 3
    net.get_parameter("1.weight").data.clamp_(1e-3, 1.0).nan_to_num_(0.5)
    USES[use](net)


def test_the_message_says_how_far_the_slopes_reach() -> None:
    net = network(nn.PReLU)
    net.get_parameter("1.weight").data.fill_(-0.5)
    with pytest.raises(OptionError, match=r"module '1' \(latent '_1'\) is -0\.5, outside"):
        net(X)
    net = network(lambda: nn.PReLU(3))
    net.get_parameter("1.weight").data.copy_(torch.tensor([0.1, 0.2, 1.5]))
    with pytest.raises(OptionError, match=r"reaches from 0\.1 to 1\.5"):
        net(X)


def test_training_that_leaves_the_range() -> None:
    net = network(nn.PReLU).train()
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
    slope = net.get_parameter("1.weight")
    for _ in range(3):
        net(X).sum().backward()
        slope.grad = torch.full_like(slope, -0.3)
        optimizer.step()
    assert slope > 1
    with pytest.raises(OptionError, match="slope of module '1'"):
        net(X)


@pytest.mark.parametrize("slope", [-0.1, 0.0, 2.0])
def test_a_fixed_slope_that_was_changed(slope: float) -> None:
    net = network(lambda: nn.LeakyReLU(0.1))
    net.get_submodule("1").negative_slope = slope  # type: ignore[assignment]
    with pytest.raises(OptionError, match="slope of module '1'"):
        net(X)


class _Waits(TorchDispatchMode):
    """Counts what an accelerator would have to be waited for: values read on the host."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.count, listed = 0, Tensor.tolist

        def tolist(value: Tensor) -> Any:
            self.count += 1
            return listed(value)

        monkeypatch.setattr(Tensor, "tolist", tolist)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("alpha", [0.0, 0.2])
def test_no_further_wait(training: bool, alpha: float, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = []
    for act in (nn.ReLU, nn.PReLU):
        net = network(act).train(training)
        net.pursuit.alpha.data.fill_(alpha)
        net(X)
        with monkeypatch.context() as patched, _Waits(patched) as waits:
            net(X)
        counts.append(waits.count)
    assert counts[0] == counts[1] > 0


def test_extrapolation_that_was_switched_on_is_seen() -> None:
    net = network(nn.PReLU)
    still = net(X)
    net.dictionary(X)
    net.pursuit.alpha.data.fill_(0.3)
    assert not torch.allclose(net(X), still)
    net.pursuit.alpha.data.fill_(0.0)
    assert torch.equal(net(X), still)


def _in_place(net: PursuitNetwork) -> None:
    net.pursuit.alpha.fill_(0.9)


def _replaced(net: PursuitNetwork) -> None:
    net.pursuit.alpha = nn.Parameter(torch.full_like(net.pursuit.alpha, 0.9))


WRITES: dict[str, Callable[[PursuitNetwork], object]] = {
    "in place": _in_place,
    "data": lambda net: net.pursuit.alpha.data.fill_(0.9),
    "load": lambda net: net.load_state_dict(
        {**net.state_dict(), "pursuit.alpha": torch.full_like(net.pursuit.alpha, 0.9)}
    ),
    "assign": lambda net: net.load_state_dict(
        {**net.state_dict(), "pursuit.alpha": torch.full_like(net.pursuit.alpha, 0.9)}, assign=True
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("write", "called", "strict"),
    [
        # Each write in both ways of export; the pairs left out repeat what "in place" shows.
        pytest.param(
            *case, marks=[pytest.mark.slow] if case[0] != "in place" and case[1] == case[2] else []
        )
        for case in itertools.product(WRITES, (False, True), (False, True))
    ],
)
def test_an_export_keeps_extrapolation_that_was_just_written(
    write: str, called: bool, strict: bool
) -> None:
    net = network(nn.ReLU)
    with torch.no_grad():
        still = net(X)
        if not called:
            net = network(nn.ReLU)
        WRITES[write](net)
        program = torch.export.export(net, (X,), strict=strict)
        expected = net(X)
        torch.testing.assert_close(program.module()(X), expected, rtol=1e-10, atol=1e-12)
    assert not torch.allclose(expected, still)


def test_an_export_gives_no_number_where_extrapolation_came_later_or_unseen() -> None:
    net = network(nn.ReLU)
    with torch.no_grad():
        program = torch.export.export(net, (X,)).module()
        assert torch.allclose(program(X), net(X))
        program.get_parameter("pursuit.alpha").fill_(0.9)
        assert program(X).isnan().all()
        net = network(nn.ReLU)
        net(X)
        _replaced(net)  # the weights that were met are others than these
        assert torch.export.export(net, (X,)).module()(X).isnan().all()


def test_compiled_code_gives_no_number() -> None:
    net = network(nn.PReLU)
    with torch.no_grad():
        expected = net(X)
        torch.compiler.reset()
        compiled = torch.compile(net, fullgraph=True, backend="eager")
        assert torch.allclose(compiled(X), expected, rtol=1e-12, atol=1e-12)
        for slope in (-0.1, 1.5):
            net.get_parameter("1.weight").data.fill_(slope)
            assert compiled(X).isnan().all()
        net.get_parameter("1.weight").data.fill_(0.25)
        assert torch.allclose(compiled(X), expected, rtol=1e-12, atol=1e-12)
