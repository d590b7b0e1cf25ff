"""What a user may set on a pursuit network at any time: one checked property each.

``OPTIONS`` is the one list: ``pursuitify()`` takes each by keyword, a checkpoint keeps each.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from pursuitify import checks

#: Option -> the value it has unless it is set.
OPTIONS: dict[str, Any] = {"iterations": 10, "solver": "global"}


class Settings(nn.Module):
    """The options of a pursuit network; each is checked where it is set."""

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        for name, value in settings.items():
            setattr(self, name, value)

    @property
    def iterations(self) -> int:
        """T, the number of sweeps; 0 is the source network."""
        return self._iterations

    @iterations.setter
    def iterations(self, value: int) -> None:
        self._iterations = checks.count("iterations", value)

    @property
    def solver(self) -> str:
        """``global``, ``layered``, ``synchronous`` or ``feedforward``."""
        return self._solver

    @solver.setter
    def solver(self, value: str) -> None:
        self._solver = checks.one_of("solver", value, checks.SOLVERS)

    def settings(self) -> dict[str, Any]:
        """Return every option with its value."""
        return {name: getattr(self, name) for name in OPTIONS}

    @property
    def _pursues(self) -> bool:
        """Whether the latents differ from those of the feed-forward pass."""
        return self.iterations > 0 and self.solver != "feedforward"


#: Attributes that hold the options.
HELD = tuple(f"_{name}" for name in OPTIONS)
