"""Sweeps in evaluation mode run in channels_last on a CPU; nothing else changes its format."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from pursuitify import InputError, PursuitifyError, pursuitify
from pursuitify.models import ResidualNet
from pursuitify.rules import frozen
from pursuitify.utils.memory_format import preferred
from tests.support.agreement import error


@pytest.mark.parametrize(("training", "sweeps", "last"), [(False, 2, True), (False, 0, False)])
def test_the_sweeps_choose_their_format(training: bool, sweeps: int, last: bool) -> None:
    torch.manual_seed(0)
    net = pursuitify(ResidualNet(3, 10), iterations=sweeps).train(training)
    x = torch.rand(2, 3, 8, 8)
    for value in net.latents(x).values():
        assert value.is_contiguous(memory_format=torch.channels_last) == last


def test_training_mode_draws_the_source_s_dropout() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Dropout(0.5), nn.Conv2d(8, 8, 3), nn.ReLU()
    )
    net = pursuitify(model, iterations=2).train()
    x = torch.rand(4, 3, 8, 8)
    torch.manual_seed(1)
    first = net._bind(net._program, (x,))[0].latents[-1]
    torch.manual_seed(1)
    torch.testing.assert_close(first, model.train()(x), rtol=0, atol=0)


def test_what_is_no_image_batch_stays() -> None:
    for value in (
        torch.rand(2, 3),
        torch.rand(2, 1, 4, 4),
        torch.rand(2, 3, 4, 4).double(),
        3,
        None,
    ):
        assert preferred(value) is value


FLATS: dict[str, Callable[[Tensor], Tensor]] = {
    "view": lambda x: x.view(x.size(0), -1),
    "view with a literal": lambda x: x.view(-1, 4 * 5 * 5),
    "view of a size": lambda x: x.view((x.shape[0], 100)),
    "view twice": lambda x: x.view(x.size(0), 2, -1).view(-1, 100),
    "view_as": lambda x: x.view_as(torch.zeros_like(x).flatten(1)),
    "flatten": lambda x: torch.flatten(x, 1),
    "reshape": lambda x: x.reshape(x.size(0), -1),
    "contiguous": lambda x: x.contiguous().view(x.size(0), -1),
    "stride": lambda x: torch.flatten(x, 1) * (2.0 if x.stride(1) == 25 else 1.0),
    "is_contiguous": lambda x: torch.flatten(x, 1) * (2.0 if x.is_contiguous() else 1.0),
    "as_strided": lambda x: torch.as_strided(x, (x.size(0), 100), (100, 1)),
}
#: They may be refused; what converts is right.
READS = {"stride", "is_contiguous", "as_strided"}


class _Flat(nn.Module):
    """A small network for images that flattens in one of many ways; returns the map, too."""

    def __init__(self, flat: str, where: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.flat, self.where = flat, where
        self.a, self.b = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 2)
        self.c, self.d = nn.Linear(100, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Any:
        x = F.max_pool2d(F.relu(self.a(x)), 2)
        y = self.b(x)
        if self.where == "before":
            return self.d(F.relu(self.c(FLATS[self.flat](y))))
        y = F.relu(y)
        return {"maps": [y], "scores": self.d(self.c(FLATS[self.flat](y)))}


@settings(max_examples=60, deadline=None)
@given(
    flat=st.sampled_from(sorted(FLATS)),
    where=st.sampled_from(["before", "head"]),
    training=st.booleans(),
    channels_last=st.booleans(),
    solver=st.sampled_from(["global", "layered", "synchronous"]),
)
def test_no_source_notices_the_format(
    flat: str, where: str, training: bool, channels_last: bool, solver: str
) -> None:
    """What the source runs on runs at any T; no sweeps give its value, whatever reads layouts."""
    model, x = _Flat(flat, where).train(training), torch.rand(2, 3, 14, 14)
    x = x.contiguous(memory_format=torch.channels_last) if channels_last else x
    try:
        net = pursuitify(model, iterations=0, solver=solver)
    except PursuitifyError:
        if flat not in READS:
            raise
        return
    try:
        expected = model(x)
    except RuntimeError:
        return
    try:
        assert error(net(x), expected) == 0
    except InputError:
        if flat not in READS:
            raise
        return
    net.iterations = 1
    out = net(x)
    net.diagnose(x)
    if not channels_last and where == "head":
        assert out["maps"][0].is_contiguous()
        out["maps"][0].view(2, -1)
    net.step_scale = 0.0  # sweeps that do not move: the bound pass and the head alone
    if solver != "synchronous":
        assert error(net(x), expected) < 1e-5


def test_the_zoo_s_format_stays_fast() -> None:
    for flat in ("view", "flatten", "reshape", "contiguous"):
        assert pursuitify(_Flat(flat, "before"))._program.any_format
    assert not pursuitify(_Opaque(), rules={_Strided: frozen()})._program.any_format


class _Strided(nn.Module):
    """Not traced: it may read how its input lies in memory."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3), keepdim=True) * float(x.stride(1))


class _Opaque(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.gate, self.b = nn.Conv2d(3, 4, 3), _Strided(), nn.Conv2d(4, 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(x))
        return F.relu(self.b(x * self.gate(x)))


def test_code_that_is_not_traced_sees_the_format_it_expects() -> None:
    model, x = _Opaque().eval(), torch.rand(2, 3, 8, 8)
    net = pursuitify(model, iterations=1, rules={_Strided: frozen()})
    net.step_scale = 0.0
    assert error(net(x), model(x)) < 1e-6
