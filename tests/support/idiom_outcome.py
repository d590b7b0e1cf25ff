"""A conversion of a forward is exact, or refused; everything else is a fault."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from pursuitify import PursuitifyError, PursuitNetwork, explain, pursuitify
from pursuitify.errors import InputError


def same_structure(a: Any, b: Any) -> bool:
    """Whether two outputs have the same types and keys, and tensors of equal values."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        same = a.shape == b.shape and a.dtype == b.dtype
        return same and torch.allclose(a, b, rtol=1e-12, atol=1e-12, equal_nan=True)
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return [*a] == [*b] and all(same_structure(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same_structure, a, b))
    return bool(a == b)


def tensors(value: Any) -> list[Tensor]:
    """Return the tensors of an output in order."""
    if isinstance(value, Tensor):
        return [value]
    parts = value.values() if isinstance(value, dict) else value
    return [t for v in parts for t in tensors(v)] if isinstance(value, (dict, list, tuple)) else []


def _derivatives(
    module: nn.Module, x: Tensor
) -> tuple[Any, dict[str, Tensor | None], Tensor, dict[str, Tensor]]:
    """Run a module; return its output, all derivatives of its sum of squares, input and state.

    The input is as the module left it, the state as its forward left it.

    The derivative of the input is under the empty name.
    """
    leaf = x.clone().requires_grad_()
    given = leaf * 1  # what is no leaf may be written into
    torch.manual_seed(3)
    output = module(given)
    state = _state(module)  # before the derivatives, where checkpointing runs forwards once more
    total = sum((t.square().sum() for t in tensors(output) if t.requires_grad), torch.zeros(()))
    names = {n: p for n, p in module.named_parameters() if p.requires_grad}
    names = {n: p for n, p in names.items() if not n.startswith("pursuit.")}
    found: dict[str, Tensor | None] = dict.fromkeys(["", *names])
    if isinstance(total, Tensor) and total.requires_grad:
        values = [leaf, *names.values()]
        bars = torch.autograd.grad(total, values, allow_unused=True)
        found = dict(zip(found, bars, strict=True))
    return output, found, given.detach(), state


def _state(module: nn.Module) -> dict[str, Tensor]:
    return {
        k: v.detach().clone()
        for k, v in module.state_dict().items()
        if not k.startswith("pursuit.")
    }


def _differs(a: dict[str, Tensor | None], b: dict[str, Tensor | None]) -> str:
    """Return the names whose derivatives differ; none is as good as zeros."""
    wrong = []
    for name in a:
        zero = torch.zeros((), dtype=torch.float64)
        x, y = (zero if v is None else v for v in (a[name], b.get(name)))
        x, y = torch.broadcast_tensors(x, y)
        if not torch.allclose(x, y, rtol=1e-9, atol=1e-11):
            wrong.append(name or "input")
    return ", ".join(wrong)


def outcome(model: nn.Module, x: Tensor, example: bool = False) -> str:
    """Return ``exact``, ``refused`` or ``no model`` for a forward; anything else is a fault.

    What is refused at a call, by an InputError that says why, begins with ``late``.

    Args:
        model: The source; one that does not run itself is ``no model``.
        x: Its input.
        example: Whether the conversion is given the input.
    """
    wanted = {}
    before, flags = _state(model), {n: p.requires_grad for n, p in model.named_parameters()}
    for mode in (False, True):
        source = copy.deepcopy(model).train(mode)
        try:
            wanted[mode] = _derivatives(source, x)
        except Exception:
            return "no model"
    given: dict[str, Any] = {"example_inputs": x.clone()} if example else {}
    try:
        report = explain(model, **given)
        net = pursuitify(model, iterations=0, **given)
    except PursuitifyError as error:
        if not (str(error) and (example or not report.ok)):
            return f"explain said ok, and the conversion {error}"
        net = None
    if {n: p.requires_grad for n, p in model.named_parameters()} != flags:
        return "the model's parameters were frozen"
    if not all(torch.equal(v, before[k]) for k, v in _state(model).items()):
        return "the model was changed"
    if net is None:
        return "refused"
    if not report.ok:
        return f"explain said no: {report}"
    try:
        return _compared(net, x, wanted, before, flags)
    except InputError as error:
        return f"late: {error}"


def _compared(
    net: PursuitNetwork,
    x: Tensor,
    wanted: dict[bool, Any],
    before: dict[str, Tensor],
    flags: dict[str, bool],
) -> str:
    """Return how a network agrees with what its source gave; see ``outcome``."""
    for mode in (False, True):
        net.load_state_dict(before, strict=False)
        net.train(mode).iterations = 0
        for name in flags:
            net.get_parameter(name).requires_grad_(flags[name])
        output, bars, given, state = wanted[mode]
        found = _derivatives(net, x)
        if not same_structure(found[0], output):
            return f"WRONG value, training={mode}"
        if not torch.equal(found[2], given):
            return f"WRONG writes into the input, training={mode}"
        wrong = [k for k, v in found[3].items() if not torch.allclose(v, state[k], 1e-12, 1e-12)]
        if wrong:
            return f"WRONG buffers {wrong}, training={mode}"
        wrong_bars = _differs(bars, found[1])
        if wrong_bars:
            return f"WRONG derivatives of {wrong_bars}, training={mode}"
        net.iterations = 2
        for gradients in (True, False):
            with torch.set_grad_enabled(gradients):
                again = net(x.clone())
            if not all(bool(torch.isfinite(t).all()) for t in tensors(again)):
                return "not finite at T = 2"
        net.verify(x.clone())
    return "exact"
