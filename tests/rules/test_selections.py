"""Rules that choose entries: max, topk, sort, maximum, max-unpooling."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pursuitify import (
    ConversionError,
    InputError,
    OptionError,
    coherence,
    explain,
    pursuitify,
)
from pursuitify.robust import certified_radius
from tests.support.against_oracle import assert_matches_oracle
from tests.support.agreement import converted_exactly
from tests.support.oracle import row


def unpacked(x: Tensor) -> Tensor:
    values, _ = torch.max(x, 2)
    return values


def sorted_by(v: np.ndarray, axis: int = 1) -> np.ndarray:
    return np.argsort(v, axis)


#: The operation on latents (batch, 4, 6), and in NumPy where it reads each entry of one sample: a
#: function of the values (4, 6) that returns places along an axis, and the axis; None for all.
CHOICES: dict[str, tuple[Any, Any, int | None]] = {
    "max": (lambda x: torch.max(x, 2)[0], lambda v: v.argmax(1)[:, None], 1),
    "max-unpacked": (unpacked, lambda v: v.argmax(1)[:, None], 1),
    "max-of-channels": (lambda x: x.max(axis=1)[0], lambda v: v.argmax(0)[None], 0),
    "min": (lambda x: torch.min(x, 2, True)[-2], lambda v: v.argmin(1)[:, None], 1),
    "median": (lambda x: x.median(2).values, lambda v: sorted_by(v)[:, 2:3], 1),
    "kthvalue": (lambda x: x.kthvalue(2)[0], lambda v: sorted_by(v)[:, 1:2], 1),
    "topk": (lambda x: x.topk(3)[0], lambda v: sorted_by(-v)[:, :3], 1),
    "topk-of-channels": (
        lambda x: torch.topk(x, k=2, dim=1, largest=False).values,
        lambda v: sorted_by(v, 0)[:2], 0,
    ),
    "sort": (lambda x: x.sort(descending=True)[0], lambda v: sorted_by(-v), 1),
    "amax": (lambda x: torch.amax(x, -1), lambda v: v.argmax(1)[:, None], 1),
    "amin": (lambda x: x.amin(dim=(1,), keepdim=True), lambda v: v.argmin(0)[None], 0),
    "gather-order": (
        lambda x: x.gather(1, x.argsort(1)[:, 1:3]), lambda v: sorted_by(v, 0)[1:3], 0,
    ),
    "gather-best": (
        lambda x: torch.gather(x, 2, x.argmax(2, keepdim=True)), lambda v: v.argmax(1)[:, None], 1,
    ),
    "gather-by-another": (
        lambda x: torch.gather(x, 2, x.mean(1, keepdim=True).topk(2, 2)[1].expand(-1, 4, -1)),
        lambda v: np.repeat(sorted_by(-v.mean(0, keepdims=True))[:, :2], 4, 0), 1,
    ),
    "take-worst": (
        lambda x: torch.take_along_dim(x, x.argmin(2, keepdim=True), 2),
        lambda v: v.argmin(1)[:, None], 1,
    ),
    "frozen-mask": (
        lambda x: x[x.argsort(1) < 2].view(x.size(0), -1),
        lambda v: np.nonzero((sorted_by(v, 0) < 2).ravel())[0][None], None,
    ),
    "take-constant": (
        lambda x: x.take_along_dim(torch.tensor([[[0, -1, 0]]]), dim=2),
        lambda v: np.tile([0, 5, 0], (4, 1)), 1,
    ),
}  # fmt: skip


class Chosen(nn.Module):
    """conv, relu, a choice, dense, relu, dense; the latents are positive, so that no two tie."""

    def __init__(self, choose: Any, dims: int = 1) -> None:
        super().__init__()
        self.a = (nn.Conv1d, nn.Conv2d)[dims - 1](2, 4, 3, padding=1)
        self.choose = choose
        with torch.no_grad():
            self.a.bias += 4
            found = self.choose(self.a(torch.randn(1, 2, *(6,) * dims)))
        self.b, self.c = nn.Linear(found[0].numel(), 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(F.relu(self.b(self.choose(F.relu(self.a(x))).flatten(1))))


def made(choose: Any, dims: int = 1) -> tuple[Chosen, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Chosen(choose, dims).double().eval()
        return model, torch.randn(3, 2, *(6,) * dims, dtype=torch.float64)


@pytest.mark.parametrize("name", CHOICES)
def test_a_choice_is_exact_and_its_sweeps_are_the_oracles(name: str) -> None:
    choose, places, axis = CHOICES[name]
    model, x = made(choose)
    net = converted_exactly(model, x)
    one, two = net.latents(x)
    value = F.relu(model.a(x[:1])).detach().numpy()[0]
    numbers = np.arange(24).reshape(4, 6)
    found = places(value)
    chosen = numbers.ravel()[found] if axis is None else np.take_along_axis(numbers, found, axis)
    index = torch.from_numpy(chosen.ravel())
    rows = [
        row(one, "x", diag=model.a),
        row(two, one, lambda w: w.flatten(1)[:, index], diag=model.b),
    ]
    assert_matches_oracle(net, rows, x[:1])


def test_one_entry_of_two_dimensions() -> None:
    model, x = made(lambda z: z.amax((1, 3)), dims=2)
    net = converted_exactly(model, x)
    one, two = net.latents(x)
    value = F.relu(model.a(x[:1])).detach().numpy()[0]
    best = [max((value[c, h, w], c, w) for c in range(4) for w in range(6)) for h in range(6)]
    index = torch.tensor([36 * c + 6 * h + w for h, (_, c, w) in enumerate(best)])
    rows = [
        row(one, "x", diag=model.a),
        row(two, one, lambda w: w.flatten(1)[:, index], diag=model.b),
    ]
    assert_matches_oracle(net, rows, x[:1])


class MaxFeatureMap(nn.Module):
    """LightCNN's: the greater of two halves of the channels, of a latent and of a value."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv1d(2, 4, 3, padding=1), nn.Conv1d(2, 2, 3, padding=1)
        self.c = nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        first = torch.max(*F.relu(self.a(x)).chunk(2, 1))
        return self.c(F.relu(torch.minimum(self.b(first), first.mean(2, keepdim=True))).flatten(1))


