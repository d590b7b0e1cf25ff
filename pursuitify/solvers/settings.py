"""The options that a user may set on a pursuit network at any time: one checked property each.

``OPTIONS`` is the one list: ``pursuitify()`` takes each by keyword, a checkpoint keeps each.
"""

from __future__ import annotations

from typing import Any, TypedDict

from torch import nn

from pursuitify.errors import OptionError
from pursuitify.solvers.differentiation.implicit import Solves
from pursuitify.solvers.differentiation.modes import MODES, Mode, StoreMode, mode_of
from pursuitify.solvers.global_pursuit import GlobalPursuit
from pursuitify.solvers.registry import SOLVERS
from pursuitify.solvers.solver import Solver
from pursuitify.utils import option_checks

#: The values of ``steps``: proven bounds, or a line search.
CERTIFIED, ADAPTIVE = "certified", "adaptive"
#: The values of ``offsets``: where the offset of an encoder row stands.
THRESHOLD, SIGNAL, STATIONARY = "threshold", "signal", "stationary"
#: The values of ``norm_bounds``: for images of which sizes the norms of convolutions are bounded.
ANY_SIZE, IMAGE = "any size", "image"
#: Option -> the value it has unless it is set.
OPTIONS: dict[str, Any] = {
    "iterations": 10,
    "solver": GlobalPursuit.name,
    "steps": CERTIFIED,
    "norm_bounds": ANY_SIZE,
    "step_scale": 1.0,
    "threshold_scale": 1.0,
    "offsets": SIGNAL,
    "stationary_share": 1.0,
    "memory": StoreMode.name,
    "recompute_levels": 1,
    "implicit_last": None,
    "implicit_iterations": 50,
    "implicit_tolerance": 1e-3,
}


class NetworkOptions(TypedDict, total=False):
    """The types of ``OPTIONS``, for signatures, without those that ``pursuitify()`` names itself.

    What each does stands at the property of its name in ``Settings``.
    """

    steps: str
    norm_bounds: str
    step_scale: float
    threshold_scale: float
    offsets: str
    stationary_share: float
    memory: str
    recompute_levels: int
    implicit_last: int | None
    implicit_iterations: int
    implicit_tolerance: float


#: Options that files of earlier versions do not hold -> what their networks did.
LATER_OPTIONS: dict[str, Any] = {
    "steps": CERTIFIED,
    "norm_bounds": ANY_SIZE,
    "offsets": THRESHOLD,
    "stationary_share": 1.0,
}

#: The values of ``steps``, and whether steps adapt there.
STEPS = {CERTIFIED: False, ADAPTIVE: True}

#: The values of ``norm_bounds``, and whether they are for the image at hand.
NORM_BOUNDS = {ANY_SIZE: False, IMAGE: True}

#: The values of ``offsets``, and whether offsets of encoder rows stand in the signal there.
OFFSETS = {THRESHOLD: False, SIGNAL: True, STATIONARY: True}

#: The values of ``self_check``: when a network proves itself.
FIRST, OFF = "first", "off"


