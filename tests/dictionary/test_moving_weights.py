"""Steps of training mode while weights move as they like, and steps of tiny and huge weights."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from pursuitify import PursuitNetwork, load, pursuitify, save
from pursuitify.errors import InputError
from pursuitify.operators import ESTIMATE_MARGIN, conv_norm_bound, conv_norm_estimate
from pursuitify.operators.norms import power_iteration

X = torch.rand(4, 3, 6, 6, generator=torch.Generator().manual_seed(5))


def made(bias: bool = True) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, bias=bias),
        nn.ReLU(),
        nn.Conv2d(6, 8, 3, bias=bias),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32, 9),
        nn.ReLU(),
        nn.Linear(9, 3),
    )


def moved(weight: Tensor, draw: random.Random) -> Tensor:
    """Return a weight after one of the moves that training, or a user, may make."""
    noise, kind = torch.randn_like(weight), draw.randrange(7)
    if kind == 0:
        return torch.zeros_like(weight)
    if kind == 1:
        return noise
    if kind == 2:
        return weight * draw.choice([-1.0, 1e-3, 50.0])
    if kind == 3:
        return weight + draw.choice([1e-3, 0.1, 0.5]) * noise
    if kind == 4:  # one direction that was not there
        single = torch.zeros_like(weight)
        single.view(len(weight), -1)[draw.randrange(len(weight))] = draw.choice([1.0, 5.0])
        return weight + single
    if kind == 5:  # another channel alone
        return weight * (torch.arange(len(weight)) == draw.randrange(len(weight))).to(
            weight
        ).reshape(-1, *[1] * (weight.dim() - 1))
    return weight


@pytest.mark.parametrize("readable", [True, False])
@pytest.mark.parametrize("seed", range(6))
def test_the_objective_never_rises_while_weights_move(
    seed: int, readable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU, and as where no value is read: on an accelerator and in compiled code."""
    if not readable:
        monkeypatch.setattr(power_iteration, "_readable", lambda _value: False)
    draw, net = random.Random(seed), pursuitify(made(), iterations=6).double().train()
    torch.manual_seed(seed)
    weights = [p for p in net.parameters() if p.dim() > 1]
    x = X.double()
    for _ in range(25):
        trace = net.diagnose(x)
        values = [float(record.objective) for record in trace.sweeps]
        for before, after in itertools.pairwise(values):
            assert after <= before + 1e-9 * (1 + abs(before)), values
        with torch.no_grad():
            for weight in draw.sample(weights, draw.randint(1, len(weights))):
                weight.copy_(moved(weight, draw))


@pytest.mark.parametrize("readable", [True, False])
def test_a_kernel_that_was_zero_is_found_again(
    readable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not readable:
        monkeypatch.setattr(power_iteration, "_readable", lambda _value: False)
    kernel, state = torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(1)), None
    for weight in (kernel, 0 * kernel, 0 * kernel, kernel, kernel * torch.nan, kernel, -3 * kernel):
        bound = float(conv_norm_bound(weight, (1, 1), (1, 1)))
        value, state = conv_norm_estimate(weight, (1, 1), (1, 1), state=state, steps=2)
        assert float(value) >= 0.95 * bound or bound != bound
    for _ in range(20):
        value, state = conv_norm_estimate(-3 * kernel, (1, 1), (1, 1), state=state, steps=2)
    assert 1.0 <= float(value) / bound <= ESTIMATE_MARGIN * 1.001


def test_a_residual_that_starts_at_zero_trains_with_the_steps_of_evaluation() -> None:
    model = made()
    nn.init.zeros_(model[2].weight)
    net = pursuitify(model, iterations=6).train()
    net(X).sum().backward()
    with torch.no_grad():
        net.get_submodule("2").weight.normal_()
    net(X)
    trained = net.step_sizes(X)
    for name, step in net.eval().step_sizes(X).items():
        assert 0.8 <= float((trained[name] / step).detach()) <= 1.0 / 0.97**2


def test_a_state_of_another_kernel_is_no_state() -> None:
    _, state = conv_norm_estimate(torch.randn(3, 5, 3, 3), (1, 1), (1, 1))
    weight = torch.randn(7, 2, 3, 3)
    cold = conv_norm_estimate(weight, (1, 1), (1, 1))
    for old in (state, torch.zeros(3, 5, 7, 7)):
        for a, b in zip(conv_norm_estimate(weight, (1, 1), (1, 1), state=old), cold, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("scale", [1e-36, 1e-25, 1e-20, 1e-10, 1.0, 1e10, 1e20, 1e30])
def test_norms_are_taken_after_scaling(scale: float) -> None:
    weight = torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(1))
    exact = float(conv_norm_bound(weight.double(), (1, 1), (1, 1))) * scale
    assert float(conv_norm_bound(weight * scale, (1, 1), (1, 1))) == pytest.approx(exact, rel=2e-3)
    estimated, state = conv_norm_estimate(weight * scale, (1, 1), (1, 1))
    estimated, _ = conv_norm_estimate(weight * scale, (1, 1), (1, 1), state=state, steps=40)
    assert float(estimated) == pytest.approx(exact * ESTIMATE_MARGIN, rel=2e-2)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("layout", ["auto", "encoder"])
