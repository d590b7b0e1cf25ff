"""What changes over training, as functions of the step alone: nothing here has a state to save."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pursuitify.training.config import Config


@dataclass(frozen=True)
class Schedule:
    """Learning rate, sweeps and step scale at every step.

    Attributes:
        config: The configuration.
        steps: Steps of the whole training.
        sweeps: T at the end.
        scale: Step scale at the end.
    """

    config: Config
    steps: int
    sweeps: int
    scale: float

    def rate(self, step: int) -> float:
        """Return the factor on the learning rates at a step, counted from 0.

        A linear warm-up, then a cosine from 1 to ``final_lr`` (Loshchilov & Hutter 2017, without
        restarts).
        """
        warm = round(self.config.warmup * self.steps)
        if step < warm:
            return (step + 1) / (warm + 1)
        part = (step - warm) / max(self.steps - warm, 1)
        low = self.config.final_lr
        return low + (1 - low) * (1 + math.cos(math.pi * part)) / 2

    def iterations(self, step: int) -> int:
        """Return T at a step."""
        first = self.config.first_sweeps
        if first is None:
            return self.sweeps
        part = self._ramp(step, self.config.sweeps_ramp)
        return round(first + (self.sweeps - first) * part)

    def step_scale(self, step: int) -> float:
        """Return the step scale at a step."""
        return self.scale * self._ramp(step, self.config.step_ramp)

    def _ramp(self, step: int, fraction: float) -> float:
        length = fraction * self.steps
        return 1.0 if step >= length else step / length
