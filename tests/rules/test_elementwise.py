"""Factors as torch broadcasts them, masks, and entries that are chosen, filled or added by them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pursuitify import ConversionError, InputError, pursuitify
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
    "where-number": (
        lambda m, x: torch.where(m.mask, x, -0.5), lambda m, w: _shown(w, m.mask, -0.5),
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
    "lerp-to-a-constant": (
        lambda m, x: torch.lerp(m.share, x, 0.25), lambda m, w: 0.75 * m.share + 0.25 * w,
    ),
    "addcmul": (
        lambda m, x: torch.addcmul(x.flip(1), m.share, x, value=2.0),
        lambda m, w: w.flip(1) + torch.stack([i / 4 * w[:, i] for i in range(6)], 1),
    ),
    "addcmul_": (
        lambda m, x: (1 * x).addcmul_(m.share + 3, x.flip(1)),
        lambda m, w: torch.stack([w[:, i] + (3 + i / 8) * w[:, 5 - i] for i in range(6)], 1),
    ),
    "addcmul-of-constants": (
        lambda m, x: x.addcmul(m.share, m.share, value=-1.0),
        lambda m, w: torch.stack([w[:, i] - (i / 8) ** 2 for i in range(6)], 1),
    ),
    "addcdiv": (
        lambda m, x: torch.addcdiv(x, x.flip(1), m.share + 0.5, value=0.5),
        lambda m, w: torch.stack([w[:, i] + w[:, 5 - i] / (1 + i / 4) for i in range(6)], 1),
    ),
    "diff-borders": (
        lambda m, x: x.diff(dim=1, prepend=torch.zeros_like(x[:, :2]), append=x[:, 1:2]),
        lambda m, w: torch.stack(
            [0 * w[:, 0], *(w[:, i] - (w[:, i - 1] if i else 0) for i in range(6)),
             w[:, 1] - w[:, 5]], 1,
        ),
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
        lambda m, x: torch.lerp(x, x.flip(1), torch.sigmoid(x.mean(1, keepdim=True))),
        lambda m, x: torch.addcmul(x.flip(1), x, torch.sigmoid(x), value=0.5),
        lambda m, x: torch.addcdiv(x, 0.5 * x, 1 + torch.sigmoid(x)),
    ],
)
def test_a_mask_of_the_values_is_frozen(operation: Any) -> None:
    model, x = masked(operation)
    net, worst = compare(pursuitify, model, x, training=True, tolerance=1e-12)
    assert worst == 0
    assert_adjoint(net, x)
    assert_descends(net, x, sweeps=3)
    assert any(site.value.value == "frozen" for site in net._program.sites.values())


def _relu(x: Tensor) -> Tensor:
    return F.relu(x)


def _leaky(x: Tensor) -> Tensor:
    return F.leaky_relu(x, 0.25)


#: Activations written out, as people write them, and what they are.
WRITTEN: dict[str, tuple[Any, Any]] = {
    "product": (lambda x: x * (x > 0), _relu),
    "product-at-zero": (lambda x: x.ge(0) * x, _relu),
    "product-float": (lambda x: (x > 0.0).float() * x, _relu),
    "product-type_as": (lambda x: torch.mul(x, (x > 0).type_as(x)), _relu),
    "product-to": (lambda x: x * torch.gt(x, 0).to(x.dtype), _relu),
    "product-to-double": (lambda x: x * (x > 0).to(torch.float64), _relu),
    "product-not": (lambda x: x * ~(x <= 0), _relu),
    "product-detached": (lambda x: x * (x.detach() > 0), _relu),
    "where": (lambda x: torch.where(x > 0, x, 0), _relu),
    "where-float": (lambda x: torch.where(x > 0, x, 0.0), _relu),
    "where-product": (lambda x: torch.where(x >= 0, x, 0 * x), _relu),
    "where-zeros": (lambda x: x.where(x > 0, torch.zeros_like(x)), _relu),
    "where-tensor": (lambda x: torch.where(x < 0, torch.tensor(0.0), x), _relu),
    "where-zeros-compared": (lambda x: torch.where(x > torch.zeros(1), x, torch.zeros(1)), _relu),
    "fill": (lambda x: x.masked_fill(x < 0, 0.0), _relu),
    "fill-not": (lambda x: torch.masked_fill(x, torch.logical_not(x > 0), 0), _relu),
    "maximum": (lambda x: torch.maximum(x, torch.zeros_like(x)), _relu),
    "max": (lambda x: torch.max(torch.zeros(1), x), _relu),
    "clamp": (lambda x: x.clamp(min=0), _relu),
    "threshold": (lambda x: F.threshold(x, 0, 0), _relu),
    "where-leaky": (lambda x: torch.where(x > 0, x, 0.25 * x), _leaky),
    "maximum-leaky": (lambda x: torch.maximum(x * 0.25, x), _leaky),
}


class Written(nn.Module):
    """A function in the place of an activation."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.a, self.b, self.function = nn.Linear(3, 5), nn.Linear(5, 4), function

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.b(self.function(self.a(x))))


