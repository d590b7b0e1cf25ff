"""Function-preserving rescaling of latents before conversion (``pursuitify(balance=True)``).

ReLU and LeakyReLU are positively homogeneous: a latent may be multiplied by s > 0 if the weights
that make it are multiplied by s and those that read it divided by s. The source does not change;
the objective of pursuit does, because its rows are weighed otherwise. The scales are chosen from
the weights alone: the gains of the rows, how much each operator enlarges what it reads, are
brought as near to one as the graph allows (least squares of their logarithms).

Which values can be moved at all, and which only together, is said in ``scale_groups``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import networkx as nx
import torch
from rich.table import Table
from torch import nn

from pursuitify.compiler.equalization.row_gains import gains_of
from pursuitify.compiler.equalization.scale_groups import (
    ONE,
    Point,
    absorbers,
    differ,
    reason,
    ties_of,
)
from pursuitify.compiler.lowering.program import Program
from pursuitify.errors import OptionError
from pursuitify.utils.terminal import Shown, as_text


@dataclass(frozen=True)
class Balance(Shown):
    """The outcome of a rescaling of latents.

    Attributes:
        scales: Factor by latent, in graph order; 1 where it could not be moved.
        fixed: Latents that could not be moved, with the reason.
        before: Per row that reads a latent or the input, the logarithm of its gain before.
        after: The same after.
    """

    scales: dict[str, float]
    fixed: dict[str, str]
    before: dict[str, float]
    after: dict[str, float]

    def table(self) -> Table:
        """Return a rich table, one line per latent."""
        table = Table(title="latents rescaled before conversion")
        for heading in ("latent", "scale", "gain before", "gain after", "why 1"):
            table.add_column(heading, justify="left" if heading in ("latent", "why 1") else "right")
        for name, scale in self.scales.items():
            gains = [
                f"{math.exp(values[name]):.3g}" if name in values else "-"
                for values in (self.before, self.after)
            ]
            table.add_row(name, f"{scale:.4g}", *gains, self.fixed.get(name, ""))
        return table

    def __rich__(self) -> Table:
        return self.table()

    def __str__(self) -> str:
        """Return the table as text."""
        return as_text(self, width=120)


def balance(model: nn.Module, programs: Mapping[bool, Program]) -> Balance:
    """Rescale the latents of a model in place; its outputs stay what they are, to rounding.

    Args:
        model: The model; its parameters are changed.
        programs: Its compiled form, by mode.

    Raises:
        OptionError: If a parameter is on the meta device.
    """
    if any(p.is_meta for p in model.parameters()):
        raise OptionError("balance=True reads the weights, and this model is on the meta device")
    ties = ties_of(model, programs)
    members = list(nx.connected_components(ties))
    group = {point: k for k, points in enumerate(members) for point in points}
    program = programs[False]
    edges = list(gains_of(model, program))
    logs = _solve([(group[False, a], group[False, b], g) for a, b, _, g in edges], group[ONE])
    scale = {point: logs.get(k, 0.0) for point, k in group.items()}
    _absorb(model, programs, scale)
    moved = [(name, g + scale[False, b] - scale[False, a]) for a, b, name, g in edges]
    return Balance(
        {row.name: math.exp(scale[False, program.nodes[row.name]]) for row in program.rows},
        {
            row.name: reason(ties, (False, program.nodes[row.name]))
            for row in program.rows
            if group[False, program.nodes[row.name]] == group[ONE]
        },
        _mean([(name, g) for _, _, name, g in edges]),
        _mean(moved),
    )


def _mean(gains: list[tuple[str, float]]) -> dict[str, float]:
    found: dict[str, list[float]] = {}
    for name, gain in gains:
        found.setdefault(name, []).append(gain)
    return {name: sum(values) / len(values) for name, values in found.items()}


def _solve(edges: list[tuple[int, int, float]], one: int) -> dict[int, float]:
    """Return the logarithm of each group's scale: least squares of the rows' gains, one fixed."""
    moving = sorted({k for a, b, _ in edges if a != b for k in (a, b)} - {one})
    if not moving:
        return {}
    place = {k: i for i, k in enumerate(moving)}
    matrix = torch.zeros(len(edges), len(moving), dtype=torch.float64)
    gains = torch.tensor([g for _, _, g in edges], dtype=torch.float64)
    for i, (a, b, _) in enumerate(edges):
        if b in place:
            matrix[i, place[b]] += 1
        if a in place:
            matrix[i, place[a]] -= 1
    solution = torch.linalg.lstsq(matrix, -gains[:, None], driver="gelsd").solution[:, 0]
    return {k: float(solution[i]) for k, i in place.items()}


@torch.no_grad()
def _absorb(
    model: nn.Module, programs: Mapping[bool, Program], scale: Mapping[Point | str, float]
) -> None:
    able = absorbers(model, programs)
    done: set[str] = set()
    for mode in (False, True) if differ(programs) else (False,):
        for node, site in programs[mode].sites.items():
            path = str(node.target)
            if node.op != "call_module" or path not in able or path in done:
                continue
            done.add(path)
            assert site.unary is not None
            out, into = math.exp(scale[mode, node]), math.exp(scale[mode, site.unary])
            module = able[path]
            for name, factor in (("weight", out / into), ("bias", out)):
                parameter = module._parameters.get(name)
                if parameter is not None and factor != 1:
                    parameter.mul_(factor)
