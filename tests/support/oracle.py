"""An independent dense reference of mathematics.md in NumPy, float64, without the package.

A network is described by hand as a list of ``Row``s built from the source network's own torch
modules. Torch is used only to probe those affine functions with basis vectors; every dictionary,
objective, solver and optimum below is plain NumPy (and SciPy for the optimum). Batch of one.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.optimize
import torch
from torch import Tensor

Array = npt.NDArray[np.float64]
Affine = Callable[..., Tensor]
Activation = str | tuple[str, float] | tuple[str, float, float]

INPUT = "x"


@dataclass(frozen=True)
class Slot:
    """One independent part of u_j: an affine function of the leaves it reads.

    Attributes:
        leaves: Names of the latents read, ``"x"`` for the input; one argument of ``fn`` each.
        fn: Affine torch function, batch in dimension 0.
    """

    leaves: tuple[str, ...]
    fn: Affine


@dataclass(frozen=True)
class Row:
    """One row of the dictionary, described with the source's own modules.

    Attributes:
        name: Name of the latent.
        slots: The parts of u_j, in order.
        diag: None in an encoder row (B_j = I on the concatenation of the slots); in a decoder row
            the affine function from the slots to the pre-activation, whose linear part is B_j^T.
        activation: "relu", "identity", ("leaky", a), ("clip", lo, hi) or
            ("soft", t), which the optimum and the objective do not know.
        shape: Shape of the latent without the batch; needed only in an encoder row of many slots
            joined along another dimension than 1.
    """

    name: str
    slots: tuple[Slot, ...]
    diag: Affine | None = None
    activation: Activation = "relu"
    shape: tuple[int, ...] | None = None


def row(
    name: str,
    leaves: str | Sequence[str],
    fn: Affine | None = None,
    diag: Affine | None = None,
    activation: Activation = "relu",
) -> Row:
    """Return a row of a single slot; ``fn`` defaults to the identity of its one leaf."""
    names = (leaves,) if isinstance(leaves, str) else tuple(leaves)
    return Row(name, (Slot(names, fn or (lambda u: u)),), diag, activation)


def prox(activation: Activation, v: Array, g: float | Array = 1.0) -> Array:
    """Return prox_{g f}(v) of mathematics.md, section 3."""
    kind, *parameters = (activation,) if isinstance(activation, str) else activation
    if kind == "relu":
        return np.maximum(v, 0.0)
    if kind == "identity":
        return v.copy()
    if kind == "leaky":
        return np.where(v >= 0, v, v / (1.0 + g * (1.0 / parameters[0] - 1.0)))
    if kind == "soft":
        return np.sign(v) * np.maximum(np.abs(v) - g * parameters[0], 0.0)
    if kind == "clip":
        return np.minimum(np.maximum(v, parameters[0]), parameters[1])
    raise ValueError(f"unknown activation {activation!r}")


def domain(activation: Activation) -> tuple[float, float, float]:
    """Return lower bound, upper bound and the curvature c of the penalty c/2 min(w, 0)^2."""
    kind, *parameters = (activation,) if isinstance(activation, str) else activation
    if kind == "leaky":
        return -math.inf, math.inf, 1.0 / parameters[0] - 1.0
    if kind == "clip":
        return parameters[0], parameters[1], 0.0
    return (0.0 if kind == "relu" else -math.inf), math.inf, 0.0


def probe(fn: Affine, shapes: Sequence[tuple[int, ...]]) -> tuple[list[Array], Array, tuple]:
    """Return the matrices (one per argument), the offset and the output shape of an affine fn."""
    with torch.no_grad():
        zero = fn(*(torch.zeros(1, *s, dtype=torch.float64) for s in shapes))
        offset = zero.reshape(-1).numpy().copy()
        matrices = []
        for position, shape in enumerate(shapes):
            n = math.prod(shape)
            arguments = [torch.zeros(n, *s, dtype=torch.float64) for s in shapes]
            arguments[position] = torch.eye(n, dtype=torch.float64).reshape(n, *shape)
            columns = fn(*arguments).reshape(n, -1).numpy()
            matrices.append(np.ascontiguousarray(columns.T) - offset[:, None])
    return matrices, offset, tuple(zero.shape[1:])


def _many(value: int | Sequence[int], n: int) -> tuple[int, ...]:
    return (value,) * n if isinstance(value, int) else tuple(value)


def frozen_max_pool(
    x: Tensor,
    kernel: int | Sequence[int],
    stride: int | Sequence[int] | None = None,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    ceil_mode: bool = False,
) -> Affine:
    """Return the linear selection that max pooling makes at ``x``, a batch of one.

    Ties go to the first position in row-major order. Plain loops over windows, any dimension.
    """
    value = x.detach().numpy()[0]
    channels, size = value.shape[0], value.shape[1:]
    n = len(size)
    k, p, d = _many(kernel, n), _many(padding, n), _many(dilation, n)
    s = k if stride is None else _many(stride, n)
    out = []
    for i in range(n):
        span = size[i] + 2 * p[i] - d[i] * (k[i] - 1) - 1
        count = (math.ceil(span / s[i]) if ceil_mode else span // s[i]) + 1
        if ceil_mode and (count - 1) * s[i] >= size[i] + p[i]:
            count -= 1
        out.append(count)
    chosen = []
    for channel in range(channels):
        for position in itertools.product(*(range(o) for o in out)):
            best, best_value = -1, -math.inf
            for tap in itertools.product(*(range(w) for w in k)):
                at = tuple(position[i] * s[i] - p[i] + tap[i] * d[i] for i in range(n))
                if all(0 <= at[i] < size[i] for i in range(n)) and value[channel][at] > best_value:
                    best_value = value[channel][at]
                    best = channel * math.prod(size) + int(np.ravel_multi_index(at, size))
            chosen.append(best)
    index = torch.tensor(chosen)

    def select(u: Tensor) -> Tensor:
        return u.flatten(1)[:, index].reshape(u.shape[0], channels, *out)

    return select


class Oracle:
    """The global dictionary of hand-written rows at one input, dense.

    Vectors run over the latents in row order, each flattened; residuals over the rows, slot after
    slot. The residual is ``B w - y``.

    Attributes:
        names: Latents in order.
        shapes: Latent name to shape without the batch.
        columns: Latent name to its slice of w.
        lines: Latent name to its slice of the residual.
        B: Dense dictionary (M, N), block lower triangular.
        y: What the input contributes, (M,), and the offsets that stand in the signal.
        lam: Thresholds, (N,).
        w0: Feed-forward values by (17), (N,).
    """

    def __init__(
        self,
        rows: Sequence[Row],
        x: Tensor,
        offsets: str = "signal",
        gains: Mapping[str, Any] | None = None,
        share: float = 1.0,
    ) -> None:
        """Probe the rows at the input ``x`` of shape (1, ...), float64.

        Args:
            rows: The rows.
            x: The input.
            offsets: Where b_j of an encoder row stands: ``threshold`` (lam_j = -b_j), ``signal``
                (y_j = b_j, lam_j = 0), or ``stationary`` (lam_j = w_j - u_j - b_j of the
                feed-forward pass, y_j = b_j + lam_j).
            gains: c_j of decoder rows by latent, broadcast against its shape: B_j = W^T diag(c_j),
                c_j lam_j, and the penalty c_j f_j.
            share: Factor on the thresholds of ``stationary``.
        """
        self.gains: dict[str, Array] = {}
        gains = gains or {}
        if x.shape[0] != 1:
            raise ValueError("the oracle takes a batch of one")
        self.rows = tuple(rows)
        self.names = tuple(r.name for r in rows)
        self.shapes: dict[str, tuple[int, ...]] = {INPUT: tuple(x.shape[1:])}
        self.columns: dict[str, slice] = {}
        self.lines: dict[str, slice] = {}
        blocks: list[tuple[slice, str, Array]] = []
        lam, inputs = [], []
        m = n = 0
        source = x.reshape(-1).double().numpy()
        for r in rows:
            start, offsets_of, shapes = m, [], []
            for slot in r.slots:
                matrices, offset, shape = probe(slot.fn, [self.shapes[k] for k in slot.leaves])
                line = slice(m, m + offset.size)
                part = np.zeros(offset.size)
                for leaf, matrix in zip(slot.leaves, matrices, strict=True):
                    if leaf == INPUT:
                        part += matrix @ source
                    else:
                        blocks.append((line, leaf, -matrix))
                inputs.append(part)
                offsets_of.append(offset)
                shapes.append(shape)
                m += offset.size
            u0 = np.concatenate(offsets_of)
            if r.diag is None:
                diagonal, at_zero = np.eye(m - start), u0
                shape = shapes[0] if len(shapes) == 1 else r.shape
                if shape is None:
                    shape = (sum(s[0] for s in shapes), *shapes[0][1:])
            else:
                parts, constant, shape = probe(r.diag, shapes)
                transposed = np.concatenate(parts, axis=1)  # B_j^T
                diagonal, at_zero = transposed.T, transposed @ u0 + constant
            self.gains[r.name] = np.ones(at_zero.size)
            if r.name in gains:
                if r.diag is None:
                    raise ValueError(f"{r.name} is no decoder row: it has no gains")
                c = np.broadcast_to(np.asarray(gains[r.name], dtype=np.float64), shape).reshape(-1)
                self.gains[r.name], diagonal, at_zero = c, diagonal * c, at_zero * c
            self.shapes[r.name] = shape
            self.columns[r.name] = slice(n, n + at_zero.size)
            self.lines[r.name] = slice(start, m)
            blocks.append((self.lines[r.name], r.name, diagonal))
            if offsets != "threshold" and r.diag is None:
                inputs[-len(r.slots) :] = [
                    part + offset
                    for part, offset in zip(inputs[-len(r.slots) :], offsets_of, strict=True)
                ]
                at_zero = np.zeros_like(at_zero)
            lam.append(-at_zero)
            n += at_zero.size
        self.B: Array = np.zeros((m, n))
        for line, leaf, block in blocks:
            self.B[line, self.columns[leaf]] += block
        self.y: Array = np.concatenate(inputs)
        self.lam: Array = np.concatenate(lam)
        bounds = [(r.activation, self.columns[r.name]) for r in rows]
        self.lower, self.upper, self.curvature = np.empty(n), np.empty(n), np.empty(n)
        for activation, where in bounds:
            self.lower[where], self.upper[where], self.curvature[where] = domain(activation)
        self.curvature *= np.concatenate([self.gains[r.name] for r in rows])
        del self.shapes[INPUT]
        self.w0: Array = self._feedforward()
        if offsets == "stationary":
            for r in rows:
                if r.diag is None:
                    left = share * self.residual(self.w0)[self.lines[r.name]]
                    self.y[self.lines[r.name]] += left
                    self.lam[self.columns[r.name]] += left

    def _feedforward(self) -> Array:
        w = np.zeros(self.B.shape[1])
        for r in self.rows:
            column, line = self.columns[r.name], self.lines[r.name]
            u, c = self._signal(r.name, w), self.gains[r.name]
            # Gains multiply every term: the layer that they belong to knows nothing of them.
            w[column] = prox(r.activation, (self.B[line, column].T @ u - self.lam[column]) / c)
        return w

    def _prox(self, r: Row, v: Array, g: float) -> Array:
        """Return prox of g times the row's penalty, gains included."""
        return prox(r.activation, v, g * self.gains[r.name])

    def _signal(self, name: str, w: Array) -> Array:
        """Return u_j from the latents before j."""
        line, before = self.lines[name], slice(0, self.columns[name].start)
        return self.y[line] - self.B[line, before] @ w[before]

    def split(self, w: Array) -> dict[str, Array]:
        """Return a vector over the latents as latent name -> array (1, *shape)."""
        return {k: w[self.columns[k]].reshape(1, *self.shapes[k]) for k in self.names}

    def join(self, latents: Mapping[str, Any]) -> Array:
        """Return latents (arrays or tensors, a batch of one) as one vector in order."""
        return np.concatenate(
            [np.asarray(latents[k], dtype=np.float64).reshape(-1) for k in self.names]
        )

    def residual(self, w: Array) -> Array:
        """Return r = B w - y."""
        return self.B @ w - self.y

    def objective(self, w: Array, tolerance: float = 0.0) -> float:
        """Return F(w) of (11) with every penalty f_j; inf outside the domain."""
        if np.any(w < self.lower - tolerance) or np.any(w > self.upper + tolerance):
            return math.inf
        r = self.residual(w)
        penalty = 0.5 * self.curvature @ np.minimum(w, 0.0) ** 2
        return float(0.5 * r @ r + self.lam @ w + penalty)

    def lipschitz(self, *names: str) -> dict[str, float]:
        """Return the exact ||B_j^T B_j + sum B_j'j B_j'j^T|| of the named latents, or of all."""
        chosen = names or self.names
        return {k: float(np.linalg.norm(self.B[:, self.columns[k]], 2) ** 2) for k in chosen}

    def row_lipschitz(self, *names: str) -> dict[str, float]:
        """Return the exact ||B_j||^2 of the named rows alone, or all: layered pursuit's L."""
        chosen = names or self.names
        return {
            k: float(np.linalg.norm(self.B[self.lines[k], self.columns[k]], 2) ** 2) for k in chosen
        }

    def trajectory(
        self,
        gamma: Mapping[str, Any] | None = None,
        alpha: float | Mapping[str, Any] = 0.0,
        start: Array | None = None,
        variant: str = "corrected",
    ) -> Iterator[Array]:
        """Yield w after 0, 1, ... sweeps of Algorithm 2, without end (mathematics.md, section 5).

        Args:
            gamma: Step of each latent; 1 / L_j exactly by default.
            alpha: Extrapolation, one number or one per latent.
            start: Where to start; the feed-forward values by default.
            variant: "corrected", or what the paper prints: "unscaled_threshold" (threshold lam
                instead of gamma lam) or "extrapolation_as_printed" (14).
        """
        if variant not in ("corrected", "unscaled_threshold", "extrapolation_as_printed"):
            raise ValueError(f"unknown variant {variant!r}")
        steps = gamma or {k: 1.0 / v for k, v in self.lipschitz().items()}
        step = {k: float(np.asarray(steps[k]).reshape(())) for k in self.names}
        speed = {k: float(alpha[k] if isinstance(alpha, Mapping) else alpha) for k in self.names}
        w = (self.w0 if start is None else start).copy()
        previous = w.copy()
        yield w.copy()
        while True:
            old = w.copy()
            for r in self.rows:
                column, g = self.columns[r.name], step[r.name]
                move = speed[r.name] * (w[column] - previous[column])
                v = move if variant == "extrapolation_as_printed" else w[column] + move
                at = w.copy()
                at[column] = v
                # (18): B_j^T r_j - sum_{j'>j} B_j'j r_j'; the rows above j hold zeros here
                below = slice(self.lines[r.name].start, None)
                grad = self.B[below, column].T @ (self.B[below] @ at - self.y[below])
                scale = 1.0 if variant == "unscaled_threshold" else g
                w[column] = self._prox(r, v - g * grad - scale * self.lam[column], g)
            previous = old
            yield w.copy()

    def sweeps(
        self,
        T: int,
        gamma: Mapping[str, Any] | None = None,
        alpha: float | Mapping[str, Any] = 0.0,
        start: Array | None = None,
    ) -> Array:
        """Return w after ``T`` sweeps of deep pursuit; T = 0 gives the feed-forward values."""
        return next(itertools.islice(self.trajectory(gamma, alpha, start), T, None))

    def penalty(self, name: str, w: Array) -> float:
        """Return f_j of a latent within its domain."""
        activation = next(r.activation for r in self.rows if r.name == name)
        kind, *parameters = (activation,) if isinstance(activation, str) else activation
        c = self.gains[name]
        if kind == "leaky":
            return float(0.5 * (1.0 / parameters[0] - 1.0) * (c @ np.minimum(w, 0.0) ** 2))
        return float(parameters[0] * (c @ np.abs(w))) if kind == "soft" else 0.0

    def adaptive(
        self, T: int, estimate: Mapping[str, Any], scale: float = 1.0, start: Array | None = None
    ) -> Array:
        """Return w after ``T`` sweeps with adaptive steps (mathematics.md, section 5).

        Args:
            T: The number of sweeps.
            estimate: About 1 / L of each latent, times ``scale``.
            scale: Factor on every step.
            start: Where to start; the feed-forward values by default.
        """
        about = {k: float(np.asarray(estimate[k]).reshape(())) for k in self.names}
        step = {k: 4.0 * about[k] for k in self.names}
        w = (self.w0 if start is None else start).copy()
        for _ in range(T):
            for r in self.rows:
                column, s = self.columns[r.name], step[r.name]
                K, old = self.B[:, column], w[column].copy()
                slope = K.T @ self.residual(w) + self.lam[column]
                delta = self._prox(r, old - s * slope, s) - old
                rise = slope @ delta + self.penalty(r.name, old + delta)
                rise -= self.penalty(r.name, old)
                curvature = float(np.sum((K @ delta) ** 2))
                if curvature > 0:
                    theta = min(max(-rise / curvature, 0.0), 1.0)
                    spectral = 3.0 * scale * float(delta @ delta) / curvature
                    step[r.name] = min(max(spectral, about[r.name]), 50.0 * about[r.name])
                else:
                    theta = 1.0 if rise < 0 else 0.0
                w[column] = old + theta * delta
        return w

    def literal_paper(
        self,
        T: int,
        variant: str,
        gamma: Mapping[str, Any] | None = None,
        alpha: float | None = None,
    ) -> Array:
        """Return w after ``T`` sweeps of what the paper literally prints; see ``trajectory``."""
        if alpha is None:
            alpha = 0.5 if variant == "extrapolation_as_printed" else 0.0
        return next(itertools.islice(self.trajectory(gamma, alpha, None, variant), T, None))

    def layered(self, T: int, gamma: Mapping[str, Any] | None = None) -> Array:
        """Return w after layered pursuit, Algorithm 1: ``T`` steps a row, from feed-forward values.

        Args:
            T: Proximal-gradient steps per row.
            gamma: Step of each row; 1 / ||B_j||^2 exactly by default.
        """
        steps = gamma or {k: 1.0 / v for k, v in self.row_lipschitz().items()}
        w = self.w0.copy()
        for r in self.rows:
            column = self.columns[r.name]
            block, u = self.B[self.lines[r.name], column], self._signal(r.name, w)
            g = float(np.asarray(steps[r.name]).reshape(()))
            for _ in range(T):
                grad = block.T @ (block @ w[column] - u)
                w[column] = self._prox(r, w[column] - g * (grad + self.lam[column]), g)
        return w

    def violation(self, w: Array) -> float:
        """Return how far w is from the KKT conditions: max |w - prox_f(w - grad F_smooth)|."""
        slope = self.B.T @ self.residual(w) + self.lam + self.curvature * np.minimum(w, 0.0)
        return float(np.max(np.abs(w - np.clip(w - slope, self.lower, self.upper))))

    def optimum(self, tolerance: float = 1e-9) -> tuple[Array, float]:
        """Return a minimiser of F and its value, by a solver that shares nothing with the sweeps.

        L-BFGS-B, then an active-set polish (exact solves on the free coordinates). The KKT
        conditions are checked.

        Raises:
            RuntimeError: If they do not hold: F is unbounded below or badly conditioned.
        """
        gram, linear = self.B.T @ self.B, self.lam - self.B.T @ self.y
        constant = 0.5 * float(self.y @ self.y)

        def value_and_slope(w: Array) -> tuple[float, Array]:
            negative = np.minimum(w, 0.0)
            product = gram @ w
            value = 0.5 * w @ product + linear @ w + 0.5 * self.curvature @ negative**2
            return float(value) + constant, product + linear + self.curvature * negative

        def watch(w: Array) -> None:
            if np.max(np.abs(w)) > 1e9:  # runs away
                raise StopIteration

        found = scipy.optimize.minimize(
            value_and_slope,
            self.w0,
            jac=True,
            method="L-BFGS-B",
            callback=watch,
            bounds=list(zip(self.lower, self.upper, strict=True)),
            options={"maxiter": 50_000, "maxfun": 100_000, "ftol": 1e-16, "gtol": 1e-11},
        )
        best = np.asarray(found.x)
        w = best
        for _ in range(100):
            slope = value_and_slope(w)[1]
            low, high = w - slope <= self.lower, w - slope >= self.upper
            free = ~(low | high)
            curve = np.where(w < 0, self.curvature, 0.0)
            new = np.where(low, self.lower, np.where(high, self.upper, 0.0))
            hessian = (gram + np.diag(curve))[np.ix_(free, free)]
            right = -(linear + gram[:, ~free] @ new[~free])[free]
            new[free] = np.linalg.lstsq(hessian, right, rcond=None)[0]
            done = np.allclose(new, w, rtol=0, atol=1e-14)
            w = new
            if done or self.violation(w) < 1e-12:
                break
        feasible = np.clip(w, self.lower, self.upper)
        if self.violation(feasible) < self.violation(best):
            best = feasible
        size = 1.0 + float(np.max(np.abs(linear)))
        if not np.isfinite(best).all() or self.violation(best) > tolerance * size:
            raise RuntimeError(f"no optimum: KKT violation {self.violation(best):.2e}")
        return best, self.objective(best)
