"""Vectors of NumPy's, and the SciPy operator on them, are those of the dense dictionary."""

from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np
import pytest
import scipy.linalg
import torch
from scipy.sparse.linalg import lsqr
from torch import Tensor, nn

from pursuitify import pursuitify
from pursuitify.dictionary.structured import StructuredDictionary
from pursuitify.errors import InputError, MissingExtraError
from pursuitify.models import DenselyConnectedNet, ResidualNet
from tests.support.nets import randomise


class Tokens(nn.Module):
    """A dense layer on the last of three dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.second(torch.relu(self.first(x)))).mean(1)


class TokensFirst(Tokens):
    """The same with the batch in the middle."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.transpose(0, 1))


#: Kind of dictionary -> network, shape of an input.
KINDS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "skips": (lambda: ResidualNet(1, 3, width=2), (1, 8, 8)),
    "slots of concats": (lambda: DenselyConnectedNet(1, 3, width=2), (1, 8, 8)),
    "frozen statistics and max-pooling": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(4, 2, 2), nn.ReLU(), nn.Flatten(),
        ),
        (2, 7, 7),
    ),
    "tokens": (Tokens, (3, 4)),
}  # fmt: skip
kinds = pytest.mark.parametrize("kind", list(KINDS))


def dictionary(
    kind: str, samples: int, dtype: torch.dtype = torch.float64
) -> tuple[StructuredDictionary, list[StructuredDictionary]]:
    """Return the dictionary of a batch, and those of its samples."""
    make, shape = KINDS[kind]
    torch.manual_seed(2)
    net = pursuitify(randomise(make(), 3).to(dtype).eval(), iterations=2, offsets="signal")
    x = torch.randn(samples, *shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    return net.dictionary(x), [net.dictionary(x[i : i + 1]) for i in range(samples)]


@kinds
@pytest.mark.parametrize("samples", [1, 3])
def test_the_operator_is_the_dense_matrix_of_each_sample(kind: str, samples: int) -> None:
    d, alone = dictionary(kind, samples)
    dense = [[part.detach().numpy() for part in one.materialize()] for one in alone]
    matrix = scipy.linalg.block_diag(*(B for B, _, _ in dense))
    found = d.as_linear_operator()
    assert found.shape == matrix.shape
    assert found.dtype == np.float64
    generator = np.random.default_rng(0)
    w, r = (generator.standard_normal((n, 2)) for n in reversed(matrix.shape))
    for column in (w[:, 0], w[:, :1], w):
        np.testing.assert_allclose(found @ column, matrix @ column, rtol=0, atol=1e-12)
    for column in (r[:, 0], r[:, :1], r):
        np.testing.assert_allclose(found.T @ column, matrix.T @ column, rtol=0, atol=1e-12)
        np.testing.assert_allclose(found.H @ column, matrix.T @ column, rtol=0, atol=1e-12)
    y = np.concatenate([y for _, y, _ in dense])
    np.testing.assert_allclose(d.row_vector(d.signal), y, rtol=0, atol=1e-12)
    lam = np.concatenate([lam for _, _, lam in dense])
    np.testing.assert_allclose(d.latent_vector(d.thresholds), lam, rtol=0, atol=1e-12)


@kinds
def test_vectors_lead_back_to_latents_and_share_no_memory(kind: str) -> None:
    d, _ = dictionary(kind, 3)
    latents = {n: torch.randn(s).double() for n, s in zip(d.names, d.shapes, strict=True)}
    vector = d.latent_vector(latents)
    back = d.latents_of_vector(vector)
    assert [*back] == [*d.names]
    assert all(torch.equal(back[name], value) for name, value in latents.items())
    vector[:] = 7
    assert all(torch.equal(back[name], value) for name, value in latents.items())


def test_a_solver_of_scipys_solves_the_least_squares_problem() -> None:
    d, _ = dictionary("skips", 1)
    B, y, _ = (part.detach().numpy() for part in d.materialize())
    A = d.as_linear_operator()
    found = lsqr(A, d.row_vector(d.signal), atol=1e-14, btol=1e-14)[0]
    expected = np.linalg.lstsq(B, y, rcond=None)[0]
    np.testing.assert_allclose(B @ found, B @ expected, rtol=0, atol=1e-10)


def test_it_computes_in_the_dictionarys_precision_also_under_autocast() -> None:
    d, _ = dictionary("skips", 1, torch.float32)
    A = d.as_linear_operator()
    assert A.dtype == np.float32
    w = np.linspace(0, 1, A.shape[1])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = A @ w
    assert under.dtype == np.float32
    np.testing.assert_array_equal(under, A @ w.astype(np.float32))


def test_wrong_vectors_and_batches_are_refused() -> None:
    d, _ = dictionary("tokens", 2)
    size = d.as_linear_operator().shape[1]
    with pytest.raises(InputError, match=rf"latents has shape \({size},\) here, not \(3,\)"):
        d.latents_of_vector(np.zeros(3))
    with pytest.raises(InputError, match="real numbers, not complex128"):
        d.as_linear_operator() @ np.zeros(size, complex)
    with pytest.raises(InputError, match="latents are missing"):
        d.latent_vector({})
    with pytest.raises(InputError, match="row 'relu' has shape"):
        d.row_vector({name: torch.zeros(1) for name in d.names})
    low, _ = dictionary("tokens", 1, torch.bfloat16)
    with pytest.raises(InputError, match=r"torch\.bfloat16, which NumPy does not have"):
        low.as_linear_operator()
    moved = pursuitify(TokensFirst().double().eval()).dictionary(torch.rand(3, 2, 4).double())
    with pytest.raises(InputError, match="one sample at a time"):
        moved.as_linear_operator()


def test_a_missing_scipy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    d, _ = dictionary("tokens", 1)
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(MissingExtraError, match=r"pursuitify\[scipy\]"):
        d.as_linear_operator()