def test_the_greater_and_the_lesser_of_two_values() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model, x = MaxFeatureMap().double(), torch.randn(3, 2, 6, dtype=torch.float64)
    net = converted_exactly(model, x)
    one, two = net.latents(x)
    with torch.no_grad():
        v = F.relu(model.a(x[:1]))
        greater = v[:, :2] >= v[:, 2:]
        first = torch.where(greater, v[:, :2], v[:, 2:])
        lesser = model.b(first) <= first.mean(2, keepdim=True)

    def before(w: Tensor) -> Tensor:
        chosen = torch.where(greater, w[:, :2], w[:, 2:])
        return torch.where(lesser, model.b(chosen), chosen.mean(2, keepdim=True))

    assert bool(greater.any()) and not bool(greater.all())  # noqa: PT018
    assert bool(lesser.any()) and not bool(lesser.all())  # noqa: PT018
    assert_matches_oracle(net, [row(one, "x", diag=model.a), row(two, one, before)], x[:1])


def test_a_constant_is_no_choice() -> None:
    model, _ = made(lambda z: torch.maximum(z - 4, torch.zeros_like(z)))
    with pytest.raises(ConversionError, match=r"F\.relu"):
        pursuitify(model)


class Unpooled(nn.Module):
    """SegNet in small: pooled by a layer or a function, unpooled with the indices."""

    def __init__(self, layers: bool, overlapping: bool) -> None:
        super().__init__()
        self.sizes = (3, 1, 1) if overlapping else (2, 2, 0)
        self.layers = layers
        self.pool = nn.MaxPool2d(*self.sizes, return_indices=True)
        self.unpool = nn.MaxUnpool2d(*self.sizes)
        self.a, self.b, self.c = (nn.Conv2d(n, 3, 3, padding=1) for n in (2, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        z = F.relu(self.a(x))
        if self.layers:
            pooled, where = self.pool(z)
            spread = self.unpool(F.relu(self.b(pooled)), where, output_size=z.size())
        else:
            pooled, where = F.max_pool2d(z, *self.sizes, return_indices=True)
            spread = F.max_unpool2d(F.relu(self.b(pooled)), where, *self.sizes, z.size()[2:])
        return F.relu(self.c(spread)).mean((2, 3))


@pytest.mark.parametrize("overlapping", [False, True])
@pytest.mark.parametrize("layers", [False, True])
def test_unpooling_with_the_indices_of_a_pooling(layers: bool, overlapping: bool) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(2)
        model, x = Unpooled(layers, overlapping).double(), torch.randn(2, 2, 5, 4).double()
    net = converted_exactly(model, x)
    one, two, three = net.latents(x)
    with torch.no_grad():
        first = F.relu(model.a(x[:1]))
    kernel, stride, pad = model.sizes
    out_h, out_w = ((n + 2 * pad - kernel) // stride + 1 for n in (5, 4))
    place = {}  # a later window takes the place of an earlier one that found the same entry
    for c in range(3):
        for h in range(out_h):
            for w in range(out_w):
                seen = [
                    (float(first[0, c, i, j]), -i, -j)
                    for i in range(max(0, h * stride - pad), min(5, h * stride - pad + kernel))
                    for j in range(max(0, w * stride - pad), min(4, w * stride - pad + kernel))
                ]
                _, i, j = max(seen)
                place[c, h, w] = (c, -i, -j)
    spread = torch.zeros(3, 5, 4, 3, out_h, out_w, dtype=torch.float64)
    pooled = torch.zeros(3, out_h, out_w, 3, 5, 4, dtype=torch.float64)
    for at, found in place.items():
        spread[found] = 0
        spread[found + at] = 1
        pooled[at + found] = 1
    rows = [
        row(one, "x", diag=model.a),
        row(two, one, lambda w: torch.einsum("abcxyz,nxyz->nabc", pooled, w), diag=model.b),
        row(three, two, lambda w: torch.einsum("abcxyz,nxyz->nabc", spread, w), diag=model.c),
    ]
    assert_matches_oracle(net, rows, x[:1])


def test_choices_are_said_to_be_frozen_and_certified_by_nobody() -> None:
    model, x = made(CHOICES["topk"][0])
    (note,) = [entry.note for entry in explain(model).entries if entry.op == "topk"]
    assert note.startswith("frozen at the feed-forward pass: it chooses entries by their size")
    net = pursuitify(model, solver="synchronous")
    with pytest.raises(OptionError, match="chooses"):
        certified_radius(net, x)
    net.solver = "global"
    report = coherence(net, input_shape=(2, 6), boundary="exact", x=x[:1])
    matrix = net.dictionary(x[:1]).materialize()[0].detach()
    gram = (matrix / matrix.norm(dim=0)).nan_to_num(0.0)
    gram = (gram.T @ gram).fill_diagonal_(0)
    assert report.mutual_coherence == pytest.approx(float(gram.abs().max()), rel=1e-9)
    unpooled = pursuitify(Unpooled(True, False).double().eval())
    with pytest.raises(InputError, match="max-unpooling"):
        coherence(unpooled, input_shape=(2, 4, 4))


def test_a_choice_of_the_whole_batch_is_refused() -> None:
    model, _ = made(lambda z: z - z.amax())
    with pytest.raises(ConversionError, match="the batch included"):
        pursuitify(model)
