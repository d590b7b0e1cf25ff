"""Seeds as a function of where training stands: resuming needs no generator's state."""

from __future__ import annotations

import numpy as np

# What a seed is for; the numbers are part of what makes a run repeat.
ORDER, ITEM, STEP, ATTACK, PENALTY, SOURCE, NOISE = range(7)


def derived(*numbers: int) -> int:
    """Return a seed of 32 bits that depends on every number."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])
