"""explain(): the dry run of a conversion. Raises nothing; says what every node becomes."""

from __future__ import annotations

import copy
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text
from torch import fx, nn

from pursuitify import checks
from pursuitify.classify import Sites, Value, classify, problems
from pursuitify.errors import Problem, PursuitifyError
from pursuitify.graph import (
    Layout,
    Row,
    build,
    check_complete,
    needed_operations,
    to_networkx,
)
from pursuitify.lower import lower
from pursuitify.picture import block_picture
from pursuitify.rules import Key, Rule, default
from pursuitify.trace import LeafModule, describe, module_path, trace


@dataclass(frozen=True)
class Entry:
    """What one node becomes.

    Attributes:
        node: The fx node's name.
        op: What it does.
        module: Path of the module it belongs to.
        role: ``latent``, ``identity latent``, ``diagonal operator``, ``edge``, ``head``,
            ``frozen``, ``frozen gate``, ``constant``, ``input``, ``output``, ``unused`` or
            ``refused``.
        note: Reason or hint, if there is one.
    """

    node: str
    op: str
    module: str
    role: str
    note: str = ""


@dataclass(frozen=True)
class Report:
    """The dry run of a conversion.

    Attributes:
        model: Name of the model's class.
        ok: Whether it converts.
        problems: Why not, all at once.
        entries: Every node of the traced graph, in order.
        latents: Number of latents that are activations.
        identity_latents: Number of identity latents.
        edges: Number of paths between latents, the input's included.
        decoder_rows: Rows with the weighted operator on the diagonal.
        encoder_rows: Rows with the identity on the diagonal.
        gates: Multiplicative gates frozen at the feed-forward pass.
        weighted_per_sweep: Applications of weighted operators per sweep, forward and adjoint.
        latent_bytes: Memory of all latents for one sample, if an input shape was given.
        picture: The block structure of the dictionary, in text.
    """

    model: str
    ok: bool
    problems: tuple[Problem, ...]
    entries: tuple[Entry, ...] = ()
    latents: int = 0
    identity_latents: int = 0
    edges: int = 0
    decoder_rows: int = 0
    encoder_rows: int = 0
    gates: int = 0
    weighted_per_sweep: int = 0
    latent_bytes: int | None = None
    picture: str = field(default="", repr=False)

    def _facts(self) -> list[tuple[str, str]]:
        facts = [
            ("latents", f"{self.latents} + {self.identity_latents} identity"),
            ("edges", str(self.edges)),
            ("rows", f"{self.decoder_rows} decoder, {self.encoder_rows} encoder"),
            ("frozen gates", str(self.gates)),
            ("weighted operators per sweep", str(self.weighted_per_sweep)),
        ]
        if self.latent_bytes is not None:
            facts.append(("latents of one sample", f"{self.latent_bytes / 2**20:.2f} MiB"))
        return facts

    def __rich__(self) -> RenderableType:
        """Render for a terminal."""
        parts: list[RenderableType] = [Text(self._headline(), style="bold")]
        if self.entries:
            table = Table("node", "op", "module", "role", "note")
            for e in self.entries:
                table.add_row(e.node, e.op, e.module, e.role, e.note)
            parts.append(table)
        if self.ok:
            facts = Table(show_header=False)
            for name, value in self._facts():
                facts.add_row(name, value)
            parts += [facts, Text(self.picture)]
        parts += [Text(f"- {p}", style="red") for p in self.problems]
        return Group(*parts)

    def _headline(self) -> str:
        if self.ok:
            return f"{self.model} converts"
        return f"{self.model} does not convert: {len(self.problems)} problem(s)"

    def __str__(self) -> str:
        """Return the report as text."""
        out = io.StringIO()
        Console(file=out, width=140).print(self)
        return out.getvalue()

    def markdown(self) -> str:
        """Return the report as Markdown."""
        lines = [f"## {self._headline()}", ""]
        if self.ok:
            lines += ["| what | value |", "| --- | --- |"]
            lines += [f"| {name} | {value} |" for name, value in self._facts()]
            lines += ["", "```", self.picture, "```", ""]
        lines += [f"- {p}" for p in self.problems]
        if self.entries:
            lines += ["", "| node | op | module | role | note |", "| --- | --- | --- | --- | --- |"]
            lines += [
                f"| {e.node} | {e.op} | {e.module} | {e.role} | {e.note} |" for e in self.entries
            ]
        return "\n".join(lines) + "\n"


