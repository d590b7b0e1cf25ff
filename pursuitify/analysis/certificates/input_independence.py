"""Trials of what a certificate rests on, at other inputs and in other batches.

The rules say that a network's dictionary, thresholds and activations are the same at every input
(``certifiable``), and the derivations say that every sample stands alone. Both are tried here:
the dictionary is bound at unlike batches and acts on random vectors, the head runs in batches
of other sizes and company. A rule whose author was wrong, or a size of the batch that enters the
values, shows in some of it with probability one, up to rounding.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from pursuitify.analysis.certificates.certifiable import refusal
from pursuitify.analysis.certificates.head_slopes import MOVES, close, groups, head_of, slopes
from pursuitify.dictionary.bound_rows import BoundRow
from pursuitify.dictionary.structured import StructuredDictionary
from pursuitify.errors import InputError
from pursuitify.network.pursuit_network import PursuitNetwork
from pursuitify.operators import LinearMap, dottest

_POWER_STEPS = 30
_DIFFERS = "differs between inputs of one shape, although its rules say that it does not"
_BATCH = (
    "the logits of an input depend on the size of the batch or on what else is in it, so that no "
    "radius holds for the input alone"
)


def company(x: Tensor) -> tuple[Tensor, ...]:
    """Return batches one larger than ``x``: ``x`` and one more sample, then all other samples."""
    turned = x.flip(tuple(range(1, x.dim()))) if x.dim() > 1 else x
    if not x.is_floating_point():
        return torch.cat([x, turned[:1]]), torch.cat([turned, x[:1]])
    noise = torch.randn(len(x) + 1, *x.shape[1:], generator=_seed(), dtype=torch.float64).to(x)
    noise = noise * x.std().nan_to_num(1.0).clamp_min(1e-3)
    whole = torch.cat([x, turned[:1] + noise[:1]])
    return whole, 0.5 * whole.flip(0) + noise, -whole


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
    whole = company(x)[0]
    for batch in (whole, x[:1]):
        number = min(len(batch), len(x))
        try:
            other = net(batch)
        except InputError as error:
            reason = f"it takes no batch of {len(batch)}, so that {_BATCH}"
            raise refusal([reason]) from error
        shape = (len(batch), logits.shape[1])
        if other.shape != shape or not _alike(other[:number], logits[:number]):
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
    eps = float(torch.finfo(a.dtype).eps)
    return float((a - b).abs().max()) <= 10 * math.sqrt(eps) * scale


def check_dictionary(net: PursuitNetwork, x: Tensor) -> None:
    """Refuse a dictionary that differs between inputs or mixes samples.

    Raises:
        OptionError: With the reason.
    """
    first, *others = (net.dictionary(batch) for batch in company(x))
    if any(dictionary.samples is None for dictionary in (first, *others)):
        raise refusal([MOVES])
    generator = _seed(2)
    w = _named(first, [_random(like, generator) for like in _latents(first)])
    reasons = [reason for other in others for reason in _differences(first, other, w)]
    reasons += [f"the row of {name} mixes samples" for name in _mixing(first, w)]
    if reasons:
        raise refusal(list(dict.fromkeys(reasons)))


def _differences(
    first: StructuredDictionary, second: StructuredDictionary, w: dict[str, Tensor]
) -> Iterator[str]:
    """Yield in which rows two dictionaries of one network differ, tried at the latents ``w``."""
    if first.shapes != second.shapes:
        yield f"its dictionary {_DIFFERS}"
        return
    generator = _seed(4)
    rows = {n: _random(r, generator) for n, r in first.apply(w).items()}
    given = dataclasses.replace(first, inputs=second.inputs).signal
    pairs = [
        (first.apply(w), second.apply(w)),
        (first.adjoint(rows), second.adjoint(rows)),
        (given, second.signal),
        (first.thresholds, second.thresholds),
    ]
    for name, own, other in zip(first.names, first.rows, second.rows, strict=True):
        if not all(close(a[name], b[name]) for a, b in pairs):
            yield f"the row of {name} {_DIFFERS}"
        if not close(_prox(own, w[name]), _prox(other, w[name])):
            yield f"the activation of {name} {_DIFFERS}"


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


def check_promises(dictionary: StructuredDictionary, step: float) -> None:
    """Refuse maps and activations of a user's own that are not what the certificate takes them for.

    Args:
        dictionary: The dictionary.
        step: g.

    Raises:
        OptionError: With the reason.
    """
    generator = _seed(3)
    reasons = []
    w = [_random(like, generator) for like in _latents(dictionary)]
    for row in dictionary.rows:
        paths = [path for slot in row.slots for path in slot]
        chains = [
            (w[p.leaf] if p.leaf >= 0 else dictionary.inputs[-1 - p.leaf], p.maps) for p in paths
        ]
        if row.diagonal is not None:
            chains.append((row.join(row.u), row.diagonal.maps))
        reasons += [
            f"the row of {row.name}: {type(item).__name__}.{fault}"
            for start, maps in chains
            for item, fault in _faults(start, maps, generator)
        ]
    reasons += [
        f"the activation of {row.name} is no proximal operator of a convex penalty"
        for row, like in zip(dictionary.rows, w, strict=True)
        if not _is_proximal(row, like, step, generator)
    ]
    if reasons:
        raise refusal(list(dict.fromkeys(reasons)))


def _faults(
    start: Tensor, maps: Sequence[LinearMap], generator: torch.Generator
) -> Iterator[tuple[LinearMap, str]]:
    """Yield the maps of a chain whose adjoint or bound is wrong; power steps try the bound."""
    slack = 1 + 1e3 * torch.finfo(start.dtype).eps
    for item in maps:
        v = _random(start, generator)
        if dottest(item, v) > slack - 1:
            yield item, "adjoint is not the adjoint of its apply"
        size = 0.0
        for _ in range(_POWER_STEPS):
            v = item.adjoint(item.apply(v / v.norm()))
            size = float(v.norm())  # at most ||A||^2
            if not size > 0:
                break
        if size**0.5 > slack * float(torch.as_tensor(item.norm_bound()).max()):
            yield item, f"norm_bound is less than its norm, which is at least {size**0.5:.6g}"
        start = item.apply(start)


def _is_proximal(row: BoundRow, like: Tensor, step: float, generator: torch.Generator) -> bool:
    """Try <p - q, v - u> >= |p - q|^2 for p = prox(v) and q = prox(u), far apart and close."""
    eps = torch.finfo(like.dtype).eps
    for size in (1e-3, 1.0, 1e3):
        v, other = (size * _random(like, generator) for _ in range(2))
        for u in (other, v + 1e-3 * other):
            change = (_prox(row, v, step) - _prox(row, u, step)).double()
            moved = (v - u).double()
            rounding = 1e3 * eps * float(moved.norm()) * float(v.norm())
            if float(change.square().sum()) > float((change * moved).sum()) + rounding:
                return False
    return True


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
