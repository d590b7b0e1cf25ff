"""What is kept for the derivatives of the sweeps: less than plain unrolling keeps.

``store``
    Plain unrolling: autograd keeps what it needs of every sweep.
``recompute``
    The same derivatives, to rounding, from the latents of the sweeps (``recompute.py``); of the
    layered and the synchronous solver by checkpoints (``checkpoints.py``).
``implicit``
    Derivatives at the last iterate (``implicit.py``), or through the last k sweeps (``last.py``).
    Approximate: read there when they are biased.

Outputs are the same in every mode. Where no derivative is recorded, and under torch.compile (whose
own partitioner decides what is kept), every mode is plain unrolling.
"""

from pursuitify.solvers.differentiation.dispatch import solve
from pursuitify.solvers.differentiation.implicit import ImplicitWarning
from pursuitify.solvers.settings import Solves

__all__ = ["ImplicitWarning", "Solves", "solve"]