@pytest.mark.parametrize("scale", [10.0**k for k in range(-27, 28, 3)])
def test_steps_are_right_or_refused(scale: float, layout: str, training: bool) -> None:
    model = made(bias=False)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(scale)
    net = pursuitify(model, iterations=2, layout=layout).train(training)
    wide = pursuitify(model.double(), iterations=2, layout=layout).train(training)
    with torch.no_grad():
        exact = wide.step_sizes(X.double())
        held = torch.finfo(torch.float32)
        lost = [n for n, s in exact.items() if not 1e-43 < float(s) < held.max]
        if lost:
            for use in (net, net.step_sizes, net.diagnose):
                with pytest.raises(
                    InputError, match=r"leave the range of torch\.float32"
                ) as raised:
                    use(X)
            assert all(repr(name) in str(raised.value) for name in lost)
            return
        for name, step in net.step_sizes(X).items():
            assert float(step) == pytest.approx(float(exact[name]), rel=2e-2)
        if model(X.double()).abs().max() * scale < 1e30:
            assert net(X).isfinite().all()


def test_half_precision_that_overflows_says_so() -> None:
    net = pursuitify(made(), iterations=3).eval()
    with torch.no_grad():
        net.get_parameter("0.weight").mul_(500.0)
        net.get_parameter("2.weight").mul_(50.0)
        assert net(X).isfinite().all()
        half, x = net.half(), 4 * X.half()
        half.iterations = 0
        assert half(x).isfinite().all(), "the source does not overflow"
        half.iterations = 3
        with pytest.raises(InputError, match=r"float16.*bfloat16"):
            half(x)
        assert net.bfloat16()(x.bfloat16()).isfinite().all(), "the advice works"


def test_half_precision_that_does_not_overflow_is_let_through() -> None:
    net = pursuitify(made(), iterations=3).eval()
    with torch.no_grad():
        expected = net(X)
        torch.testing.assert_close(net.half()(X.half()).float(), expected, rtol=0.02, atol=0.01)


def _loaded(net: PursuitNetwork, path: object) -> PursuitNetwork:
    save(net, str(path))
    return load(str(path), made().eval())


def test_extrapolation_is_read_after_every_load(tmp_path: object) -> None:
    trained = pursuitify(made().eval(), iterations=6)
    trained.pursuit.alpha.data.fill_(0.9)
    with torch.no_grad():
        expected = trained(X)
        still = pursuitify(made().eval(), iterations=6)(X)
        assert not torch.allclose(expected, still, rtol=1e-3)

        def close(value: Tensor, wanted: Tensor = expected) -> None:
            torch.testing.assert_close(value, wanted, rtol=1e-4, atol=1e-5)

        torch.compiler.reset()
        net = _loaded(trained, f"{tmp_path}/net.safetensors")
        close(torch.export.export(net, (X,)).module()(X))
        close(torch.compile(net, backend="eager")(X))
        net = pursuitify(made().eval(), iterations=6)
        compiled = torch.compile(net, backend="eager")
        close(compiled(X), still)
        net.load_state_dict(trained.state_dict())
        close(compiled(X))
        net.pursuit.load_state_dict({k: 0 * v for k, v in trained.pursuit.state_dict().items()})
        net.pursuit.beta.fill_(1.0)
        close(compiled(X), still)
        net.pursuit.load_state_dict(trained.pursuit.state_dict())
        close(compiled(X))


def test_extrapolation_written_behind_the_compiler_is_no_number() -> None:
    torch.compiler.reset()
    net = pursuitify(made().eval(), iterations=6)
    compiled = torch.compile(net, backend="eager")
    with torch.no_grad():
        compiled(X)
        net.pursuit.alpha.fill_(0.9)
        assert compiled(X).isnan().all()
        expected = net(X)  # looks again
        torch.testing.assert_close(compiled(X), expected, rtol=1e-4, atol=1e-5)


