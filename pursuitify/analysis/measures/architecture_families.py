"""Families of architectures compared before training: the least frame potential by their size."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from pursuitify.analysis.measures.min_frame_potential import minimum_frame_potential
from pursuitify.compiler.graph.rows import Layout
from pursuitify.errors import OptionError
from pursuitify.utils import option_checks

#: Per family its (size, least frame potential) points, as ``plot_families`` draws them.
Points = dict[str, list[tuple[float, float]]]


class ReadsBack(nn.Module):
    """A stack of 3x3 convolutions in which every layer reads several of the latents before it.

    ``reach`` 1 is a chain. More are added to the pre-activation (``join="add"``) or concatenated to
    what the convolution reads (``join="cat"``).
    """

    def __init__(
        self, reach: int = 1, join: str = "add", *, width: int = 4, depth: int = 6, inputs: int = 3
    ) -> None:
        """Make the layers.

        Args:
            reach: How many of the latents before it a layer reads.
            join: ``add`` or ``cat``.
            width: Channels of every latent.
            depth: Number of layers.
            inputs: Channels of the input.

        Raises:
            OptionError: If an option has no such value.
        """
        super().__init__()
        option_checks.one_of("join", join, ("add", "cat"))
        if min(reach, width, depth, inputs) < 1:
            raise OptionError("reach, width, depth and inputs must be at least 1")
        self.reach, self.join = reach, join
        read = [min(reach, n) if join == "cat" else 1 for n in range(1, depth)]
        sizes = [inputs, *(width * n for n in read)]
        self.layers = nn.ModuleList(nn.Conv2d(n, width, 3, padding=1) for n in sizes)
        self.head = nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, (batch, 2), of images (batch, inputs, H, W)."""
        latents: list[Tensor] = []
        for layer in self.layers:
            before = latents[-self.reach :]
            if not before:
                value = layer(x)
            elif self.join == "cat":
                value = layer(torch.cat(before, 1))
            else:
                value = sum(before[:-1], layer(before[-1]))
            latents.append(torch.relu(value))
        out: Tensor = self.head(latents[-1].mean((2, 3)))
        return out


def minima(
    families: Mapping[str, Callable[[int], nn.Module]],
    sizes: Sequence[int],
    input_shape: Sequence[int],
    *,
    layout: Layout = "auto",
    seeds: int = 2,
    steps: int = 40,
    advance: Callable[[str, int, float], None] | None = None,
) -> Points:
    """Return the least frame potential that was found for every member of some families.

    Args:
        families: Per family what makes its member of a size.
        sizes: The sizes.
        input_shape: Shape of one input.
        layout: Layout of the rows.
        seeds: Starts per member, see ``minimum_frame_potential``.
        steps: Iterations per start.
        advance: Called with (family, size, value) after each member.
    """
    found: Points = {name: [] for name in families}
    for name, size in _members(families, sizes):
        least = minimum_frame_potential(
            families[name](size),
            input_shape,
            layout=layout,
            method="optimise",
            seeds=seeds,
            steps=steps,
        )
        found[name].append((float(size), least.value))
        if advance is not None:
            advance(name, size, least.value)
    return found


def _members(families: Mapping[str, object], sizes: Sequence[int]) -> Iterator[tuple[str, int]]:
    return itertools.product(families, sizes)
