"""The exact slopes of an affine head: how each logit depends on the latents of its sample."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pursuitify.analysis.certificates.certifiable import refusal
from pursuitify.errors import InputError
from pursuitify.network.pursuit_network import PursuitNetwork

MIXES = (
    "its head mixes samples: the logits of one input depend on what else is in the batch, so that "
    "no radius holds for the input alone"
)
PLACES = "its head treats a sample by its place in the batch"
MOVES = (
    "it moves the batch away from dimension 0 of its latents, or joins batches along it, so that "
    "margins per sample are not known"
)


@dataclass(frozen=True, eq=False)
class Head:
    """The head of a network at one batch, a function of the latents.

    Attributes:
        names: Names of the latents, in graph order.
        latents: Their values at the feed-forward pass.
        run: Returns the logits (batch, classes) of a tuple of latents.
        batch: Number of samples.
    """

    names: tuple[str, ...]
    latents: tuple[Tensor, ...]
    run: Callable[[tuple[Tensor, ...]], Tensor]
    batch: int

    def recorded(self, latents: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return logits and the latents as leaves that they can be differentiated by."""
        leaves = tuple(w.detach().clone().requires_grad_() for w in latents)
        logits = self.run(tuple(w.clone() for w in leaves))  # the head may write into its operands
        if not logits.requires_grad:
            raise refusal(["its head reads no latent"])
        return logits, leaves


@torch.no_grad()
def head_of(net: PursuitNetwork, x: Tensor) -> Head:
    """Return the head of a network at a batch.

    Raises:
        OptionError: If the latents do not hold sample after sample along dimension 0.
    """
    values, first, bound = net.bind_batch(x)
    if bound.samples is None:
        raise refusal([MOVES])

    def run(latents: tuple[Tensor, ...]) -> Tensor:
        logits: object = net.run_head(latents, first, values)
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else ()
        if not isinstance(logits, Tensor) or len(shape) != 2 or shape[0] != len(x) or shape[1] < 2:
            raise InputError(
                f"certified_radius needs a network that returns logits ({len(x)}, classes), a row "
                f"a sample and two classes at least, not {shape or type(logits).__name__}"
            )
        return logits

    return Head(bound.names, first.latents, run, len(x))


def slopes(net: PursuitNetwork, x: Tensor) -> dict[str, Tensor]:
    """Return per latent that the head reads the slope of each logit, (classes, entries).

    The head is affine (see ``certifiable``), so that the slope is the same at all latents; that it
    is the same for all samples, and nought between them, is found out here. The slopes are those
    of this very batch: a head may read its size.

    Raises:
        OptionError: If the head mixes samples or treats them differently, or the latents do not
            hold sample after sample along dimension 0.
        InputError: If the network returns anything but logits (batch, classes).
    """
    head = head_of(net, x)
    with torch.enable_grad():
        logits, leaves = head.recorded(head.latents)
        _check_apart(head, logits, leaves)
        found: dict[str, list[Tensor]] = {}
        for c in range(logits.shape[1]):
            # A logit depends on its own sample alone: the slope of the sum holds each one's own.
            derived = torch.autograd.grad(
                logits[:, c].sum(), leaves, retain_graph=True, allow_unused=True
            )
            for name, slope in zip(head.names, derived, strict=True):
                if slope is not None:
                    each = slope.detach().reshape(head.batch, -1)
                    if not close(each, each[:1].expand_as(each)):
                        raise refusal([PLACES])
                    found.setdefault(name, []).append(each[0])
    return {name: torch.stack(rows) for name, rows in found.items()}


def _check_apart(head: Head, logits: Tensor, leaves: tuple[Tensor, ...]) -> None:
    """Refuse a head in which the logits of one group of samples depend on the others' latents."""
    generator = torch.Generator().manual_seed(0)
    for group in groups(head.batch):
        ask = torch.randn(logits.shape, generator=generator, dtype=torch.float64).to(logits)
        ask[~group] = 0
        derived: Sequence[Tensor | None] = torch.autograd.grad(
            logits, leaves, ask, retain_graph=True, allow_unused=True
        )
        for slope in derived:
            if slope is None:
                continue
            each = slope.reshape(head.batch, -1)
            if not close(each[~group], torch.zeros_like(each[~group]), each):
                raise refusal([MIXES])


def groups(batch: int) -> Iterator[Tensor]:
    """Yield masks (batch,) such that any two samples are told apart by one, in either direction.

    They are the bits of the samples' numbers and their complements, 2 log2(batch) in all: what
    one sample owes another shows in some group, without a pass for each sample.
    """
    numbers = torch.arange(batch)
    for bit in range(max(0, batch - 1).bit_length()):
        mask = (numbers >> bit) % 2 == 0
        yield mask
        yield ~mask


def close(a: Tensor, b: Tensor, like: Tensor | None = None) -> bool:
    """Return whether two tensors are equal to rounding, in the scale of the largest entry."""
    if a.numel() == 0:
        return True
    scale = max(float(t.abs().max()) for t in (a, b, *([] if like is None else [like])))
    return float((a - b).abs().max()) <= 1e3 * torch.finfo(a.dtype).eps * scale
