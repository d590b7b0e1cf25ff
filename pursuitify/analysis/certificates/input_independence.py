"""Trials of what a certificate rests on, at other inputs and in other batches.

The rules say that a network's dictionary, thresholds and activations are the same at every input
(``certifiable``), and the derivations say that every sample stands alone. Both are tried here:
the dictionary is bound at unlike batches and acts on random vectors, the head runs in batches
of other sizes and company. A rule whose author was wrong, or a size of the batch that enters the
values, shows in some of it with probability one, up to rounding.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
import operator
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from pursuitify.analysis.certificates.certifiable import refusal
from pursuitify.analysis.certificates.head_slopes import MOVES, close, groups, head_of, slopes
from pursuitify.compiler.graph.classify import Site
from pursuitify.compiler.tracing import nodes
from pursuitify.dictionary.bound_rows import BoundRow
from pursuitify.dictionary.structured import StructuredDictionary
from pursuitify.errors import InputError
from pursuitify.network.pursuit_network import PursuitNetwork
from pursuitify.operators import LinearMap, dottest
from pursuitify.rules import reshape

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


#: What reads sizes for the shape of its result alone: no entry that a sample has depends on them.
_SHAPED = {
    "view", "reshape", "unflatten", "expand", "repeat", "tile", "new_zeros", "new_ones",
    torch.reshape, torch.unflatten, torch.broadcast_to, torch.tile, torch.zeros, torch.ones,
    torch.zeros_like, torch.ones_like,
}  # fmt: skip


class _Sizes(fx.Interpreter):
    """Runs a graph and keeps the sizes that its nodes read, and those of their values, by node."""

    def __init__(self, net: PursuitNetwork) -> None:
        super().__init__(net, graph=net.compiled_program.graph)
        self.read: dict[fx.Node, object] = {}
        self.shapes: dict[fx.Node, torch.Size] = {}

    def run_node(self, n: fx.Node) -> Any:
        """Run one node."""
        value = super().run_node(n)
        if nodes.is_shape(n):
            self.read[n] = value
        elif isinstance(value, Tensor):
            self.shapes[n] = value.shape
        return value


def check_sizes(net: PursuitNetwork, x: Tensor) -> None:
    """Refuse a network that computes with the size of the batch, or moves along the batch.

    That size may shape tensors, as in ``x.view(x.size(0), -1)`` or ``x.new_zeros(x.size(0), 3)``.
    What reads it otherwise, or takes samples by their places, may give a sample other logits in a
    batch of a size that no trial meets: ``z * (x.shape[0] // 8)``, ``torch.cat([z[:8], -z[8:]])``.
    Which sizes hold it shows on two batches of other sizes, on which the network has to run (see
    ``check_head``).

    Raises:
        OptionError: With every such node.
    """
    one, more = _Sizes(net), _Sizes(net)
    one.run(x[:1])
    more.run(company(x)[0])
    holding: set[fx.Node] = set()
    reasons = []
    for node in net.compiled_program.graph.nodes:
        given = [n for n in node.all_input_nodes if n in holding]
        if node not in one.read:
            reads = given and node.users and node.op != "output"
            if reads and node.target not in _SHAPED:
                names = ", ".join(n.name for n in given)
                reasons.append(f"{node.name}: it computes with the size of the batch ({names})")
        else:
            entry = node.target is operator.getitem and _is_shape(node.args[0])
            if one.read[node] != more.read[node] or (given and not entry):
                holding.add(node)
    for node, site in net.compiled_program.sites.items():
        operand = node.args[0] if node.args else None
        rule = None if site.call is None else site.rule
        if rule is None or rule.kind == "join" or not isinstance(operand, fx.Node):
            continue
        if operand not in one.shapes:
            continue
        sizes = zip(one.shapes[operand], more.shapes[operand], strict=True)
        batched = {d for d, (a, b) in enumerate(sizes) if a != b}
        if batched & _along(node, site, len(one.shapes[operand])):
            reasons.append(f"{node.name}: it takes samples by their places in the batch")
    if reasons:
        raise refusal(reasons)


def _along(node: fx.Node, site: Site, rank: int) -> set[int]:
    """Return the dimensions of an operation's first operand in which it tells entries apart.

    Args:
        node: The operation: an indexing, or one with a parameter ``dim`` or ``dims``.
        site: The same, classified.
        rank: Number of dimensions of the operand.
    """
    if node.target is operator.getitem:
        entries = reshape.spelled_out(node.args[1], rank)
        read = [entry for entry in entries if entry is not None]
        return {d for d, entry in enumerate(read) if entry != slice(None)}
    assert site.rule is not None
    assert site.rule.bind is not None
    assert site.call is not None
    signature = inspect.signature(site.rule.bind).parameters
    given: set[int] = set()
    for name in {"dim", "dims"} & signature.keys():
        value = site.call.parameters.get(name, signature[name].default)
        named = value if isinstance(value, (tuple, list)) else (value,)
        given |= {d % rank for d in named if isinstance(d, int)}
    return given


def _is_shape(node: object) -> bool:
    """Whether a node is ``x.shape`` or ``x.size()``: its entries hold the batch, or they do not."""
    return isinstance(node, fx.Node) and (node.target is getattr or node.target == "size")


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
    none = tuple(torch.zeros_like(x) for x in dictionary.inputs)
    offset = dataclasses.replace(dictionary, inputs=none).signal  # biases may stand in the signal
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
                (signal[n] - offset[n], _only(signal[n] - offset[n], group)),
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
    for row, like in zip(dictionary.rows, w, strict=True):
        if not _is_proximal(row, like, step, generator):
            reasons.append(
                f"the activation of {row.name} is no proximal operator of a convex penalty"
            )
        if row.activation.nonnegative and not _is_zero_below_zero(row, like, step):
            reasons.append(
                f"the activation of {row.name} says that it is nonnegative, and its prox is not "
                "zero wherever what it is given is below zero"
            )
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


def _is_zero_below_zero(row: BoundRow, like: Tensor, step: float) -> bool:
    """Try whether prox(v) is zero where v < 0, for v of several sizes."""
    return all(not _prox(row, -size * like.abs(), step).any() for size in (1e-3, 1.0, 1e3))


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
