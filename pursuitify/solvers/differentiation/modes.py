"""The derivative modes: what a pass keeps for the derivatives of its sweeps.

A mode is a frozen record of its own options with one method, ``solve``, which returns the latents
after the last sweep. Outputs are the same in every mode, and so are derivatives but with
:class:`ImplicitMode`, which approximates. Where no derivative is recorded, and under torch.compile
(whose own partitioner decides what is kept), every mode is plain unrolling. Add a mode by a class
here, or in a file of its own, and one entry in ``MODES``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from pursuitify.errors import OptionError
from pursuitify.solvers.differentiation.implicit import Solves, implicit
from pursuitify.solvers.solver import Latents, Solver, SolverInput

Report = Callable[[Solves], None]


@dataclass(frozen=True)
class StoreMode:
    """Plain unrolling: autograd keeps what it needs of every sweep.

    Attributes:
        name: The value of ``net.memory`` that selects the mode.
        exact: Whether its derivatives are those of the sweeps, to rounding.
        records_sweeps: Whether autograd records every sweep as it runs, so that latents between
            sweeps may be differentiated too.
    """

    name: ClassVar[str] = "store"
    exact: ClassVar[bool] = True
    records_sweeps: ClassVar[bool] = True

    def solve(self, solver: Solver, given: SolverInput, report: Report) -> Latents:
        """Return the latents after the last sweep."""
        return solver.last(given)


@dataclass(frozen=True)
class RecomputeMode:
    """The derivatives of plain unrolling, to rounding, from the latents of the sweeps alone.

    Attributes:
        recompute_levels: 1 keeps the latents of every sweep, 2 those of every sqrt(T)-th.
    """

    name: ClassVar[str] = "recompute"
    exact: ClassVar[bool] = True
    records_sweeps: ClassVar[bool] = False
    recompute_levels: int = 1

    def solve(self, solver: Solver, given: SolverInput, report: Report) -> Latents:
        """Return the latents after the last sweep.

        Raises:
            OptionError: If an operation holds a tensor where it cannot be found.
        """
        return solver.recomputed(given, self.recompute_levels)


@dataclass(frozen=True)
class ImplicitMode:
    """Derivatives at the last iterate, or through the last sweeps: approximate, least memory.

    Attributes:
        implicit_last: Differentiate through the last k sweeps; None solves at the last iterate.
        implicit_iterations: Most iterations of the adjoint solve.
        implicit_tolerance: The relative residual where the adjoint solve stops.
    """

    name: ClassVar[str] = "implicit"
    exact: ClassVar[bool] = False
    records_sweeps: ClassVar[bool] = False
    implicit_last: int | None = None
    implicit_iterations: int = 50
    implicit_tolerance: float = 1e-3

    def solve(self, solver: Solver, given: SolverInput, report: Report) -> Latents:
        """Return the latents after the last sweep; ``report`` hears of each backward solve.

        Raises:
            OptionError: If the solver's latents minimise no objective, or an operation holds a
                tensor where it cannot be found.
        """
        if not solver.minimises:
            raise OptionError(
                f"memory={self.name!r} has no meaning for solver={solver.name!r}, whose latents "
                "minimise no common objective: use memory='store' or 'recompute', or the global "
                "solver"
            )
        if self.implicit_last is not None:
            if self.implicit_last < given.count:
                return solver.through_last(given, self.implicit_last)
            return solver.last(given)
        return implicit(
            given.dictionary,
            lambda: solver.sweeps(given, observed=False),
            given.steps,
            given.extrapolation if solver.extrapolates else None,
            self.implicit_iterations,
            self.implicit_tolerance,
            report,
        )


Mode = StoreMode | RecomputeMode | ImplicitMode
MODES: dict[str, type[Mode]] = {
    mode.name: mode for mode in (StoreMode, RecomputeMode, ImplicitMode)
}


def mode_of(name: str, options: Mapping[str, Any]) -> Mode:
    """Return the mode of a name with the options that it reads, out of all of a network's."""
    mode = MODES[name]
    return mode(**{field.name: options[field.name] for field in fields(mode)})
