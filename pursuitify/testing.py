"""Tests that every linear map must pass, as a base class to inherit; needs pytest.

    from pursuitify.testing import Case, MapTests

    class TestLowPass(MapTests):
        cases = {"three channels": Case(lambda _: LowPass(3), (2, 3, 8, 8), native=low_pass)}

Each test runs on every case: the dot test, the matrix against torch's own operator, the certified
norm bound, derivatives, memory formats, and sums in place.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from pursuitify.operators import LinearMap, dottest

FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return the same normal numbers at every call with this seed, whatever the dtype."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(shape or (1,), generator=generator, dtype=torch.float64)
    return values.reshape(shape).to(dtype)


@dataclass
class Case:
    """One map under test.

    Attributes:
        build: Makes the map from its parameter (or from a tensor that only gives the dtype).
        shape: Shape of an input, batch included.
        native: The torch operator that the map stands for, from parameter and input.
        parameter: The parameter, in float64, or None.
        tight: How far the bound may lie above the true norm, relative.
        matrix: Jacobian of the native operator, for those that are not linear as a whole.
    """

    build: Callable[[Tensor], LinearMap]
    shape: tuple[int, ...]
    native: Callable[[Tensor, Tensor], Tensor] | None = None
    parameter: Tensor | None = None
    tight: float | None = None
    matrix: Callable[[], Tensor] | None = None

    def bound(self, dtype: torch.dtype) -> tuple[LinearMap, Tensor]:
        """Return the map and its parameter in a dtype."""
        value = randn(1) if self.parameter is None else self.parameter
        return self.build(value.to(dtype)), value.to(dtype)

    def native_matrix(self) -> Tensor:
        """Return the native operator's matrix, column by column."""
        if self.matrix is not None:
            return self.matrix()
        assert self.native is not None
        value = self.bound(torch.float64)[1]
        basis = torch.eye(torch.Size(self.shape).numel(), dtype=torch.float64)
        return torch.stack([self.native(value, e.view(self.shape)).flatten() for e in basis], 1)


def matrix_of(linear: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> Tensor:
    """Return the matrix of a linear function, by vmap over the basis of its input."""
    basis = torch.eye(torch.Size(shape).numel(), dtype=torch.float64).view(-1, *shape)
    return torch.func.vmap(linear)(basis).flatten(1).T


class MapTests:
    """Inherit and set ``cases``; every check below then runs on every case."""

    cases: ClassVar[dict[str, Case]] = {}

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Run every test that takes a case on each of them."""
        if "case" in metafunc.fixturenames:
            metafunc.parametrize("case", self.cases.values(), ids=self.cases.keys())

    @pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
    def test_dottest(self, case: Case, dtype: torch.dtype, limit: float) -> None:
        """<A x, y> = <x, A^T y>, in both precisions."""
        linear = case.bound(dtype)[0]
        x = randn(*case.shape, seed=1, dtype=dtype)
        assert dottest(linear, x) <= limit
        assert linear.apply(x).dtype == dtype
        assert linear.adjoint(linear.apply(x)).shape == x.shape

    def test_matrix_matches_native_and_bound_holds(self, case: Case) -> None:
        """The matrix is that of torch's operator, and the bound is above its norm."""
        linear = case.bound(torch.float64)[0]
        native = case.native_matrix()
        out_shape = tuple(linear.apply(randn(*case.shape)).shape)
        torch.testing.assert_close(matrix_of(linear.apply, case.shape), native)
        torch.testing.assert_close(matrix_of(linear.adjoint, out_shape), native.T)
        norm = float(torch.linalg.matrix_norm(native, 2))
        bound = float(torch.as_tensor(linear.norm_bound(), dtype=torch.float64).amax())
        assert bound >= norm * (1 - 1e-12)
        if case.tight is not None:
            assert bound <= norm * (1 + case.tight)

    def test_derivatives(self, case: Case) -> None:
        """Derivatives of apply and adjoint are those of finite differences."""
        x = randn(*case.shape, seed=2).requires_grad_()
        if case.parameter is None:
            linear = case.bound(torch.float64)[0]
            assert torch.autograd.gradcheck(linear.apply, (x,), fast_mode=True)
            assert torch.autograd.gradcheck(
                linear.adjoint,
                (
                    linear.apply(x)
                    .detach()
                    .clone(memory_format=torch.contiguous_format)
                    .requires_grad_(),
                ),
                fast_mode=True,
            )
            return
        w = case.parameter.clone().requires_grad_()
        y = case.build(case.parameter).apply(x).detach().requires_grad_()
        assert torch.autograd.gradcheck(lambda w, x: case.build(w).apply(x), (w, x), fast_mode=True)
        assert torch.autograd.gradcheck(
            lambda w, y: case.build(w).adjoint(y), (w, y), fast_mode=True
        )

    def test_channels_last(self, case: Case) -> None:
        """The memory format of the input changes nothing."""
        linear = case.bound(torch.float64)[0]
        x = randn(*case.shape, seed=3)
        y = linear.apply(x)
        if x.dim() in FORMATS:
            last = x.contiguous(memory_format=FORMATS[x.dim()])
            torch.testing.assert_close(linear.apply(last), y)
        if y.dim() in FORMATS:
            last = y.contiguous(memory_format=FORMATS[y.dim()])
            torch.testing.assert_close(linear.adjoint(last), linear.adjoint(y))

    def test_in_place_sums(self, case: Case) -> None:
        """Sums in place are the sums, and write where they should."""
        linear = case.bound(torch.float64)[0]
        x = randn(*case.shape, seed=4)
        y = linear.apply(x)
        plain = torch.contiguous_format
        for known in ({}, FORMATS):
            formats = [known.get(t.dim(), plain) for t in (x, y)]
            into_x = randn(*x.shape, seed=5).contiguous(memory_format=formats[0])
            into_y = randn(*y.shape, seed=6).contiguous(memory_format=formats[1])
            wanted_x, wanted_y = into_x - linear.adjoint(y), into_y - y
            torch.testing.assert_close(linear.minus_adjoint(into_x, y), wanted_x)
            torch.testing.assert_close(linear.add_adjoint(into_x, y, -1.0), wanted_x)
            torch.testing.assert_close(linear.add_apply(into_y, x, -1.0), wanted_y)
            torch.testing.assert_close(into_x, wanted_x)
            torch.testing.assert_close(into_y, wanted_y)
            whole = wanted_x + linear.adjoint(y)
            torch.testing.assert_close(linear.add_adjoint(into_x, y, 1.0), whole)
            torch.testing.assert_close(linear.apply_into(into_y, x), y)
            torch.testing.assert_close(x, randn(*case.shape, seed=4))
