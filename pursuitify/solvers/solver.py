"""The interface of a solver: how latents are inferred from a bound dictionary.

A solver says where it starts, which step sizes it takes, what its sweeps do, and what its
derivatives can be. Add one by a file with a subclass of :class:`Solver` and one entry in
``registry.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from pursuitify.dictionary.norm_bounds import Norms, lipschitz
from pursuitify.dictionary.structured import StructuredDictionary
from pursuitify.errors import OptionError
from pursuitify.solvers.line_search import LineSearch
from pursuitify.solvers.step_sizes import step_sizes

Latents = list[Tensor]
#: Returns a dictionary with its kernels packed, given it, the steps, and whether there is
#: extrapolation.
Pack = Callable[[StructuredDictionary, Sequence[Tensor], bool], StructuredDictionary]


@dataclass(frozen=True, eq=False)
class SolverInput:
    """The input of one run of a solver.

    Attributes:
        dictionary: The bound dictionary.
        feedforward: The latents of the feed-forward pass, in graph order.
        steps: gamma_j per latent; where steps adapt, the estimates of 1 / L_j that they start from.
        extrapolation: alpha_j per latent, or None for none.
        count: T, the number of sweeps, at least 1.
        pack: Packs the dictionary's kernels for sweeps in place; None where they stay as they are.
        search: The line search of adaptive steps; None where steps are fixed.
    """

    dictionary: StructuredDictionary
    feedforward: Sequence[Tensor]
    steps: Sequence[Tensor]
    extrapolation: Sequence[Tensor] | None
    count: int
    pack: Pack | None = None
    search: LineSearch | None = None

    def packed(self) -> SolverInput:
        """Return the input with its dictionary's kernels packed, if ``pack`` is given.

        Fixed steps are in the kernels. Adaptive ones are not known ahead, and their line search
        reads products before residuals do.
        """
        if self.pack is None:
            return self
        steps, keeps_products = self.steps, self.extrapolation is not None
        if self.search is not None:
            steps, keeps_products = [torch.ones((), device=s.device) for s in steps], True
        return replace(self, dictionary=self.pack(self.dictionary, steps, keeps_products))


class Solver:
    """A way of inferring latents; this base class is the feed-forward pass, which moves nothing.

    Attributes:
        name: The value of ``net.solver`` that selects it.
        pursues: Whether its latents differ from those of the feed-forward pass.
        minimises: Whether its fixed points minimise the objective F (11), so that implicit
            derivatives and derivatives of the last sweeps have a meaning.
        passes_through: Whether T sweeps pass through the latents of every smaller number of sweeps.
        extrapolates: Whether it uses alpha_j.
        packs_kernels: Whether its sweeps may run on packed kernels.
        adapts: Whether its steps may adapt: whether it knows ``SolverInput.search``.
    """

    name: ClassVar[str] = "feedforward"
    pursues: ClassVar[bool] = False
    minimises: ClassVar[bool] = False
    passes_through: ClassVar[bool] = True
    extrapolates: ClassVar[bool] = False
    packs_kernels: ClassVar[bool] = False
    adapts: ClassVar[bool] = False

    def start(self, given: SolverInput) -> Sequence[Tensor]:
        """Return the latents before the first sweep."""
        return given.feedforward

    def step_sizes(
        self, dictionary: StructuredDictionary, norms: Norms, betas: Sequence[Tensor]
    ) -> list[Tensor]:
        """Return gamma_j = 1 / (beta_j L_j) (18): a number or shape (batch, 1, ...) per latent.

        Args:
            dictionary: The bound dictionary.
            norms: Bounds of the norms of its weighted maps.
            betas: beta_j per latent.
        """
        constants, dtype = lipschitz(dictionary, norms), dictionary.inputs[0].dtype
        return step_sizes(constants, betas, dictionary.names, dtype)

    def sweeps(self, given: SolverInput, observed: bool = True) -> Iterator[Latents]:
        """Yield the latents after every sweep.

        Args:
            given: The input of the run.
            observed: Whether the caller keeps what a sweep yields after the next one. If not, its
                memory may be used again.
        """
        return iter(())

    def last(self, given: SolverInput) -> Latents:
        """Return the latents after the last sweep, differentiable by plain unrolling."""
        latents = list(given.feedforward)
        for swept in self.sweeps(given, observed=False):
            latents = swept
        return latents

    def recomputed(self, given: SolverInput, levels: int) -> Latents:
        """Return the same latents with the same derivatives, keeping less for them.

        Args:
            given: The input of the run.
            levels: 1 keeps the latents of every sweep, 2 those of every sqrt(T)-th; a solver that
                has one level alone keeps every sweep's.
        """
        raise OptionError(
            f"memory='recompute' is not known to solver={self.name!r}: use memory='store'"
        )

    def through_last(self, given: SolverInput, kept: int) -> Latents:
        """Return the same latents with derivatives through the last ``kept`` < T sweeps alone."""
        raise OptionError(f"implicit_last is not known to solver={self.name!r}: use memory='store'")
