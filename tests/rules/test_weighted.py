"""torch.addmm, and products with constants: matmul, bmm, einsum, tensordot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from pursuitify import ConversionError, InputError, TraceError, coherence, load, pursuitify, save
from pursuitify.errors import CheckpointError, EstimateError
from pursuitify.memory import estimate_memory
from pursuitify.operators import dottest
from pursuitify.robust import certified_radius
from pursuitify.rules import default, split_ops
from pursuitify.testing import randn
from tests.support.against_oracle import assert_matches_oracle
from tests.support.agreement import assert_adjoint, assert_descends, compare, converted_exactly
from tests.support.oracle import row


class Transposed(nn.Module):
    """What some language models call a one-dimensional convolution."""

    def __init__(self, width: int, out: int, call: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width, out) / width**0.5)
        self.bias = nn.Parameter(0.3 * torch.randn(out))
        self.call = call

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.call(self.bias, x, self.weight)
        return out


CALLS: dict[str, Any] = {
    "function": torch.addmm,
    "method": lambda b, x, w: b.addmm(x, w),
    "factors": lambda b, x, w: torch.addmm(b, x, w, beta=0.5, alpha=-2.0),
    "by name": lambda b, x, w: torch.addmm(input=b, mat1=x, mat2=w),
    "row": lambda b, x, w: torch.addmm(b[None], x, w),
}


def made(call: Any, batch: int) -> tuple[nn.Sequential, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            Transposed(4, 5, call), nn.ReLU(), Transposed(5, 5, call), nn.ReLU(), nn.Linear(5, 3)
        )
        return model.double().eval(), torch.randn(batch, 4, dtype=torch.float64)


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("batch", [1, 3, 5])
def test_it_is_exact_and_descends(name: str, batch: int) -> None:
    model, x = made(CALLS[name], batch)
    for training in (True, False):
        net, _ = compare(pursuitify, model, x, training=training, tolerance=1e-12)
    assert [data["layout"] for n, data in net.graph.nodes.items() if n != "input"] == [
        "decoder"
    ] * 2
    assert_adjoint(net, x)
    assert_descends(net, x, sweeps=4)
    net.iterations = 0
    assert torch.equal(net(x), model(x))


@pytest.mark.parametrize("name", CALLS)
def test_sweeps_against_the_oracle(name: str) -> None:
    model, x = made(CALLS[name], 3)
    net = pursuitify(model)
    one, two = net.latents(x)
    assert_matches_oracle(net, [row(one, "x", diag=model[0]), row(two, one, diag=model[2])], x[:1])


def test_it_is_the_linear_layer_it_stands_for() -> None:
    """The same sweeps, certificate and coherence as with nn.Linear."""
    model, x = made(torch.addmm, 3)
    twin = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 5), nn.ReLU(), model[4]).double()
    with torch.no_grad():
        for i in (0, 2):
            twin[i].weight.copy_(model[i].weight.mT)
            twin[i].bias.copy_(model[i].bias)
    nets = [pursuitify(m.eval(), iterations=6, solver="synchronous") for m in (model, twin)]
    a, b = (certified_radius(net, x).radius for net in nets)
    assert torch.allclose(a, b, rtol=1e-9)
    for net in nets:
        net.solver = "global"
    assert torch.allclose(nets[0](x), nets[1](x), rtol=0, atol=1e-12)
    found = [coherence(net, input_shape=(4,)).mutual_coherence for net in nets]
    assert found[0] == pytest.approx(found[1], rel=1e-9)


class Skip(nn.Module):
    """Both operands are values of the network."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 5)
        self.weight = nn.Parameter(torch.randn(5, 5) / 3)

    def forward(self, x: Tensor) -> Tensor:
        z = F.relu(self.a(x))
        return F.relu(torch.addmm(z, z, self.weight, beta=0.5))


def test_a_sum_with_a_value_of_the_network() -> None:
    torch.manual_seed(0)
    model, x = Skip().double().eval(), torch.randn(3, 4, dtype=torch.float64)
    net, _ = compare(pursuitify, model, x, training=False, tolerance=1e-12)
    assert_adjoint(net, x)
    one, two = net.latents(x)
    rows = [
        row(one, "x", diag=model.a),
        row(two, one, lambda w: 0.5 * w + w @ model.weight),
    ]
    assert_matches_oracle(net, rows, x[:1])


