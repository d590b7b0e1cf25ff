"""The report of explain(), and its forms on a terminal, as text and as Markdown."""

from __future__ import annotations

from dataclasses import dataclass, field

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from pursuitify.errors import Problem
from pursuitify.utils.terminal import Shown, as_text


@dataclass(frozen=True)
class Entry:
    """The role of one node in the conversion.

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
class Report(Shown):
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
        warnings: What a reader should know, for example a latent that may run away.
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
    warnings: tuple[str, ...] = ()
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
        parts += [Text(f"warning: {w}", style="yellow") for w in self.warnings]
        parts += [Text(f"- {p}", style="red") for p in self.problems]
        return Group(*parts)

    def _headline(self) -> str:
        if self.ok:
            return f"{self.model} converts"
        return f"{self.model} does not convert: {len(self.problems)} problem(s)"

    def __str__(self) -> str:
        """Return the report as text."""
        return as_text(self, width=140)

    def markdown(self) -> str:
        """Return the report as Markdown."""
        lines = [f"## {self._headline()}", ""]
        if self.ok:
            lines += ["| what | value |", "| --- | --- |"]
            lines += [f"| {name} | {value} |" for name, value in self._facts()]
            lines += ["", "```", self.picture, "```", ""]
        lines += [f"- warning: {w}" for w in self.warnings]
        lines += [f"- {p}" for p in self.problems]
        if self.entries:
            lines += ["", "| node | op | module | role | note |", "| --- | --- | --- | --- | --- |"]
            lines += [
                f"| {e.node} | {e.op} | {e.module} | {e.role} | {e.note} |" for e in self.entries
            ]
        return "\n".join(lines) + "\n"
