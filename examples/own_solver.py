"""Infer the latents of a network by solvers of other libraries, and compare the objectives.

The dictionary of one image is a SciPy operator, so whatever asks for products with B and B^T alone
can solve the pursuit problem, the least F(w) = 1/2 ||B w - y||^2 + <lam, w> over w >= 0. Here it is
solved by ten lines of ISTA, by SciPy's L-BFGS-B, and by scikit-learn's Lasso, which needs the dense
matrix.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from pursuitify import pursuitify
from pursuitify.errors import MissingExtraError
from pursuitify.models import ChainNet

console = Console()


def source() -> nn.Module:
    """Return a small network whose biases are negative, so that all thresholds are positive."""
    torch.manual_seed(0)
    model = ChainNet(1, 10, depth=1, width=4, batch_norm=False).double().eval()
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight)
                layer.bias.fill_(-0.02)
    return model


def ista(A: object, y: np.ndarray, lam: np.ndarray, step: float, sweeps: int) -> np.ndarray:
    """Return w after ``sweeps`` steps w <- max(w - step (A^T (A w - y) + lam), 0) from zero."""
    w = np.zeros(A.shape[1])
    for _ in range(sweeps):
        w = np.maximum(w - step * (A.rmatvec(A.matvec(w) - y) + lam), 0)
    return w


def bounded(F: Callable, slope: Callable, size: int) -> np.ndarray:
    """Return w of SciPy's L-BFGS-B with the bound w >= 0."""
    from scipy.optimize import minimize

    options = {"maxiter": 5000, "ftol": 1e-12, "gtol": 1e-8}
    start = np.zeros(size)
    return minimize(F, start, jac=slope, bounds=[(0, None)] * size, options=options).x


def lasso(B: np.ndarray, y: np.ndarray, lam: np.ndarray) -> np.ndarray:
    """Return w of scikit-learn's Lasso, whose penalty has one weight: columns are scaled to it."""
    from sklearn.linear_model import Lasso

    model = Lasso(alpha=1 / len(y), positive=True, fit_intercept=False, max_iter=20000, tol=1e-10)
    return model.fit(B / lam, y).coef_ / lam


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=12, help="height and width of the image")
    parser.add_argument("--sweeps", type=int, default=50)
    options = parser.parse_args(argv)
    net = pursuitify(source(), iterations=options.sweeps)
    x = torch.rand(1, 1, options.size, options.size, dtype=torch.float64)

    d = net.dictionary(x)
    try:
        A = d.as_linear_operator()
    except MissingExtraError as error:
        console.print(error, markup=False)
        return 1
    y, lam = d.row_vector(d.signal), d.latent_vector(d.thresholds)

    def objective(w: np.ndarray) -> float:
        return 0.5 * np.sum((A @ w - y) ** 2) + lam @ w

    def slope(w: np.ndarray) -> np.ndarray:
        return A.rmatvec(A @ w - y) + lam

    from scipy.sparse.linalg import svds

    step = 1 / (1.01 * svds(A, k=1, return_singular_vectors=False)[0] ** 2)
    net.iterations = 0
    fed_forward = d.latent_vector(net.latents(x))
    net.iterations = options.sweeps
    adaptive = pursuitify(source(), iterations=options.sweeps, steps="adaptive")
    found = {
        "the network fed forward": fed_forward,
        f"the network, T = {options.sweeps}": d.latent_vector(net.latents(x)),
        f"the network, T = {options.sweeps}, adaptive": d.latent_vector(adaptive.latents(x)),
        f"ISTA, {options.sweeps} steps": ista(A, y, lam, step, options.sweeps),
        "L-BFGS-B to the end": bounded(objective, slope, A.shape[1]),
    }
    try:
        found["Lasso to the end"] = lasso(d.materialize()[0].detach().numpy(), y, lam)
    except ImportError:
        console.print("scikit-learn is not installed: pip install 'pursuitify[demo]'", markup=False)

    table = Table("latents by", "objective", "active", title=f"B is {A.shape[0]} x {A.shape[1]}")
    for name, w in found.items():
        table.add_row(name, f"{objective(w):.6f}", f"{np.mean(w > 0):.1%}")
    console.print(table)
    latents = d.latents_of_vector(found["L-BFGS-B to the end"])
    console.print(f"net.objective of L-BFGS-B's latents: {net.objective(x, latents).item():.6f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
