"""Compositions of operations that move, stack, cut and add up entries run if they convert.

A sum over dimension 0 need not be one over samples: it may run over what was stacked, or over time.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn

from pursuitify import PursuitNetwork, explain, pursuitify
from tests.support.agreement import assert_adjoint, bound_pass, error, rows_error
from tests.support.examples import examples


@dataclass(frozen=True)
class Move:
    """One operation on a value: its name and its constants."""

    op: str
    more: tuple[Any, ...] = ()


def moved(move: Move, x: Tensor, layers: nn.ModuleDict) -> Tensor:
    """Return the value after one operation, in the words that users write."""
    op, more = move.op, move.more
    if op == "permute":
        return x.permute(*more)
    if op == "transpose":
        return x.transpose(*more)
    if op == "stack":
        return torch.stack([x * factor for factor in more[1:]], more[0])
    if op == "cat":
        return torch.cat([x, x * more[1]], dim=more[0])
    if op in {"sum", "mean"}:
        dims, keep = more
        return getattr(x, op)(dims, keepdim=keep) if keep else getattr(torch, op)(x, dim=dims)
    if op == "joined":
        dim, how, keep, *factors = more
        stacked = torch.stack([x * factor for factor in factors], dim)
        return getattr(torch, how)(stacked, dim, keepdim=keep)
    if op == "slots":
        dim, how, keep, factor = more
        return getattr(torch.cat([x, x * factor], dim), how)(dim, keepdim=keep)
    if op == "unbind":
        parts = torch.unbind(x, more[0])
        return parts[more[1]] + parts[more[2]]
    if op == "chunk":
        first, second = x.chunk(2, more[0])
        return torch.cat([second, first], more[0])
    if op == "select":
        return x.select(*more)
    if op == "index":
        return x[more]
    if op == "narrow":
        return x.narrow(*more)
    if op == "flatten":
        return x.flatten(*more)
    if op == "reshape":
        return x.reshape(more)
    if op == "unsqueeze":
        return x.unsqueeze(*more)
    if op == "squeeze":
        return x.squeeze(*more)
    if op == "expand":
        return x.expand(more)
    if op == "pad":
        return F.pad(x, more)
    if op == "relu":
        return F.relu(x)
    if op == "skip":
        return x + F.relu(x - 0.1)
    assert op == "linear", op
    return F.relu(layers[more[0]](x))


class Moves(nn.Module):
    """A dense layer, moves between latents, and a dense layer."""

    def __init__(self, moves: tuple[Move, ...], layers: dict[str, nn.Module]) -> None:
        super().__init__()
        self.moves, self.layers = moves, nn.ModuleDict(layers)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.layers["first"](x))
        for move in self.moves:
            x = moved(move, x, self.layers)
        return F.relu(self.layers["last"](x)) * 2


OPS = (
    "permute", "transpose", "stack", "cat", "sum", "mean", "unbind", "chunk", "select", "index",
    "narrow", "flatten", "reshape", "unsqueeze", "squeeze", "expand", "pad", "relu", "skip",
    "linear", "joined", "joined", "slots", "slots",
)  # fmt: skip


@st.composite
def cases(draw: st.DrawFn) -> tuple[nn.Module, Tensor]:
    """A network and an input of one to three samples."""
    torch.manual_seed(draw(st.integers(0, 99)))
    width = draw(st.integers(2, 3))
    x = torch.randn(draw(st.integers(1, 3)), draw(st.integers(1, 3)), width).double()
    layers: dict[str, nn.Module] = {"first": nn.Linear(width, draw(st.integers(2, 4))).double()}
    value = F.relu(layers["first"](x))
    moves = []
    for step in range(draw(st.integers(1, 5))):
        move = draw(_move(value, f"layer{step}"))
        if move is None:
            continue
        if move.op == "linear":
            layers[move.more[0]] = nn.Linear(value.shape[-1], draw(st.integers(2, 3))).double()
        value = moved(move, value, nn.ModuleDict(layers))
        moves.append(move)
    if not value.dim():
        value = value[None]
        moves.append(Move("unsqueeze", (0,)))
    layers["last"] = nn.Linear(value.shape[-1], 2).double()
    return Moves(tuple(moves), layers).eval(), x


@st.composite
def _move(draw: st.DrawFn, x: Tensor, name: str) -> Move | None:
    """One operation that a value of this shape allows."""
    op, rank = draw(st.sampled_from(OPS)), x.dim()
    if rank == 0:
        return Move("unsqueeze", (0,))
    dim = draw(st.integers(0, rank - 1))
    size = x.shape[dim]
    if op == "permute":
        return Move(op, tuple(draw(st.permutations(range(rank)))))
    if op == "transpose":
        return Move(op, (dim - draw(st.sampled_from([0, rank])), draw(st.integers(0, rank - 1))))
    if op == "stack":
        factors = draw(st.lists(st.sampled_from([1.0, -0.5, 2.0]), min_size=1, max_size=3))
        return Move(op, (draw(st.integers(-1, rank)), *factors)) if rank < 5 else None
    if op == "cat":
        return Move(op, (dim, draw(st.sampled_from([1.0, -0.5])))) if x.numel() < 200 else None
    if op in {"sum", "mean"}:
        dims = draw(st.lists(st.integers(0, rank - 1), min_size=1, max_size=2, unique=True))
        keep = draw(st.booleans())
        return Move(op, (dims[0] if len(dims) == 1 else tuple(dims), keep))
    if op in {"joined", "slots"}:
        how, keep = draw(st.sampled_from(["sum", "mean"])), draw(st.booleans())
        factors = draw(st.lists(st.sampled_from([1.0, -0.5]), min_size=1, max_size=3))
        return Move(op, (dim, how, keep, *(factors if op == "joined" else factors[:1])))
    if op == "unbind":
        return Move(op, (dim, draw(st.integers(0, size - 1)), draw(st.integers(0, size - 1))))
    if op == "chunk":
        return Move(op, (dim,)) if size > 1 else None
    if op == "select":
        return Move(op, (dim, draw(st.integers(-size, size - 1))))
    if op == "index":
        some = st.sampled_from([slice(None), slice(None, None, 2), slice(-1, None), 0, None, ...])
        first = tuple(draw(st.lists(some, min_size=1, max_size=2)))
        used = sum(e is not None and e is not ... for e in first)
        return Move(op, first) if first.count(...) < 2 and used <= rank else None
    if op == "narrow":
        start = draw(st.integers(0, size - 1))
        return Move(op, (dim, start, draw(st.integers(1, size - start))))
    if op == "flatten":
        return Move(op, (dim, draw(st.integers(dim, rank - 1))))
    if op == "reshape":
        turned = tuple(draw(st.permutations(x.shape)))
        return Move(op, draw(st.sampled_from([turned, (-1, *turned[1:]), (*turned[:-1], -1)])))
    if op == "unsqueeze":
        return Move(op, (draw(st.integers(-1, rank)),)) if rank < 5 else None
    if op == "squeeze":
        return Move(op, draw(st.sampled_from([(), (dim,)])))
    if op == "expand":
        more = draw(st.sampled_from([(), (2,)])) if rank < 5 and x.numel() < 200 else ()
        return Move(op, (*more, *x.shape))
    if op == "pad":
        return Move(op, tuple(draw(st.lists(st.integers(0, 1), min_size=2, max_size=2))))
    return Move(op, (name,) if op == "linear" else ())


def dense_sweeps(net: PursuitNetwork, x: Tensor, count: int) -> dict[str, np.ndarray[Any, Any]]:
    """Deep pursuit by the dense reference's own formulas, on a dictionary probed entry by entry."""
    bound = net.dictionary(x)
    start = {k: v.detach() for k, v in bound_latents(net, x).items()}
    zero = {k: torch.zeros_like(v) for k, v in start.items()}

    def image(latents: dict[str, Tensor]) -> np.ndarray[Any, Any]:
        rows = bound.apply(latents)
        return np.concatenate([rows[k].detach().reshape(-1).numpy() for k in bound.names])

    columns, matrix, position = {}, [], 0
    for name, value in start.items():
        columns[name] = slice(position, position + value.numel())
        position += value.numel()
        for i in range(value.numel()):
            unit = torch.zeros(value.numel(), dtype=value.dtype)
            unit[i] = 1
            matrix.append(image({**zero, name: unit.reshape(value.shape)}))
    dense = np.stack(matrix, 1)
    y = np.concatenate([bound.signal[k].detach().reshape(-1).numpy() for k in bound.names])
    lam = np.concatenate([bound.thresholds[k].detach().reshape(-1).numpy() for k in bound.names])
    w = np.concatenate([start[k].reshape(-1).numpy() for k in bound.names])
    steps = net.step_sizes(x)
    for _ in range(count):
        for row_, name in zip(bound.rows, bound.names, strict=True):
            column = columns[name]
            gamma = steps[name].detach().expand(start[name].shape).reshape(-1).numpy()
            slope = dense[:, column].T @ (dense @ w - y) + lam[column]
            new = w[column] - gamma * slope
            w[column] = np.maximum(new, 0) if row_.activation.sparse else new
    return {k: w[columns[k]].reshape(start[k].shape) for k in bound.names}


