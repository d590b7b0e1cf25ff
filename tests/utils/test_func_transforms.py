"""torch.func: every transform gives what plain calls and autograd give, at T = 0 and T > 0."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import (
    functional_call,
    grad,
    hessian,
    jacfwd,
    jacrev,
    jvp,
    linearize,
    stack_module_state,
    vjp,
    vmap,
)

from pursuitify import InputError, PursuitNetwork, pursuitify

pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop")


class Residual(nn.Module):
    """Convolutions, BatchNorm, a skip, max and average pooling, a gate."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1, bias=False)
        self.norm, self.c = nn.BatchNorm2d(3), nn.Conv2d(3, 3, 3, padding=1)
        self.gate, self.head = nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.avg_pool2d(F.relu(self.a(x)), 2)
        y = F.relu(self.norm(self.b(x)))
        y = y * torch.sigmoid(self.gate(y.mean((2, 3))))[:, :, None, None]
        return self.head(F.max_pool2d(F.relu(self.c(y) + x), 2).mean((2, 3)))


def chain() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 2))


BUILDS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "chain": (chain, (4,)),
    "residual": (Residual, (2, 8, 8)),
}


@pytest.fixture(params=[(n, t, a) for n in BUILDS for t, a in ((0, 0.0), (2, 0.0), (2, 0.3))],
                ids=lambda p: f"{p[0]}-{p[1]}-{p[2]}")  # fmt: skip
def case(request: Any) -> tuple[PursuitNetwork, Tensor]:
    """A network in float64 and a batch of three."""
    name, sweeps, alpha = request.param
    build, shape = BUILDS[name]
    torch.manual_seed(0)
    net = pursuitify(build().double().eval(), iterations=sweeps)
    nn.init.constant_(net.pursuit.alpha, alpha)
    return net, torch.randn(3, *shape, dtype=torch.float64)


def same(mine: Any, theirs: Any) -> None:
    torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-11)


def parameters(net: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in net.named_parameters()}


def call(net: nn.Module, params: dict[str, Tensor], x: Tensor) -> Any:
    return functional_call(net, (params, dict(net.named_buffers())), (x,))


