"""Derivatives of adaptive sweeps: finite differences, and the modes that keep less."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from pursuitify import InputError, PursuitNetwork, pursuitify
from pursuitify.models import ResidualNet
from tests.support.compare_modes import assert_same, assert_same_outputs, differentiate
from tests.support.examples import examples
from tests.support.nets import BY_NAME, CASES, Case, random_net
from tests.support.randomnets import general_net

cases = pytest.mark.parametrize("case", CASES, ids=str)
levels = pytest.mark.parametrize("levels", [1, 2])


def adaptive(model: nn.Module, **options: Any) -> PursuitNetwork:
    return pursuitify(model, **{"steps": "adaptive", "iterations": 4, "verify": "off", **options})


def loss_of(net: PursuitNetwork, x: Tensor) -> Tensor:
    """Return a number that every latent has a share in, with weights that are not symmetric."""
    total = x.new_zeros(())
    for n, w in enumerate(net.latents(x).values()):
        ramp = torch.linspace(-1, 1, w.numel(), dtype=w.dtype).reshape(w.shape)
        total = total + ((n + 1) * ramp * w).sum()
    return total


def test_derivatives_are_those_of_finite_differences() -> None:
    """Where no ReLU, no clipped step and no clipped share changes sides within the difference."""
    checked = 0
    for case in CASES:
        net = adaptive(case.build(2), iterations=3)
        with torch.no_grad():
            net.pursuit.beta.fill_(0.8)  # not at the end of its range, where it is held
        tensors = {"x": case.input(3, batch=2).requires_grad_()}
        tensors |= {n: p for n, p in net.named_parameters() if n != "pursuit.alpha"}
        loss_of(net, tensors["x"]).backward()
        generator = torch.Generator().manual_seed(0)
        for name, tensor in tensors.items():
            if tensor.grad is None:  # the head's
                continue
            way = torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
            expected = float((tensor.grad * way).sum())
            slopes = []
            for size in (1e-5, 1e-6):
                values = []
                for sign in (1, -1):
                    with torch.no_grad():
                        tensor.add_(way, alpha=sign * size)
                        values.append(float(loss_of(net, tensors["x"])))
                        tensor.add_(way, alpha=-sign * size)
                slopes.append((values[0] - values[1]) / (2 * size))
            scale = max(1.0, abs(expected), abs(slopes[0]))
            if abs(slopes[0] - slopes[1]) <= 1e-5 * scale:  # no kink between
                assert abs(slopes[1] - expected) <= 1e-4 * scale, (str(case), name)
                checked += 1
    assert checked > 40


def test_second_derivatives_exist() -> None:
    case = BY_NAME["leaky_chain"]
    net, x = adaptive(case.build(), iterations=2), case.input(batch=2).requires_grad_()
    assert torch.autograd.gradgradcheck(lambda z: tuple(net.latents(z).values()), (x,), atol=1e-4)


def check(net: PursuitNetwork, x: Tensor, tolerance: float = 1e-11, **mode: Any) -> None:
    expected, theirs = differentiate(net, x, memory="store")
    outputs, mine = differentiate(net, x, **mode)
    assert_same_outputs(outputs, expected, tolerance)
    assert_same(mine, theirs, tolerance)


@levels
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@cases
def test_recompute_gives_the_derivatives_of_plain_unrolling(
    case: Case, training: bool, levels: int
) -> None:
    net = adaptive(case.build(1).train(training), iterations=5)
    check(net, case.input(batch=3), memory="recompute", recompute_levels=levels)


@examples(20, 100, random_net(), st.integers(1, 5), st.booleans(), st.booleans())
def test_recompute_on_random_networks(drawn: Any, count: int, training: bool, two: bool) -> None:
    model, x = drawn
    net = adaptive(model.train(training), iterations=count)
    check(net, x, 1e-10, memory="recompute", recompute_levels=1 + two)


@examples(20, 100, general_net(), st.integers(1, 4), st.booleans())
def test_recompute_with_any_operation(drawn: Any, count: int, two: bool) -> None:
    model, x = drawn
    net = adaptive(model.eval(), iterations=count)
    check(net, x, 1e-10, memory="recompute", recompute_levels=1 + two)


@levels
def test_recompute_keeps_less(levels: int) -> None:
    case = BY_NAME["conv_residual"]
    net, x = adaptive(case.build(1), iterations=9), case.input(batch=2)
    kept = {}
    net.recompute_levels = levels
    for memory in ("store", "recompute"):
        net.memory = memory
        held: dict[int, int] = {}

        def pack(t: Tensor, held: dict[int, int] = held) -> Tensor:
            held[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            result = net(x)
        kept[memory] = sum(held.values())
        del result
    assert kept["recompute"] < (0.6 if levels == 1 else 0.4) * kept["store"], kept


@cases
def test_the_last_sweeps(case: Case) -> None:
    net, x = adaptive(case.build(1), iterations=4), case.input(batch=2)
    check(net, x, memory="implicit", implicit_last=4)
    expected, _ = differentiate(net, x, memory="store")
    for kept in (1, 3):
        outputs, mine = differentiate(net, x, memory="implicit", implicit_last=kept)
        assert_same_outputs(outputs, expected, 1e-11)
        assert all(bool(g.isfinite().all()) for g in mine.values() if g is not None)


def test_the_last_sweeps_take_latents_and_steps_before_as_constants() -> None:
    """The fewer sweeps are recorded, the farther off; all of them give the exact derivatives."""
    case = BY_NAME["linear_residual"]
    net, x = adaptive(case.build(1), iterations=3), case.input(batch=2)
    errors = []
    exact = differentiate(net, x, memory="store")[1]
    for kept in (1, 2, 3):
        mine = differentiate(net, x, memory="implicit", implicit_last=kept)[1]
        pairs = [(mine[k], e) for k, e in exact.items() if e is not None and mine[k] is not None]
        assert len(pairs) > 4
        errors.append(float(torch.stack([(m - e).norm() for m, e in pairs]).norm()))
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 1e-10 < errors[1]


@pytest.mark.parametrize("name", ["linear_chain", "linear_residual", "leaky_conv"])
def test_implicit_derivatives_are_those_of_the_minimiser_whatever_the_steps(name: str) -> None:
    """Both rules end at one minimiser, and a minimiser knows nothing of steps."""
    case = BY_NAME[name]
    model, x = case.build(), case.input(batch=2)
    found = []
    for steps, count in (("certified", 4000), ("adaptive", 1500)):
        net = pursuitify(
            model, iterations=count, steps=steps, memory="implicit", implicit_tolerance=1e-9,
            implicit_iterations=500,
        )  # fmt: skip
        z = x.clone().requires_grad_()
        net(z).square().sum().backward()
        found.append(z.grad)
    assert torch.allclose(found[0], found[1], rtol=1e-4, atol=1e-6)


def test_vmap_and_forward_mode() -> None:
    case = BY_NAME["conv_residual"]
    net, x = adaptive(case.build(), iterations=2), case.input(batch=3)
    together = net(x)
    alone = torch.func.vmap(lambda row: net(row[None])[0])(x)
    assert torch.allclose(together, alone, rtol=1e-10, atol=1e-12)
    way = torch.ones_like(x)
    value, slope = torch.func.jvp(net, (x,), (way,))  # type: ignore[misc]
    z = x.clone().requires_grad_()
    _, other = torch.autograd.functional.jvp(net, z, way)
    assert torch.allclose(value, together, rtol=1e-10, atol=1e-12)
    assert torch.allclose(slope, other, rtol=1e-9, atol=1e-11)
    net.memory = "recompute"
    with pytest.raises(InputError, match="works with autograd alone"):
        torch.func.grad(lambda v: net(v).sum())(x)


@pytest.mark.parametrize("memory", ["store", "recompute"])
def test_a_network_trains(memory: str) -> None:
    torch.manual_seed(0)
    net = adaptive(ResidualNet(2, 3, width=4).train(), iterations=3, memory=memory)
    x, labels = torch.rand(12, 2, 8, 8), torch.arange(12) % 3
    optimiser = torch.optim.Adam(net.parameters(), 1e-2)
    losses = []
    for _ in range(40):
        optimiser.zero_grad()
        loss = torch.nn.functional.cross_entropy(net(x), labels)
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]
    assert net.pursuit.beta.grad is not None
    assert bool(net.pursuit.beta.grad.any())
