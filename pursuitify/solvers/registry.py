"""The solvers by name: what ``net.solver`` may be."""

from __future__ import annotations

from pursuitify.solvers.global_pursuit import GlobalPursuit
from pursuitify.solvers.layered import LayeredPursuit
from pursuitify.solvers.solver import Solver
from pursuitify.solvers.synchronous import SynchronousPursuit

SOLVERS: dict[str, Solver] = {
    solver.name: solver
    for solver in (GlobalPursuit(), LayeredPursuit(), SynchronousPursuit(), Solver())
}