class Product(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        z = F.relu(self.a(x))
        return F.relu(torch.addmm(self.a.bias, z, z))


def test_a_matrix_that_depends_on_the_input_is_refused() -> None:
    with pytest.raises(ConversionError, match="two tensors that both depend on the input"):
        pursuitify(Product())


#: Sums with a product by a constant on either side, of a latent (batch, 4), and what they are.
SUMS: dict[str, tuple[Any, Any]] = {
    "addmm-left": (
        lambda m, x: torch.addmm(m.b, m.w, x.t(), alpha=2.0).t(),
        lambda m, w: m.b.t() + 2 * w @ m.w.t(),
    ),
    "addmm-of-constants": (
        lambda m, x: torch.addmm(x.t(), m.w, m.b.expand(-1, x.size(0)), beta=-1.0).t(),
        lambda m, w: (m.w @ m.b).t() - w,
    ),
    "addmv": (
        lambda m, x: x * 1.0 + torch.addmv(m.b[:1, 0], x, m.w[0], beta=0.5)[:, None],
        lambda m, w: w + (0.5 * m.b[0, 0] + w @ m.w[0])[:, None],
    ),
    "baddbmm-right": (
        lambda m, x: torch.baddbmm(x[:, None], x[:, None], m.w[None].expand(x.size(0), 4, 4))[:, 0],
        lambda m, w: w + w @ m.w,
    ),
    "baddbmm-left": (
        lambda m, x: m.b[None].baddbmm(m.w[None].expand(x.size(0), 4, 4), x[:, :, None]).flatten(1),
        lambda m, w: m.b[:, 0] + w @ m.w.t(),
    ),
}  # fmt: skip


class Sum(nn.Module):
    """A sum with a product behind an activation."""

    def __init__(self, operation: Any) -> None:
        super().__init__()
        self.operation = operation
        self.a, self.w = nn.Linear(5, 4), nn.Parameter(torch.randn(4, 4) / 2)
        self.register_buffer("b", torch.randn(4, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.operation(self, F.relu(self.a(x))))


@pytest.mark.parametrize("name", SUMS)
def test_a_sum_with_a_product_from_either_side(name: str) -> None:
    operation, by_hand = SUMS[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, x = Sum(operation).double().eval(), torch.randn(3, 5, dtype=torch.float64)
    net = converted_exactly(model, x)
    one, two = net.latents(x)
    if net.graph.nodes[two]["layout"] == "decoder":
        rows = [row(one, "x", diag=model.a), row(two, one, diag=lambda w: by_hand(model, w))]
    else:
        rows = [row(one, "x", diag=model.a), row(two, one, lambda w: by_hand(model, w))]
    assert_matches_oracle(net, rows, x[:1])


#: The product of latents (batch, 3, 4, 4) and constants; the same by NumPy's einsum, and of which.
PRODUCTS: dict[str, tuple[Any, str, tuple[str, ...]]] = {
    "left": (lambda m, x: m.a @ x, "vw,ncwl->ncvl", ("a",)),
    "right": (lambda m, x: x @ m.a, "vw,nclv->nclw", ("a",)),
    "left-per-channel": (lambda m, x: m.k @ x, "cvw,ncwl->ncvl", ("k",)),
    "right-per-channel": (lambda m, x: x.matmul(m.k), "cvw,nclv->nclw", ("k",)),
    "more-channels": (lambda m, x: x[:, :1] @ m.k, "cvw,nlv->nclw", ("k",)),
    "vector": (lambda m, x: x @ m.a[0], "v,nclv->ncl", ("v",)),
    "batched": (
        lambda m, x: torch.bmm(m.a.expand(x.shape[0], -1, -1), x[:, 0]), "vw,nwl->nvl", ("a",),
    ),
    "batched-copies": (
        lambda m, x: m.a[None].repeat(x.size(0), 1, 1).bmm(x[:, 0]), "vw,nwl->nvl", ("a",),
    ),
    "einsum": (lambda m, x: torch.einsum("vw,ncwl->nvlc", m.a, x), "vw,ncwl->nvlc", ("a",)),
    "einsum-grouped": (
        lambda m, x: torch.einsum("nctv,cvw->nwtc", x, m.k), "cvw,nctv->nwtc", ("k",),
    ),
    "einsum-ellipsis": (
        lambda m, x: torch.einsum("...v,vw->w...", x, m.a), "vw,nctv->wnct", ("a",),
    ),
    "einsum-implicit": (lambda m, x: torch.einsum("ba, cDaz", m.a, x), "ba,cDaz->Dbcz", ("a",)),
    "einsum-of-three": (
        lambda m, x: torch.einsum("vu,nctv,tw->ncuw", (m.a, x, m.a)), "vu,tw,nctv->ncuw",
        ("a", "a"),
    ),
    "einsum-sum": (lambda m, x: torch.einsum("nctv,uvs->ncu", x, m.k), "uvs,nctv->ncu", ("k",)),
    "einsum-total": (lambda m, x: torch.einsum("nctv->nvc", x), "nctv->nvc", ()),
    "einsum-order": (lambda m, x: torch.einsum("nctv->nvtc", x), "nctv->nvtc", ()),
    "tensordot": (lambda m, x: torch.tensordot(x, m.k, ([1, 3], [0, 2])), "cwv,nctv->ntw", ("k",)),
    "tensordot-left": (lambda m, x: torch.tensordot(m.a, x, dims=1), "vn,nctw->vctw", ("a",)),
    "softmax": (lambda m, x: torch.softmax(m.a, 0) @ x, "vw,ncwl->ncvl", ("s",)),
    "inner": (lambda m, x: torch.inner(x, m.a), "vw,nclw->nclv", ("a",)),
    "cumsum": (lambda m, x: x.cumsum(2), "ts,ncsw->nctw", ("sums",)),
    "diff": (lambda m, x: torch.diff(x, 2, dim=-1), "rt,ts,ncws->ncwr", ("second", "first")),
}  # fmt: skip
#: The constants of these, in NumPy's words.
_HELD: dict[str, Any] = {
    "sums": np.tril(np.ones((4, 4))),
    "first": np.eye(3, 4, 1) - np.eye(3, 4),
    "second": np.eye(2, 3, 1) - np.eye(2, 3),
}
MOVES_SAMPLES = {"einsum-ellipsis", "einsum-implicit", "tensordot-left"}


class ByConstants(nn.Module):
    """conv, relu, a product, relu; the constants are a buffer and a parameter."""

    def __init__(self, product: Any) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3, padding=1)
        self.register_buffer("a", torch.randn(4, 4))
        self.k = nn.Parameter(torch.randn(3, 4, 4))
        self.product = product

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.product(self, F.relu(self.conv(x)))).sum(-1)


def product_net(product: Any) -> tuple[ByConstants, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ByConstants(product).double().eval(), torch.randn(4, 2, 4, 4, dtype=torch.float64)


@pytest.mark.parametrize("name", PRODUCTS)
def test_a_product_is_exact_and_its_sweeps_are_the_oracles(name: str) -> None:
    function, equation, constants = PRODUCTS[name]
    model, x = product_net(function)
    net = converted_exactly(model, x)
    assert (net.dictionary(x).samples is None) == (name in MOVES_SAMPLES)
    if name == "tensordot-left":
        return  # it adds samples up, for which the oracle has no form
    held = {"a": model.a, "k": model.k, "v": model.a[0], "s": torch.softmax(model.a, 0)}
    factors = [_HELD[c] if c in _HELD else held[c].detach().numpy() for c in constants]
    before, _, output = equation.partition("->")
    first = len(before.split(",")[-1]) == 3  # the first channel alone is multiplied
    sample = output.index("n") if name != "einsum-implicit" else output.index("c")

    def product(w: Tensor) -> Tensor:
        return torch.from_numpy(np.einsum(equation, *factors, w.numpy())).movedim(sample, 0)

    one, two = net.latents(x)
    rows = [
        row(one, "x", diag=model.conv),
        row(two, one, product)
        if constants and constants[0] in _HELD  # free of parameters: B_j is the identity
        else row(two, one, (lambda w: w[:, 0]) if first else None, diag=product),
    ]
    assert_matches_oracle(net, rows, x[:1])


@st.composite
def sums(draw: st.DrawFn) -> tuple[str, list[Tensor], int]:
    """Draw an equation of einsum, its operands, and which of them is the value."""
    size = {n: draw(st.integers(1, 3)) for n in "bcdefg"}
    own = draw(st.lists(st.sampled_from("cdefg"), unique=True, min_size=1, max_size=3))
    others = draw(
        st.lists(
            st.lists(st.sampled_from("cdefg"), unique=True, min_size=1, max_size=3), max_size=2
        )
    )
    known = sorted({*own, *(n for other in others for n in other)})
    kept = draw(st.permutations(draw(st.lists(st.sampled_from(known), unique=True))))
    place = draw(st.integers(0, len(others)))
    parts = [*others[:place], ["b", *own], *others[place:]]
    out = draw(st.sampled_from([["b", *kept], [*kept, "b"]]))
    equation = ",".join("".join(part) for part in parts) + "->" + "".join(out)
    shapes = [[size[n] for n in part] for part in parts]
    return equation, [randn(*s, seed=k) for k, s in enumerate(shapes)], place


@given(sums())
@settings(max_examples=60, deadline=None, derandomize=True)
def test_every_sum_is_a_linear_map(drawn: tuple[str, list[Tensor], int]) -> None:
    equation, tensors, place = drawn
    bound = default()[split_ops.einsum].bind
    assert bound is not None

    def run(*given: Tensor) -> Tensor:
        return torch.einsum(equation, *given)

    found = bound(run, tensors, equation=equation, _affine=place)
    (linear, *_) = found.maps
    x = tensors[place]
    assert torch.equal(found.value, run(*tensors))
    torch.testing.assert_close(linear.apply(x), found.value)
    assert dottest(linear, x) <= 1e-12
    matrix = torch.stack(
        [
            run(*tensors[:place], e.view(x.shape), *tensors[place + 1 :]).flatten()
            for e in torch.eye(x.numel(), dtype=x.dtype)
        ],
        1,
    )
    norm = float(torch.linalg.matrix_norm(matrix, 2))
    assert norm * (1 - 1e-12) <= float(linear.norm_bound())


def test_what_is_no_constant_product_is_refused() -> None:
    model, _ = product_net(lambda _, x: torch.softmax(x @ x.mT, -1) @ x)
    with pytest.raises(ConversionError, match="two tensors that both depend"):
        pursuitify(model)
    model, x = product_net(lambda _, x: torch.einsum("ncvv->ncv", x))
    with pytest.raises(InputError, match="diagonal"):
        pursuitify(model)(x)


def _spread(equation: str, shape: tuple[int, ...]) -> Any:
    return lambda m, w: torch.from_numpy(
        np.einsum(equation, w.numpy(), m.k[0].detach().numpy()).reshape(-1, *shape)
    )


#: Products of every entry of latents (batch, 3, 4, 4) with every one of a constant (4, 4): the
#: operation, what it reads of them, and the same in NumPy.
EVERY: dict[str, tuple[Any, Any, Any]] = {
    "kron": (lambda m, x: torch.kron(x, m.k[0]), None, _spread("nchw,ab->nchawb", (3, 16, 16))),
    "kron-left": (
        lambda m, x: torch.kron(m.k[0], x), None, _spread("nchw,ab->ncahbw", (3, 16, 16)),
    ),
    "outer": (
        lambda m, x: torch.outer(x.mean((1, 2, 3)), m.k[0, 0]),
        lambda w: w.mean((1, 2, 3)),
        lambda m, u: u[:, None] * m.k[0, 0].detach(),
    ),
    "mv": (
        lambda m, x: torch.mv(x.mean((2, 3)), m.k[0, 0, :3]),
        lambda w: w.mean((2, 3)),
        lambda m, u: (u * m.k[0, 0, :3].detach()).sum(1),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", EVERY)
def test_products_of_every_entry(name: str) -> None:
    function, read, product = EVERY[name]
    model, x = product_net(function)
    net, worst = compare(pursuitify, model, x, training=True, tolerance=1e-12)
    assert worst == 0
    net.eval()
    assert_adjoint(net, x)
    assert net.dictionary(x).samples == 4
    one, two = net.latents(x)
    rows = [
        row(one, "x", diag=model.conv),
        row(two, one, read, diag=lambda u: product(model, u)),
    ]
    assert_matches_oracle(net, rows, x[:1])


def test_a_product_is_certified() -> None:
    model, x = product_net(PRODUCTS["einsum-grouped"][0])
    net = pursuitify(nn.Sequential(model, nn.Flatten(1)).double().eval(), solver="synchronous")
    assert bool((certified_radius(net, x).radius >= 0).all())


def test_statistics_of_several_processes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.SyncBatchNorm(2), nn.ReLU()).train()
    net, x = pursuitify(model, verify="off"), torch.randn(2, 1, 3, 3)
    assert torch.equal(net.source(x), model(x))
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda *_: 2)
    with pytest.raises(InputError, match="all processes"):
        net(x)
    net.eval()(x)


class Convolved(nn.Module):
    """Two graph convolutions: an adjacency of the model's own, or one given with the input."""

    def __init__(self, multiply: Any, own: Tensor | None = None, norm: bool = False) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 2)
        self.register_buffer("own", own, persistent=False)
        self.register_buffer("loops", torch.eye(5))
        self.multiply, self.norm = multiply, norm

    def convolved(self, graph: Any, x: Tensor) -> Tensor:
        if self.norm:
            graph = graph + self.loops
            graph = graph / graph.sum(-1, keepdim=True)
        hidden = F.relu(self.multiply(graph, self.first(x)))
        return F.relu(self.multiply(graph, self.second(hidden)))


class OwnGraph(Convolved):
    def forward(self, x: Tensor) -> Tensor:
        return self.convolved(self.own, x)


class GivenGraph(Convolved):
    def forward(self, x: Tensor, given: Tensor) -> Tensor:
        return self.convolved(given, x)


def adjacency(*batch: int) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    full = torch.rand(*batch, 5, 5, generator=generator, dtype=torch.float64)
    return full * (full > 0.5)


def of_nodes(multiply: Any, graph: Tensor, own: Tensor | None, norm: bool = False) -> Any:
    """Return a network, its input and arguments, and the dense matrix it multiplies by."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        kind = OwnGraph if own is not None else GivenGraph
        model = kind(multiply, own, norm).double().eval()
        x = torch.randn(*graph.shape[:-1], 3, dtype=torch.float64)
    return model, x, (x,) if own is not None else (x, graph)


SPARSE: dict[str, Any] = {
    "sparse.mm": torch.sparse.mm,
    "@": lambda graph, x: graph @ x,
    "mm": lambda graph, x: graph.mm(x),
    "transposed": lambda graph, x: graph.t() @ x,
    "from the right": lambda graph, x: (x.t() @ graph).t(),
}


@pytest.mark.parametrize("name", SPARSE)
def test_a_sparse_adjacency_is_its_dense_twin(name: str) -> None:
    """Exact, and the sweeps of a network that holds the same matrix with its zeros."""
    nets = []
    for own in (adjacency().to_sparse(), adjacency()):
        multiply = torch.mm if own.layout is torch.strided and "." in name else SPARSE[name]
        model, x, _ = of_nodes(multiply, adjacency(), own)
        for training in (True, False):
            net, worst = compare(pursuitify, model, x, training=training, tolerance=1e-12)
            assert worst == 0
        assert_adjoint(net, x)
        assert_descends(net, x, sweeps=3)
        assert net.verify(x)
        assert net.dictionary(x).samples is None  # nodes stand where samples do
        net.iterations = 0
        nets.append(net)
    sparse, dense = nets
    product, twin = (net.dictionary(x) for net in nets)
    w = {name: randn(*v.shape, seed=k) for k, (name, v) in enumerate(dense.latents(x).items())}
    for mine, theirs in zip(product.apply(w).values(), twin.apply(w).values(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)
    bounds = [net.step_sizes(x) for net in (sparse, dense)]
    assert all(
        0 < float(a) <= float(b) * (1 + 1e-9)
        for a, b in zip(*map(dict.values, bounds), strict=True)
    )


def test_compressed_sparse_tensors_are_refused_with_what_to_do() -> None:
    model, _, _ = of_nodes(torch.sparse.mm, adjacency(), adjacency().to_sparse_csr())
    with pytest.raises(TraceError, match=r"'own' has: keep it as tensor.to_sparse_coo\(\)"):
        pursuitify(model)
    assert pursuitify(of_nodes(torch.sparse.mm, adjacency(), model.own.to_sparse_coo())[0])


def test_what_no_sparse_tensor_does_is_said(tmp_path: Path) -> None:
    """The memory of one is not counted, and a file holds none, but for what the model makes."""
    model, x, _ = of_nodes(torch.sparse.mm, adjacency(), adjacency().to_sparse())
    net = pursuitify(model, iterations=2)
    with pytest.raises(EstimateError, match="'own' is sparse"):
        estimate_memory(net, (3,), batch=5)
    save(net, tmp_path / "net.safetensors")
    assert torch.equal(load(tmp_path / "net.safetensors", model)(x), net(x))
    other, _, _ = of_nodes(torch.sparse.mm, adjacency(), 2 * adjacency().to_sparse())
    with pytest.raises(CheckpointError):
        load(tmp_path / "net.safetensors", other)
    model.register_buffer("own", model.own)
    with pytest.raises(CheckpointError, match="persistent=False"):
        save(pursuitify(model), tmp_path / "other.safetensors")


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("batch", [(), (3,)])
def test_an_adjacency_given_with_the_input_is_a_constant_of_the_pass(
    batch: tuple[int, ...], norm: bool
) -> None:
    graph = adjacency(*batch)
    model, x, args = of_nodes(torch.matmul, graph, None, norm)
    for training in (True, False):
        net, worst = compare(pursuitify, model, *args, training=training, tolerance=1e-12)
        assert worst == 0
    assert_adjoint(net, *args)
    assert_descends(net, *args, sweeps=3)
    assert net.verify(*args)
    assert net.dictionary(*args).samples == (3 if batch else None)
    if not batch:
        return
    matrix = graph[:1] + torch.eye(5) if norm else graph[:1]
    matrix = matrix / matrix.sum(-1, keepdim=True) if norm else matrix
    names = [*net.latents(*args)]
    assert len(names) == 4  # the dense layers before the products, and the activations
    one, two, three, four = names
    rows = [
        row(one, "x", diag=model.first, activation="identity"),
        row(two, one, diag=lambda u: matrix @ u),
        row(three, two, diag=model.second, activation="identity"),
        row(four, three, diag=lambda u: matrix @ u),
    ]
    assert_matches_oracle(net, rows, x[:1], (x[:1], graph[:1]))


def test_samples_with_matrices_of_their_own_do_not_depend_on_others() -> None:
    graph = adjacency(3)
    model, x, args = of_nodes(torch.bmm, graph, None)
    net = pursuitify(model, iterations=4)
    together = net(*args)
    for i in range(3):
        alone = net(x[i : i + 1], graph[i : i + 1])
        torch.testing.assert_close(alone, together[i : i + 1], rtol=1e-10, atol=1e-12)


def test_two_values_of_one_input_are_no_factor_and_constant() -> None:
    class Quadratic(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(self.fc(x @ x.mT @ x))

    with pytest.raises(ConversionError, match="two tensors that both depend"):
        pursuitify(Quadratic())


class Transform(nn.Module):
    """A T-Net in small: a matrix for each sample, computed of its points."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.points, self.matrix = nn.Conv1d(width, 4, 1), nn.Linear(4, width * width)
        self.width = width

    def forward(self, x: Tensor) -> Tensor:
        found = self.matrix(torch.max(F.relu(self.points(x)), 2)[0])
        whole = found + torch.eye(self.width, dtype=x.dtype, device=x.device).flatten()
        return whole.view(-1, self.width, self.width)


class Points(nn.Module):
    """PointNet: points by a transform of the input, features by one of theirs."""

    def __init__(self) -> None:
        super().__init__()
        self.of_input, self.of_features = Transform(3), Transform(4)
        self.a, self.b = nn.Conv1d(3, 4, 1), nn.Conv1d(4, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.bmm(x.transpose(2, 1), self.of_input(x)).transpose(2, 1)
        x = F.relu(self.a(x))
        x = torch.bmm(x.transpose(2, 1), self.of_features(x)).transpose(2, 1)
        return F.relu(self.b(x)).max(2)[0]


def test_a_transform_is_pursued_where_the_points_are_known_and_frozen_where_not() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, x = Points().double().eval(), torch.randn(2, 3, 6, dtype=torch.float64)
    net, worst = compare(pursuitify, model, x, training=True, tolerance=1e-12)
    assert worst == 0
    assert_adjoint(net, x)
    assert_descends(net, x, sweeps=3)
    sources = {data["source"] for _, data in net.graph.nodes.items()}
    assert any(source.startswith("of_input") for source in sources)
    assert not any(source.startswith("of_features") for source in sources)
