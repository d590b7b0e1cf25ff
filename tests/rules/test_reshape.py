"""Rules that move, copy and drop entries."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pursuitify import ConversionError, InputError, coherence, pursuitify
from pursuitify.robust import certified_radius
from tests.support.against_oracle import assert_matches_oracle
from tests.support.agreement import assert_adjoint, assert_descends, compare, converted_exactly
from tests.support.oracle import row

ROLLS: dict[str, Any] = {
    "function": lambda x: torch.roll(x, 1, 2),
    "many": lambda x: torch.roll(x, shifts=(1, -2), dims=(2, -1)),
    "method": lambda x: x.roll(-1, dims=3),
    "channels": lambda x: x.roll((1,), (1,)),
    "by size": lambda x: x.roll(x.shape[2] // 2, 2),
}


class Rolled(nn.Module):
    def __init__(self, roll: Any) -> None:
        super().__init__()
        self.roll = roll
        self.a, self.b = nn.Conv2d(1, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.c, self.d = nn.Conv2d(3, 2, 3, padding=1), nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        z = F.relu(self.b(self.roll(F.relu(self.a(x)))))
        return self.d(F.relu(self.roll(self.c(z))).mean((2, 3)))


def made(roll: Any) -> tuple[Rolled, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Rolled(roll).double().eval(), torch.randn(2, 1, 4, 5, dtype=torch.float64)


@pytest.mark.parametrize("name", ROLLS)
def test_a_roll_is_exact_and_descends(name: str) -> None:
    model, x = made(ROLLS[name])
    for training in (True, False):
        net, _ = compare(pursuitify, model, x, training=training, tolerance=1e-12)
    assert_adjoint(net, x)
    assert_descends(net, x, sweeps=4)
    net.iterations = 0
    assert torch.equal(net(x), model(x))


@pytest.mark.parametrize("name", ROLLS)
def test_sweeps_against_the_oracle(name: str) -> None:
    model, x = made(ROLLS[name])
    net, roll = pursuitify(model), ROLLS[name]
    one, two, three = net.latents(x)
    # The last row does not end in its convolution: B_j is the identity there.
    rows = [
        row(one, "x", diag=model.a),
        row(two, one, roll, diag=model.b),
        row(three, two, lambda w: roll(model.c(w))),
    ]
    assert_matches_oracle(net, rows, x[:1])


def test_a_roll_is_certified_and_measured() -> None:
    model, x = made(ROLLS["channels"])
    net = pursuitify(model, iterations=6, solver="synchronous")
    assert bool((certified_radius(net, x).radius > 0).all())
    net.solver = "global"
    exact = coherence(net, input_shape=(1, 4, 5), boundary="exact", x=x[:1])
    matrix = net.dictionary(x[:1]).materialize()[0]
    unit = matrix / matrix.norm(dim=0)
    gram = (unit.T @ unit).fill_diagonal_(0)
    assert exact.mutual_coherence == pytest.approx(float(gram.abs().max()), rel=1e-9)
    assert coherence(net, input_shape=(1, 12, 12)).mutual_coherence > 0


def test_a_roll_of_the_batch_moves_samples() -> None:
    model, x = made(lambda z: z.roll(1, 0))
    net = pursuitify(model, iterations=2)
    assert net.dictionary(x).samples is None
    assert_adjoint(net, x)


def windows(v: np.ndarray) -> np.ndarray:
    """Return what F.unfold(v, 2, (1, 2), (1, 0), (2, 1)) reads, and -1 for a zero of its border."""
    v = np.pad(v, ((0, 0), (1, 1), (0, 0)), constant_values=-1)
    found = [
        [v[c, h + i, w + 2 * j] for h in range(0, v.shape[1] - 1, 2) for w in range(v.shape[2] - 2)]
        for c in range(3) for i in range(2) for j in range(2)
    ]  # fmt: skip
    return np.array(found)


#: The operation on values (batch, 3, 4, 5), and in NumPy on those of one sample.
MOVES: dict[str, tuple[Any, Any]] = {
    "flip": (
        lambda m, x: torch.fliplr(torch.flip(x.flip(2), [1, -1])).flip(1, 2),
        lambda v: v[::-1, :, ::-1],
    ),
    "rot90": (lambda m, x: torch.rot90(x, 1, (2, 3)), lambda v: np.rot90(v, 1, (1, 2))),
    "diagonal": (lambda m, x: x.diagonal(1, 2, 3), lambda v: v.diagonal(1, 1, 2)),
    "movedim": (lambda m, x: x.movedim(1, -1), lambda v: np.moveaxis(v, 0, -1)),
    "mT": (lambda m, x: x.mT, lambda v: v.swapaxes(1, 2)),
    "repeat": (
        lambda m, x: torch.tile(x.repeat((1, 1, 2, 1)), (2, 1)).repeat(1, 2, 1, 1),
        lambda v: np.tile(v, (2, 4, 1)),
    ),
    "repeat_interleave": (
        lambda m, x: torch.repeat_interleave(x, m.counts, 1).repeat_interleave(2, dim=-1),
        lambda v: v.repeat([2, 0, 1], 0).repeat(2, 2),
    ),
    "index_select": (
        lambda m, x: torch.index_select(x, -1, index=m.order).index_select(1, m.order),
        lambda v: v[[2, 0, 2, 2]][:, :, [2, 0, 2, 2]],
    ),
    "list": (lambda m, x: x[:, [0, -1, 0]], lambda v: v[[0, -1, 0]]),
    "list-and-buffer": (
        lambda m, x: x[..., [1, 1, 3]][:, :, m.order], lambda v: v[..., [1, 1, 3]][:, [2, 0, 2, 2]],
    ),
    "mask": (lambda m, x: x[:, m.mask], lambda v: v[[True, False, True]]),
    "two-lists": (lambda m, x: x[:, :, [0, 3, 3], [1, 2, 2]], lambda v: v[:, [0, 3, 3], [1, 2, 2]]),
    "table": (lambda m, x: x[:, m.order.view(2, 2)], lambda v: v[np.array([[2, 0], [2, 2]])]),
    "mask-of-images": (lambda m, x: x[:, :, m.shape], lambda v: v[:, np.eye(4, 5) > 0]),
    "sliced-list": (lambda m, x: x[:, 1:, None, ::2, [0, 0]], lambda v: v[1:, None, ::2, [0, 0]]),
    "one-and-list": (lambda m, x: x[:, 1, :, m.order], lambda v: v[1][:, [2, 0, 2, 2]]),
    "sliding": (
        lambda m, x: x.unfold(2, 3, 1),
        lambda v: np.lib.stride_tricks.sliding_window_view(v, 3, 1),
    ),
    "unfold": (lambda m, x: F.unfold(x, 2, (1, 2), (1, 0), (2, 1)), windows),
}  # fmt: skip


class Moved(nn.Module):
    """A move behind an activation, and one behind a convolution with a bias, before the next."""

    def __init__(self, move: Any) -> None:
        super().__init__()
        self.move = move
        self.register_buffer("order", torch.tensor([2, 0, -1, 2]) % 3)
        self.register_buffer("counts", torch.tensor([2, 0, 1]))
        self.register_buffer("mask", torch.tensor([True, False, True]))
        self.register_buffer("shape", torch.eye(4, 5) > 0)
        self.a, self.b = nn.Conv2d(1, 3, 3, padding=1), nn.Conv2d(3, 3, 1)
        found = move(self, torch.zeros(2, 3, 4, 5)).flatten(1)
        self.c = nn.Linear(found.shape[1], 3)

    def forward(self, x: Tensor) -> Tensor:
        z = F.relu(self.a(x))
        return F.relu(self.c(self.move(self, z).flatten(1))) + F.relu(
            self.move(self, self.b(z)).flatten(1)
        ).sum(1, keepdim=True)


def moving(move: Any) -> tuple[Moved, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Moved(move).double().eval(), torch.randn(2, 1, 4, 5, dtype=torch.float64)


@pytest.mark.parametrize("name", MOVES)
def test_a_move_is_exact_and_its_sweeps_are_the_oracles(name: str) -> None:
    move, by_numpy = MOVES[name]
    model, x = moving(move)
    net = converted_exactly(model, x)
    assert net.dictionary(x).samples == 2
    numbers = torch.from_numpy(by_numpy(np.arange(60).reshape(3, 4, 5)).copy()).flatten()

    def moved(w: Tensor) -> Tensor:
        return F.pad(w.flatten(1), (0, 1))[:, numbers]  # -1 is the zero behind the last

    one, two, three = net.latents(x)
    rows = [
        row(one, "x", diag=model.a),
        row(two, one, moved, diag=model.c),
        row(three, one, lambda w: moved(model.b(w))),
    ]
    assert_matches_oracle(net, rows, x[:1])


@pytest.mark.parametrize(
    "move",
    [
        lambda m, x: x[[1, 1, 0]],
        lambda m, x: x[:, [0, 1], :, [1, 2]].movedim(1, 0),
        lambda m, x: x.flip(0),
        lambda m, x: x.repeat(2, 1, 1, 1),
        lambda m, x: x.repeat(2, 1, 1, 1, 1).flatten(0, 1),
    ],
)
def test_moves_of_the_batch_are_seen(move: Any) -> None:
    model, x = moving(move)
    net, worst = compare(pursuitify, model, x, training=True, tolerance=1e-12)
    assert worst == 0
    assert net.dictionary(x).samples is None
    assert_adjoint(net, x)
    assert net.verify(x)


def test_folded_windows() -> None:
    sizes = {"kernel_size": 2, "stride": (2, 1), "padding": (0, 1)}
    model, x = moving(lambda m, z: F.fold(F.unfold(z, **sizes), (4, 5), **sizes))
    net, worst = compare(pursuitify, model, x, training=False, tolerance=1e-12)
    assert worst == 0
    one, two, three = net.latents(x)
    held = torch.tensor([1.0, 2, 2, 2, 1], dtype=torch.float64) + torch.tensor([1.0, 0, 0, 0, 1])
    rows = [
        row(one, "x", diag=model.a),
        row(two, one, lambda w: (w * held).flatten(1), diag=model.c),
        row(three, one, lambda w: (model.b(w) * held).flatten(1)),
    ]
    assert_matches_oracle(net, rows, x[:1])
    with pytest.raises(InputError, match="batch dimension"):
        pursuitify(nn.Sequential(nn.Conv1d(1, 1, 1), nn.Unfold(1), nn.ReLU()))(torch.randn(2, 1, 4))


def test_copies_of_a_flattened_tensor_are_refused() -> None:
    model, _ = moving(lambda m, z: z.repeat_interleave(2).view(-1, 3, 4, 10))
    with pytest.raises(ConversionError, match="flattened"):
        pursuitify(model)


def test_a_roll_of_everything_is_refused() -> None:
    model, _ = made(lambda z: z.roll(1))
    with pytest.raises(ConversionError, match="the batch included"):
        pursuitify(model)