class Settings(nn.Module):
    """The options of a pursuit network; each is checked where it is set."""

    _self_check = FIRST
    _solver = GlobalPursuit.name
    _steps = CERTIFIED
    _norm_bounds = ANY_SIZE

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self._solves: Solves | None = None
        for name, value in settings.items():
            setattr(self, name, value)

    @property
    def iterations(self) -> int:
        """T, the number of sweeps; 0 is the source network."""
        return self._iterations

    @iterations.setter
    def iterations(self, value: int) -> None:
        self._iterations = option_checks.count("iterations", value)

    @property
    def solver(self) -> str:
        """``global``, ``layered``, ``synchronous`` or ``feedforward``."""
        return self._solver

    @solver.setter
    def solver(self, value: str) -> None:
        solver = option_checks.chosen("solver", value, SOLVERS)
        _refuse_adapting(solver, self._steps)
        self._solver = value

    @property
    def steps(self) -> str:
        """The rule of the step sizes, ``certified``, or (with ``global`` alone) ``adaptive``.

        Certified steps are gamma_j = 1 / (beta_j L_j) with proven bounds L_j. Adaptive ones follow
        the curvature met, each with an exact line search per sample and latent: fewer sweeps to
        the same objective, which never rises, and no bound of any norm. There beta_j divides the
        estimate of 1 / L_j that they start from, and alpha_j is not used
        (mathematics.md, section 5).
        """
        return self._steps

    @steps.setter
    def steps(self, value: str) -> None:
        option_checks.one_of("steps", value, tuple(STEPS))
        _refuse_adapting(SOLVERS[self._solver], value)
        self._steps = value

    @property
    def norm_bounds(self) -> str:
        """For which images the norms of convolutions are bounded, ``any size`` or ``image``.

        ``any size``: images of every size, at a cost that the kernel alone decides. ``image``:
        those of the size at hand. These bounds are smaller, so that steps are longer, and cost far
        less where images are small; where they would cost more, the ones for any size are taken.
        Steps then depend on the image size, and are searched again at each new one. Certified and
        estimated norms alike; adaptive steps need none (mathematics.md, section 5).
        """
        return self._norm_bounds

    @norm_bounds.setter
    def norm_bounds(self, value: str) -> None:
        self._norm_bounds = option_checks.one_of("norm_bounds", value, tuple(NORM_BOUNDS))

    @property
    def bounds_on_image(self) -> bool:
        """Whether norms are bounded for images of the size at hand."""
        return NORM_BOUNDS[self._norm_bounds]

    @property
    def step_scale(self) -> float:
        """Factor on every step gamma_j, from 0 (the source, at any T) to 1.

        The synchronous solver starts at zero, not at the source's latents: there a small factor
        is far from the source, and 0 alone is the source.
        """
        return self._step_scale

    @step_scale.setter
    def step_scale(self, value: float) -> None:
        self._step_scale = option_checks.factor("step_scale", value, 1.0)

    @property
    def threshold_scale(self) -> float:
        """Factor, at least 0, on the positive thresholds of sparse latents in the sweeps.

        Negative thresholds (positive biases) and offsets of identity latents stay as they are,
        and so does the feed-forward pass: T = 0 is the source at any value
        (mathematics.md, section 2).
        """
        return self._threshold_scale

    @threshold_scale.setter
    def threshold_scale(self, value: float) -> None:
        self._threshold_scale = option_checks.factor("threshold_scale", value)

    @property
    def offsets(self) -> str:
        """The place of the affine offset b_j of encoder rows (mathematics.md, section 1).

        ``threshold``: lam_j = -b_j, as the paper has it. ``signal``: y_j = b_j and lam_j = 0, so
        that at the feed-forward latents an active unit has no residual, and sweeps change less of
        what a trained network computes. ``stationary``: lam_j is what an encoder row's residual
        would be at the feed-forward latents of the input at hand, lam_j = w_j - u_j - b_j there,
        frozen as a gate is, and y_j = b_j + lam_j. Then no entry of an encoder row has a residual
        there, clipped units included, and only decoder rows ask latents to move; no certified
        radius holds. T = 0 and B are the same for all; decoder rows keep lam_j = -b_j.
        """
        return self._offsets

    @offsets.setter
    def offsets(self, value: str) -> None:
        self._offsets = option_checks.one_of("offsets", value, tuple(OFFSETS))

    @property
    def offsets_in_signal(self) -> bool:
        """Whether the offsets of encoder rows stand in the signal."""
        return OFFSETS[self._offsets]

    @property
    def stationary_share(self) -> float:
        """Share, from 0 to 1, of the thresholds of ``offsets="stationary"``; else of no effect.

        With 1 encoder rows are least at the feed-forward latents, and with 0 they are those of
        ``offsets="signal"``. Between them clipped units keep 1 less the share of their residuals,
        and the latents move farther the smaller it is.
        """
        return self._stationary_share

    @stationary_share.setter
    def stationary_share(self, value: float) -> None:
        self._stationary_share = option_checks.factor("stationary_share", value, 1.0)

    @property
    def start_share(self) -> float:
        """The share of residuals of the feed-forward pass in thresholds of encoder rows."""
        return self._stationary_share if self._offsets == STATIONARY else 0.0

    @property
    def memory(self) -> str:
        """The derivative mode, ``store``, ``recompute`` or ``implicit``.

        Outputs are the same, and so are derivatives but with ``implicit``, which approximates.
        """
        return self._memory

    @memory.setter
    def memory(self, value: str) -> None:
        self._memory = option_checks.one_of("memory", value, tuple(MODES))

    @property
    def recompute_levels(self) -> int:
        """Sweeps whose latents ``memory="recompute"`` keeps: all (1), or every sqrt(T)-th (2)."""
        return self._recompute_levels

    @recompute_levels.setter
    def recompute_levels(self, value: int) -> None:
        self._recompute_levels = option_checks.one_or_two("recompute_levels", value)

    @property
    def implicit_last(self) -> int | None:
        """Number of last sweeps that ``memory="implicit"`` differentiates instead of solving."""
        return self._implicit_last

    @implicit_last.setter
    def implicit_last(self, value: int | None) -> None:
        self._implicit_last = (
            None if value is None else option_checks.positive("implicit_last", value)
        )

    @property
    def implicit_iterations(self) -> int:
        """Most iterations of the adjoint solve of ``memory="implicit"``."""
        return self._implicit_iterations

    @implicit_iterations.setter
    def implicit_iterations(self, value: int) -> None:
        self._implicit_iterations = option_checks.positive("implicit_iterations", value)

    @property
    def implicit_tolerance(self) -> float:
        """Relative residual at which the adjoint solve of ``memory="implicit"`` stops.

        A warning is given where it, or the latents' distance from a fixed point, stays above.
        """
        return self._implicit_tolerance

    @implicit_tolerance.setter
    def implicit_tolerance(self, value: float) -> None:
        self._implicit_tolerance = option_checks.factor("implicit_tolerance", value)

    @property
    def solves(self) -> Solves | None:
        """The accuracy of the last backward pass with ``memory="implicit"``; None before it."""
        return self._solves

    @solves.setter
    def solves(self, value: Solves | None) -> None:
        self._solves = value

    @property
    def self_check(self) -> str:
        """``first``: the network proves itself at the first call with each program, dtype and size.

        ``off``: it does not; ``verify`` is there all the same. It is how the network is run, not
        what it is, so a checkpoint does not keep it. See :mod:`pursuitify.network.verification`.
        """
        return self._self_check

    @self_check.setter
    def self_check(self, value: str) -> None:
        self._self_check = option_checks.one_of("verify", value, (FIRST, OFF))

    def settings(self) -> dict[str, Any]:
        """Return every option with its value."""
        return {name: getattr(self, name) for name in OPTIONS}

    @property
    def pursues(self) -> bool:
        """Whether the latents differ from those of the feed-forward pass."""
        return self.iterations > 0 and self.pursuit_solver.pursues and self.step_scale > 0

    @property
    def pursuit_solver(self) -> Solver:
        """The solver that ``solver`` names."""
        return SOLVERS[self._solver]

    @property
    def adapts_steps(self) -> bool:
        """Whether steps adapt to the data."""
        return STEPS[self._steps]

    @property
    def derivative_mode(self) -> Mode:
        """The derivative mode that ``memory`` names, with its options."""
        return mode_of(self._memory, self.settings())


def _refuse_adapting(solver: Solver, steps: str) -> None:
    """Refuse adaptive steps to a solver that has none.

    Raises:
        OptionError: If it has none.
    """
    if STEPS[steps] and not solver.adapts:
        able = ", ".join(repr(name) for name, other in SOLVERS.items() if other.adapts)
        raise OptionError(
            f"steps={steps!r} is not known to solver={solver.name!r}, whose steps are fixed: set "
            f"steps={CERTIFIED!r}, or a solver that adapts ({able})"
        )


#: Attributes that hold the options, and what a backward pass reports.
HELD = (*(f"_{name}" for name in OPTIONS), "_solves", "_self_check")
