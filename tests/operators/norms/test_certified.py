"""Norm bounds: certified, tight, differentiable; and the training estimate."""

import math
import random

import pytest
import torch
from torch import Tensor

from pursuitify.operators import (
    Conv,
    conv_norm_bound,
    conv_norm_estimate,
    dense_norm_bound,
    dense_norm_estimate,
)
from pursuitify.operators.norms import certified, power_iteration
from pursuitify.operators.norms.symbol import (
    Reach,
    few,
    frequencies,
    gram_matrices,
    half_grid,
    hermitian_parts,
    lag_matrices,
    polyphase,
    sampling,
    symbol_at,
)
from pursuitify.testing import matrix_of, randn

KERNELS = {
    "tall": ((20, 12, 3, 3), 1, 1, 1),
    "wide": ((12, 20, 3, 3), 1, 1, 1),
    "stride": ((12, 6, 3, 3), 2, 1, 1),
    "dilated-stride": ((12, 6, 3, 3), 2, 3, 1),
    "shared-factor": ((12, 6, 3, 3), 4, 2, 1),
    "grouped": ((24, 10, 3, 3), 1, 1, 2),
    "depthwise": ((10, 1, 5, 5), 2, 1, 10),
    "1d": ((16, 12, 7), 1, 1, 1),
    "3d": ((6, 10, 2, 2, 2), 1, 1, 1),
    "pointwise": ((24, 16, 1, 1), 1, 1, 1),
}


def fine_norm(weight, stride, dilation, groups, points):
    """The supremum of the symbol's norm over a fine grid, by SVD."""
    dims = weight.dim() - 2
    kernel = polyphase(weight, (stride,) * dims, (dilation,) * dims, groups)
    angles = torch.arange(points, dtype=torch.float64) * (2 * math.pi / points)
    best = []
    for group in kernel:
        theta = torch.cartesian_prod(*[angles] * dims).reshape(-1, dims)
        real, imag = torch.func.vmap(lambda t, k=group: symbol_at(k, t))(theta)
        best.append(torch.linalg.matrix_norm(torch.complex(real, imag), 2).max())
    return torch.stack(best).max()


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bound_is_certified_and_tight(name: str, dtype: torch.dtype) -> None:
    shape, stride, dilation, groups = KERNELS[name]
    dims = len(shape) - 2
    weight = randn(*shape, seed=11)
    norm = float(fine_norm(weight, stride, dilation, groups, 40 if dims < 3 else 12))
    args = ((stride,) * dims, (dilation,) * dims, groups)
    for slack in (0.06, 0.02):
        bound = float(conv_norm_bound(weight.to(dtype), *args, slack=slack))
        assert norm * (1 - 1e-6) <= bound <= norm * (1 + slack + 0.01)


@pytest.mark.parametrize("degree", range(1, 7))
def test_sampling_factor_covers_extremal_polynomials(degree: int) -> None:
    """1 + cos(d theta) shifted half a sample off the grid is the worst case."""
    (points,), factor = sampling((degree + 1,), 0.06)
    assert factor <= 1.06
    theta = torch.arange(points, dtype=torch.float64) * (2 * math.pi / points)
    for shift in torch.linspace(0, 2 * math.pi, 41, dtype=torch.float64):
        samples = 1 + torch.cos(degree * theta + shift)
        assert float(samples.max()) * factor**2 >= 2 - 1e-12


def test_flat_and_low_rank_spectra() -> None:
    """Where iterations are slow or start in a null space, the certificate still holds."""
    eye = torch.eye(32)[:, :, None, None] * torch.tensor([0.0, 1.0, 0.0])[:, None]
    assert 1 <= float(conv_norm_bound(eye, (1, 1), (1, 1))) <= 1.07
    one = torch.zeros(40, 40)
    one[3, 7] = 5
    assert 5 <= float(dense_norm_bound(one)) <= 5.05
    tall = torch.linalg.qr(randn(60, 30))[0]
    assert 1 - 1e-12 <= float(dense_norm_bound(tall)) <= 1.01


@pytest.mark.parametrize("scale", [1e-30, 1e25])
def test_scale_does_not_matter(scale: float) -> None:
    weight = randn(12, 12, 3, 3, dtype=torch.float32)
    bound = conv_norm_bound(weight, (1, 1), (1, 1))
    ratio = float(conv_norm_bound(weight * scale, (1, 1), (1, 1)) / bound)
    assert ratio == pytest.approx(scale, rel=1e-3)


