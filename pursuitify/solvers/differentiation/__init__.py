"""Derivatives of the sweeps by keeping less than plain unrolling keeps.

``store``
    Plain unrolling: autograd keeps what it needs of every sweep.
``recompute``
    The same derivatives, to rounding, from the latents of the sweeps (``recompute.py``); layered
    and synchronous pursuit use torch's own checkpoints.
``implicit``
    Derivatives at the last iterate (``implicit.py``), or through the last k sweeps
    (``truncated.py``). Approximate: the modules say when they are biased.

The modes themselves are in ``modes.py``.
"""

from pursuitify.solvers.differentiation.implicit import ImplicitWarning, Solves

__all__ = ["ImplicitWarning", "Solves"]