def _written(function: Any) -> Written:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Written(function).double().eval()


@pytest.mark.parametrize("name", WRITTEN)
def test_an_activation_written_out_is_one(name: str) -> None:
    function, twin = WRITTEN[name]
    x = torch.randn(3, 3, dtype=torch.float64)
    nets = [pursuitify(_written(f), iterations=3) for f in (function, twin)]
    found, expected = (net(x) for net in nets)
    assert torch.equal(found, expected)
    layouts = [[d.get("layout") for d in net.graph.nodes.values()] for net in nets]
    assert layouts[0] == layouts[1]
    nets[0].iterations = 0
    assert torch.equal(nets[0](x), _written(function)(x))


#: What looks like an activation written out, and is none that is known, or another value's.
NOT_WRITTEN: dict[str, Any] = {
    "above-another-number": lambda x: x * (x > 0.1),
    "mask-of-a-cast": lambda x: (x > 0.1).float() * x,
    "below": lambda x: x * (x < 0),
    "where-jumps": lambda x: torch.where(x > 0.1, x, 0.1 * x),
    "where-below": lambda x: torch.where(x > 0, 0.0, x),
    "where-a-number": lambda x: torch.where(x > 0, x, 0.5),
    "fill-above": lambda x: x.masked_fill(x > 0, 0.0),
    "fill-a-number": lambda x: x.masked_fill(x < 0, 0.5),
    "where-steep": lambda x: torch.where(x > 0, x, 2 * x),
    "maximum-ones": lambda x: torch.maximum(x, torch.ones_like(x)),
}


@pytest.mark.parametrize("name", NOT_WRITTEN)
def test_what_is_no_known_activation_is_refused_with_what_is(name: str) -> None:
    with pytest.raises(ConversionError, match=r"which is an activation. Use F.relu\(x\)") as caught:
        pursuitify(_written(NOT_WRITTEN[name]))
    assert str(caught.value).count("Use F.relu(x)") == 1


@pytest.mark.parametrize(
    "operation",
    [
        lambda x: x * (x.flip(1) > 0),
        lambda x: torch.where(x.mean(1, keepdim=True) > 0, x, 0.0),
        lambda x: x.masked_fill(x.roll(1, 1) < 0, 0.0),
        lambda x: (lambda m, y: y.add(1.0) * m)(x > 0, x),
    ],
)
def test_a_mask_of_another_value_stays_a_frozen_gate(operation: Any) -> None:
    model, x = _written(operation), torch.randn(3, 3, dtype=torch.float64)
    net = converted_exactly(model, x)
    kinds = [data.get("activation") for data in net.graph.nodes.values()]
    assert kinds.count("relu") == 1


def test_a_mask_of_an_input_is_known() -> None:
    """Zeros of padding, and integers that are looked up, are no latents."""

    class Padded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.a = nn.Embedding(5, 3), nn.Linear(3, 4)

        def forward(self, x: Tensor, numbers: Tensor) -> Tensor:
            z = x * (x > 0)
            return F.relu(self.a(z + self.table(numbers * (numbers > 0)).sum(1)))

    model = Padded().double().eval()
    x, numbers = torch.randn(2, 3, dtype=torch.float64), torch.tensor([[1, -1], [4, 0]])
    net = pursuitify(model, iterations=0)
    assert len(net.latents(x, numbers)) == 1
    assert torch.equal(net(x, numbers), model(x, numbers))


def test_a_mask_in_a_wider_dtype_is_refused_when_it_widens() -> None:
    net = pursuitify(_written(lambda x: x * (x > 0).double()).float())
    with pytest.raises(InputError, match=r"which makes it torch.float64; .*: cast the mask to x.d"):
        net(torch.randn(2, 3))


def test_what_has_no_finite_residual_is_refused() -> None:
    model, _ = masked(lambda m, x: x.masked_fill(m.mask, float("-inf")).clamp(min=0.0))
    with pytest.raises(ConversionError, match="fills with -inf"):
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