def by_autograd(net: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """The derivative of a loss in every parameter, by autograd."""
    params = {k: v.requires_grad_() for k, v in parameters(net).items()}
    found = torch.autograd.grad(
        call(net, params, x).square().sum(), list(params.values()), allow_unused=True
    )
    return {
        k: torch.zeros_like(v) if g is None else g
        for (k, v), g in zip(params.items(), found, strict=True)
    }


def test_jacobians_of_the_input(case: tuple[PursuitNetwork, Tensor]) -> None:
    net, x = case
    expected = torch.autograd.functional.jacobian(net, x)
    same(jacrev(net)(x), expected)
    same(jacfwd(net)(x), expected)


@pytest.mark.parametrize("recorded", [True, False])
def test_jvp_of_the_input(case: tuple[PursuitNetwork, Tensor], recorded: bool) -> None:
    net, x = case
    v = torch.randn_like(x)
    value, expected = torch.autograd.functional.jvp(net, x, v)
    with torch.set_grad_enabled(recorded):
        same(jvp(net, (x,), (v,)), (value, expected))
        with forward_ad.dual_level():
            dual = forward_ad.unpack_dual(net(forward_ad.make_dual(x, v)))
            same(dual.tangent, expected)


def test_second_derivatives_of_the_input(case: tuple[PursuitNetwork, Tensor]) -> None:
    net, x = case

    def loss(sample: Tensor) -> Tensor:
        return net(sample[None]).square().sum()

    expected = torch.autograd.functional.hessian(loss, x[0])
    same(hessian(loss)(x[0]), expected)


def test_derivatives_of_the_parameters(case: tuple[PursuitNetwork, Tensor]) -> None:
    net, x = case
    params = parameters(net)
    expected = by_autograd(net, x)
    same(grad(lambda p: call(net, p, x).square().sum())(params), expected)
    pull = vjp(lambda p: call(net, p, x).square().sum(), params)[1]
    same(pull(torch.ones((), dtype=x.dtype))[0], expected)


def test_forward_derivatives_of_the_parameters(case: tuple[PursuitNetwork, Tensor]) -> None:
    net, x = case
    params = parameters(net)
    v = {k: torch.randn_like(p) for k, p in params.items()}
    expected = sum(((g * v[k]).sum() for k, g in by_autograd(net, x).items()), torch.zeros(()))
    for recorded in (True, False):
        with torch.set_grad_enabled(recorded):
            mine = jvp(lambda p: call(net, p, x).square().sum(), (params,), (v,))[1]
        same(mine, expected.to(mine.dtype))


def test_forward_derivatives_of_steps_outside_their_range() -> None:
    """The value is held to the range, the derivative is that of the parameter, in both modes."""
    net, x = pursuitify(chain().double().eval(), iterations=2), torch.randn(3, 4).double()
    with torch.no_grad():
        net.pursuit.beta.fill_(0.1)
    params = parameters(net)
    v = {k: torch.ones_like(p) if k == "pursuit.beta" else 0 * p for k, p in params.items()}
    expected = by_autograd(net, x)["pursuit.beta"].sum()
    assert abs(expected) > 1e-3
    same(jvp(lambda p: call(net, p, x).square().sum(), (params,), (v,))[1], expected)


def test_gradients_per_sample(case: tuple[PursuitNetwork, Tensor]) -> None:
    net, x = case
    params = parameters(net)
    each = vmap(
        grad(lambda p, s: call(net, p, s[None]).square().sum()), in_dims=(None, 0)
    )(params, x)  # fmt: skip
    expected = [by_autograd(net, sample[None]) for sample in x]
    same(each, {k: torch.stack([e[k] for e in expected]) for k in each})


@pytest.mark.parametrize("recorded", [True, False])
def test_vmap_over_samples(case: tuple[PursuitNetwork, Tensor], recorded: bool) -> None:
    net, x = case
    with torch.set_grad_enabled(recorded):
        same(vmap(lambda s: net(s[None])[0])(x), net(x))


@pytest.mark.parametrize("recorded", [True, False])
def test_vmap_over_an_ensemble(case: tuple[PursuitNetwork, Tensor], recorded: bool) -> None:
    net, x = case
    other = copy.deepcopy(net)
    with torch.no_grad():
        for p in other.parameters():
            p.mul_(0.9)
    params, buffers = stack_module_state([net, other])

    def member(p: dict[str, Tensor], b: dict[str, Tensor]) -> Any:
        return functional_call(net, (p, b), (x,))

    with torch.set_grad_enabled(recorded):
        same(vmap(member)(params, buffers), torch.stack([net(x), other(x)]))
    plain = {k: v.detach() for k, v in params.items()}
    mine = vmap(grad(lambda p, b: member(p, b).square().sum()))(plain, buffers)
    expected = [by_autograd(n, x) for n in (net, other)]
    same(mine, {k: torch.stack([e[k] for e in expected]) for k in mine})
    whole = grad(lambda p: vmap(member)(p, buffers).square().sum())(plain)
    same(whole, mine)


def test_nothing_of_a_transform_is_kept(case: tuple[PursuitNetwork, Tensor]) -> None:
    net, x = case
    with torch.no_grad():
        before = net(x)
        jacrev(net)(x)
        vmap(lambda s: net(s[None])[0])(x)
        assert torch.equal(net(x), before)
    copy.deepcopy(net)


def test_training_keeps_nothing_of_a_transform() -> None:
    net, x = pursuitify(chain().double().train(), iterations=2), torch.randn(3, 4).double()
    jacrev(net)(x)
    assert not net._norms.state()
    net(x).sum().backward()
    assert net._norms.state()


@pytest.mark.parametrize("memory", ["recompute", "implicit"])
def test_memory_modes_say_so(memory: str) -> None:
    net = pursuitify(chain().double().eval(), iterations=2, memory=memory)
    x = torch.randn(3, 4).double()
    with pytest.raises(InputError, match=r"torch\.func.*memory = 'store'"):
        jacrev(net)(x)
    with torch.no_grad():
        net(x)


def test_linearize() -> None:
    net, x = pursuitify(chain().double().eval(), iterations=0), torch.randn(3, 4).double()
    same(linearize(net, x)[1](x), jvp(net, (x,), (x,))[1])
    net.iterations = 2
    with pytest.raises(InputError, match=r"linearize.*torch\.func\.jvp"):
        linearize(net, x)


def test_finite_checks_stay_where_nothing_transforms() -> None:
    net = pursuitify(chain().eval(), iterations=2)
    with pytest.raises(InputError, match="NaN"):
        net(torch.full((1, 4), float("nan")))