def padded() -> nn.Module:
    """Return a network for images of any size, with strides, dilation and a transposed layer."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1, stride=2),
        nn.ReLU(),
        nn.Conv2d(6, 8, 3, padding=2, dilation=2),
        nn.ReLU(),
        nn.ConvTranspose2d(8, 4, 3, padding=1, stride=2),
        nn.ReLU(),
        nn.Conv2d(4, 2, 5, padding=2, groups=2),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(2, 3),
    )


SIZES = ((6, 6), (3, 8), (1, 1), (13, 2), (6, 6), (40, 5), (3, 8), (6, 6))


@pytest.mark.parametrize("solver", ["global", "synchronous"])
@pytest.mark.parametrize("training", [False, True])
def test_the_objective_never_rises_while_images_change_their_size(
    training: bool, solver: str
) -> None:
    """Bounds are for the image at hand: those of one size must not be used for another."""
    draw, model = random.Random(0), padded()
    net = pursuitify(model, iterations=6, norm_bounds="image", solver=solver)
    net.double().train(training)
    weights = [p for p in net.parameters() if p.dim() > 1]
    torch.manual_seed(0)
    for size in SIZES * 2:
        trace = net.diagnose(torch.rand(2, 3, *size, dtype=torch.float64))
        values = [float(record.objective) for record in trace.sweeps]
        for before, after in itertools.pairwise(values):
            assert after <= before + 1e-9 * (1 + abs(before)), (size, values)
        with torch.no_grad():
            for weight in draw.sample(weights, 1):
                weight.copy_(moved(weight, draw))


@pytest.mark.parametrize("training", [False, True])
def test_steps_are_those_of_the_image_at_hand(training: bool) -> None:
    """Whatever sizes came before; never shorter than those for any size where no tap is cut."""
    net = pursuitify(padded(), iterations=2, norm_bounds="image").train(training)
    for size in SIZES:
        x = torch.rand(2, 3, *size)
        fresh = pursuitify(padded(), iterations=2, norm_bounds="image").train(training)
        anysize = pursuitify(padded(), iterations=2).train(training)
        with torch.no_grad():
            steps, wide = fresh.step_sizes(x), anysize.step_sizes(x)
            for name, step in net.step_sizes(x).items():
                assert float(step) == pytest.approx(float(steps[name]), rel=0.02), (size, name)
                if min(size) > 5:
                    assert float(step) >= 0.99 * float(wide[name])
                if size == (6, 6):
                    assert float(step) <= 3 * float(wide[name])
        net(x)


def test_the_states_that_are_kept_do_not_grow_with_the_sizes_met() -> None:
    """A vector is kept per torus, a few per kernel; large images share the frequencies."""
    net = pursuitify(padded(), iterations=1, norm_bounds="image", verify="off").train()
    counts = []
    for n in (*range(4, 30), *range(64, 76)):
        net(torch.rand(1, 3, n, n))
        counts.append(len(net.norm_state()))
    assert max(counts) == counts[-1] <= 8 * 4
    again = pursuitify(padded(), iterations=1, norm_bounds="image").train()
    again.restore_norm_state(net.norm_state())
    assert again.norm_state().keys() == net.norm_state().keys()


def test_traced_code_keeps_no_steps_of_one_image_size() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU()
    )
    net = pursuitify(model, iterations=2, norm_bounds="image", verify="off").eval()
    x, larger = torch.rand(1, 3, 4, 4), torch.rand(1, 3, 17, 17)
    with pytest.raises(InputError, match=r"cannot be traced by torch\.jit\.trace"):
        torch.jit.trace(net, x, check_trace=False)
    net.norm_bounds = "any size"
    with torch.no_grad():
        traced = torch.jit.trace(net, x, check_trace=False)
        torch.testing.assert_close(traced(larger), net(larger))
    net.steps, net.norm_bounds = "adaptive", "image"  # adaptive steps need no bound
    with torch.no_grad():
        torch.testing.assert_close(torch.jit.trace(net, x, check_trace=False)(x), net(x))


@pytest.mark.parametrize(
    "model",
    [
        lambda: nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)),
        lambda: nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 3)),
    ],
    ids=["no convolution", "convolution"],
)
def test_bounds_may_be_switched_between_calls(model: Callable[[], nn.Module]) -> None:
    net = pursuitify(model().eval(), iterations=3)
    x = (
        torch.rand(2, 4)
        if isinstance(net.get_submodule("0"), nn.Linear)
        else torch.rand(2, 2, 4, 4)
    )
    with torch.no_grad():
        found: dict[str, Tensor] = {}
        for bounds in ("any size", "image", "any size", "image"):
            net.norm_bounds = bounds
            again = found.setdefault(bounds, net(x))
            assert torch.equal(net(x), again)
        fresh = pursuitify(net.source, iterations=3, norm_bounds="image")
        assert torch.equal(fresh(x), found["image"])