def bound_latents(net: PursuitNetwork, x: Tensor) -> dict[str, Tensor]:
    iterations, net.iterations = net.iterations, 0
    found = net.latents(x)
    net.iterations = iterations
    return found


def _alone(model: nn.Module, x: Tensor) -> Tensor | None:
    """Outputs sample by sample, side by side; None where the model needs this very batch."""
    try:
        return torch.cat([model(x[i : i + 1]) for i in range(len(x))])
    except (RuntimeError, IndexError, ValueError):
        return None


class Branches(nn.Module):
    """Parallel branches, put together in one of several ways."""

    def __init__(self, join: Callable[[list[Tensor]], Any]) -> None:
        super().__init__()
        self.join = join
        self.branches = nn.ModuleList([nn.Conv2d(2, 4, 3) for _ in range(3)])
        self.last = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        joined = self.join([branch(x) for branch in self.branches])
        return F.relu(self.last(F.relu(joined).mean((2, 3))))


class Sequence(nn.Module):
    """Time lies along dimension 0 where it is averaged, or along its own."""

    def __init__(self, average: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.average = average
        self.conv, self.middle, self.last = nn.Conv1d(2, 4, 3), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.relu(self.middle(self.average(F.relu(self.conv(x))))))


@pytest.mark.parametrize(
    ("one", "other", "shape"),
    [
        (Branches(sum), Branches(lambda t: torch.stack(t).sum(0)), (2, 5, 5)),
        (Branches(sum), Branches(lambda t: torch.stack(t, 2).sum(2)), (2, 5, 5)),
        (Branches(lambda t: sum(t) / 3), Branches(lambda t: torch.stack(t).mean(dim=0)), (2, 5, 5)),
        (
            Sequence(lambda t: t.mean(2)),
            Sequence(lambda t: t.permute(2, 0, 1).mean(0)),
            (2, 7),
        ),
    ],
    ids=["sum", "sum-inside", "mean", "time-first"],
)
def test_ways_to_say_the_same_are_the_same(
    one: nn.Module, other: nn.Module, shape: tuple[int, ...]
) -> None:
    """Steps, latents and output agree, and what is said of one sample is known in both."""
    other.load_state_dict(one.state_dict())
    x = torch.randn(3, *shape, dtype=torch.float64)
    nets = [pursuitify(m.double().eval(), iterations=4, layout="encoder") for m in (one, other)]
    assert error(nets[1](x), nets[0](x)) <= 1e-11
    assert nets[1].dictionary(x).samples == 3
    objectives = [net.objective(x, net.latents(x)) for net in nets]
    torch.testing.assert_close(objectives[1], objectives[0], rtol=1e-10, atol=1e-10)


@examples(50, 500, cases())
def test_what_converts_runs_and_is_right(case: tuple[nn.Module, Tensor]) -> None:
    model, x = case
    report = explain(model)
    if not report.ok:
        assert report.problems
        return
    net = pursuitify(model, iterations=0)
    expected = model(x)
    assert torch.equal(net(x), expected)
    output, first, bound = bound_pass(net, (x,))
    assert error(output, expected) <= 1e-12
    assert rows_error(first, bound) <= 1e-11
    assert_adjoint(net, x)
    reference = dense_sweeps(net, x, 2)
    net.iterations = 2
    for name, value in net.latents(x).items():
        np.testing.assert_allclose(
            value.detach().numpy(), reference[name], rtol=1e-10, atol=1e-10, err_msg=name
        )
    theirs = _alone(model, x)
    if bound.samples == len(x) > 1 and theirs is not None:
        mine = _alone(net, x)
        if theirs.shape == expected.shape and error(theirs, expected) <= 1e-12:
            assert error(mine, net(x)) <= 1e-10
    sweeps = [sweep.objective for sweep in net.diagnose(x).sweeps]
    assert all(b <= a + 1e-9 * (1 + abs(a)) for a, b in itertools.pairwise(sweeps)), sweeps