def explain(
    model: nn.Module,
    layout: Layout = "auto",
    *,
    input_shape: Sequence[int] | None = None,
    rules: Mapping[Key, Rule] | None = None,
    leaf_modules: Sequence[LeafModule] = (),
) -> Report:
    """Say what a conversion would do, node by node, without converting.

    Args:
        model: The model; never changed.
        layout: As for ``pursuitify``.
        input_shape: Shape of one sample, for the memory estimate; nothing is allocated.
        rules: As for ``pursuitify``.
        leaf_modules: As for ``pursuitify``.

    Returns:
        A report; ``report.ok`` can be asserted on, ``str(report)`` read.
    """
    name = type(model).__name__
    try:
        checks.model(model)
        checks.one_of("layout", layout, checks.LAYOUTS)
        traced = trace(model, training=model.training, leaf_modules=leaf_modules)
        sites = classify(traced.graph, model, default().extended(rules or {}))
    except PursuitifyError as error:
        return Report(name, False, _problems_of(error, name))
    found = problems(traced.graph, model, sites)
    if found or not any(s.value is Value.LATENT for s in sites.values()):
        found = found or [_nothing(name)]
        entries = _entries(traced.graph, model, sites, (), {p.node: p for p in found})
        return Report(name, False, tuple(found), entries)
    try:
        rows = build(traced.graph, model, sites, layout)
        check_complete(traced.graph, sites, rows)
    except PursuitifyError as error:
        return Report(name, False, _problems_of(error, name))
    identity = sum(row.identity for row in rows)
    decoder = sum(row.layout == "decoder" for row in rows)
    return Report(
        model=name,
        ok=True,
        problems=(),
        entries=_entries(traced.graph, model, sites, rows, {}),
        latents=len(rows) - identity,
        identity_latents=identity,
        edges=sum(len(list(row.paths)) for row in rows),
        decoder_rows=decoder,
        encoder_rows=len(rows) - decoder,
        gates=_gates(sites, rows),
        weighted_per_sweep=2 * _weighted(sites, rows),
        latent_bytes=None
        if input_shape is None
        else _latent_bytes(model, traced.graph, sites, rows, input_shape),
        picture=block_picture(to_networkx(rows, sites, model)),
    )


def _problems_of(error: PursuitifyError, name: str) -> tuple[Problem, ...]:
    listed: tuple[Problem, ...] = getattr(error, "problems", ())
    return listed or (Problem("-", name, "", str(error), ""),)


def _nothing(name: str) -> Problem:
    return Problem(
        "-",
        name,
        "",
        "it has no activation of the ReLU family on its way from input to output",
        "There is nothing to pursue: convert a model that has one",
    )


def _gated(sites: Sites, rows: Sequence[Row]) -> list[fx.Node]:
    """Products with a gate that stand in the rows."""
    found = []
    for node in needed_operations(rows):
        site = sites[node]
        if site.rule is None or site.rule.kind != "product" or site.call is None:
            continue
        others = [o for o in site.call.operands if isinstance(o, fx.Node) and o is not site.unary]
        if any(sites[o].value is Value.FROZEN for o in others):
            found.append(node)
    return found


def _gates(sites: Sites, rows: Sequence[Row]) -> int:
    return len(_gated(sites, rows))


def _weighted(sites: Sites, rows: Sequence[Row]) -> int:
    return sum(rule.kind == "weighted" for n in needed_operations(rows) if (rule := sites[n].rule))


_ROLES = {
    Value.INPUT: "input",
    Value.CONSTANT: "constant",
    Value.SHAPE: "constant",
    Value.FROZEN: "frozen",
}


def _entries(
    graph: fx.Graph,
    root: nn.Module,
    sites: Sites,
    rows: Sequence[Row],
    refused: Mapping[str, Problem],
) -> tuple[Entry, ...]:
    latents = {row.node: row for row in rows}
    edges = needed_operations(rows)
    diagonal = {n: row for row in rows for n in row.diagonal}
    gated = set(_gated(sites, rows))
    useful: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        if node.op == "output" or any(u in useful for u in node.users):
            useful.add(node)

    def entry(node: fx.Node) -> Entry:
        note = ""
        if node.op == "output":
            return Entry(node.name, "output", "", "output")
        role = _ROLES.get(sites[node].value, "")
        if node.name in refused:
            role, note = "refused", f"{refused[node.name].reason}. {refused[node.name].hint}"
        elif node in latents:
            row = latents[node]
            role = "identity latent" if row.identity else "latent"
            note = f"{row.layout} row {row.index}"
        elif node in diagonal:
            role, note = "diagonal operator", f"B of {diagonal[node].name}"
        elif node in gated:
            role, note = "frozen gate", "a diagonal scale, fixed at the feed-forward pass"
        elif node in edges:
            role = "edge"
        elif not role:
            role = "head" if node in useful else "unused"
        return Entry(node.name, describe(node, root), module_path(node), role, note)

    return tuple(entry(node) for node in graph.nodes)


def _latent_bytes(
    model: nn.Module,
    graph: fx.Graph,
    sites: Sites,
    rows: tuple[Row, ...],
    shape: Sequence[int],
) -> int:
    """Run the feed-forward pass on the meta device and add up the latents."""
    tensors = [*model.parameters(), *model.buffers()]
    memo: dict[int, Any] = {id(t): torch.empty_like(t, device="meta") for t in tensors}
    twin = copy.deepcopy(model, memo).eval()
    like = next((t for t in tensors if t.is_floating_point()), torch.empty(0))
    x = torch.empty(1, *shape, device="meta", dtype=like.dtype)
    with torch.no_grad():
        first = lower(graph, twin, sites, rows).forward(twin, x)
    return sum(w.numel() * w.element_size() for w in first.latents)


def summary(report: Report) -> Counter[str]:
    """Count the nodes by role."""
    return Counter(entry.role for entry in report.entries)


__all__ = ["Entry", "Report", "explain", "summary"]
