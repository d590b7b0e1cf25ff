"""Factors as torch broadcasts them, masks, and entries that are chosen, filled or added by them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pursuitify import ConversionError, TraceError, pursuitify
from tests.support.against_oracle import assert_matches_oracle
from tests.support.agreement import assert_adjoint, assert_descends, compare, converted_exactly
from tests.support.oracle import row


class _Scaled(nn.Module):
    """Rows that are one product with a factor, over features or images."""

    def __init__(self, factor: Tensor, images: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(2, 4, 3, padding=1) if images else nn.Linear(4, 4)
        self.last = nn.Conv2d(4, 2, 3) if images else nn.Linear(4, 2)
        self.register_buffer("factor", factor)

    def forward(self, x: Tensor) -> Tensor:
        a = F.relu(self.first(x))
        return self.last(F.relu(a * self.factor) + F.relu(0.5 * a))


@pytest.mark.parametrize("mask", [False, True], ids=["factor", "mask"])
@pytest.mark.parametrize(
    ("shape", "images"),
    [((4,), False), ((1, 4), False), ((4, 1, 1), True), ((1, 4, 1, 1), True), ((5,), True)],
    ids=str,
)
@pytest.mark.parametrize("batch", [1, 3, 4])
def test_a_factor_of_any_shape_is_its_full_twin(
    shape: tuple[int, ...], images: bool, mask: bool, batch: int
) -> None:
    generator = torch.Generator().manual_seed(1)
    factor = torch.rand(shape, generator=generator, dtype=torch.float64)
    size = (1, 4, 5, 5) if images else (1, 4)
    x = torch.rand(batch, *((2, 5, 5) if images else (4,)), dtype=torch.float64)
    given = (factor > 0.5) if mask else factor
    nets = [
        pursuitify(_Scaled(value, images).double().eval(), iterations=3)
        for value in (given, given.to(torch.float64).expand(size).clone())
    ]
    found, expected = (net(x).detach() for net in nets)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    with torch.no_grad():
        torch.testing.assert_close(nets[0](x), found, rtol=1e-12, atol=1e-12)


class Masked(nn.Module):
    """An operation behind an activation, and one behind a dense layer with a bias."""

    def __init__(self, operation: Any) -> None:
        super().__init__()
        self.operation = operation
        self.a, self.b, self.c = nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(6, 4)
        self.register_buffer("mask", torch.tensor([True, False, True, True, False, False]))
        self.register_buffer("share", torch.tensor([0.0, 0.125, 0.25, 0.375, 0.5, 0.625]))
        self.register_buffer("places", torch.tensor([[3, 0, 0, 5, 2, 1]]))
        with torch.no_grad():
            found = operation(self, torch.randn(2, 6))
        self.d = nn.Linear(found.shape[1], 3)

    def forward(self, x: Tensor) -> Tensor:
        z = F.relu(self.a(x))
        return F.relu(self.d(self.operation(self, z))) + F.relu(
            self.operation(self, self.b(z))
        ).sum(1, keepdim=True)


def _shown(w: Tensor, kept: Tensor, value: float) -> Tensor:
    return torch.stack([w[:, i] if k else 0 * w[:, i] + value for i, k in enumerate(kept)], 1)


def _sent(w: Tensor, places: Any) -> Tensor:
    """Return w with a copy of each entry added at its place."""
    found = [*w.unbind(1)]
    for i, place in enumerate(places):
        found[place] = found[place] + w[:, i]
    return torch.stack(found, 1)


_PLACES = [3, 0, 0, 5, 2, 1]
#: The operation on values (batch, 6), and the affine function that it is, entry by entry.
MASKS: dict[str, tuple[Any, Any]] = {
    "where": (
        lambda m, x: torch.where(m.mask, x, torch.zeros_like(x)),
        lambda m, w: _shown(w, m.mask, 0.0),
    ),
    "where-number-first": (
        lambda m, x: torch.where(m.mask, 1.5, x), lambda m, w: _shown(w, ~m.mask, 1.5),
    ),
    "where-of-two": (
        lambda m, x: x.flip(1).where(condition=m.mask, other=2 * x),
        lambda m, w: torch.stack(
            [w[:, 5 - i] if k else 2 * w[:, i] for i, k in enumerate(m.mask)], 1
        ),
    ),
    "masked_fill": (
        lambda m, x: torch.masked_fill(x, ~m.mask, 0.0), lambda m, w: _shown(w, m.mask, 0.0),
    ),
    "masked_fill-number": (
        lambda m, x: (1 * x).masked_fill_(m.mask[None], -0.5),
        lambda m, w: _shown(w, ~m.mask, -0.5),
    ),
    "lerp": (
        lambda m, x: torch.lerp(x, x.flip(1), 0.25),
        lambda m, w: torch.stack([0.75 * w[:, i] + 0.25 * w[:, 5 - i] for i in range(6)], 1),
    ),
    "lerp-shares": (
        lambda m, x: x.lerp(end=2 * x, weight=m.share),
        lambda m, w: torch.stack([(1 + i / 8) * w[:, i] for i in range(6)], 1),
    ),
    "index_add": (
        lambda m, x: torch.index_add(x, 1, m.places[0], x, alpha=0.5),
        lambda m, w: (w + _sent(w, _PLACES)) / 2,
    ),
    "index_add_": (
        lambda m, x: torch.zeros_like(x).index_add_(1, m.places[0], x) + x,
        lambda m, w: _sent(w, _PLACES),
    ),
    "scatter_add": (
        lambda m, x: x.scatter_add(1, m.places.expand(x.size(0), -1), x),
        lambda m, w: _sent(w, _PLACES),
    ),
    "scatter_add_-few": (
        lambda m, x: (1 * x).scatter_add_(1, m.places[:, :2].expand(x.size(0), -1), x),
        lambda m, w: _sent(w, _PLACES[:2]),
    ),
    "rsub": (lambda m, x: torch.rsub(x, 1.0, alpha=2), lambda m, w: 1 - 2 * w),
    "divided-by-counts": (
        lambda m, x: x.cumsum(1) / torch.arange(1, 7),
        lambda m, w: torch.stack([w[:, : i + 1].mean(1) for i in range(6)], 1),
    ),
    "stacks": (
        lambda m, x: torch.hstack([x, torch.column_stack([x.mean(1), x.sum(1)])]),
        lambda m, w: torch.cat([w, w.mean(1, keepdim=True), 6 * w.mean(1, keepdim=True)], 1),
    ),
}  # fmt: skip


def masked(operation: Any) -> tuple[Masked, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Masked(operation).double().eval(), torch.randn(3, 5, dtype=torch.float64)


@pytest.mark.parametrize("name", MASKS)
def test_an_operation_by_a_mask_is_exact_and_its_sweeps_are_the_oracles(name: str) -> None:
    operation, by_hand = MASKS[name]
    model, x = masked(operation)
    net = converted_exactly(model, x)
    assert net.dictionary(x).samples == 3
    if name == "stacks":  # a join of one value with itself: its row is cut into slots
        return
    one, two, three, *more = net.latents(x)
    rows = [
        row(one, "x", diag=model.a),
        row(two, one, lambda w: by_hand(model, w), diag=model.d),
    ]

    def both(w: Tensor) -> Tensor:
        return by_hand(model, model.b(w))

    if more:  # the operation reads the value of b twice, which is a latent then
        rows += [
            row(three, one, diag=model.b, activation="identity"),
            row(more[0], three, lambda w: by_hand(model, w)),
        ]
    elif net.graph.nodes[three]["layout"] == "decoder":
        rows.append(row(three, one, diag=both))
    else:
        rows.append(row(three, one, both))
    assert_matches_oracle(net, rows, x[:1])


@pytest.mark.parametrize(
    "operation",
    [
        lambda m, x: torch.where(x.mean(1, keepdim=True) > 0.2, x, 0 * x),
        lambda m, x: x.masked_fill(x.argsort(1) < 2, 0.5),
        lambda m, x: x.masked_fill((x.flip(1) > 0.2) & ~m.mask, 0.0),
        lambda m, x: torch.where(torch.logical_or(x.sum(1, True).ge(0.3), m.mask), x, 0.5 * x),
    ],
)
def test_a_mask_of_the_values_is_frozen(operation: Any) -> None:
    model, x = masked(operation)
    net, worst = compare(pursuitify, model, x, training=True, tolerance=1e-12)
    assert worst == 0
    assert_adjoint(net, x)
    assert_descends(net, x, sweeps=3)
    assert any(site.value.value == "frozen" for site in net._program.sites.values())


@pytest.mark.parametrize(
    "operation",
    [
        lambda m, x: torch.where(x > 0, x, torch.zeros_like(x)),
        lambda m, x: torch.where(x > 0.1, x, 0.1 * x),
        lambda m, x: x.masked_fill(x < 0, 0.0),
    ],
)
def test_an_activation_written_out_is_refused(operation: Any) -> None:
    with pytest.raises(ConversionError, match=r"which is an activation: use F.relu\(x\)"):
        pursuitify(masked(operation)[0])


def test_what_has_no_finite_residual_or_no_tensor_is_refused() -> None:
    model, _ = masked(lambda m, x: x.masked_fill(m.mask, float("-inf")).clamp(min=0.0))
    with pytest.raises(ConversionError, match="fills with -inf"):
        pursuitify(model)
    model, _ = masked(lambda m, x: torch.where(m.mask, x, 0.0))
    with pytest.raises(TraceError, match=r"x.masked_fill\(~mask, 0.0\)"):
        pursuitify(model)


def test_a_number_that_is_filled_in_is_not_rescaled() -> None:
    """Equalization rescales what is homogeneous alone."""
    rule = pursuitify(masked(MASKS["masked_fill"][0])[0])._program
    found = {
        site.call.parameters["value"]: site.rule.is_homogeneous(site.call.parameters)
        for net in (rule, pursuitify(masked(MASKS["masked_fill-number"][0])[0])._program)
        for site in net.sites.values()
        if site.rule is not None and site.rule.name == "masked_fill" and site.call is not None
    }
    assert found == {0.0: True, -0.5: False}