@pytest.mark.parametrize("shape", [(3, 2, 3, 3), (16, 12, 3, 3), (12, 12)])
def test_degenerate_weights(shape: tuple[int, ...]) -> None:
    ones = (1,) * (len(shape) - 2)
    weight = torch.zeros(shape, requires_grad=True)
    bound = conv_norm_bound(weight, ones, ones)
    assert float(bound.detach()) == 0
    bound.backward()
    assert torch.equal(weight.grad, torch.zeros(shape))
    for bad in (math.nan, math.inf):
        assert conv_norm_bound(torch.full(shape, bad), ones, ones).isnan()
        assert conv_norm_bound(torch.full(shape, bad).requires_grad_(), ones, ones).isnan()


@pytest.mark.parametrize("name", KERNELS)
def test_derivative_is_that_of_the_largest_sample(name: str) -> None:
    shape, stride, dilation, groups = KERNELS[name]
    dims = len(shape) - 2
    weight = randn(*shape, seed=12).requires_grad_()
    args = ((stride,) * dims, (dilation,) * dims, groups)
    bound = conv_norm_bound(weight, *args)
    (ours,) = torch.autograd.grad(bound, weight)
    kernel = polyphase(weight, *args)
    grid, _ = sampling(tuple(kernel.shape[3:]), 0.06)
    angles = [torch.arange(n, dtype=torch.float64) * (2 * math.pi / n) for n in grid]
    theta = torch.cartesian_prod(*angles).reshape(-1, dims)
    norms = []
    for group in kernel:
        real, imag = torch.func.vmap(lambda t, k=group: symbol_at(k, t))(theta)
        norms.append(torch.linalg.matrix_norm(torch.complex(real, imag), 2).max())
    largest = torch.stack(norms).max()
    (true,) = torch.autograd.grad(largest, weight)
    torch.testing.assert_close(ours / ours.norm(), true / true.norm(), atol=1e-4, rtol=1e-3)
    assert float((ours * weight).sum().detach()) == pytest.approx(float(bound.detach()), rel=1e-9)


@pytest.mark.parametrize("name", KERNELS)
def test_estimate_covers_the_norm_and_warms_up(name: str) -> None:
    shape, stride, dilation, groups = KERNELS[name]
    dims = len(shape) - 2
    weight = randn(*shape, seed=13).requires_grad_()
    args = ((stride,) * dims, (dilation,) * dims, groups)
    norm = float(fine_norm(weight.detach(), stride, dilation, groups, 40 if dims < 3 else 12))
    value, state = conv_norm_estimate(weight, *args)
    assert 0.97 * norm <= float(value.detach()) <= norm * 1.06 * 1.05 * 1.001
    for _ in range(5):
        value, state = conv_norm_estimate(weight, *args, state=state, steps=20)
    assert norm <= float(value.detach()) <= norm * 1.06 * 1.05 * 1.001
    value.backward()
    assert float((weight.grad * weight).sum().detach()) == pytest.approx(
        float(value.detach()), rel=1e-9
    )


def test_dense_estimate() -> None:
    weight = randn(30, 50)
    norm = float(torch.linalg.matrix_norm(weight, 2))
    value, state = dense_norm_estimate(weight)
    value, state = dense_norm_estimate(weight, state, 10)
    assert norm <= float(value) <= norm * 1.051


def test_half_precision_weights_are_bounded() -> None:
    weight = randn(12, 8, 3, 3, dtype=torch.bfloat16)
    bound = conv_norm_bound(weight, (1, 1), (1, 1))
    assert torch.equal(bound, conv_norm_bound(weight.float(), (1, 1), (1, 1)))


