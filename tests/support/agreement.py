"""This module says what it means for a converted network to agree with its source."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pursuitify import PursuitNetwork, pursuitify
from pursuitify.compiler.lowering.program import Pass
from pursuitify.dictionary.structured import StructuredDictionary
from pursuitify.network import arguments


def flat(value: Any) -> list[Tensor]:
    """All tensors of a nested output, in a fixed order."""
    if isinstance(value, Tensor):
        return [value.detach()]
    if isinstance(value, dict):
        return [t for k in sorted(value) for t in flat(value[k])]
    if isinstance(value, (tuple, list)):
        return [t for v in value for t in flat(v)]
    return []


def error(a: Any, b: Any) -> float:
    """Largest difference between two outputs, relative to the second's largest entry."""
    left, right = flat(a), flat(b)
    assert type(a) is type(b) or (isinstance(a, dict) and isinstance(b, dict)), (type(a), type(b))
    assert [t.shape for t in left] == [t.shape for t in right]
    worst = 0.0
    for s, t in zip(left, right, strict=True):
        difference = float((s - t).abs().max()) if t.numel() else 0.0
        assert difference == difference, "NaN"
        worst = max(worst, difference / max(float(t.abs().max()) if t.numel() else 1.0, 1e-30))
    return worst


def bound_pass(net: PursuitNetwork, args: Sequence[Any]) -> tuple[Any, Pass, StructuredDictionary]:
    """The output that the *bound* feed-forward pass and the head give, without any sweep."""
    program = net._program
    values = arguments.arguments(program, args, {}, net)
    first, bound = net._bind(program, values)
    return program.head(net, first.latents, first, values), first, bound


def rows_error(first: Pass, bound: StructuredDictionary) -> float:
    """Largest relative error of u_j = sum_k B_jk^T w_k and w_j = phi(B_j^T u_j - lam_j).

    Where the offset of a row stands in the signal, it is part of u_j here.
    """
    worst = 0.0
    for j, row in enumerate(bound.rows):
        parts = []
        for s, paths in enumerate(row.slots):
            total = torch.zeros_like(row.u[s])
            for path in paths:
                leaf = bound.inputs[-1 - path.leaf] if path.leaf < 0 else first.latents[path.leaf]
                total = total + path.apply(leaf)
            parts.append(total)
        for total, like in zip(row.add_offset(tuple(parts)), row.u, strict=True):
            worst = max(worst, float((total - like).abs().max() / like.abs().max().clamp_min(1)))
        z = row.encode(row.u)
        z = z if row.threshold is None else z - row.threshold
        w = first.latents[j]
        difference = (row.activation.prox(z, 1.0) - w).abs().max()
        worst = max(worst, float(difference / w.abs().max().clamp_min(1)))
    return worst


def state(model: nn.Module) -> dict[str, Tensor]:
    return {k: v.detach().clone() for k, v in model.state_dict().items()}


def assert_same_state(a: dict[str, Tensor], b: dict[str, Tensor], tolerance: float = 0.0) -> None:
    assert a.keys() == b.keys()
    for key, own in a.items():
        value = own.to_dense()  # what is sparse has no largest entry
        difference = (
            (value.double() - b[key].to_dense().double()).abs().max() if value.numel() else 0.0
        )
        scale = max(1.0, float(value.double().abs().max()) if value.numel() else 1.0)
        assert float(difference) <= tolerance * scale, key


def compare(
    convert: Callable[[nn.Module], PursuitNetwork],
    model: nn.Module,
    *args: Any,
    training: bool,
    tolerance: float = 1e-5,
    check_rows: bool = True,
) -> tuple[PursuitNetwork, float]:
    """Assert T = 0 equality in one mode: output, running statistics, rows, dropout masks.

    Leaves the model's own state as it was. Returns the network and the largest error.
    """
    model.train(training)
    before = state(model)
    net = convert(model)
    assert net.training == training
    assert_same_state(before, state(model))
    twin = copy.deepcopy(model)
    with torch.no_grad():
        torch.manual_seed(7)
        expected = twin(*args)
        after = state(twin)
        net.iterations = 0
        torch.manual_seed(7)
        worst = error(net(*args), expected)
        mine = {k: v for k, v in state(net).items() if not k.startswith("pursuit.")}
        assert_same_state(mine, after, tolerance)
        net.load_state_dict(before, strict=False)
        torch.manual_seed(7)
        output, first, bound = bound_pass(net, args)
        worst = max(worst, error(output, expected))
        mine = {k: v for k, v in state(net).items() if not k.startswith("pursuit.")}
        assert_same_state(mine, after, tolerance)
        net.load_state_dict(before, strict=False)
        assert worst <= tolerance, worst
        if check_rows:
            assert rows_error(first, bound) <= 20 * tolerance
    assert_same_state(before, state(model))
    return net, worst


def assert_descends(net: PursuitNetwork, *args: Any, sweeps: int = 2) -> None:
    """Assert that F is finite and never rises in evaluation mode with default steps."""
    net.eval()
    net.iterations = sweeps
    trace = net.diagnose(*args)
    values = [sweep.objective for sweep in trace.sweeps]
    assert all(v == v and abs(v) < float("inf") for v in values), values
    scale = max(1.0, max(abs(v) for v in values))
    assert all(b <= a + 1e-5 * scale for a, b in itertools.pairwise(values)), values
    with torch.no_grad():
        assert all(bool(torch.isfinite(t).all()) for t in flat(net(*args)))


def assert_adjoint(net: PursuitNetwork, *args: Any, tolerance: float = 1e-10) -> None:
    """Assert <B w, r> = <w, B^T r> of the whole dictionary."""
    generator = torch.Generator().manual_seed(3)

    def noise(values: dict[str, Tensor]) -> dict[str, Tensor]:
        return {
            k: torch.randn(v.shape, generator=generator, dtype=torch.float64).to(v.dtype)
            for k, v in values.items()
        }

    with torch.no_grad():
        dictionary = net.dictionary(*args)
        w = noise(net.latents(*args))
        image = dictionary.apply(w)
        r = noise(image)
        left = sum(float((image[k] * r[k]).sum()) for k in image)
        right = sum(float((w[k] * v).sum()) for k, v in dictionary.adjoint(r).items())
        scale = sum(float(image[k].norm() * r[k].norm()) for k in image)
    assert abs(left - right) <= tolerance * max(1.0, scale)


def assert_fast_path(net: PursuitNetwork, x: Tensor) -> None:
    """The sweeps without derivatives are those with them, which form and keep everything."""
    recorded = {"output": net(x), **net.latents(x)}
    with torch.no_grad():
        fast = {"output": net(x), **net.latents(x)}
    for name, value in recorded.items():
        torch.testing.assert_close(fast[name], value.detach(), rtol=1e-11, atol=1e-12, msg=name)


def converted_exactly(model: nn.Module, x: Tensor) -> PursuitNetwork:
    """Return the network of a model: exact in both modes, feedback by the adjoint, descending."""
    net, worst = compare(pursuitify, model, x, training=True, tolerance=1e-12)
    assert worst == 0
    assert_adjoint(net, x)
    assert_descends(net, x, sweeps=3)  # in evaluation mode, as all that follows
    assert torch.equal(net.source(x), model.eval()(x))
    assert_fast_path(net, x)
    assert net.verify(x)
    return net
