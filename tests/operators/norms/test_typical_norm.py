"""The norm of random weights: what random kernels have, whatever their form; a scale, no bound."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pursuitify.operators import conv_norm_bound, typical_norm

#: Kernel, stride, dilation, groups.
FORMS = [
    ((128, 128), (), (), 1),
    ((300, 20), (), (), 1),
    ((64, 64, 3), (1,), (1,), 1),
    ((64, 32, 3, 3), (1, 1), (1, 1), 1),
    ((64, 32, 3, 3), (2, 2), (1, 1), 1),
    ((96, 32, 1, 1), (2, 2), (1, 1), 1),
    ((64, 32, 3, 3), (1, 1), (2, 2), 1),
    ((64, 16, 3, 3), (1, 1), (1, 1), 4),
    ((32, 16, 2, 3, 3), (1, 2, 1), (1, 1, 1), 1),
]


def kernel(shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize(("shape", "stride", "dilation", "groups"), FORMS, ids=str)
def test_random_kernels_have_it(
    shape: tuple[int, ...], stride: tuple[int, ...], dilation: tuple[int, ...], groups: int
) -> None:
    weight = kernel(shape)
    found = float(typical_norm(weight, stride, dilation, groups))
    bound = float(conv_norm_bound(weight, stride, dilation, groups))
    assert 0.7 < found / bound < 1.15


def test_a_matrix_by_the_formula() -> None:
    weight = kernel((7, 11)).numpy()
    expected = np.linalg.norm(weight) * (1 / np.sqrt(7) + 1 / np.sqrt(11))
    assert float(typical_norm(torch.from_numpy(weight), (), (), 1)) == pytest.approx(expected)


def test_it_grows_with_the_weights_and_has_their_derivative() -> None:
    weight = kernel((5, 3, 3, 3)).requires_grad_()
    form = (2, 1), (1, 1), 1
    assert torch.autograd.gradcheck(lambda w: typical_norm(w, *form), (weight,))
    weight = weight.detach()
    once, thrice = typical_norm(weight, *form), typical_norm(-3 * weight, *form)
    assert float(thrice) == pytest.approx(3 * float(once))


def test_the_group_of_most_energy_counts() -> None:
    weight = kernel((6, 4, 3, 3))
    weight[:2] *= 10
    alone = typical_norm(weight[:2], (1, 1), (1, 1), 1)
    assert torch.equal(typical_norm(weight, (1, 1), (1, 1), 3), alone)


def test_zero_weights_have_a_derivative_that_is_zero() -> None:
    weight = torch.zeros(3, 2, 3, 3, requires_grad=True)
    value = typical_norm(weight, (1, 1), (1, 1), 1)
    value.backward()
    assert float(value) == 0
    assert weight.grad is not None
    assert not weight.grad.any()


def test_sixteen_bits_do_not_overflow() -> None:
    weight = torch.full((64, 64, 3, 3), 100.0, dtype=torch.float16)
    assert bool(typical_norm(weight, (1, 1), (1, 1), 1).isfinite())


def test_filters_that_are_alike_have_a_larger_norm() -> None:
    """What the docstring says: it is no bound."""
    weight = torch.ones(64, 64)
    assert float(typical_norm(weight, (), (), 1)) == pytest.approx(16.0)  # the norm is 64


@pytest.mark.parametrize("power", [-140, -100, -70, 60, 64, 100, 120])
def test_it_scales_with_weights_whose_squares_leave_the_range(power: int) -> None:
    weight, form = kernel((64, 32, 3, 3)).float(), ((1, 1), (1, 1), 1)
    found = typical_norm(weight * 2.0**power, *form)
    expected = float(typical_norm(weight, *form)) * 2.0**power
    assert float(found) == pytest.approx(expected, rel=1e-3, abs=0)