def test_chunks_of_frequencies_give_the_same_level(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = randn(16, 12, 3, 3)
    whole = float(conv_norm_bound(weight, (1, 1), (1, 1)))
    monkeypatch.setattr("pursuitify.operators.norms.certified._CHUNK_BYTES", 1)
    assert float(conv_norm_bound(weight, (1, 1), (1, 1))) == pytest.approx(whole, rel=5e-3)


def test_large_matrix_takes_the_blocked_product() -> None:
    """The largest singular value is known: a diagonal between two reflections."""
    size = 1100
    mirror = randn(size, 1, seed=1)
    mirror = torch.eye(size, dtype=torch.float64) - 2 * mirror @ mirror.T / mirror.square().sum()
    weight = mirror * torch.linspace(1, 3, size, dtype=torch.float64) @ mirror.T
    assert 3 - 1e-9 <= float(dense_norm_bound(weight)) <= 3.03


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_code_finds_the_same_bound(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled code called the operator where lazy conjugates of torch are not seen."""
    torch.manual_seed(0)
    weight = torch.randn(20, 16, 3, 3)
    expected = certified.conv_norm_bound(weight, (1, 1), (1, 1))
    monkeypatch.setattr(certified, "_KNOWN", {})
    torch.compiler.reset()

    @torch.compile(backend=backend, fullgraph=True)
    def bound(weight: Tensor) -> Tensor:
        return certified.conv_norm_bound(weight, (1, 1), (1, 1))

    with torch.no_grad():
        assert bound(weight).item() == pytest.approx(expected.item(), rel=1e-6)
    assert certified._KNOWN


def test_an_estimate_without_values_takes_few_steps(monkeypatch):
    """On the meta device two power steps show all that 30 need: a count of memory is soon done."""
    calls = []
    inner = power_iteration._circular
    monkeypatch.setattr(
        power_iteration, "_circular", lambda *a: calls.append(a[0].device.type) or inner(*a)
    )
    weight = torch.randn(4, 3, 3, 3)
    value, state = conv_norm_estimate(weight, (1, 1), (1, 1))
    empty, other = conv_norm_estimate(weight.to("meta"), (1, 1), (1, 1))
    assert calls.count("cpu") == 2 * power_iteration.COLD_STEPS + 1
    assert calls.count("meta") == 5
    assert (empty.shape, other.shape) == (value.shape, state.shape)


def drawn(draw: random.Random, count: int) -> list[Conv]:
    """Random convolutions on small images, of one to three dims, with all that torch lets vary."""
    found: list[Conv] = []
    while len(found) < count:
        dims, groups = draw.choice((1, 1, 2, 2, 3)), draw.choice((1, 1, 2, 3))
        taps = [draw.randint(1, 5 if dims < 3 else 3) for _ in range(dims)]
        size = tuple(draw.randint(1, (12, 6, 4)[dims - 1]) for _ in range(dims))
        stride, dilation = (tuple(draw.randint(1, 4) for _ in range(dims)) for _ in range(2))
        padding = tuple((draw.randint(-1, 4), draw.randint(-1, 4)) for _ in range(dims))
        sides = list(zip(size, padding, dilation, taps, strict=True))
        if any(
            n + lo + hi <= d * (k - 1) or n + min(lo, 0) + min(hi, 0) < 1
            for n, (lo, hi), d, k in sides
        ):
            continue
        shape = (groups * draw.randint(1, 4), draw.randint(1, 4), *taps)
        weight = randn(*shape, seed=len(found))
        weight = draw.choice((weight, weight.abs()))  # with a norm at frequency zero, too
        found.append(Conv(weight, stride, padding, dilation, groups, size))
    return found


def norm_of(conv: Conv) -> float:
    """The norm of the dense matrix."""
    shape = (1, conv.groups * conv.weight.shape[1], *conv.size)
    return float(torch.linalg.matrix_norm(matrix_of(conv.apply, shape), 2))


@pytest.mark.parametrize("seed", range(2))
def test_bounds_on_an_image_hold(seed: int) -> None:
    """Certified and estimated ones; and they exceed those for any size only where taps are cut."""
    cut = on_torus = 0
    for conv in drawn(random.Random(seed), 80):
        bank, norm = conv.bank_on_image(), norm_of(conv)
        form, reaches = bank[:4], bank.reaches
        bound = float(conv_norm_bound(*form, reaches=reaches))
        assert bound >= norm * (1 - 1e-12), conv
        chosen = frequencies(*bank[:3], reaches=reaches)
        whole = all(t == k for (_, t), k in zip(chosen.window, bank.weight.shape[2:], strict=True))
        if whole:
            assert bound <= float(conv_norm_bound(*form)) * 1.003 + 1e-12, conv
        cut, on_torus = cut + (not whole), on_torus + (chosen.factor == 1)
        _, state = conv_norm_estimate(*form, reaches=reaches)
        estimate, _ = conv_norm_estimate(*form, state, 20, reaches=reaches)
        assert float(estimate) >= norm * (1 - 1e-9), conv
    assert cut > 10
    assert on_torus > 60


def test_a_torus_holds_the_image() -> None:
    """Along a dim the matrix of the convolution is a corner of a circulant one, entry by entry."""
    for conv in drawn(random.Random(9), 400):
        for i, taps in enumerate(conv.weight.shape[2:]):
            n, s, (low, high), d = conv.size[i], conv.stride[i], conv.padding[i], conv.dilation[i]
            reach = Reach.of(n, taps, s, (low, high), d)
            positions = reach.frequencies * s * d // math.gcd(s, d)
            outputs = (n + low + high - d * (taps - 1) - 1) // s + 1
            used: set[tuple[int, int]] = set()
            for o in range(outputs):
                for j in range(n):
                    x = j - s * o + low
                    read = {a for a in range(taps) if d * a == x}
                    window = range(reach.first, reach.first + reach.taps)
                    assert {a for a in window if (d * a - x) % positions == 0} == read
                    used |= {(0, o), (1, j)} if read else set()
            # Rows and columns that are not zero have places of their own.
            places = {(k, at * (s, 1)[k] % positions) for k, at in used}
            assert len(places) == len(used)


@pytest.mark.parametrize("seed", range(3))
def test_bounds_on_an_image_are_tight_on_the_torus(seed: int) -> None:
    """A circular convolution attains the bound to the certificate's own slack."""
    weight, n = randn(9, 10, 3, 3, seed=seed), 5
    conv = Conv(weight, (1, 1), ((1, 1), (1, 1)), (1, 1), 1, (n, n))
    bank = conv.bank_on_image()
    assert frequencies(*bank[:3], reaches=bank.reaches).grid == (n + 1, n + 1)
    spectrum = torch.fft.fft2(weight, s=(n + 1, n + 1)).permute(2, 3, 0, 1)
    norm = float(torch.linalg.matrix_norm(spectrum, 2).max())
    bound = float(conv_norm_bound(*bank[:4], reaches=bank.reaches))
    assert norm * (1 - 1e-12) <= bound <= norm * 1.0025


def test_large_images_take_the_bound_for_any_size() -> None:
    weight = randn(9, 8, 3, 3)
    whole = conv_norm_bound(weight, (1, 1), (1, 1))
    for size, same in (((60, 60), True), ((60, 5), False), ((5, 60), False), ((12, 12), False)):
        conv = Conv(weight, (1, 1), ((1, 1), (1, 1)), (1, 1), 1, size)
        bank = conv.bank_on_image()
        chosen = frequencies(*bank[:3], reaches=bank.reaches)
        assert all(n <= most for n, most in zip(chosen.grid, (14, 14), strict=True))
        bound = conv_norm_bound(*bank[:4], reaches=bank.reaches)
        assert torch.equal(bound, whole) is same


def test_both_ways_to_gram_matrices_agree() -> None:
    for shape, grid in (
        ((2, 7, 5, 3, 2), (3, 4)),
        ((1, 6, 4, 5), (6,)),
        ((1, 5, 3, 2, 2, 2), (2, 3, 1)),
    ):
        kernel = randn(*shape)
        angles, real = half_grid(grid, kernel)
        index, lags = lag_matrices(kernel)
        symmetric, skew = hermitian_parts(lags)
        phase = angles @ index.T
        gram = torch.complex(phase.cos() @ symmetric, phase.sin() @ skew)
        gram = gram.reshape(shape[0], len(angles), shape[2], shape[2])
        torch.testing.assert_close(gram_matrices(kernel, angles[:real], True), gram[:, :real].real)
        torch.testing.assert_close(gram_matrices(kernel, angles[real:], False), gram[:, real:])
        torch.testing.assert_close(gram[:, :real].imag, torch.zeros_like(gram[:, :real].imag))
    assert few(kernel, 4, 1) is True
    assert few(kernel, 14, 2) is False


@pytest.mark.parametrize("size", [1, 2, 5, 30])
def test_derivative_on_an_image_is_that_of_its_largest_frequency(size: int) -> None:
    weight = randn(12, 14, 3, 3, seed=4).requires_grad_()
    conv = Conv(weight, (1, 1), ((1, 1), (1, 1)), (1, 1), 1, (size, size))
    bank = conv.bank_on_image()
    bound = conv_norm_bound(*bank[:4], reaches=bank.reaches)
    (ours,) = torch.autograd.grad(bound, weight)
    chosen = frequencies(*bank[:3], reaches=bank.reaches)
    (first, taps), (n, _) = chosen.window[0], chosen.grid
    part = weight[..., first : first + taps, first : first + taps]
    spectrum = torch.fft.fft2(part, s=(n, n)).permute(2, 3, 0, 1)
    (true,) = torch.autograd.grad(torch.linalg.matrix_norm(spectrum, 2).max(), weight)
    torch.testing.assert_close(ours / ours.norm(), true / true.norm(), atol=1e-4, rtol=1e-3)
    with torch.no_grad():  # the same bound, to the last bit, found without what derivatives need
        certified._KNOWN.clear()
        assert torch.equal(conv_norm_bound(*bank[:4], reaches=bank.reaches), bound)
