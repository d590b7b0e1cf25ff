"""Trials of what a certificate rests on, at other inputs and in other batches.

The rules say that a network's dictionary, thresholds and activations are the same at every input
(``certifiable``), and the derivations say that every sample stands alone. Both are tried here:
the dictionary is bound at two unlike batches and acts on random vectors, the head runs in batches
of other sizes and company. A rule whose author was wrong, or a size of the batch that enters the
values, shows in some of it with probability one, up to rounding.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from pursuitify.analysis.certificates.certifiable import refusal
from pursuitify.analysis.certificates.head_slopes import MOVES, close, groups, head_of, slopes
from pursuitify.dictionary.bound_rows import BoundRow
from pursuitify.dictionary.structured import StructuredDictionary
from pursuitify.errors import InputError
from pursuitify.network.pursuit_network import PursuitNetwork

_POWER_STEPS = 30
_DIFFERS = "differs between inputs of one shape, although its rules say that it does not"
_BATCH = (
    "the logits of an input depend on the size of the batch or on what else is in it, so that no "
    "radius holds for the input alone"
)


def company(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return two batches, one larger than ``x``: ``x`` and one more sample, and all others."""
    turned = x.flip(tuple(range(1, x.dim()))) if x.dim() > 1 else x
    if not x.is_floating_point():
        return torch.cat([x, turned[:1]]), torch.cat([turned, x[:1]])
    noise = torch.randn(len(x) + 1, *x.shape[1:], generator=_seed(), dtype=torch.float64).to(x)
    noise = noise * x.std().nan_to_num(1.0).clamp_min(1e-3)
    whole = torch.cat([x, turned[:1] + noise[:1]])
    return whole, 0.5 * whole.flip(0) + noise


