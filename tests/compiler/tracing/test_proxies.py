"""Tensors that a forward makes of traced sizes, and what old code wraps tensors in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import Variable

from pursuitify import TraceError, pursuitify
from tests.support.agreement import compare

Made = Callable[[Tensor], Tensor]


class Joins(nn.Module):
    """Concatenates a latent with what a function makes beside it."""

    def __init__(self, make: Made) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.last = nn.Conv2d(8, 2, 3)
        self.make = make

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        return self.last(torch.relu(self.norm(torch.cat([x, self.make(x)], 1))))


def spread(x: Tensor) -> Tensor:
    return torch.zeros(
        x.size(0), 8 - x.size(1), *x.shape[2:], dtype=x.dtype, device=x.device
    )  # MONAI's shortcut A


def spread_alone(x: Tensor) -> Tensor:
    return torch.ones(*x.shape, device=x.device)


def positional(x: Tensor) -> Tensor:
    return torch.ones(x.size(0), 4, x.size(2), x.size(3), device=x.device, dtype=x.dtype)


def listed(x: Tensor) -> Tensor:
    return torch.full((x.size(0), 4, *x.shape[2:]), 0.5, dtype=x.dtype)


def by_name(x: Tensor) -> Tensor:
    return torch.ones(size=(x.shape[0], 4, x.shape[2], x.shape[3])).type_as(x)


def of_shape(x: Tensor) -> Tensor:
    return torch.ones(x.shape).to(x)


def of_size(x: Tensor) -> Tensor:
    return torch.ones(x.size(), device=x.device, dtype=x.dtype)


def variables(x: Tensor) -> Tensor:
    device = x.device
    shape = x.size()
    kind = x.dtype
    made = torch.zeros(shape, dtype=kind, device=device)
    return made + torch.tensor([2.0], dtype=kind, device=device)


def alone(x: Tensor) -> Tensor:
    return x * torch.tensor(0.5, dtype=x.dtype, device=x.device)


def counted(x: Tensor) -> Tensor:
    return x + torch.arange(4, dtype=x.dtype, device=x.device).view(1, 4, 1, 1)


def drawn(x: Tensor) -> Tensor:
    return torch.randn(x.size(0), 4, x.size(2), x.size(3), dtype=x.dtype, device=x.device)


def filled(x: Tensor) -> Tensor:
    return x * torch.empty(x.size(0), 1, 1, 1, dtype=x.dtype, device=x.device).fill_(0.5)


def wrapped(x: Tensor) -> Tensor:
    return Variable(x)


def unwrapped(x: Tensor) -> Tensor:
    return Variable(x.data, requires_grad=False) + x


FORMS: tuple[Made, ...] = (
    spread, spread_alone, positional, listed, by_name, of_shape, of_size, variables, alone, counted,
    drawn, filled, wrapped, unwrapped,
)  # fmt: skip


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("make", FORMS)
def test_a_tensor_made_in_the_forward_has_the_sizes_of_each_batch(
    make: Made, training: bool
) -> None:
    torch.manual_seed(0)
    model = Joins(make).double()
    for batch in (2, 3):  # the sizes are no numbers of the conversion
        x = torch.rand(batch, 3, 6, 5, dtype=torch.float64)
        compare(pursuitify, model, x, training=training, tolerance=1e-12)


def test_derivatives_end_where_a_tensor_is_wrapped() -> None:
    torch.manual_seed(0)
    model = Joins(wrapped).eval()
    net = pursuitify(model, iterations=0)
    x = torch.rand(2, 3, 6, 6)
    model(x).square().sum().backward()
    net(x).square().sum().backward()
    for (name, ours), theirs in zip(net.named_parameters(), model.parameters(), strict=False):
        assert torch.equal(ours.grad, theirs.grad), name


def told_first(x: Tensor) -> Tensor:
    device = x.device
    if str(device) == "meta":  # what stands in for a device must not be read by anything else
        return x * 3
    return torch.ones(x.size(0), 4, x.size(2), x.size(3), device=device)


def told_among(x: Tensor) -> Tensor:
    kind = x.dtype
    scale = {torch.complex32: 3.0}.get(kind, 1.0)
    return scale * torch.ones(x.size(0), 4, x.size(2), x.size(3), dtype=kind)


def chosen(x: Tensor) -> Tensor:
    return torch.ones(x.size(0), 4, *x.shape[2:], device=x.device if x.is_cuda else "cpu")


@pytest.mark.parametrize("make", [told_first, told_among, chosen])
def test_what_cannot_be_followed_is_refused(make: Made) -> None:
    with pytest.raises(TraceError, match=r"x\.new_zeros"):
        pursuitify(Joins(make).eval())


@pytest.mark.parametrize("another", [False, True], ids=["alone", "before one that is seen"])
def test_a_call_that_torch_hides_is_refused(another: bool) -> None:
    def hidden(x: Tensor) -> Any:
        with torch._C.DisableTorchFunction():
            z = torch.ones(x.size(0), 4, 6, 6)
        return z + torch.ones(x.size(0), 1, 1, 1) if another else z

    with pytest.raises(TraceError, match="hides it"):
        pursuitify(Joins(hidden).eval())