def _seed(number: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def check_head(net: PursuitNetwork, x: Tensor, logits: Tensor, found: dict[str, Tensor]) -> None:
    """Refuse a head that is not affine, or not the same in other batches.

    Args:
        net: The network.
        x: The inputs.
        logits: What the network returns for them.
        found: The head's slopes in this batch.

    Raises:
        OptionError: With the reason.
    """
    whole, _ = company(x)
    for batch in (whole, x[:1]):
        number = min(len(batch), len(x))
        try:
            other = net(batch)
        except InputError as error:
            reason = f"it takes no batch of {len(batch)}, so that {_BATCH}"
            raise refusal([reason]) from error
        if not _alike(other[:number], logits[:number]):
            raise refusal([_BATCH])
        there = slopes(net, batch)
        if there.keys() != found.keys() or not all(close(there[n], found[n]) for n in found):
            raise refusal([_BATCH])
        head, generator = head_of(net, batch), _seed(1)
        a, b = (tuple(_random(w, generator) for w in head.latents) for _ in range(2))
        middle = tuple((one + two) / 2 for one, two in zip(a, b, strict=True))
        if not close(head.run(_copies(a)) + head.run(_copies(b)), 2 * head.run(_copies(middle))):
            raise refusal(["its head is not affine, although its rules say so"])


def _copies(latents: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(w.clone() for w in latents)


def _alike(a: Tensor, b: Tensor) -> bool:
    """Return whether two results of all sweeps agree to what rounding adds up to."""
    scale = float(torch.maximum(a.abs().max(), b.abs().max()))
    return float((a - b).abs().max()) <= 10 * torch.finfo(a.dtype).eps ** 0.5 * scale


def check_dictionary(net: PursuitNetwork, x: Tensor) -> None:
    """Refuse a dictionary that differs between inputs or mixes samples.

    Raises:
        OptionError: With the reason.
    """
    first, second = (net.dictionary(batch) for batch in company(x))
    if first.samples is None or second.samples is None:
        raise refusal([MOVES])
    if first.shapes != second.shapes:
        raise refusal([f"its dictionary {_DIFFERS}"])
    generator = _seed(2)
    w = _named(first, [_random(like, generator) for like in _latents(first)])
    rows = {n: _random(r, generator) for n, r in first.apply(w).items()}
    given = dataclasses.replace(first, inputs=second.inputs).signal
    pairs = [
        (first.apply(w), second.apply(w)),
        (first.adjoint(rows), second.adjoint(rows)),
        (given, second.signal),
        (first.thresholds, second.thresholds),
    ]
    reasons = [
        f"the row of {name} {_DIFFERS}"
        for name in first.names
        if not all(close(a[name], b[name]) for a, b in pairs)
    ]
    reasons += [
        f"the activation of {a.name} {_DIFFERS}"
        for a, b, v in zip(first.rows, second.rows, w.values(), strict=True)
        if not close(_prox(a, v), _prox(b, v))
    ]
    reasons += [f"the row of {name} mixes samples" for name in _mixing(first, w)]
    if reasons:
        raise refusal(list(dict.fromkeys(reasons)))


def _mixing(dictionary: StructuredDictionary, w: dict[str, Tensor]) -> Iterator[str]:
    """Yield the rows in which a sample depends on another: samples set to zero have to stay so."""
    batch = dictionary.inputs[0].shape[0]
    whole = dictionary.apply(w)
    for group in groups(batch):
        part = {n: _only(v, group) for n, v in w.items()}
        image = dictionary.apply(part)
        inputs = tuple(_only(x, group) for x in dictionary.inputs)
        signal = dataclasses.replace(dictionary, inputs=inputs).signal
        for row in dictionary.rows:
            n = row.name
            if len(image[n]) % batch:
                yield n
                continue
            fixed = _prox(row, w[n])
            for found, wanted in (
                (image[n], _only(whole[n], group)),
                (signal[n], _only(signal[n], group)),
                (_only(_prox(row, part[n]), group), _only(fixed, group)),
            ):
                if not close(found, wanted, whole[n]):
                    yield n


def check_promises(dictionary: StructuredDictionary, step: float, direct: float) -> None:
    """Refuse maps and activations of a user's own that are not what the certificate takes them for.

    Args:
        dictionary: The dictionary.
        step: g, which has to be at most 1 / ||B||^2.
        direct: The bound of ||P||.

    Raises:
        OptionError: With the reason.
    """
    generator = _seed(3)
    reasons = []
    w = _named(dictionary, [_random(like, generator) for like in _latents(dictionary)])
    rows = {n: _random(r, generator) for n, r in dictionary.apply(w).items()}
    left = _dot(dictionary.apply(w), rows)
    right = _dot(w, dictionary.adjoint(rows))
    eps = torch.finfo(dictionary.inputs[0].dtype).eps
    if abs(left - right) > 1e3 * eps * _norm(dictionary.apply(w)) * _norm(rows):
        reasons.append("an adjoint is not that of its map (pursuitify.operators.dottest tells)")
    slack = 1 + 1e3 * eps
    vector = w
    for _ in range(_POWER_STEPS):
        vector = dictionary.adjoint(dictionary.apply(vector))
        size = max(_norm(vector), torch.finfo(torch.float32).tiny)
        vector = {n: v / size for n, v in vector.items()}
    if _norm(dictionary.apply(vector)) ** 2 * step > slack * _norm(vector) ** 2:
        reasons.append("a map's norm_bound is less than its norm")
    if _signal_norm(dictionary, generator) > slack * direct:
        reasons.append("a norm_bound of a map that reads the input is less than its norm")
    for row, like in zip(dictionary.rows, w.values(), strict=True):
        for size in (1e-3, 1.0, 1e3):
            a, b = (size * _random(like, generator) for _ in range(2))
            for one, two in ((a, b), (a, a + 1e-3 * b)):
                change = (_prox(row, one, step) - _prox(row, two, step)).double()
                moved = (one - two).double()
                bound = float((change * moved).sum()) + 1e3 * eps * float(moved.norm()) * float(
                    one.norm()
                )
                if float(change.square().sum()) > bound:
                    reasons.append(
                        f"the activation of {row.name} is no proximal operator of a convex penalty"
                    )
    if reasons:
        raise refusal(list(dict.fromkeys(reasons)))


def _signal_norm(dictionary: StructuredDictionary, generator: torch.Generator) -> float:
    """Return an estimate of ||P|| from below, by power steps on y = P x."""
    e = _random(dictionary.inputs[0], generator)
    found = 0.0
    for _ in range(_POWER_STEPS):
        size = float(e.norm())
        if size == 0:
            break
        with torch.enable_grad():
            leaf = (e / size).detach().requires_grad_()
            signal = dataclasses.replace(dictionary, inputs=(leaf,)).signal
            total = sum((s.square().sum() for s in signal.values()), leaf.new_zeros(()))
            found = float(total.detach().sqrt())
            if not total.requires_grad:
                break
            (e,) = torch.autograd.grad(total / 2, leaf)  # P^T P e
    return found


def _latents(dictionary: StructuredDictionary) -> list[Tensor]:
    like = dictionary.inputs[0]
    dtype = like.dtype if like.is_floating_point() else torch.get_default_dtype()
    return [like.new_empty(shape, dtype=dtype) for shape in dictionary.shapes]


def _named(dictionary: StructuredDictionary, values: Sequence[Tensor]) -> dict[str, Tensor]:
    return dict(zip(dictionary.names, values, strict=True))


def _random(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator, dtype=torch.float64).to(like)


def _only(value: Tensor, group: Tensor) -> Tensor:
    """Return the samples of a group as they are, the others zero."""
    mask = group.repeat_interleave(len(value) // len(group)).to(value.device)
    return value * mask.reshape(-1, *[1] * (value.dim() - 1)).to(value)


def _prox(row: BoundRow, v: Tensor, step: float = 0.5) -> Tensor:
    return row.activation.prox(v.clone(), v.new_tensor(step))


def _dot(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    return sum(float((a[n].double() * b[n].double()).sum()) for n in a)


def _norm(a: dict[str, Tensor]) -> float:
    return _dot(a, a) ** 0.5
